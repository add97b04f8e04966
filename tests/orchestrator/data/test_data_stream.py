"""The batches of a step, whoever asks for them."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.data.stream import Drawn, SampleStream
from orchestrator.errors import DamagedArtifact, InputError, WorkersLost
from tests.damage import flip
from tests.orchestrator.data.conftest import MakeShards

Facts = list[tuple[str, str, int, int]]


def facts(drawn: Sequence[Drawn]) -> Facts:
    return [(sample.source, sample.key, sample.seed, sum(map(len, sample.members.values()))) for sample in drawn]


def process_state(_: Sequence[Drawn]) -> tuple[int, Any, Any]:
    return os.getpid(), signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGINT)


def blocked(_: Sequence[Drawn]) -> set[signal.Signals]:
    return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def refuse(_: Sequence[Drawn]) -> None:
    raise InputError("the picture is too large")


def stumble(_: Sequence[Drawn]) -> None:
    raise KeyError("caption")


@pytest.fixture
def shards(make_shards: MakeShards) -> dict[str, Path]:
    return {"a": make_shards("a", 25), "b": make_shards("b", 7)}


def stream(shards: dict[str, Path], *, rank: int = 0, size: int = 1, micro: int = 2, workers: int = 0) -> SampleStream:
    weights = {"a": 0.75, "b": 0.25}
    return SampleStream(
        shards,
        weights=weights,
        seed=3,
        global_batch=8,
        micro_batch=micro,
        world_rank=rank,
        world_size=size,
        workers=workers,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(shards: dict[str, Path], workers: int) -> None:
    alone = list(stream(shards).batches(facts, start_step=0, steps=9))

    assert len(alone) == 36
    assert alone == list(stream(shards, workers=workers).batches(facts, start_step=0, steps=9))


@pytest.mark.parametrize("start_step", [1, 7, 20])
def test_a_later_start_skips_exactly_the_steps_before_it(shards: dict[str, Path], start_step: int) -> None:
    whole = list(stream(shards).batches(facts, start_step=0, steps=24))

    later = list(stream(shards).batches(facts, start_step=start_step, steps=24 - start_step))

    assert whole[4 * start_step :] == later


@pytest.mark.parametrize(("size", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1), (8, 1)])
def test_the_ranks_of_any_world_make_up_the_same_global_batch(shards: dict[str, Path], size: int, micro: int) -> None:
    alone = [stream(shards, micro=8).batches(facts, start_step=5, steps=6)]
    expected = [sample for batch in alone[0] for sample in batch]

    ranks = [stream(shards, rank=rank, size=size, micro=micro) for rank in range(size)]
    parts = zip(*(rank.batches(facts, start_step=5, steps=6) for rank in ranks), strict=True)
    together = [sample for micro_step in parts for batch in micro_step for sample in batch]

    assert expected == together
    assert {8 // (size * micro)} == {rank.accumulation for rank in ranks}


def test_all_micro_batches_of_a_step_are_of_its_source(shards: dict[str, Path]) -> None:
    ranks = [stream(shards, rank=rank, size=2) for rank in range(2)]

    for rank in ranks:
        sources = [{sample[0] for sample in batch} for batch in rank.batches(facts, start_step=0, steps=12)]
        assert [{ranks[0].source_of(number // 2)} for number in range(24)] == sources


def test_an_epoch_delivers_every_sample_of_a_source_once(make_shards: MakeShards) -> None:
    shards = {"a": make_shards("a", 24)}

    batches = stream_of_one(shards).batches(facts, start_step=0, steps=6)

    keys = [sample[1] for batch in batches for sample in batch]
    for epoch in (keys[:24], keys[24:48]):
        assert {f"a-{i}" for i in range(24)} == set(epoch)


def stream_of_one(shards: dict[str, Path]) -> SampleStream:
    return SampleStream(
        shards, weights={}, seed=0, global_batch=8, micro_batch=8, world_rank=0, world_size=1, workers=0
    )


def test_the_sources_are_counted(shards: dict[str, Path]) -> None:
    assert stream(shards).samples == {"a": 25, "b": 7}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_stream_leaves_the_random_numbers_of_training_alone(shards: dict[str, Path], workers: int) -> None:
    before = torch.get_rng_state()

    for _ in stream(shards, workers=workers).batches(facts, start_step=0, steps=2):
        pass

    assert torch.equal(before, torch.get_rng_state())


def test_workers_are_deaf_to_preemption_and_interrupts(shards: dict[str, Path]) -> None:
    mine = process_state([])

    pid, preemption, interrupt = next(stream(shards, workers=1).batches(process_state, start_step=0, steps=1))

    assert pid != mine[0]
    assert preemption == signal.SIG_IGN
    assert interrupt == signal.SIG_IGN
    assert mine == process_state([])


def test_no_signal_stays_blocked_in_trainer_or_worker(shards: dict[str, Path]) -> None:
    found = next(stream(shards, workers=1).batches(blocked, start_step=0, steps=1))

    assert not {signal.SIGUSR2, signal.SIGINT} & found
    assert not {signal.SIGUSR2, signal.SIGINT} & blocked([])


def damaged(shards: dict[str, Path]) -> None:
    """Turns over bytes of three samples of the one source, and of one of the other."""
    for number in (0, 4, 21):
        flip(shards["a"] / f"shard-{number // 10:06d}.tar", f"a-{number}.jpg")
    flip(shards["b"] / "shard-000000.tar", "b-4.json")


def picky(drawn: Sequence[Drawn]) -> list[tuple[str, str, int]]:
    """Refuses two of the samples, as a decoder refuses what is no picture."""
    for sample in drawn:
        if sample.key in {"a-7", "b-2"}:
            raise InputError(f"{sample.key} is no picture")
    return [(sample.source, sample.key, sample.place) for sample in drawn]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("size", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1)])
def test_lost_samples_have_the_same_stand_ins_on_any_ranks_and_workers(
    shards: dict[str, Path], size: int, micro: int, workers: int
) -> None:
    whole = [sample for batch in stream(shards, micro=8).batches(picky, start_step=0, steps=9) for sample in batch]
    damaged(shards)
    alone = stream(shards, micro=8)
    expected = [sample for batch in alone.batches(picky, start_step=0, steps=9) for sample in batch]

    ranks = [stream(shards, rank=rank, size=size, micro=micro, workers=workers * (rank == 0)) for rank in range(size)]
    parts = zip(*(rank.batches(picky, start_step=0, steps=9) for rank in ranks), strict=True)
    together = [sample for micro_step in parts for batch in micro_step for sample in batch]

    losses = sorted((loss.source, loss.number, loss.stands_in) for rank in ranks for loss in rank.take_losses())
    assert expected == together
    assert sorted((loss.source, loss.number, loss.stands_in) for loss in alone.take_losses()) == losses
    assert {"a-0", "a-4", "a-21", "b-4", "a-7", "b-2"}.isdisjoint(key for _, key, _ in together)
    changed = [before for before, after in zip(whole, expected, strict=True) if before != after]
    assert {"a-0", "a-4", "a-21", "b-4"} == {key for _, key, _ in changed}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loss_is_told_with_its_tar_its_key_and_the_reason_when_its_batch_is_there(
    shards: dict[str, Path], workers: int
) -> None:
    damaged(shards)
    one = stream(shards, micro=8, workers=workers)

    losses, keys = {}, {}
    for step, batch in enumerate(one.batches(facts, start_step=0, steps=4)):
        losses[step] = [loss for loss in one.take_losses() if not loss.stands_in]
        keys[step] = len(batch)
    lost = {f"{loss.source}-{loss.number}": loss for some in losses.values() for loss in some}

    assert set(keys.values()) == {8}
    assert lost["b-4"].tar == str(shards["b"] / "shard-000000.tar")
    assert lost["b-4"].key == "b-4"
    assert "json" in lost["b-4"].reason
    for step, some in losses.items():
        drawn = [f"{draw.source}-{draw.number}" for draw in one.order.samples_of(step)]
        bad = [key for key in drawn if key in {"a-0", "a-4", "a-21", "b-4"}]
        assert bad == [f"{loss.source}-{loss.number}" for loss in some]


def test_a_sample_that_collate_refuses_is_lost_with_its_words(shards: dict[str, Path]) -> None:
    one = stream(shards, micro=8)
    list(one.batches(picky, start_step=0, steps=4))

    lost = {loss.key: (loss.tar, loss.reason) for loss in one.take_losses()}

    assert lost["a-7"] == (str(shards["a"] / "shard-000000.tar"), "a-7 is no picture")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_of_which_nothing_is_left_stops_the_stream_by_name(shards: dict[str, Path], workers: int) -> None:
    for number in range(7):
        flip(shards["b"] / "shard-000000.tar", f"b-{number}.jpg")

    with pytest.raises(DamagedArtifact) as raised:
        list(stream(shards, workers=workers).batches(facts, start_step=0, steps=12))
    assert str(raised.value).startswith("b: a sample and 6 stand-ins for it are all lost; the first: ")
    assert f"{shards['b'] / 'shard-000000.tar'}: sample 'b-" in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_samples_that_are_refused_only_together_are_no_damage(shards: dict[str, Path]) -> None:
    def alone_only(drawn: Sequence[Drawn]) -> int:
        if len(drawn) > 1:
            raise InputError("one at a time")
        return 1

    with pytest.raises(InputError, match="one at a time"):
        next(stream(shards).batches(alone_only, start_step=0, steps=1))


def test_a_batch_that_costs_its_workers_is_named_by_step_and_samples(shards: dict[str, Path]) -> None:
    def crash(_: Sequence[Drawn]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    one = stream(shards, workers=1)
    expected = [draw.number for draw in one.order.samples_of(5, range(2))]

    with pytest.raises(WorkersLost) as raised:
        next(one.batches(crash, start_step=5, steps=1))
    tars = [shards["a"] / f"shard-{number // 10:06d}.tar" for number in expected]
    named = ", ".join(f"a {number} in {tar}" for number, tar in zip(expected, tars, strict=True))
    assert f"over step 5: {named}: it was killed from outside (SIGKILL)" in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refusal_of_collate_arrives_as_it_was(shards: dict[str, Path], workers: int) -> None:
    with pytest.raises(InputError) as raised:
        next(stream(shards, workers=workers).batches(refuse, start_step=0, steps=1))
    assert str(raised.value) == "the picture is too large"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_collate_names_the_samples(shards: dict[str, Path], workers: int) -> None:
    expected = next(stream(shards).batches(facts, start_step=0, steps=1))

    with pytest.raises(KeyError) as raised:
        next(stream(shards, workers=workers).batches(stumble, start_step=0, steps=1))
    said = str(raised.value) + "".join(getattr(raised.value, "__notes__", []))
    assert f"while collating a: {expected[0][1]}, {expected[1][1]}" in said


def test_a_batch_that_the_ranks_cannot_share_is_refused(shards: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"global_batch must be a multiple .* = 6; .* allowed: global_batch=6 or 12"):
        stream(shards, size=2, micro=3)


def test_no_steps_are_no_batches(shards: dict[str, Path]) -> None:
    assert list(stream(shards).batches(facts, start_step=4, steps=0)) == []


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"prefetch": 0}, {"prefetch": 65}, {"worker_timeout_s": 0.0}])
def test_workers_that_cannot_be_are_refused(shards: dict[str, Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        SampleStream(shards, weights={}, seed=0, global_batch=8, micro_batch=8, world_rank=0, world_size=1, **wrong)


@pytest.mark.parametrize(("start_step", "steps"), [(-1, 1), (0, -1)])
def test_steps_before_the_first_are_refused(shards: dict[str, Path], start_step: int, steps: int) -> None:
    with pytest.raises(InputError, match="start_step and steps"):
        list(stream(shards).batches(facts, start_step=start_step, steps=steps))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_is_left_or_at_its_end_has_nothing_open(shards: dict[str, Path], workers: int) -> None:
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    streams = [stream(shards, workers=workers) for _ in range(2)]

    list(streams[0].batches(facts, start_step=0, steps=3))
    left = streams[1].batches(facts, start_step=0, steps=3)
    next(left)
    left.close()  # type: ignore[attr-defined]  # it is a generator

    assert before == {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_stream_can_be_left_in_the_middle(shards: dict[str, Path]) -> None:
    batches = stream(shards, workers=2).batches(facts, start_step=0, steps=100)
    next(batches)

    batches.close()  # type: ignore[attr-defined]  # it is a generator

    assert list(batches) == []
