"""What stages share that learn a tokenizer from shards. Imports nothing heavy."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Shards, Tokenizer
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext

SMALLEST = 300  # tokens: all bytes, and special ones


class TokenizerStage(Stage):
    """Learns a tokenizer on the first rank; its Config has `vocabulary_size` and `samples`."""

    @record
    class Inputs:
        """Whatever the model will read."""

        shards: dict[str, Shards]

    @record
    class Outputs:
        """A folder in the layout of Hugging Face transformers."""

        tokenizer: Tokenizer

    @abstractmethod
    def learn(self, shards: Mapping[str, Path], folder: Path) -> Mapping[str, Any]:
        """Writes the tokenizer; returns facts."""

    def faults(self) -> Mapping[str, str]:
        """Misses something to learn from."""
        return {} if self.inputs.shards else {"inputs.shards": "needs at least one entry"}

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Says how many tokens there will be, at most."""
        del inputs
        return {"tokenizer": {"tokens": self.config.vocabulary_size}}

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Learns on the first rank; the others have nothing to do. Collective: every rank must call."""
        if not context.world.is_main:
            return {"tokenizer": {}}
        paths = {name: shards.path for name, shards in self.inputs.shards.items()}
        return {"tokenizer": self.learn(paths, self.outputs.tokenizer.path)}


def check_sizes(vocabulary_size: int, samples: int) -> None:
    """Raises ValueError for a tokenizer that cannot be, or that nothing is read for."""
    if vocabulary_size < SMALLEST:
        raise ValueError(f"vocabulary_size must be {SMALLEST} or more (every byte is a token), not {vocabulary_size}")
    if samples < 1:
        raise ValueError(f"samples must be above 0, not {samples}")
