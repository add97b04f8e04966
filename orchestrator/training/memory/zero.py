"""How many bytes of a rank each kind of thing takes, under plain PyTorch and under ZeRO 1 to 3. Arithmetic, no torch.

What is counted was read off DeepSpeed 0.19.8 and `engine.py`, and is checked against allocations (tests). ZeRO:
Rajbhandari et al. 2020, arXiv:1910.02054.
"""

from collections.abc import Iterator
from typing import Literal

from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.anatomy import Anatomy
from orchestrator.training.memory.gathering import gathering

GB = 1e9
FP32, HALF = 4, 2  # bytes an element
SUB_GROUP_ELEMENTS = 1_000_000_000  # ZeRO-3 updates at most so many at a time
GPU_RESERVE_BYTES = 2 * GB  # assumed: CUDA context, its libraries, buffers of NCCL, what fragmentation loses
GPU_PERSISTENCE = 100_000  # as the engine chooses, see `EngineConfig.persistence_threshold`


@record
class Setting:
    """What decides, beside the model, how much a rank needs."""

    zero_stage: int  # 0 = whole replicas, of whatever engine
    precision: Literal["bf16", "fp16", "fp32"]
    micro_batch: int
    accumulation: int
    ranks: int  # that share weights, gradients and moments; of tensor-parallel ones, those with the same piece
    pieces: int  # tensor-parallel ranks that share the language model
    persistence_threshold: int
    bucket_elements: int
    overlap: bool
    on_gpu: bool
    optimizer_away: bool  # off-loaded from the GPU
    parameters_away: bool
    node_ranks: int  # of which each keeps a share of a second copy of the weights (ZeRO++); 1 = none
    averaged: bool  # a moving average of what learns is kept

    @property
    def width(self) -> int:
        """Returns the bytes of an element of the weights that are computed with."""
        return FP32 if self.precision == "fp32" else HALF


@record
class Footprint:
    """Bytes of one rank at its highest moment, by what they are for."""

    weights: float  # and buffers of the model
    gradients: float
    optimizer: float  # fp32 masters and moments
    buckets: float  # of communication
    gathered: float  # weights of other ranks, while they are used
    activations: float  # of a micro-batch, with the batch itself
    working: float  # copies while gradients are reduced or weights updated
    reserve: float  # of the GPU, for others than us

    @property
    def total(self) -> float:
        """Returns all of it."""
        held = self.weights + self.gradients + self.optimizer + self.buckets
        return held + self.gathered + self.activations + self.working + self.reserve


def setting_of(train: TrainConfig, ranks: int, *, on_gpu: bool) -> Setting:
    """Reads a setting off a recipe's `train`; InputError where its batch does not divide over the ranks.

    And for options of which nothing here knows what they save or cost. With `sequence_parallel` activations are less
    than is said here: features between the layers are counted whole.
    """
    engine = train.engine
    if engine.zeropp.quantized_weights or engine.zeropp.quantized_gradients:
        told = "what quantizing saves or costs is not reckoned yet; allowed here: the default"
        raise InputError(f"train.engine.zeropp: {told}")
    usual = GPU_PERSISTENCE if on_gpu else 0
    return Setting(
        zero_stage=0 if engine.name == "torch" else engine.zero_stage,
        precision=engine.precision,
        micro_batch=train.micro_batch_on(ranks),
        accumulation=train.accumulation_on(ranks),
        ranks=train.readers_on(ranks),
        pieces=engine.tensor_parallel,
        persistence_threshold=usual if engine.persistence_threshold is None else engine.persistence_threshold,
        bucket_elements=engine.bucket_elements,
        overlap=on_gpu if engine.overlap_communication is None else engine.overlap_communication,
        on_gpu=on_gpu,
        optimizer_away=on_gpu and engine.offload.optimizer != "none",
        parameters_away=on_gpu and engine.offload.parameters != "none",
        node_ranks=engine.zeropp.node_ranks,
        averaged=train.average is not None,
    )


def remembered(anatomy: Anatomy) -> int:
    """Returns the bytes of all that the optimizer remembers of all parameters."""
    return sum(n * moments for n, moments in zip(anatomy.numels, anatomy.moments, strict=True))


def footprint(anatomy: Anatomy, setting: Setting) -> Footprint:
    """Adds up what a rank holds all the time, and what it needs beside it at the highest moment of a step."""
    held = {0: _replica, 1: _flat, 2: _flat, 3: _cut}[setting.zero_stage](anatomy, setting)
    moments = {0: _replica_moments, 1: _flat_moments, 2: _flat_moments, 3: _cut_moments}[setting.zero_stage]
    highest = max(moments(anatomy, setting), key=lambda moment: moment.total)
    reserve = GPU_RESERVE_BYTES if setting.on_gpu else 0.0
    return Footprint(
        weights=held.weights + sum(anatomy.buffers.values()), gradients=held.gradients + highest.gradients,
        optimizer=held.optimizer, buckets=held.buckets + highest.buckets, gathered=highest.gathered,
        activations=highest.activations, working=highest.working, reserve=reserve,
    )  # fmt: skip


@record
class _Held:
    """What is there from the second step on, whatever happens."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    buckets: float = 0.0


@record
class _Moment:
    """What a moment of a step needs beside what is held."""

    activations: float = 0.0
    gradients: float = 0.0
    buckets: float = 0.0
    gathered: float = 0.0
    working: float = 0.0

    @property
    def total(self) -> float:
        return self.activations + self.gradients + self.buckets + self.gathered + self.working


def _replica(anatomy: Anatomy, setting: Setting) -> _Held:
    average = FP32 * anatomy.elements(learning=True) * setting.averaged
    return _Held(weights=FP32 * anatomy.elements(), optimizer=remembered(anatomy) + average)


def _replica_moments(anatomy: Anatomy, setting: Setting) -> Iterator[_Moment]:
    all_gradients = FP32 * anatomy.elements(learning=True)
    if setting.accumulation == 1:
        yield _Moment(activations=anatomy.highest(setting.micro_batch, gradients_stay=True))
    else:
        activations = anatomy.highest(setting.micro_batch, gradients_stay=False)
        yield _Moment(activations=activations, gradients=all_gradients)
    # all ranks average one long vector of them
    yield _Moment(gradients=all_gradients, working=all_gradients if setting.ranks > 1 else 0.0)


def _cut(anatomy: Anatomy, setting: Setting) -> _Held:
    """ZeRO-3: every parameter in equal pieces, the last one padded; small ones are whole beside their pieces."""
    own = 0 if setting.parameters_away else sum(-(-n // setting.ranks) for n in anatomy.numels)
    small = sum(n for n in anatomy.numels if n <= setting.persistence_threshold) if setting.ranks > 1 else 0
    again = anatomy.elements() // setting.node_ranks if setting.node_ranks > 1 else 0
    learning = _own_learning(anatomy, setting)
    pieces = zip(anatomy.numels, anatomy.moments, strict=True)
    moments = sum(-(-n // setting.ranks) * size for n, size in pieces)
    return _Held(
        weights=setting.width * (own + small + again),
        gradients=0.0 if setting.optimizer_away else FP32 * learning,
        optimizer=(0 if setting.optimizer_away else FP32 * learning + moments) + FP32 * learning * setting.averaged,
        buckets=setting.width * setting.bucket_elements,
    )


def _cut_moments(anatomy: Anatomy, setting: Setting) -> Iterator[_Moment]:
    width, learning = setting.width, anatomy.elements(learning=True)
    most, fetch = gathering(anatomy.numels, anatomy.uses, setting.persistence_threshold, setting.bucket_elements)
    gathered = width * (most + fetch) if setting.ranks > 1 or setting.parameters_away else 0
    yield _Moment(activations=anatomy.highest(setting.micro_batch, gradients_stay=False), gathered=float(gathered))
    bucket = min(learning, setting.bucket_elements)  # reduced when activations are mostly gone
    yield _Moment(working=float(width * bucket + (FP32 * -(-bucket // setting.ranks) if width == HALF else 0)))
    if not setting.optimizer_away:
        yield _Moment(working=float(FP32 * min(_own_learning(anatomy, setting), SUB_GROUP_ELEMENTS)))


def _own_learning(anatomy: Anatomy, setting: Setting) -> int:
    learns = (n for n, group in zip(anatomy.numels, anatomy.groups, strict=True) if group >= 0)
    return sum(-(-n // setting.ranks) for n in learns)


def _flat(anatomy: Anatomy, setting: Setting) -> _Held:
    """ZeRO-1 and 2: whole weights; of every group of the optimizer one long vector, cut for masters and moments."""
    padded = _padded(anatomy, setting)
    frozen = anatomy.elements() - anatomy.elements(learning=True)
    own = FP32 * padded + remembered(anatomy) * padded / max(1, anatomy.elements(learning=True))
    return _Held(
        weights=setting.width * (frozen + padded),
        optimizer=(0.0 if setting.optimizer_away else own / setting.ranks)
        + FP32 * padded / setting.ranks * setting.averaged,
        gradients=FP32 * padded if _keeps_gradients(setting) else 0.0,
    )


def _flat_moments(anatomy: Anatomy, setting: Setting) -> Iterator[_Moment]:
    width, learning, padded = setting.width, anatomy.elements(learning=True), _padded(anatomy, setting)
    if _keeps_gradients(setting):
        yield _Moment(activations=anatomy.highest(setting.micro_batch, gradients_stay=True))
        yield _Moment(gradients=width * learning)
        return
    share = 0.0 if setting.optimizer_away else padded / setting.ranks if setting.zero_stage == 2 else padded
    buckets = width * setting.bucket_elements * (2 if setting.overlap else 1)
    accumulated = FP32 * share if setting.accumulation > 1 else 0.0
    activations = anatomy.highest(setting.micro_batch, gradients_stay=setting.zero_stage == 1)
    learns = (n for n, group in zip(anatomy.numels, anatomy.groups, strict=True) if group >= 0)
    away = width * max(learns, default=0) if setting.optimizer_away else 0  # one gradient on its way to the host
    yield _Moment(activations=activations, gradients=accumulated + away, buckets=buckets)
    working = 0.0 if setting.optimizer_away else FP32 * padded / setting.ranks
    yield _Moment(gradients=FP32 * share, working=working, buckets=buckets)


def _padded(anatomy: Anatomy, setting: Setting) -> int:
    sizes: dict[int, int] = {}
    for numel, group in zip(anatomy.numels, anatomy.groups, strict=True):
        if group >= 0:
            sizes[group] = sizes.get(group, 0) + numel
    step = 2 * setting.ranks
    return sum(-(-size // step) * step for size in sizes.values())


def _keeps_gradients(setting: Setting) -> bool:
    """Tells of ZeRO-1 in bf16, which has an optimizer of its own in DeepSpeed: fp32 gradients stay, without buckets."""
    return setting.zero_stage == 1 and setting.precision == "bf16" and not setting.optimizer_away
