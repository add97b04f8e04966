"""Ranks that would wait for each other for ever: balanced where a task says so, found and named where it does not."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.data.stream import Drawn
from orchestrator.errors import AsymmetricRanks, OrchError
from orchestrator.training import writing
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.symmetry import Guard, Shown, parting
from orchestrator.training.task import Losses, TrainTask, Uneven
from orchestrator.world import World
from tests.ranks import RankFailed, run_ranks
from tests.toys import toy_engine, toy_train

WIDTH = 24


class Eye(nn.Module):
    """Sees a row with a norm and a mask of places, like an encoder that takes more than one input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.into = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, row_D: Tensor, *, seen_D: Tensor) -> dict[str, Tensor]:
        return {"row": self.into(self.norm(row_D) * seen_D)}


class Body(nn.Module):
    """Has an eye that some rows need, before the trunk, and a pencil that some rows need, after it."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.trunk = Eye(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.pencil = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))

    def forward(self, rows: Sequence[tuple[Tensor, bool, bool]]) -> Tensor:
        inner = []
        for row_D, looks, _ in rows:
            seen_D = torch.ones(WIDTH, dtype=torch.bool)
            inner.append(self.eye(row_D, seen_D=seen_D)["row"] if looks else row_D)
        hidden_BD = self.trunk(torch.stack(inner))
        drawn = [self.pencil(hidden_BD[at]).sum() for at, (_, _, draws) in enumerate(rows) if draws]
        return hidden_BD.square().sum() + (torch.stack(drawn).square().sum() if drawn else hidden_BD.sum() * 0)


class BodyTask(TrainTask[Any]):
    """Trains a Body; rows of a batch need eye and pencil as the test says."""

    uneven = (Uneven(module="eye", before="trunk"), Uneven(module="pencil"))

    def build_model(self) -> nn.Module:
        return Body()

    def collate(self, drawn: Sequence[Drawn]) -> Any:
        raise NotImplementedError

    def runs(self, batch: Any) -> Mapping[str, int]:
        return {"eye": sum(looks for _, looks, _ in batch), "pencil": sum(draws for _, _, draws in batch)}

    def loss(self, model: nn.Module, batch: Any) -> Losses:
        total = model(batch) / 4
        return Losses(total=total, terms={})


class SilentTask(BodyTask):
    """Does not say that its batches are uneven."""

    uneven = ()

    def runs(self, batch: Any) -> Mapping[str, int]:
        del batch
        return {}


class WrongTask(BodyTask):
    """Says of every batch that it runs the pencil once more than it does."""

    def runs(self, batch: Any) -> Mapping[str, int]:
        runs = super().runs(batch)
        return {**runs, "pencil": runs["pencil"] + 1}


def row(place: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(place))


ROWS = [  # of four places in a batch: looks, draws
    [(True, True), (True, False), (False, False), (False, False)],  # the second of two ranks does neither
    [(False, False), (False, False), (True, True), (False, True)],  # the first does neither
    [(True, True), (False, False), (True, False), (True, True)],
    [(False, False), (False, False), (False, True), (False, True)],  # the second draws, the first does not
]


def part(batch: int, world: World) -> list[tuple[Tensor, bool, bool]]:
    """Takes this rank's places of a batch."""
    share = 4 // world.size
    places = range(world.rank * share, (world.rank + 1) * share)
    return [(row(10 * batch + place), *ROWS[batch][place]) for place in places]


def learn(engine: Engine, task: TrainTask[Any], guard: Guard, world: World, batch: int) -> None:
    """Makes one step as the loop does."""
    rows = part(batch, world)
    guard.begin(batch + 1)
    guard.forward(task.runs(rows))
    losses = task.loss(engine.module, rows)
    total = guard.backward(losses.total) * world.size
    if isinstance(task, SilentTask) and world.rank == 0:
        time.sleep(60)  # gloo ends a process whose collective meets another one; a GPU would wait like this
    engine.backward(total)
    guard.agree()
    world.barrier()
    engine.step()
    guard.end()


def weights_after(world: World, directory: Path, engine_name: str) -> dict[str, list[float]]:
    """Trains a body for three uneven steps and returns all its weights, as this rank's own engine saved them."""
    from orchestrator.training.weights import load_weights

    task = BodyTask()
    engine_config = toy_engine(engine_name, persistence_threshold=0)
    train = toy_train(4, global_batch=4, engine=engine_config)
    engine = make_engine(task, train, trainable=["*"], world=world, seed=3)
    with Guard(engine.model, task.uneven, world, fail) as guard:
        for batch in (0, 1, 2):
            learn(engine, task, guard, world, batch)
    writing.write(directory / WEIGHTS, engine.held()[WEIGHTS], world)
    world.barrier()
    return {name: tensor.flatten().tolist() for name, tensor in load_weights(directory).items()}


def fail(error: OrchError) -> NoReturn:
    raise AssertionError(str(error))


def test_parts_that_only_one_rank_needs_train_as_in_one_process(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected = weights_after(World.alone(), tmp_path / "alone", "torch")

    found = run_ranks(2, weights_after, tmp_path / "two", "deepspeed", directory=tmp_path)

    assert found[0].keys() == expected.keys()
    for name, values in expected.items():
        assert torch.allclose(torch.tensor(values), torch.tensor(found[0][name]), atol=1e-6), name


def run_unguarded(world: World, directory: Path, task: TrainTask[Any]) -> None:
    """Trains under ZeRO-3 until the guard finds something, and writes down what and after how long."""
    started = time.monotonic()

    def note(error: OrchError) -> NoReturn:
        found = {"found": str(error), "after_s": time.monotonic() - started}
        (directory / f"rank_{world.rank}.json").write_text(json.dumps(found))
        time.sleep(1.0)  # the others read it too
        sys.stdout.flush()
        os._exit(7)

    engine_config = toy_engine("deepspeed", persistence_threshold=0)
    engine = make_engine(task, toy_train(4, global_batch=4, engine=engine_config), trainable=["*"], world=world, seed=3)
    with Guard(engine.model, task.uneven, world, note) as guard:
        started = time.monotonic()
        for batch in (3, 0):
            learn(engine, task, guard, world, batch)


def test_a_rank_that_goes_its_own_way_is_named_within_seconds(tmp_path: Path) -> None:
    with pytest.raises(RankFailed):
        run_ranks(2, run_unguarded, tmp_path, SilentTask(), directory=tmp_path)

    found = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["found"] == found[1]["found"]
    assert "do not run the same modules at step 4" in found[0]["found"]
    assert "pencil.0 on rank 1" in found[0]["found"]
    assert "<the backward pass> on rank 0" in found[0]["found"]
    assert max(one["after_s"] for one in found) < 30  # benchmarks.symmetry measures it; a time-out is half an hour


def test_a_task_that_says_how_often_a_part_runs_and_is_wrong_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"rank \d, step 4: pencil ran \d times, where the task's `runs` had said \d"):
        run_ranks(2, run_unguarded, tmp_path, WrongTask(), directory=tmp_path)


def shown(*rows: str, step: int = 1) -> list[Shown]:
    return [Shown(step=step, before=0, begun=list(begun)) for begun in rows]


def test_orders_that_part_are_told_with_module_ranks_and_step() -> None:
    found = parting(shown("abc", "abd", "abc", step=9))

    assert found is not None
    assert "at step 9" in found
    assert "d on rank 1; c on ranks 0, 2" in found


def test_a_rank_that_is_merely_behind_is_no_fault() -> None:
    assert parting(shown("abc", "ab", "abcd")) is None


def test_a_note_of_an_earlier_step_is_no_fault() -> None:
    assert parting([*shown("abc", step=3), *shown("xyz", step=4)]) is None


@given(
    common=st.lists(st.sampled_from("abcd"), max_size=20),
    ends=st.lists(st.sampled_from("efgh"), min_size=2, max_size=5),
    cuts=st.lists(st.integers(0, 20), min_size=5, max_size=5),
)
def test_a_parting_is_found_wherever_it_lies_in_what_is_shown(
    common: list[str], ends: list[str], cuts: list[int]
) -> None:
    rows = [
        Shown(step=1, before=min(cut, len(common)), begun=[*common[cut:], end])
        for end, cut in zip(ends, cuts, strict=False)
    ]

    assert (parting(rows) is not None) == (len(set(ends)) > 1)


def test_alone_there_is_nothing_to_guard() -> None:
    model = Body()
    guard = Guard(model, BodyTask.uneven, World.alone(), fail)

    with guard:
        guard.begin(1)
        guard.forward({"eye": 1})
        loss = torch.zeros(())

        assert not guard.active
        assert guard.backward(loss) is loss


def test_what_is_not_declared_cannot_be_counted() -> None:
    world = World(rank=0, size=2, local_rank=0, device="cpu", joined=False)
    guard = Guard(Body(), BodyTask.uneven, world, fail)

    with pytest.raises(AsymmetricRanks, match="tail"):
        guard.forward({"tail": 1})
