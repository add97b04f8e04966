"""What the training loop asks of an engine, and the engine of plain PyTorch."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training import holdings, options
from orchestrator.training.beside import Averaged, averaging, itself
from orchestrator.training.compiling import compile_blocks
from orchestrator.training.config import EngineConfig, TrainConfig
from orchestrator.training.holdings import Held, Holdings, Replicated
from orchestrator.training.optim import clip, freeze, learning_rate, make_optimizer, parameter_groups, whole_norm
from orchestrator.training.task import TrainTask
from orchestrator.world import World, allow_compiler

if TYPE_CHECKING:
    from orchestrator.training.parallel.tensor import TensorParallel


def finite(norm: float) -> bool:
    """Accepts every update by gradients that are finite."""
    return math.isfinite(norm)


class Engine(Protocol):
    """A model that learns: backward for each micro-batch, then one step."""

    module: nn.Module  # what a task calls
    model: nn.Module  # what the task built; `module` itself, or inside it
    accumulation: int  # micro-batches a step

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch. Collective: every rank must call."""

    def step(self, accepts: Callable[[float], bool] = finite) -> float:
        """Updates the weights after `accumulation` micro-batches, if `accepts` says so; counts the step either way.

        It is asked with the norm of all gradients before clipping, the same on all ranks, which is also returned:
        infinite where they are not finite. Collective: every rank must call.
        """

    def pass_over(self) -> None:
        """Counts a step without batches, and without an update."""

    def scalars(self) -> dict[str, float]:
        """Returns `lr` and `grad_norm` (before clipping) of the last step, equal on all ranks."""

    def held(self) -> Held:
        """Returns what this rank writes of a checkpoint, as live pieces that the next step changes."""

    def load(self, directory: Path, *, step: int) -> None:
        """Reads what any engine saved after `step` steps on any number of ranks. Collective: every rank must call."""

    def save_average(self, directory: Path) -> None:
        """Writes the weights with the moving average in the place of what learns. Collective: every rank must call."""


def make_engine(
    task: TrainTask[object], train: TrainConfig, *, trainable: Sequence[str], world: World, seed: int
) -> Engine:
    """Builds the task's model inside the engine that the config asks for. Collective: every rank must call."""
    options.require(train, on_gpus=world.device != "cpu")
    torch.manual_seed(seed)  # the same first weights on every rank and in every engine
    if train.engine.name == "torch":
        return TorchEngine(task, train, trainable=trainable, world=world)
    from orchestrator.training.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(task, train, trainable=trainable, world=world)


class TorchEngine:
    """Trains whole replicas in fp32: on one process, or on several that average their gradients."""

    def __init__(self, task: TrainTask[object], train: TrainConfig, *, trainable: Sequence[str], world: World) -> None:
        """Builds the model and its optimizer. Collective: every rank must call."""
        self._parallel = tensor_parallel(train, world)
        self.module = self.model = task.build_model().to(world.device)
        task.load_weights(self.module)
        if self._parallel is not None:
            self._parallel.cut(self.module, gather_logits=not task.cut_logits)
            self.module.to(world.device)
        freeze(self.module, trainable)
        prepare(self.module, train.engine)
        if train.engine.compile is not None and task.blocks:
            compile_blocks(self.module, task.blocks, backend=train.engine.compile)
        elif train.engine.compile is not None:
            allow_compiler()
            self.module.compile(backend=train.engine.compile)
        self.accumulation = train.accumulation_on(world.size)
        self._train, self._world, self._updates = train, world, 0
        self._optimizer = make_optimizer(parameter_groups(self.module, train.optim), train.optim)
        self._learning = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        held, self._average = averaging(Replicated(self.module, self._optimizer), self.module, train.average)
        self._place: Callable[[Holdings], Holdings] = itself if self._parallel is None else self._parallel.holdings
        self._holdings = self._place(held)
        self._scalars: dict[str, float] = {}

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch. Collective: every rank must call."""
        (loss / self.accumulation).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def step(self, accepts: Callable[[float], bool] = finite) -> float:
        """Averages and clips the gradients, then updates if they are accepted; returns their norm before clipping.

        Collective: every rank must call.
        """
        gradients = self._averaged_gradients()
        norm = clip(gradients, self._norm(gradients), self._train.optim.clip_norm)
        rate = learning_rate(self._train.optim, self._updates, self._train.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        accepted = accepts(norm)
        if accepted:
            self._optimizer.step()
            self._updates += 1
            if self._average is not None:
                self._average.update()
        else:
            self.pass_over()
        self._optimizer.zero_grad()
        self._scalars = {"lr": rate, "grad_norm": norm}
        return norm

    def pass_over(self) -> None:
        """Counts a step without batches, and without an update."""
        self._updates += 1
        self._holdings.begin(self._updates)  # moments are as old as the step's number, as after a load

    def scalars(self) -> dict[str, float]:
        """Returns `lr` and `grad_norm` (before clipping) of the last step, equal on all ranks."""
        return dict(self._scalars)

    def held(self) -> Held:
        """Returns what this rank writes of a checkpoint, as live pieces that the next step changes."""
        return holdings.held(self.module, self._holdings, self._world, step=self._updates)

    def load(self, directory: Path, *, step: int) -> None:
        """Reads what any engine saved after `step` steps on any number of ranks. Collective: every rank must call."""
        holdings.load(directory, self.module, self._holdings, step=step)
        self._updates = step

    def save_average(self, directory: Path) -> None:
        """Writes the weights with the moving average in the place of what learns. Collective: every rank must call."""
        assert self._average is not None  # noqa: S101 - asked only where train.average is set
        holdings.save_weights(directory, self.module, self._place(Averaged(self._average)).weights(), self._world)

    def _averaged_gradients(self) -> list[Tensor]:
        for parameter in self._learning.values():
            if parameter.grad is None:  # an idle part learns nothing, but its moments decay, as under ZeRO
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._learning.values() if p.grad is not None]
        group = None if self._parallel is None else self._parallel.grid.data_group
        if self._world.size > 1:
            flat = torch.cat([gradient.view(-1) for gradient in gradients])
            torch.distributed.all_reduce(flat, group=group)
            flat /= torch.distributed.get_world_size(group)
            means = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean.view_as(gradient))
        return gradients

    def _norm(self, gradients: Sequence[Tensor]) -> Tensor:
        if self._parallel is not None:
            return self._parallel.norm(dict(zip(self._learning, gradients, strict=True)))
        return whole_norm(gradients)


def tensor_parallel(train: TrainConfig, world: World) -> "TensorParallel | None":
    """Forms tensor-parallel groups where the config asks for any. Collective: every rank must call."""
    degree = train.engine.tensor_parallel
    if degree == 1:
        return None
    train.readers_on(world.size)  # says what is wrong, where ranks do not divide into groups
    from orchestrator.training.parallel.tensor import TensorParallel  # megatron-core takes seconds to import

    return TensorParallel(train.engine, world)


@runtime_checkable
class RecomputesActivations(Protocol):
    """A model part that can forget its activations and compute them again (Hugging Face's way of saying so)."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool]) -> None:
        """Switches it on for this part and all below it."""


@runtime_checkable
class ChoosesAttention(Protocol):
    """A model part that computes attention in one of several ways (Hugging Face's way of saying so)."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Chooses for this part and all below it."""


def prepare(module: nn.Module, engine: EngineConfig) -> None:
    """Does what an engine's options ask of the model itself."""
    if engine.activation_checkpointing:
        checkpoint_activations(module)
    if engine.attention is not None:
        choose_attention(module, engine.attention)


def checkpoint_activations(module: nn.Module) -> None:
    """Switches activation checkpointing on in every part of the model that knows how."""
    able = [part for part in module.modules() if isinstance(part, RecomputesActivations)]
    if not able:
        raise InputError("train.engine.activation_checkpointing: no part of this model supports it; allowed: false")
    for part in able:
        part.gradient_checkpointing_enable({"use_reentrant": False})


def choose_attention(module: nn.Module, implementation: str) -> None:
    """Lets every part of the model that can choose compute attention so; refuses what one of them does not offer."""
    able = {name: part for name, part in module.named_modules() if isinstance(part, ChoosesAttention)}
    key = "train.engine.attention"
    if not able:
        raise InputError(f"{key}: no part of this model can choose how it computes attention; allowed: null")
    for name, part in able.items():
        try:
            part.set_attn_implementation(implementation)
        except (ValueError, ImportError) as error:
            raise InputError(f"{key}: {name or 'the model'} has no {implementation}: {error}; allowed: null") from error
