"""Any run, killed anywhere and resumed on any number of ranks and workers, sees what one uninterrupted process sees."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.artifacts import Shards
from orchestrator.data.lengths import Lengths
from orchestrator.data.packing import PackingPlan, make_plan
from orchestrator.data.rules import BucketRule, OrderRules, PackRule, ShuffleRule
from orchestrator.data.stream import Drawn, SampleStream
from orchestrator.data.writer import ShardWriter
from orchestrator.records import record
from tests.damage import flip

SIZES = {"a": 37, "b": 11, "c": 24}
DAMAGED = {"a": (3, 4, 17), "c": (0, 23)}
GLOBAL_BATCH = 24
PLAIN = settings(deadline=None, suppress_health_check=list(HealthCheck))

Row = tuple[int, str, str, int]  # place, source, key, seed


@record
class Leg:
    """What one attempt does before it is killed."""

    world: int
    workers: int  # of one of its ranks; the others read by themselves
    micro: int
    steps: int
    lost: int  # of these steps: since its last checkpoint
    kill: int  # after so many batches by workers one of them is killed


@record
class Journey:
    """A training with its data, order and attempts."""

    damaged: bool
    seed: int
    weights: Mapping[str, float]
    rules: OrderRules
    legs: Sequence[Leg]


@st.composite
def legs(draw: st.DrawFn) -> Leg:
    world, steps = draw(st.sampled_from([1, 2, 3, 4, 6, 8])), draw(st.integers(1, 3))
    share = GLOBAL_BATCH // world
    return Leg(
        world=world,
        workers=draw(st.integers(0, 4)),
        micro=draw(st.sampled_from([size for size in range(1, share + 1) if share % size == 0])),
        steps=steps,
        lost=draw(st.integers(0, steps - 1)),
        kill=draw(st.integers(1, 6)),
    )


SHUFFLES = st.builds(
    ShuffleRule, mode=st.sampled_from(["full", "blocks", "none"]), block=st.integers(1, 12), window=st.integers(1, 5)
)
PACKED = st.one_of(
    st.just({}),
    st.builds(lambda budget: {"pack": PackRule(budget=budget, window=16)}, st.integers(40, 120)),
    st.builds(lambda size: {"bucket": BucketRule(size=size, window=16)}, st.sampled_from([2, 3, 4])),
)


@st.composite
def journeys(draw: st.DrawFn) -> Journey:
    rules = OrderRules(unit=draw(st.sampled_from(["step", "sample"])), shuffle=draw(SHUFFLES), **draw(PACKED))
    weights = st.fixed_dictionaries({name: st.sampled_from([0.1, 0.5, 1.0, 3.0]) for name in SIZES})
    return Journey(
        damaged=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
        weights=draw(st.one_of(st.just({}), weights)),
        rules=rules,
        legs=draw(st.lists(legs(), min_size=2, max_size=3)),
    )


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("elastic")
    for kind in ("whole", "damaged"):
        for name, size in SIZES.items():
            directory = home / kind / name
            with ShardWriter(directory, samples_per_shard=10) as writer:
                for i in range(size):
                    writer.write(f"{name}-{i}", {"txt": b"x" * (i + 1)})
                facts = writer.close()
            Shards(directory).commit("fingerprint", facts=facts, sha256=writer.sha256)
    for name, numbers in DAMAGED.items():
        for i in numbers:
            flip(home / "damaged" / name / f"shard-{i // 10:06d}.tar", f"{name}-{i}.txt")
    return home


def plans(home: Path, rules: OrderRules) -> dict[str, PackingPlan]:
    rule = rules.pack or rules.bucket
    if rule is None:
        return {}
    lengths = {name: Lengths.of(np.arange(size) * 7 % 33 + 1) for name, size in SIZES.items()}
    return {name: make_plan(home / "plans" / name, lengths[name], rule) for name in SIZES}


def stream(home: Path, journey: Journey, *, rank: int = 0, leg: Leg | None = None, workers: int = 0) -> SampleStream:
    kind = "damaged" if journey.damaged else "whole"
    return SampleStream(
        {name: home / kind / name for name in SIZES},
        weights=journey.weights,
        rules=journey.rules,
        plans=plans(home, journey.rules),
        seed=journey.seed,
        global_batch=GLOBAL_BATCH,
        micro_batch=leg.micro if leg else GLOBAL_BATCH,
        world_rank=rank,
        world_size=leg.world if leg else 1,
        workers=workers,
    )


def rows(drawn: Sequence[Drawn]) -> tuple[int, list[Row]]:
    return os.getpid(), [(sample.place, sample.source, sample.key, sample.seed) for sample in drawn]


def walked(home: Path, journey: Journey, leg: Leg, start: int) -> Iterator[list[Row]]:
    """Yields the global batches of one attempt's steps, a worker of which is killed."""
    busy = (journey.seed + start) % leg.world
    streams = [
        stream(home, journey, rank=rank, leg=leg, workers=leg.workers * (rank == busy)) for rank in range(leg.world)
    ]
    ranks: list[Any] = [one.batches(rows, start_step=start, steps=leg.steps + 3) for one in streams]
    batches = 0
    for _ in range(leg.steps):
        found: list[Row] = []
        for _ in range(streams[0].accumulation):
            for rank in ranks:
                pid, some = next(rank)
                found += some
                batches += pid != os.getpid()
                if pid != os.getpid() and batches == leg.kill:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        yield found
    for rank in ranks:
        rank.close()  # in the middle of its epoch, batches computed ahead


def check(home: Path, journey: Journey) -> None:
    done, seen = 0, []
    total = sum(leg.steps for leg in journey.legs)
    alone = [found for _, found in stream(home, journey).batches(rows, start_step=0, steps=total)]
    for leg in journey.legs:
        steps = list(walked(home, journey, leg, done))
        assert alone[done : done + leg.steps] == steps
        seen += steps[: leg.steps - leg.lost]
        done += leg.steps - leg.lost
    assert alone[:done] == seen
    if not journey.damaged:
        every_sample_once_an_epoch(list(chain.from_iterable(alone)), journey.rules, plans(home, journey.rules))


def every_sample_once_an_epoch(drawn: Sequence[Row], rules: OrderRules, plans: Mapping[str, PackingPlan]) -> None:
    for name, size in SIZES.items():
        keys = [key for _, source, key, _ in drawn if source == name]
        facts = plans[name].facts if plans else {"samples": size, "repeated": 0}
        epoch = facts["samples"] + facts["repeated"]
        assert facts["samples"] == size
        for start in range(0, len(keys), epoch):
            now = keys[start : start + epoch]
            assert len(now) - len(set(now)) <= facts["repeated"]
            assert len(now) < epoch or len(set(now)) == size


@pytest.mark.slow
@settings(PLAIN, max_examples=100, derandomize=True)
@given(journey=journeys())
def test_killed_and_resumed_on_other_ranks_it_is_the_same_training(home: Path, journey: Journey) -> None:
    check(home, journey)


@pytest.mark.long
@settings(PLAIN, max_examples=1000)
@given(journey=journeys())
def test_killed_and_resumed_a_thousand_times_it_is_the_same_training(home: Path, journey: Journey) -> None:
    check(home, journey)
