"""Training on data that is damaged: it goes on, and says what is missing; on rubble it ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Shards
from orchestrator.causes import cause_of
from orchestrator.data.stream import Loss, SampleStream
from orchestrator.data.writer import ShardWriter
from orchestrator.errors import DamagedArtifact, OrchError, Preempted
from orchestrator.journal import read_events
from orchestrator.records import record
from orchestrator.stage import StageContext
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.config import TrainConfig
from orchestrator.training.damage import Damage
from orchestrator.training.engine import make_engine
from orchestrator.training.loop import fit
from orchestrator.training.retention import CHECKPOINTS
from orchestrator.world import World
from tests.damage import flip
from tests.ranks import run_ranks
from tests.toys import ToyTask, toy_context, toy_sample, toy_train

ALONE = World.alone()
SAMPLES, A_TAR = 60, 10


def write_shards(directory: Path, *, bad: range) -> None:
    with ShardWriter(directory, samples_per_shard=A_TAR) as writer:
        for number in range(SAMPLES):
            writer.write(f"{number}", dict(toy_sample(number, 0).members))
        facts = writer.close()
    Shards(directory).commit("e" * 12, facts=facts, sha256=writer.sha256)
    for number in bad:
        flip(directory / f"shard-{number // A_TAR:06d}.tar", f"{number}.letters")


def train_on(
    directory: Path, world: World, train: TrainConfig, *, stop_after: int | None = None
) -> tuple[StageContext, int]:
    context = toy_context(directory / "stage", world, stop_after=stop_after)
    stream = SampleStream(
        {"letters": directory / "letters"},
        weights={},
        seed=5,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch_on(world.size),
        world_rank=world.rank,
        world_size=world.size,
        workers=train.workers,
    )
    checkpoints = Checkpoints(
        context.directory / CHECKPOINTS, fingerprint=context.fingerprint, train=train, seed=context.seed, world=world
    )
    engine = make_engine(ToyTask(), train, trainable=("*",), world=world, seed=5)
    try:
        return context, fit(ToyTask(), engine, stream, train=train, checkpoints=checkpoints, context=context)
    finally:
        context.journal.close()


def told(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(directory / "stage") if event["event"] == kind]


def named(directory: Path) -> list[str]:
    return [sample["key"] for event in told(directory, "damage") for sample in event["samples"]]


@record
class Heard:
    """What the journal of a training says of its losses."""

    names: list[str]
    lost: int
    bad_samples: float
    bad_fraction: float


def heard(directory: Path) -> Heard:
    last = told(directory, "metrics")[-1]["values"]
    return Heard(
        names=named(directory),
        lost=sum({event["step"]: event["lost"] for event in told(directory, "damage")}.values()),
        bad_samples=last["bad_samples"],
        bad_fraction=last["bad_fraction"],
    )


def test_a_training_on_a_damaged_tar_finishes_and_names_each_lost_sample_once(tmp_path: Path) -> None:
    write_shards(tmp_path / "letters", bad=range(20, 23))

    _, step = train_on(tmp_path, ALONE, toy_train(15, workers=2, log_every=5))  # 180 draws: three epochs

    found = heard(tmp_path)
    samples = [sample for event in told(tmp_path, "damage") for sample in event["samples"]]
    assert step == 15
    assert sorted(found.names) == ["20", "21", "22"]
    assert {sample["tar"] for sample in samples} == {str(tmp_path / "letters" / "shard-000002.tar")}
    assert all("letters" in sample["reason"] for sample in samples)
    assert (found.lost, found.bad_samples, found.bad_fraction) == (9, 9, 9 / 180)


def _trains(world: World, directory: Path) -> tuple[int, float]:
    _, step = train_on(directory, world, toy_train(10, log_every=5, micro_batch=3))
    return step, world.highest(10.0 + world.rank)


@pytest.mark.slow
def test_ranks_tell_their_losses_together(tmp_path: Path) -> None:
    for name in ("two", "one"):
        write_shards(tmp_path / name / "letters", bad=range(20, 23))

    assert run_ranks(2, _trains, tmp_path / "two", directory=tmp_path) == [(10, 11.0)] * 2
    train_on(tmp_path / "one", ALONE, toy_train(10, log_every=5))

    two, one = heard(tmp_path / "two"), heard(tmp_path / "one")
    assert sorted(two.names) == sorted(one.names) == ["20", "21", "22"]
    assert (two.lost, two.bad_samples) == (one.lost, one.bad_samples) == (6, 6)


def test_a_training_on_rubble_ends_with_the_share_the_limit_and_the_list(tmp_path: Path) -> None:
    write_shards(tmp_path / "letters", bad=range(30))

    with pytest.raises(DamagedArtifact) as raised:
        train_on(tmp_path, ALONE, toy_train(15))

    message = str(raised.value)
    lost = sum(event["lost"] for event in told(tmp_path, "damage"))
    assert cause_of(raised.value) == "bad_data"
    assert f"{lost} of " in message
    assert lost > 10
    assert "train.max_bad_fraction = 0.01" in message
    assert message.count("shard-00000") == 3
    assert str(tmp_path / "stage" / "journal.jsonl") in message


def test_whoever_knows_may_allow_more(tmp_path: Path) -> None:
    write_shards(tmp_path / "letters", bad=range(30))

    assert train_on(tmp_path, ALONE, toy_train(15, max_bad_fraction=0.6))[1] == 15


def test_with_a_limit_of_nothing_the_first_loss_ends_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "letters", bad=range(20, 23))

    with pytest.raises(DamagedArtifact, match=r"1 of \d+ samples|2 of \d+ samples"):
        train_on(tmp_path, ALONE, toy_train(15, max_bad_fraction=0.0))


def test_a_resumed_training_goes_on_counting_and_names_nothing_again(tmp_path: Path) -> None:
    for name in ("whole", "paused"):
        write_shards(tmp_path / name / "letters", bad=range(20, 23))
    train_on(tmp_path / "whole", ALONE, toy_train(15, log_every=5))

    with pytest.raises(Preempted):
        train_on(tmp_path / "paused", ALONE, toy_train(15, log_every=5), stop_after=7)
    train_on(tmp_path / "paused", ALONE, toy_train(15, log_every=5))

    assert heard(tmp_path / "paused") == heard(tmp_path / "whole")


@pytest.fixture
def context(tmp_path: Path) -> Iterator[StageContext]:
    context = toy_context(tmp_path, ALONE)
    yield context
    context.journal.close()


def test_steps_that_are_done_again_count_once(context: StageContext) -> None:
    first = Damage(context, limit=1.0, step=0)
    for step, numbers in ((1, [1, 2]), (3, [3]), (4, [1, 4])):
        first.take(step, [loss(number) for number in numbers], drawn=10 * step)

    resumed = Damage(context, limit=1.0, step=3)
    before = resumed.lost
    resumed.take(4, [loss(1), loss(4)], drawn=40)
    again = Damage(context, limit=1.0, step=4)

    events = [event for event in read_events(context.directory) if event["event"] == "damage"]
    assert (before, resumed.lost, again.lost) == (3, 5, 5)
    assert [[sample["number"] for sample in event["samples"]] for event in events] == [[1, 2], [3], [4], []]


def test_lost_stand_ins_are_named_but_the_draw_counts_once(context: StageContext) -> None:
    damage = Damage(context, limit=1.0, step=0)

    damage.take(1, [loss(1), loss(7, stands_in=True), loss(2)], drawn=10)

    events = [event for event in read_events(context.directory) if event["event"] == "damage"]
    assert damage.lost == events[0]["lost"] == 2
    assert [sample["number"] for sample in events[0]["samples"]] == [1, 7, 2]


def loss(number: int, *, stands_in: bool = False, reason: str = "rotten") -> Loss:
    return Loss(source="s", number=number, tar="t.tar", key=str(number), reason=reason, stands_in=stands_in)


@pytest.mark.parametrize(
    ("reason", "cause"), [("it cannot be read: Stale file handle", "disk"), ("rotten", "bad_data")]
)
def test_a_file_system_that_does_not_answer_is_no_fault_of_the_data(tmp_path: Path, reason: str, cause: str) -> None:
    context = toy_context(tmp_path, ALONE)
    damage = Damage(context, limit=0.005, step=0)
    damage.take(1, [loss(number) for number in range(3)], drawn=12)

    with pytest.raises(OrchError, match="max_bad_fraction") as caught:
        damage.take(2, [loss(number, reason=reason) for number in range(5, 12)], drawn=24)
    context.journal.close()
    assert cause_of(caught.value) == cause


def test_the_time_that_a_step_waits_for_its_data_is_told(tmp_path: Path) -> None:
    write_shards(tmp_path / "letters", bad=range(0))
    train_on(tmp_path, ALONE, toy_train(6, workers=1, log_every=3))

    waits = [event["data_wait_s"] for event in told(tmp_path, "loss")]
    values = [event["values"] for event in told(tmp_path, "metrics")]
    progress = json.loads((tmp_path / "stage" / "progress.json").read_text(encoding="utf-8"))

    assert len(waits) == 6
    assert all(wait > 0 for wait in waits)
    assert [value["data_wait_s"] for value in values] == pytest.approx([sum(waits[:3]) / 3, sum(waits[3:]) / 3])
    assert all(0 < value["data_wait_share"] <= 1 for value in values)
    assert 0 < progress["values"]["data_wait_share"] <= 1
