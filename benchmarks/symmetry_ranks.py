"""One rank of benchmarks.symmetry: `python -m benchmarks.symmetry_ranks MODE FOLDER [ROUNDS STEPS]`."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from benchmarks.symmetry import RANKS, STOCK_WAITS_S
from orchestrator.data.stream import Drawn
from orchestrator.errors import OrchError
from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.symmetry import Guard
from orchestrator.training.task import Losses, TrainTask, Uneven
from orchestrator.world import World

WIDTH, DEPTH, LENGTH, ROWS = 192, 6, 48, 4  # rows of a whole batch
TIMED_LENGTH = 480  # a step of half a second: what a guard costs is a share of a training's step, and those are longer

Rows = Sequence[tuple[Tensor, bool]]  # what to read, and whether it has a mask


class Pointer(nn.Module):
    """Reads sequences; those with a mask also run the mask decoder."""

    def __init__(self) -> None:
        """Builds it with fresh weights."""
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True)
            for _ in range(DEPTH)  # a kink, as of ReLU, turns the rounding of one value into a gradient more or less
        )
        self.mask_decoder = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, 1))

    def forward(self, rows: Rows) -> Tensor:
        """Sums what is lost over the rows."""
        hidden_BLD = torch.stack([row_LD for row_LD, _ in rows])
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD)
        loss = hidden_BLD.square().mean((1, 2)).sum()
        for at, (_, masked) in enumerate(rows):
            if masked:
                loss = loss + self.mask_decoder(hidden_BLD[at]).square().mean()
        return loss


class PointerTask(TrainTask[Rows]):
    """Trains a Pointer."""

    uneven: ClassVar[Sequence[Uneven]] = (Uneven(module="mask_decoder"),)

    def build_model(self) -> nn.Module:
        """Builds it."""
        return Pointer()

    def collate(self, drawn: Sequence[Drawn]) -> Rows:
        """Is not needed: rows are made here."""
        raise NotImplementedError

    def runs(self, batch: Rows) -> Mapping[str, int]:
        """Counts the masks."""
        return {"mask_decoder": sum(masked for _, masked in batch)}

    def loss(self, model: nn.Module, batch: Rows) -> Losses:
        """Means over the whole batch."""
        return Losses(total=model(batch) / ROWS, terms={})


class SilentTask(PointerTask):
    """Does not say that its batches are uneven."""

    uneven = ()

    def runs(self, batch: Rows) -> Mapping[str, int]:
        """Says nothing."""
        del batch
        return {}


def rows_of(world: World, masked: Sequence[bool], length: int = LENGTH) -> Rows:
    """Makes this rank's rows of a batch."""
    share = ROWS // world.size
    places = range(world.rank * share, (world.rank + 1) * share)
    chance = [torch.Generator().manual_seed(place) for place in places]
    return [(torch.randn(length, WIDTH, generator=c), masked[place]) for c, place in zip(chance, places, strict=True)]


FIRST_ONLY, EVEN = (True, True, False, False), (True, False, True, False)


def engine_for(task: TrainTask[Any], world: World) -> Engine:
    """Makes ZeRO-3 where there are ranks, plain torch where there is one."""
    name = "deepspeed" if world.size > 1 else "torch"
    config = EngineConfig(name=name, precision="fp32", persistence_threshold=0)  # type: ignore[arg-type]  # one of its two names
    train = TrainConfig(steps=10**6, global_batch=ROWS, optim=OptimConfig(lr=1e-4), engine=config)
    return make_engine(task, train, trainable=["*"], world=world, seed=1)


def backward(engine: Engine, task: TrainTask[Any], guard: Guard, rows: Rows, world: World, step: int) -> None:
    """Runs a step as the loop does, but for its end."""
    guard.begin(step)
    guard.forward(task.runs(rows))
    losses = task.loss(engine.module, rows)
    engine.backward(guard.backward(losses.total) * world.size)
    guard.agree()


def gradients(world: World, _folder: Path) -> dict[str, Any]:
    """Returns the gradients of one uneven step."""
    task = PointerTask()
    engine = engine_for(task, world)
    with Guard(engine.model, task.uneven, world, _never) as guard:
        backward(engine, task, guard, rows_of(world, FIRST_ONLY), world, 1)
    found = {}
    for name, parameter in engine.model.named_parameters():
        if world.size == 1:
            gradient = parameter.grad
        else:
            from deepspeed.utils import safe_get_full_grad

            gradient = safe_get_full_grad(parameter)
        assert gradient is not None  # noqa: S101 - every part has run somewhere
        found[name] = gradient.flatten()[:: max(1, gradient.numel() // 64)].tolist()
    return {"gradients": found}


def stock(world: World, _folder: Path) -> dict[str, Any]:
    """Does what a loop without us does."""
    task = SilentTask()
    engine = engine_for(task, world)
    engine.backward(task.loss(engine.module, rows_of(world, FIRST_ONLY)).total)
    engine.step()
    world.barrier()
    return {}


def named(world: World, folder: Path) -> dict[str, Any]:
    """Lets one rank wait in the mask decoder and the other go on, as on GPUs; gloo may end a process instead."""
    task = SilentTask()
    engine = engine_for(task, world)
    began = time.monotonic()

    def note(error: OrchError) -> NoReturn:
        report(world, folder, {"found": str(error), "after_s": time.monotonic() - began})
        time.sleep(1.0)  # all read it
        os._exit(1)

    with Guard(engine.model, task.uneven, world, note) as guard:
        rows = rows_of(world, FIRST_ONLY)
        world.barrier()
        began = time.monotonic()
        guard.begin(1)
        guard.forward({})
        loss = guard.backward(task.loss(engine.module, rows).total)
        if world.rank == 1:
            time.sleep(STOCK_WAITS_S)  # gloo would end the process when two different collectives meet
        engine.backward(loss)
    return {}


def costs(world: World, _folder: Path, rounds: int, steps: int, *, bare_first: bool) -> dict[str, Any]:
    """Times even steps with and without guard and balance, in turns. The engine that is made first is faster."""
    bare_task, task = SilentTask(), PointerTask()
    if bare_first:
        bare, guarded = engine_for(bare_task, world), engine_for(task, world)
    else:
        guarded, bare = engine_for(task, world), engine_for(bare_task, world)
    rows, times = rows_of(world, EVEN, TIMED_LENGTH), {"bare_s": [0.0] * 0, "guarded_s": [0.0] * 0}
    with Guard(guarded.model, task.uneven, world, _never) as guard:
        for turn in range(rounds + 1):
            sides = ["bare_s", "guarded_s"] if turn % 2 else ["guarded_s", "bare_s"]
            for side in sides:
                world.barrier()
                began = time.perf_counter()
                for step in range(1, steps + 1):
                    if side == "bare_s":
                        bare.backward(bare_task.loss(bare.module, rows).total * world.size)
                        bare.step()
                    else:
                        backward(guarded, task, guard, rows, world, step)
                        guarded.step()
                        guard.end()
                took = world.highest((time.perf_counter() - began) / steps)
                if turn:  # the first round warms up
                    times[side].append(took)
    return dict(times)


def report(world: World, folder: Path, what: dict[str, Any]) -> None:
    """Leaves what this rank found."""
    (folder / f"rank_{world.rank}.json").write_text(json.dumps(what), encoding="utf-8")


def _never(error: OrchError) -> NoReturn:
    raise SystemExit(str(error))


def main() -> NoReturn:
    """Runs one rank of a mode."""
    mode, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    world = World.from_environment(timeout_s=STOCK_WAITS_S)
    modes = {"alone": gradients, "ours": gradients, "stock": stock, "named": named}
    work = modes.get(mode) or partial(
        costs, rounds=int(sys.argv[3]), steps=int(sys.argv[4]), bare_first=mode == "bare_first"
    )
    report(world, folder, work(world, folder))
    if world.size == RANKS:
        world.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
