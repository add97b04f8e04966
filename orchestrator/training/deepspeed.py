"""The engine of DeepSpeed: ZeRO partitions of weights, gradients and optimizer over the ranks."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import deepspeed
from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training import elastic, holdings
from orchestrator.training.config import TrainConfig
from orchestrator.training.engine import checkpoint_activations, tensor_parallel
from orchestrator.training.holdings import Held, Holdings, Stage3, Stage12
from orchestrator.training.optim import freeze, is_partitioned, learning_rate, make_adamw, parameter_groups, whole_shape
from orchestrator.training.task import TrainTask
from orchestrator.world import World

if TYPE_CHECKING:
    from orchestrator.training.parallel.grid import Mpu

log = logging.getLogger(__name__)


class DeepSpeedEngine:
    """Trains a model that DeepSpeed spreads over the ranks, in bf16 with fp32 masters or in fp32."""

    def __init__(self, task: TrainTask[Any], train: TrainConfig, *, trainable: Sequence[str], world: World) -> None:
        """Builds the model, partitioned from its first moment under ZeRO-3. Collective: every rank must call."""
        _quiet(world)
        json, parallel = deepspeed_json(train, world), tensor_parallel(train, world)
        mpu = None if parallel is None else parallel.mpu
        with _partitioned_building(json, mpu, enabled=train.engine.zero_stage == 3):
            module = task.build_model()
        task.load_weights(module)
        if parallel is not None:
            with _partitioned_building(json, mpu, enabled=train.engine.zero_stage == 3):
                parallel.cut(module, gather_logits=not task.cut_logits, gathered=_gathered)
        freeze(module, trainable)
        if train.engine.activation_checkpointing:
            checkpoint_activations(module)
        optimizer = make_adamw(parameter_groups(module, train.optim), train.optim)
        deepspeed.utils.groups.mpu = mpu  # which it keeps for a whole process
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=json, mpu=mpu)
        self.module: nn.Module = self._engine
        self.model = module
        self.accumulation = train.accumulation_on(world.size)
        self._train, self._world, self._updates = train, world, 0
        held = _holdings_of(module, self._engine.optimizer, train.engine.zero_stage)
        self._holdings = held if parallel is None else parallel.holdings(held)
        _say_what_is_where(module, train, world)
        self._scalars: dict[str, float] = {}

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch. Collective: every rank must call."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, changes nothing

    def step(self) -> None:
        """Updates the weights after `accumulation` micro-batches. Collective: every rank must call."""
        rate = learning_rate(self._train.optim, self._updates, self._train.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self._engine.step()
        self._updates += 1
        self._scalars = {"lr": rate, "grad_norm": float(self._engine.get_global_grad_norm())}

    def scalars(self) -> dict[str, float]:
        """Returns `lr` and `grad_norm` (before clipping) of the last step, equal on all ranks."""
        return dict(self._scalars)

    def held(self) -> Held:
        """Returns what this rank writes of a checkpoint, as live pieces that the next step changes."""
        return holdings.held(self._engine.module, self._holdings, self._world, step=self._updates)

    def load(self, directory: Path, *, step: int) -> None:
        """Reads what any engine saved after `step` steps on any number of ranks. Collective: every rank must call."""
        holdings.load(directory, self._engine.module, self._holdings, step=step)
        self._updates = step


def deepspeed_json(train: TrainConfig, world: World) -> dict[str, Any]:
    """Translates our config into DeepSpeed's."""
    engine, on_gpu = train.engine, world.device != "cpu"
    overlap = on_gpu if engine.overlap_communication is None else engine.overlap_communication
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "overlap_comm": overlap,
        "contiguous_gradients": True,
        "reduce_bucket_size": engine.bucket_elements,
        "allgather_bucket_size": engine.bucket_elements,
    }
    if engine.zero_stage == 3:
        usual, wanted = 100_000 if on_gpu else 0, engine.persistence_threshold
        zero |= {
            "stage3_prefetch_bucket_size": engine.bucket_elements,
            "stage3_param_persistence_threshold": usual if wanted is None else wanted,
        }
    return {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch_on(world.size),
        "gradient_accumulation_steps": train.accumulation_on(world.size),
        "gradient_clipping": train.optim.clip_norm or 0.0,
        "bf16": {"enabled": engine.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # we log ourselves
    }


class _PartitionAsBuilt(deepspeed.zero.Init):  # type: ignore[misc]  # DeepSpeed ships no types
    """zero.Init that leaves the number type of what a model computes alone, and casts parameters only, as it cuts them.

    The original makes every tensor bf16 at birth, also tables of positions that are meant to be exact.
    """

    def _zero_init_param(self, param: nn.Parameter) -> None:
        if param.is_floating_point():
            param.data = param.data.to(self.dtype)
        super()._zero_init_param(param)


@contextmanager
def _partitioned_building(json: dict[str, Any], mpu: "Mpu | None", *, enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    group = None if mpu is None else mpu.get_data_parallel_group()
    overrides = {DeepSpeedTensorOverride.device}
    cutting = _PartitionAsBuilt(
        config_dict_or_path=json, tensor_overrides=overrides, data_parallel_group=group, mpu=mpu
    )
    with cutting, _late_walks(), _late_fillers():
        yield


def _gathered(parameters: Sequence[Tensor]) -> AbstractContextManager[object]:
    cut = [parameter for parameter in parameters if is_partitioned(parameter)]
    gathered: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(cut, enabled=bool(cut))
    return gathered


@runtime_checkable
class _InitialisesItself(Protocol):
    """A Hugging Face model, seen from what it calls to initialise one of its parts."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool) -> None: ...  # noqa: FBT001 - its signature


@contextmanager
def _late_walks() -> Iterator[None]:
    """Gathers parts for Hugging Face's walk over a finished model: cut as they are, it would fill empty tensors."""
    before = nn.Module.__dict__.get("smart_apply")
    type.__setattr__(nn.Module, "smart_apply", _apply_gathered)
    try:
        yield
    finally:
        type.__setattr__(nn.Module, "smart_apply", before) if before else type.__delattr__(nn.Module, "smart_apply")


def _apply_gathered(module: nn.Module, initialise: Callable[..., None], is_custom_code: bool) -> nn.Module:  # noqa: FBT001 - its signature
    near = [module]
    for child in module.children():
        if isinstance(child, _InitialisesItself):
            _apply_gathered(child, child._initialize_weights, is_custom_code)  # noqa: SLF001 - its only name
        else:
            _apply_gathered(child, initialise, is_custom_code)
            near.append(child)  # a part may also initialise what lies right below it
    cut = [p for part in near for p in part.parameters(recurse=False) if is_partitioned(p)]
    with deepspeed.zero.GatheredParameters(list(dict.fromkeys(cut)), modifier_rank=0, enabled=bool(cut)):
        initialise(module, is_custom_code)
    return module


@contextmanager
def _late_fillers() -> Iterator[None]:
    """Gathers what `torch.nn.init` is asked to fill: a part's maker (peft above all) does so when it is cut already.

    Also where a module has imported a filler by name, as torch's own attention has.
    """
    originals: dict[str, Callable[..., Tensor]] = {name: getattr(nn.init, name) for name in _FILLERS}
    gathering = {name: _gathering(fill) for name, fill in originals.items()}
    loaded: list[object] = list(sys.modules.values())  # not only modules: some packages put other things there
    holders = [
        (vars(module), name)
        for module in loaded
        if isinstance(module, ModuleType)
        for name, fill in originals.items()
        if vars(module).get(name) is fill
    ]
    for names, name in holders:
        names[name] = gathering[name]
    try:
        yield
    finally:
        for names, name in holders:
            names[name] = originals[name]


_FILLERS = (
    *("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_", "orthogonal_"),
    *("sparse_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"),
)


def _gathering(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(fill)
    def fill_gathered(tensor: Tensor, *how: Any, **named: Any) -> Tensor:
        away = is_partitioned(tensor) and tensor.shape != whole_shape(tensor)
        with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0, enabled=away):
            return fill(tensor, *how, **named)

    return fill_gathered


def _holdings_of(module: nn.Module, optimizer: Any, zero_stage: int) -> Holdings:
    return Stage3(module, optimizer) if zero_stage == 3 else Stage12(module, optimizer)


def _say_what_is_where(module: nn.Module, train: TrainConfig, world: World) -> None:
    parameters = list(module.parameters())
    total, learning, cut = (
        sum(whole_shape(p).numel() for p in chosen)
        for chosen in (parameters, filter(_learns, parameters), filter(is_partitioned, parameters))
    )
    held = [elastic.held("", p).local for p in parameters]
    sizes_mb = world.gather(sum(piece.numel() * piece.element_size() for piece in held) / 1e6)
    if world.is_main:
        what = f"{cut:,} of {total:,} parameters partitioned over {world.size} ranks"
        size = f"{min(sizes_mb):.2f} to {max(sizes_mb):.2f} MB a rank"
        log.info("ZeRO-%d: %s (%s); %s learn", train.engine.zero_stage, what, size, f"{learning:,}")


def _learns(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _quiet(world: World) -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", message="`torch.distributed.*is deprecated", category=FutureWarning
    )  # its own calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, and gloo does without
    if not world.joined:
        raise InputError("train.engine.name: deepspeed needs a process group, also for a single process")
    deepspeed.init_distributed(
        dist_backend="gloo" if world.device == "cpu" else "nccl", auto_mpi_discovery=False, verbose=False
    )
