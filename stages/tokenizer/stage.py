"""LearnTokenizer: shards in, a small tokenizer out. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from orchestrator.artifacts import Shards, Tokenizer
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext


class LearnTokenizer(Stage):
    """Learns a small tokenizer from the texts of shards, with T5's special tokens: padding, end, unknown."""

    @record
    class Config:
        """How large, and from how much."""

        vocabulary_size: int = 1000  # the 256 bytes and the three special tokens included
        attached: bool = False  # a word and the punctuation at its end may be one token, as in T5's own vocabulary
        samples: int = 2000  # read from each input
        texts: list[str] = field(default_factory=list)  # more of them, such as prompts, each as often as a frequent one

        def __post_init__(self) -> None:
            """Checks ranges."""
            if self.vocabulary_size < 300:
                raise ValueError(
                    f"vocabulary_size must be 300 or more (every byte is a token), not {self.vocabulary_size}"
                )
            if self.samples < 1:
                raise ValueError(f"samples must be above 0, not {self.samples}")

    @record
    class Inputs:
        """Whatever the model will read."""

        shards: dict[str, Shards]

    @record
    class Outputs:
        """A folder in the layout of Hugging Face transformers."""

        tokenizer: Tokenizer

    def faults(self) -> Mapping[str, str]:
        """Misses something to learn from."""
        return {} if self.inputs.shards else {"inputs.shards": "needs at least one entry"}

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Says how many tokens there will be, at most."""
        del inputs
        return {"tokenizer": {"tokens": self.config.vocabulary_size}}

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.tokenizer.learning",)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Learns on the first rank; the others have nothing to do. Collective: every rank must call."""
        if not context.world.is_main:
            return {"tokenizer": {}}
        from stages.tokenizer.learning import learn

        paths = {name: shards.path for name, shards in self.inputs.shards.items()}
        return {"tokenizer": learn(self.config, paths, self.outputs.tokenizer.path)}
