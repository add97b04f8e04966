"""What a recipe may say about training: steps, batch, optimizer, engine, checkpoints. Records only, no torch."""

from dataclasses import field
from typing import Literal

from orchestrator.data.pool import MOST_PREFETCH
from orchestrator.data.remote import Remote
from orchestrator.data.rules import OrderRules
from orchestrator.errors import InputError
from orchestrator.records import incidental, record


@record
class OptimConfig:
    """AdamW and its learning rate over the steps."""

    lr: float  # the peak, reached after the warm-up
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0  # of matrices only; vectors (norms, biases) are never decayed
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    min_lr_ratio: float = 0.0  # what is left of the peak at the last step
    clip_norm: float | None = 1.0  # of all gradients together; null = no clipping
    lr_scales: dict[str, float] = field(
        default_factory=dict
    )  # parameter name pattern -> factor; the first match counts

    def __post_init__(self) -> None:
        """Refuses what no optimizer can use."""
        _require(self.lr > 0, "lr must be above 0")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)")
        _require(self.eps > 0, "eps must be above 0")
        _require(self.weight_decay >= 0, "weight_decay must be 0 or more")
        _require(self.warmup_steps >= 0, "warmup_steps must be 0 or more")
        _require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio must lie in [0, 1]")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm must be above 0, or null for no clipping")
        wrong = [pattern for pattern, scale in self.lr_scales.items() if scale < 0]
        _require(not wrong, f"lr_scales must be 0 or more, which {', '.join(wrong)} is not")


@record
class EngineConfig:
    """Which engine trains, and how it spreads the model over the ranks."""

    name: Literal["deepspeed", "torch"] = "deepspeed"
    precision: Literal["bf16", "fp32"] = "bf16"
    # None of the following changes what is computed beyond rounding.
    zero_stage: int = incidental(default=3)  # partitions 1 optimizer state, 2 gradients too, 3 parameters too
    activation_checkpointing: bool = incidental(default=False)
    # Smaller parameters stay gathered between uses; null = 100 000 on a GPU, 0 on CPUs (a third faster there).
    persistence_threshold: int | None = incidental(default=None)
    bucket_elements: int = incidental(default=50_000_000)  # gradients reduced, and parameters prefetched, at a time
    overlap_communication: bool | None = incidental(default=None)  # null = on a GPU only
    # So many ranks in a row share the language model's matrices, and draw the same samples; see parallel/README.md.
    tensor_parallel: int = incidental(default=1)
    sequence_parallel: bool = incidental(default=False)  # and between its matrices each has a share of the tokens

    def __post_init__(self) -> None:
        """Refuses combinations that no engine offers."""
        _require(self.zero_stage in {1, 2, 3}, f"zero_stage must be 1, 2 or 3, not {self.zero_stage}; name: torch is 0")
        _require((self.persistence_threshold or 0) >= 0, "persistence_threshold must be 0 or more, or null")
        _require(self.bucket_elements > 0, "bucket_elements must be above 0")
        _require(self.tensor_parallel > 0, "tensor_parallel must be above 0; 1 = every rank computes the whole model")
        _require(
            not self.sequence_parallel or self.tensor_parallel > 1,
            "sequence_parallel shares tokens in a tensor-parallel group; allowed with tensor_parallel 1: false",
        )
        _require(self.name != "torch" or self.precision == "fp32", "precision must be fp32 with the torch engine")


@record
class BestRule:
    """Which checkpoints count as the best: by the mean of a training metric over the steps since the one before."""

    metric: str  # as the journal names it: loss, loss/NAME, grad_norm, lr
    mode: Literal["min", "max"] = "min"
    count: int = 1

    def __post_init__(self) -> None:
        """Refuses a rule that keeps nothing."""
        _require(self.count > 0, "count must be above 0")


@record
class SaveConfig:
    """When to save a checkpoint, how, and which ones stay; one that any rule keeps stays."""

    every_steps: int | Literal["auto"] = 500  # auto: from what saving costs and how often nodes fail (Young/Daly)
    keep_last: int = 2
    keep_every: int | None = None  # steps; checkpoints of its multiples stay for ever
    keep_best: BestRule | None = None
    in_background: bool = True  # training goes on after a copy in host memory, where that has room
    node_mtbf_hours: float = 6000.0  # for auto: between two failures of a node; Llama 3 had 6,300 on 2,048 nodes

    def __post_init__(self) -> None:
        """Refuses what would never save or keep nothing."""
        _require(self.every_steps == "auto" or self.every_steps > 0, "every_steps must be above 0, or auto")
        _require(self.keep_last > 0, "keep_last must be above 0")
        _require(self.keep_every is None or self.keep_every > 0, "keep_every must be above 0, or null")
        _require(self.node_mtbf_hours > 0, "node_mtbf_hours must be above 0")


@record
class TrainConfig:
    """Everything a recipe may say about training, for every training stage."""

    steps: int  # optimizer steps; training ends by steps, never by the end of data
    global_batch: int  # samples a step, over all ranks; with order.pack: packs
    optim: OptimConfig
    engine: EngineConfig = field(default_factory=EngineConfig)
    order: OrderRules = field(default_factory=OrderRules)  # how sources and samples take turns
    trainable: tuple[str, ...] | None = None  # parameter name patterns; null = the stage's own
    micro_batch: int | None = incidental(default=None)  # samples a rank computes at once; null = its whole share
    log_every: int = incidental(default=10)  # steps
    save: SaveConfig = incidental(default_factory=SaveConfig)
    workers: int = incidental(default=2)  # data processes a rank; 0 = read in the training process
    prefetch: int = incidental(default=2)  # micro-batches that each of them computes ahead
    worker_timeout_s: float = incidental(default=45.0)  # for a micro-batch, then it is replaced; below `watch`'s limit
    remote: Remote = incidental(default_factory=Remote)  # how shards behind URLs are read, and kept on each node
    max_bad_fraction: float = incidental(default=0.01)  # of the samples drawn; training stops if more are damaged

    def __post_init__(self) -> None:
        """Refuses what cannot be trained."""
        _require(self.steps > 0, "steps must be above 0")
        _require(self.global_batch > 0, "global_batch must be above 0")
        _require(self.micro_batch is None or self.micro_batch > 0, "micro_batch must be above 0, or null")
        _require(self.trainable is None or len(self.trainable) > 0, "trainable must name a pattern, or be null")
        _require(self.log_every > 0, "log_every must be above 0")
        _require(self.workers >= 0, "workers must be 0 or more")
        _require(0 < self.prefetch <= MOST_PREFETCH, f"prefetch must be from 1 to {MOST_PREFETCH}")
        _require(self.worker_timeout_s > 0, "worker_timeout_s must be above 0")
        _require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction must lie in [0, 1]")

    def readers_on(self, world_size: int) -> int:
        """Returns how many of `world_size` ranks draw different samples: one of each tensor-parallel group."""
        degree = self.engine.tensor_parallel
        if world_size % degree:
            allowed = [number for number in range(1, world_size + 1) if world_size % number == 0]
            message = f"train.engine.tensor_parallel: {world_size} ranks do not form groups of {degree}"
            raise InputError(f"{message}; allowed: {', '.join(map(str, allowed))}")
        return world_size // degree

    def reader(self, rank: int) -> int:
        """Returns which of the readers a rank belongs to: the ranks of a tensor-parallel group are neighbours."""
        return rank // self.engine.tensor_parallel

    def micro_batch_on(self, world_size: int) -> int:
        """Returns how many samples each of `world_size` ranks computes at once."""
        readers = self.readers_on(world_size)
        share, rest = divmod(self.global_batch, readers)
        if rest:
            among = f"{readers} ranks" if readers == world_size else f"{readers} tensor-parallel groups"
            message = f"train.global_batch: {self.global_batch} samples do not divide evenly over {among}"
            raise InputError(f"{message}; allowed: a multiple of {readers}, or another number of ranks")
        micro_batch = min(self.micro_batch or share, share)
        if share % micro_batch:
            message = f"train.micro_batch: a rank's share of {share} samples is no multiple of {micro_batch}"
            allowed = [size for size in range(1, share + 1) if share % size == 0]
            raise InputError(f"{message}; allowed: {', '.join(map(str, allowed))}")
        return micro_batch

    def accumulation_on(self, world_size: int) -> int:
        """Returns how many micro-batches make a step on `world_size` ranks."""
        return self.global_batch // (self.readers_on(world_size) * self.micro_batch_on(world_size))


def _require(fine: bool, message: str) -> None:  # noqa: FBT001 - reads like assert, and is private
    if not fine:
        raise ValueError(message)
