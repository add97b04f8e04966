"""PixClipTextEmbeddings: shards again, with a language model's embeddings of their texts. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from orchestrator.artifacts import Shards
from orchestrator.records import incidental, record
from orchestrator.stage import Stage, StageContext
from stages.folders import folder_fault, read_settings, stamps_of
from stages.pixclip.config import TEXTS_FACT, EncoderConfig


class PixClipTextEmbeddings(Stage):
    """Lets a frozen language model read every text once, so that no training step needs it.

    With Llama-3-8B a text takes 8 kB in bf16; LLM2CLIP stores its vectors in the same way, beside each tar.
    """

    keeps_parts: ClassVar[bool] = True

    @record
    class Config:
        """By which language model, how exactly, and how many texts at a time."""

        encoder: EncoderConfig
        precision: Literal["bf16", "fp32"] = "bf16"  # what it computes in, and what is kept
        samples_at_once: int = incidental(default=16)

        def __post_init__(self) -> None:
            """Checks ranges."""
            if self.samples_at_once < 1:
                raise ValueError(f"samples_at_once must be above 0, not {self.samples_at_once}")

    @record
    class Inputs:
        """Whose texts."""

        shards: Shards

    @record
    class Outputs:
        """The same samples in the same tars, each with a member more."""

        shards: Shards

    def faults(self) -> Mapping[str, str]:
        """Finds a folder that is not there."""
        fault = folder_fault(self.config.encoder.path)
        return {} if fault is None else {"config.encoder.path": fault}

    def outside(self) -> Mapping[str, str]:
        """Watches the files of the folder."""
        return stamps_of([self.config.encoder.path])

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Says how long the embeddings will be, and of how many tokens."""
        encoder = self.config.encoder
        if self.faults():
            return {}
        texts = {"size": read_settings(encoder.path).get("hidden_size"), "max_tokens": encoder.max_tokens}
        return {"shards": {**inputs.get("shards", {}), TEXTS_FACT: texts}}

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.pixclip.embedding",)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Embeds, every rank its tars; the first one reports. Collective: every rank must call."""
        from stages.pixclip.embedding import embed_texts

        return {"shards": embed_texts(self.config, self.inputs.shards, self.outputs.shards, context)}
