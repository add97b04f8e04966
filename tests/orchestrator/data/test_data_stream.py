"""The batches of a step, whoever asks for them."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.data.stream import Drawn, SampleStream
from orchestrator.errors import DamagedArtifact, InputError
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_stops_the_stream_by_name(shards: dict[str, Path], workers: int) -> None:
    tar = shards["b"] / "shard-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b'"i": 4', b'"i": 5'))

    with pytest.raises(DamagedArtifact) as raised:
        list(stream(shards, workers=workers).batches(facts, start_step=0, steps=12))
    assert f"{tar}: sample 'b-4': member 'json'" in str(raised.value)
    assert "Traceback" not in str(raised.value)


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


@pytest.mark.parametrize(("start_step", "steps"), [(-1, 1), (0, -1)])
def test_steps_before_the_first_are_refused(shards: dict[str, Path], start_step: int, steps: int) -> None:
    with pytest.raises(InputError, match="start_step and steps"):
        list(stream(shards).batches(facts, start_step=start_step, steps=steps))


def test_a_stream_can_be_left_in_the_middle(shards: dict[str, Path]) -> None:
    batches = stream(shards, workers=2).batches(facts, start_step=0, steps=100)
    next(batches)

    batches.close()  # type: ignore[attr-defined]  # it is a generator

    assert list(batches) == []
