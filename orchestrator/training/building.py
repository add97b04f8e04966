"""How a model is built in the pieces that ZeRO-3 cuts it into, so that no rank ever holds the whole of it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from orchestrator.training.lean import deepspeed
from orchestrator.training.optim import is_partitioned, whole_shape

if TYPE_CHECKING:
    from orchestrator.training.parallel.grid import Mpu


@contextmanager
def partitioned_building(json: dict[str, Any], mpu: "Mpu | None", *, enabled: bool) -> Iterator[None]:
    """Cuts every parameter made within a `with` block as this JSON says. Collective: every rank must call."""
    if not enabled:
        yield
        return
    group = None if mpu is None else mpu.get_data_parallel_group()
    overrides = {deepspeed.runtime.zero.partition_parameters.DeepSpeedTensorOverride.device}
    cutting = _PartitionAsBuilt(
        config_dict_or_path=json, tensor_overrides=overrides, data_parallel_group=group, mpu=mpu
    )
    with cutting, _late_walks(), _late_fillers():
        yield


def gathered(parameters: Sequence[Tensor]) -> AbstractContextManager[object]:
    """Makes parameters whole within a `with` block, those that are cut. Collective: every rank must call."""
    cut = [parameter for parameter in parameters if is_partitioned(parameter)]
    whole: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(cut, enabled=bool(cut))
    return whole


class _PartitionAsBuilt(deepspeed.zero.Init):  # type: ignore[misc]  # DeepSpeed ships no types
    """zero.Init that leaves the number type of what a model computes alone, and casts parameters only, as it cuts them.

    The original makes every tensor bf16 at birth, also tables of positions that are meant to be exact.
    """

    def _zero_init_param(self, param: nn.Parameter) -> None:
        if param.is_floating_point():
            param.data = param.data.to(self.dtype)
        super()._zero_init_param(param)


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
