"""LearnTokenizer: shards in, a small tokenizer out. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from orchestrator.records import record
from stages.tokenizing import TokenizerStage, check_sizes


class LearnTokenizer(TokenizerStage):
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
            check_sizes(self.vocabulary_size, self.samples)

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.tokenizer.learning",)

    def learn(self, shards: Mapping[str, Path], folder: Path) -> Mapping[str, Any]:
        """Writes the tokenizer; returns facts."""
        from stages.tokenizer.learning import learn

        return learn(self.config, shards, folder)
