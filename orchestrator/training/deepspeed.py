"""The engine of DeepSpeed: ZeRO partitions of weights, gradients and optimizer over the ranks."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.training import elastic, holdings
from orchestrator.training.beside import Averaged, Scaling, averaging, itself
from orchestrator.training.building import gathered, partitioned_building
from orchestrator.training.compiling import compile_blocks, find_parts
from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from orchestrator.training.engine import finite, prepare, tensor_parallel
from orchestrator.training.holdings import Held, Holdings, Replicated, Stage3, Stage12
from orchestrator.training.lean import deepspeed
from orchestrator.training.optim import (
    clip,
    freeze,
    is_partitioned,
    learning_rate,
    make_optimizer,
    parameter_groups,
    whole_norm,
    whole_shape,
)
from orchestrator.training.task import TrainTask
from orchestrator.training.zero import deepspeed_json
from orchestrator.world import World, allow_compiler

log = logging.getLogger(__name__)


class DeepSpeedEngine:
    """Trains a model that DeepSpeed spreads over the ranks, in bf16 with fp32 masters or in fp32."""

    def __init__(self, task: TrainTask[Any], train: TrainConfig, *, trainable: Sequence[str], world: World) -> None:
        """Builds the model, partitioned from its first moment under ZeRO-3. Collective: every rank must call."""
        _quiet(world)
        json = deepspeed_json(train, world_size=world.size, on_gpus=world.device != "cpu")
        parallel = tensor_parallel(train, world)
        mpu = None if parallel is None else parallel.mpu
        with partitioned_building(json, mpu, enabled=train.engine.zero_stage == 3):
            module = task.build_model()
        task.load_weights(module)
        if parallel is not None:
            with partitioned_building(json, mpu, enabled=train.engine.zero_stage == 3):
                parallel.cut(module, gather_logits=not task.cut_logits, gathered=gathered)
        freeze(module, trainable)
        prepare(module, train.engine)
        leaves = [*task.leaf_modules, *train.engine.leaf_modules] if train.engine.zero_stage == 3 else []
        self._leaves = mark_leaves(module, leaves)
        optimizer = _make_optimizer(parameter_groups(module, train.optim), train)
        deepspeed.utils.groups.mpu = mpu  # which it keeps for a whole process
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=json, mpu=mpu)
        if train.engine.compile is not None and task.blocks:
            compile_blocks(module, task.blocks, backend=train.engine.compile)
        elif train.engine.compile is not None:
            allow_compiler()
            self._engine.compile(backend=train.engine.compile)
        self.module: nn.Module = self._engine
        self.model = module
        self.accumulation = train.accumulation_on(world.size)
        self._train, self._world, self._updates = train, world, 0
        self._gate = _Gate(optimizer, self._norm)
        of_share = _holdings_of(module, self._engine.optimizer, train.engine)
        held, self._average = averaging(of_share, module, train.average)
        self._place: Callable[[Holdings], Holdings] = itself if parallel is None else parallel.holdings
        self._holdings = self._place(held)
        _say_what_is_where(module, train, world)
        self._scalars: dict[str, float] = {}

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch. Collective: every rank must call."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, changes nothing

    def step(self, accepts: Callable[[float], bool] = finite) -> float:
        """Updates the weights after `accumulation` micro-batches, if their gradients are accepted.

        Returns the norm of all gradients before clipping. Collective: every rank must call.
        """
        rate = learning_rate(self._train.optim, self._updates, self._train.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self._gate.expect(accepts)
        refuse_uncollected(self._leaves)
        at_its_least = self._loss_scale() <= self._train.engine.loss_scale.least
        self._engine.step()
        if not self._gate.asked and at_its_least:  # DeepSpeed has withheld the update, and not to find a loss scale
            accepts(math.inf)
        if self._gate.open:
            self._updates += 1
            if self._average is not None:
                self._average.update()
        else:
            self.pass_over()
        self._scalars = {"lr": rate, "grad_norm": self._gate.norm}
        if self._train.engine.precision == "fp16":
            self._scalars["loss_scale"] = self._loss_scale()
        return self._gate.norm

    def pass_over(self) -> None:
        """Counts a step without batches, and without an update."""
        self._updates += 1
        self._holdings.begin(self._updates)  # moments are as old as the step's number, as after a load

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

    def save_average(self, directory: Path) -> None:
        """Writes the weights with the moving average in the place of what learns. Collective: every rank must call."""
        assert self._average is not None  # noqa: S101 - asked only where train.average is set
        holdings.save_weights(
            directory, self._engine.module, self._place(Averaged(self._average)).weights(), self._world
        )

    def _loss_scale(self) -> float:
        return float(self._engine.optimizer.loss_scale) if self._train.engine.precision == "fp16" else 0.0

    def _norm(self) -> float:
        """Returns the norm of all gradients before clipping; called when DeepSpeed is about to update."""
        if self._train.engine.zero_stage:
            norm = float(self._engine.optimizer._global_grad_norm)  # noqa: SLF001 - the engine's own is set too late
            return norm if norm >= 0 else math.inf  # DeepSpeed's way of saying that it is none
        gradients = [p.grad for p in self.model.parameters() if p.requires_grad and p.grad is not None]
        return clip(gradients, whole_norm(gradients), self._train.optim.clip_norm)


class _Gate:
    """Stands before the optimizer's step, where the norm of the gradients is known and no weight has moved yet."""

    def __init__(self, optimizer: torch.optim.Optimizer, norm: Callable[[], float]) -> None:
        """Stands before the step of what DeepSpeed was given; `norm` is how the norm of a step is found."""
        self._optimizer, self._through, self._norm = optimizer, optimizer.step, norm
        optimizer.step = self._step  # type: ignore[assignment, method-assign]  # of this one alone
        self.expect(finite)

    def expect(self, accepts: Callable[[float], bool]) -> None:
        """Waits for the next step."""
        self._accepts, self.norm, self.asked, self.open = accepts, math.inf, False, False

    def _step(self, *_: Any, **__: Any) -> None:
        if not self.asked:  # DeepSpeed steps once for each part of what it holds
            self.norm, self.asked = self._norm(), True
            self.open = self._accepts(self.norm)
        if self.open:
            self._through()


def _make_optimizer(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    optim = train.optim
    if optim.name != "muon" or train.engine.zero_stage == 0:
        return make_optimizer(groups, optim)
    # DeepSpeed gathers the pieces of a matrix for its own Muon alone; "standard" turns them as torch's does
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        turned = {"momentum": optim.momentum, "ns_method": "standard"}
        group.update(turned if group["muon"] else _adam(optim), use_muon=group["muon"])
        for parameter in group["params"]:
            parameter.use_muon = group["muon"]
    made: torch.optim.Optimizer = MuonWithAuxAdam(
        groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={**_adam(optim), "fused": True}
    )
    return made


def _adam(optim: OptimConfig) -> dict[str, Any]:
    return {"betas": optim.betas, "eps": optim.eps}


def mark_leaves(module: nn.Module, patterns: Sequence[str]) -> Mapping[str, nn.Module]:
    """Lets ZeRO-3 gather whole modules at once, by patterns of their names or by the names of their classes.

    Returns them by name.

    Such a module raises InputError when it learns, and is given no tensor that needs a gradient: DeepSpeed collects a
    leaf's gradients when that of its inputs is known, which then is too early: the step ends without a reason.
    """
    chosen = {id(part) for part in find_parts(module, patterns, key="train.engine.leaf_modules")}
    leaves = {name: part for name, part in module.named_modules() if id(part) in chosen}
    for name, part in leaves.items():
        deepspeed.utils.set_z3_leaf_module(part, True)
        part.register_forward_pre_hook(partial(_refuse_without_gradient, name))
    return leaves


def refuse_uncollected(leaves: Mapping[str, nn.Module]) -> None:
    """Raises InputError, before an update, for a leaf whose gradients nobody has fetched: no call of it was seen."""
    for name, part in leaves.items():
        if any(weight.grad is not None for weight in part.parameters()):
            raise InputError(
                f"train.engine.leaf_modules: {name!r} ({type(part).__name__}) learns, but is never called itself, only "
                "methods or parts of it, and DeepSpeed would drop its gradients; allowed: modules further inside it "
                "that are called, as its layers"
            )


def _refuse_without_gradient(name: str, part: nn.Module, given: tuple[Any, ...]) -> None:
    # as torch's hook on the way back: it sees tensors given by position, not those given by name
    seen = any(isinstance(value, Tensor) and value.requires_grad for value in given)
    if seen or not torch.is_grad_enabled() or not any(weight.requires_grad for weight in part.parameters()):
        return
    raise InputError(
        f"train.engine.leaf_modules: {name!r} ({type(part).__name__}) learns, but no tensor that it is given by "
        "position needs a gradient, and DeepSpeed would look for those of its weights before they are there; allowed: "
        "modules further inside it, as its layers, and frozen ones"
    )


def _holdings_of(module: nn.Module, optimizer: Any, engine: EngineConfig) -> Holdings:
    if engine.zero_stage == 0:
        return Replicated(module, optimizer)
    held: Holdings = Stage3(module, optimizer) if engine.zero_stage == 3 else Stage12(module, optimizer)
    if engine.precision != "fp16":
        return held
    optimizer.loss_scaler.raise_error_at_min_scale = False  # train.divergence says what becomes of it
    return Scaling(held, optimizer.loss_scaler)


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
