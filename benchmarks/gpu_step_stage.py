"""The stage of benchmarks.gpu_step: a dense language model learns random words from tars. Imports no torch itself."""

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.records import record
from orchestrator.training.config import EngineConfig, OptimConfig, SaveConfig, TrainConfig
from orchestrator.training.stage import TrainingStage

if TYPE_CHECKING:
    from benchmarks.gpu_step_ranks import WordsTask

STAGES = {"dense_words": "benchmarks.gpu_step_stage:DenseWords"}
FAMILIES: Mapping[str, str] = {}
WORDS = "bin"  # the member of a sample: its words, int32


@record
class Size:
    """A Llama and its batches."""

    hidden_size: int
    mlp_size: int
    layers: int
    heads: int
    words: int
    length: int  # words of a sample
    rows: int  # samples of a step
    steps: int  # of a round, and how far a run goes before it is killed after its first save
    rounds: int
    save_every: int
    precision: str

    @property
    def operations(self) -> float:
        """Returns the floating-point operations of a word, forward and backward: matrices, and causal attention."""
        layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.mlp_size
        matrices = self.layers * layer + self.hidden_size * self.words
        return 6 * matrices + 6 * self.layers * self.hidden_size * self.length


# 0.94 billion parameters with the embedding
GPU = Size(
    hidden_size=2048, mlp_size=5504, layers=16, heads=16, words=32_000, length=2048, rows=8, steps=20, rounds=5,
    save_every=50, precision="bf16",
)  # fmt: skip
CPU = Size(
    hidden_size=128, mlp_size=344, layers=2, heads=4, words=1024, length=128, rows=4, steps=20, rounds=5, save_every=10,
    precision="fp32",
)  # fmt: skip


def train_config(size: Size, steps: int, *, save_every: int | None = None) -> TrainConfig:
    """Returns how ours trains: ZeRO-1, for a single rank has nothing to share."""
    engine = EngineConfig(zero_stage=1, precision=size.precision)  # type: ignore[arg-type]  # one of its three words
    save = SaveConfig(every_steps=save_every or 10**6)
    return TrainConfig(
        steps=steps, global_batch=size.rows, optim=OptimConfig(lr=1e-4), engine=engine, save=save, log_every=10
    )


class DenseWords(TrainingStage):
    """Learns the next word, of random ones."""

    @record
    class Config:
        """How to train, and which of the two sizes."""

        train: TrainConfig
        mixture: dict[str, float] = field(default_factory=dict)
        on_gpu: bool = False

    @record
    class Inputs:
        """The words."""

        shards: dict[str, Shards]

    @record
    class Outputs:
        """The model."""

        model: Checkpoint

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("benchmarks.gpu_step_ranks",)

    def build_task(self) -> "WordsTask":
        """Makes the task."""
        from benchmarks.gpu_step_ranks import WordsTask

        return WordsTask(GPU if self.config.on_gpu else CPU)
