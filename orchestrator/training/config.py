"""What a recipe may say about training: steps, batch, optimizer, engine, checkpoints. Records only, no torch."""

from dataclasses import field
from typing import Literal

from orchestrator.data.pool import MOST_PREFETCH
from orchestrator.data.remote import Remote
from orchestrator.data.rules import OrderRules
from orchestrator.errors import InputError
from orchestrator.records import incidental, record


@record
class LayerDecay:
    """A learning rate that falls from layer to layer: the last of a stack learns at the full rate."""

    factor: float  # of the layer after it, from 0 to 1
    stack: str  # the name before the layers' numbers, e.g. "language_model.model.layers"
    below: tuple[str, ...] = ()  # parameter name patterns of what lies below the first layer, e.g. embeddings

    def __post_init__(self) -> None:
        """Refuses factors that are none."""
        _require(0 < self.factor <= 1, "factor must lie in (0, 1]")
        _require(bool(self.stack.strip(".")), "stack must name the list of layers in the model")


@record
class OptimConfig:
    """The optimizer, and its learning rate over the steps."""

    lr: float  # the peak, reached after the warm-up
    # adamw: in one fused kernel; adamw_8bit: always refused, with the reason; muon: for matrices, AdamW for the rest
    name: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95  # Muon's
    muon_skips: tuple[str, ...] = ("*embed*", "*head*")  # matrices that AdamW moves all the same: no hidden layers
    weight_decay: float = 0.0  # of matrices only; vectors (norms, biases) are never decayed
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    min_lr_ratio: float = 0.0  # what is left of the peak at the last step
    clip_norm: float | None = 1.0  # of all gradients together; null = no clipping
    lr_scales: dict[str, float] = field(
        default_factory=dict
    )  # parameter name pattern -> factor; the first match counts
    layer_decay: LayerDecay | None = None  # one more factor, by the layer a parameter belongs to

    def __post_init__(self) -> None:
        """Refuses what no optimizer can use."""
        _require(self.lr > 0, "lr must be above 0")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)")
        _require(self.eps > 0, "eps must be above 0")
        _require(0 <= self.momentum < 1, "momentum must lie in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay must be 0 or more")
        _require(self.warmup_steps >= 0, "warmup_steps must be 0 or more")
        _require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio must lie in [0, 1]")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm must be above 0, or null for no clipping")
        wrong = [pattern for pattern, scale in self.lr_scales.items() if scale < 0]
        _require(not wrong, f"lr_scales must be 0 or more, which {', '.join(wrong)} is not")


@record
class Offload:
    """Where state lies while it is not used."""

    optimizer: Literal["none", "cpu", "nvme"] = "none"  # its moments and the fp32 weights; the update is computed there
    parameters: Literal["none", "cpu", "nvme"] = "none"  # the weights to compute with, under ZeRO-3
    folder: str | None = None  # on the NVMe disk of each node
    pin_memory: bool = True  # page-locked: faster, but cannot be swapped out

    def __post_init__(self) -> None:
        """Refuses NVMe without a folder on it."""
        on_disk = "nvme" in {self.optimizer, self.parameters}
        _require(not on_disk or self.folder is not None, "folder must name one on the NVMe disk, as nvme is asked for")


@record
class ZeroPlusPlus:
    """ZeRO++: less traffic between nodes, under ZeRO-3 on GPUs."""

    # hpZ: ranks that keep a second copy of the weights together, a node's GPUs: the backward pass stays in the node
    node_ranks: int = incidental(default=1)
    quantized_weights: bool = False  # qwZ: gathered as 8-bit blocks
    quantized_gradients: bool = False  # qgZ: reduced as 4-bit blocks

    def __post_init__(self) -> None:
        """Refuses nodes without ranks."""
        _require(self.node_ranks >= 1, "node_ranks must be at least 1, which is off")

    @property
    def on(self) -> bool:
        """Tells whether any part of it is asked for."""
        return self.node_ranks > 1 or self.quantized_weights or self.quantized_gradients


@record
class LossScale:
    """What fp16 losses are multiplied by, so that small gradients do not vanish: it halves where they overflow."""

    initial_power: int = 16  # it begins at 2 to the power of this
    window: int = 1000  # steps without an overflow, then it doubles
    hysteresis: int = 2  # overflows until it halves
    least: int = 1  # an overflow at this scale ends training

    def __post_init__(self) -> None:
        """Refuses scales that cannot move."""
        _require(0 <= self.initial_power <= 32, "initial_power must lie in [0, 32]")
        _require(min(self.window, self.hysteresis, self.least) > 0, "window, hysteresis and least must be above 0")


@record
class EngineConfig:
    """Which engine trains, and how it spreads the model over the ranks."""

    name: Literal["deepspeed", "torch"] = "deepspeed"
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    loss_scale: LossScale = field(default_factory=LossScale)  # with fp16
    zeropp: ZeroPlusPlus = field(default_factory=ZeroPlusPlus)
    # None of the following changes what is computed beyond rounding.
    zero_stage: int = incidental(
        default=3
    )  # partitions 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too
    offload: Offload = incidental(default_factory=Offload)
    mics_shard_size: int | None = incidental(default=None)  # no installed DeepSpeed has MiCS any more: always refused
    leaf_modules: tuple[str, ...] = incidental(default=())  # module name patterns; gathered as one; beside the task's
    activation_checkpointing: bool = incidental(default=False)
    compile: Literal["inductor", "aot_eager", "eager"] | None = incidental(
        default=None
    )  # torch.compile's back end: the task's blocks, or the model
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = incidental(default=None)  # null = the model's own
    # Smaller parameters stay gathered between uses; null = 100 000 on a GPU, 0 on CPUs (a third faster there).
    persistence_threshold: int | None = incidental(default=None)
    bucket_elements: int = incidental(default=50_000_000)  # gradients reduced, and parameters prefetched, at a time
    overlap_communication: bool | None = incidental(default=None)  # null = on a GPU only
    # So many ranks in a row share the language model's matrices, and draw the same samples; see parallel/README.md.
    tensor_parallel: int = incidental(default=1)
    sequence_parallel: bool = incidental(default=False)  # and between its matrices each has a share of the tokens

    def __post_init__(self) -> None:
        """Refuses combinations that no engine offers."""
        _require(0 <= self.zero_stage <= 3, f"zero_stage must be 0, 1, 2 or 3, not {self.zero_stage}")
        _require((self.persistence_threshold or 0) >= 0, "persistence_threshold must be 0 or more, or null")
        _require(self.bucket_elements > 0, "bucket_elements must be above 0")
        _require(self.tensor_parallel > 0, "tensor_parallel must be above 0; 1 = every rank computes the whole model")
        _require(
            not self.sequence_parallel or self.tensor_parallel > 1,
            "sequence_parallel shares tokens in a tensor-parallel group; allowed with tensor_parallel 1: false",
        )
        _require(
            self.mics_shard_size is None,
            f"mics_shard_size must be null, not {self.mics_shard_size}: DeepSpeed has dropped MiCS (0.19 has none); "
            "zeropp.node_ranks keeps the weights' traffic within a node instead",
        )


@record
class AverageConfig:
    """A moving average of the learning weights, beside them: smoother than the last step's."""

    decay: float = 0.999  # what a step leaves of the average
    export: bool = False  # the stage's output holds the average instead of the last weights

    def __post_init__(self) -> None:
        """Refuses averages that never move."""
        _require(0 <= self.decay < 1, "decay must lie in [0, 1)")


@record
class DivergenceConfig:
    """What becomes of a step whose loss or gradients leave all bounds."""

    # stop; skip: its update is left out; roll_back: to the last checkpoint, and its data is left out from there on
    on_nonfinite: Literal["stop", "skip", "roll_back"] = "stop"  # NaN or infinite, the loss or the gradients
    on_spike: Literal["ignore", "stop", "skip", "roll_back"] = "ignore"  # far above what was before, either of them
    spike_factor: float = 10.0  # a loss so many robust standard deviations above the window's median is a spike
    norm_factor: float = 30.0  # the same for the norm of the gradients
    window: int = 100  # steps; nothing is a spike before so many are there
    most: int = 10  # steps left out, then training stops

    def __post_init__(self) -> None:
        """Refuses bounds that bound nothing."""
        _require(self.spike_factor > 0, "spike_factor must be above 0")
        _require(self.norm_factor > 0, "norm_factor must be above 0")
        _require(self.window >= 4, "window must be at least 4: of fewer steps the deviation says nothing")
        _require(self.most > 0, "most must be above 0")

    @property
    def goes_on(self) -> bool:
        """Tells whether a step may be left out."""
        return bool({self.on_nonfinite, self.on_spike} & {"skip", "roll_back"})


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
    average: AverageConfig | None = None  # null = none is kept
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
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
