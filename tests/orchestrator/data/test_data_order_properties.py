"""Whatever is switched on, however many ranks and workers: nothing lost, nothing twice, one global order."""

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.data.lengths import Lengths
from orchestrator.data.order import Draw, Order, share
from orchestrator.data.packing import PackingPlan, make_plan
from orchestrator.data.rules import BucketRule, OrderRules, PackRule, ShuffleRule
from orchestrator.records import record

WORLDS = st.sampled_from([1, 2, 3, 4, 6, 8])
GLOBAL_BATCH = 24
PACKS = st.builds(PackRule, budget=st.integers(40, 100), window=st.integers(1, 64), too_long=st.just("alone"))
BUCKETS = st.builds(BucketRule, size=st.sampled_from([2, 3, 8]), window=st.integers(8, 64))
SHUFFLES = st.builds(
    ShuffleRule,
    mode=st.sampled_from(["full", "blocks", "none"]),
    block=st.integers(1, 30),
    window=st.integers(1, 6),
)


@record
class Part:
    """One attempt of a run."""

    world: int
    micro_batch: int
    workers: int
    steps: int


@record
class Case:
    seed: int
    sizes: dict[str, int]
    weights: dict[str, float]
    rules: OrderRules
    first_step: int
    parts: list[Part]  # each ends where a kill ended it; what it saw is what a resumed run goes on from


@st.composite
def parts(draw: st.DrawFn) -> Part:
    world = draw(WORLDS)
    share_of_rank = GLOBAL_BATCH // world
    micro_batch = draw(st.sampled_from([n for n in range(1, share_of_rank + 1) if share_of_rank % n == 0]))
    return Part(world=world, micro_batch=micro_batch, workers=draw(st.integers(0, 4)), steps=draw(st.integers(0, 5)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 100), min_size=1, max_size=3))
    weights = {name: float(draw(st.integers(1, 9))) for name in sizes} if draw(st.booleans()) else {}
    rules = OrderRules(
        unit=draw(st.sampled_from(["step", "sample"])),
        temperature=None if weights else draw(st.sampled_from([None, 1.0])),
        shuffle=draw(SHUFFLES),
        pack=draw(st.none() | PACKS),
    )
    if rules.pack is None:
        rules = OrderRules(
            unit=rules.unit, temperature=rules.temperature, shuffle=rules.shuffle, bucket=draw(st.none() | BUCKETS)
        )
    return Case(
        seed=draw(st.integers(0, 2**31)),
        sizes=sizes,
        weights=weights,
        rules=rules,
        first_step=draw(st.sampled_from([0, 0, 7, 10**9])),
        parts=draw(st.lists(parts(), min_size=2, max_size=3)),
    )


@contextmanager
def order_of(case: Case) -> Iterator[tuple[Order, dict[str, PackingPlan]]]:
    with tempfile.TemporaryDirectory() as folder:
        plans = {}
        for name, size in case.sizes.items() if case.rules.units else ():
            lengths = np.random.default_rng([case.seed, size]).integers(1, 60, size)
            assert case.rules.units is not None
            plans[name] = make_plan(Path(folder, name), Lengths.of(lengths), case.rules.units)
        yield Order(case.seed, case.sizes, case.weights, GLOBAL_BATCH, case.rules, plans), plans


def seen_by(order: Order, part: Part, start: int) -> list[Draw]:
    """Draws as the workers of all ranks do: each micro-batch by one worker, which knows nothing of the others."""
    by_rank = []
    for rank in range(part.world):
        places = share(rank, part.world, part.micro_batch, GLOBAL_BATCH)
        workers = max(1, part.workers)
        made: dict[int, list[Draw]] = {}
        for worker in range(workers):
            for number in range(worker, part.steps * len(places), workers):
                step, micro = divmod(number, len(places))
                made[number] = order.samples_of(start + step, places[micro])
        by_rank.append([made[number] for number in sorted(made)])
    return [draw for together in zip(*by_rank, strict=True) for batch in together for draw in batch]


def check_one_global_order(case: Case) -> None:
    with order_of(case) as (order, _):
        together, step = [], case.first_step
        for part in case.parts:
            together += seen_by(order, part, step)
            step += part.steps

        alone = [draw for step in range(case.first_step, step) for draw in order.samples_of(step)]

    assert alone == together
    assert sorted({draw.place for draw in alone}) == (list(range(GLOBAL_BATCH)) if alone else [])


def check_nothing_lost_nothing_twice(case: Case) -> None:
    with order_of(case) as (order, plans):
        drawn: dict[tuple[str, int], list[int]] = defaultdict(list)
        for step in range(24):
            for draw in order.samples_of(step):
                drawn[draw.source, draw.epoch].append(draw.number)

    latest = {name: max((epoch for source, epoch in drawn if source == name), default=-1) for name in case.sizes}
    for (name, epoch), numbers in drawn.items():
        twice = plans[name].facts["repeated"] if plans else 0
        counts = Counter(numbers)
        assert sum(counts.values()) - len(counts) <= twice
        if epoch < latest[name]:
            assert set(range(case.sizes[name])) == set(counts)
            assert len(numbers) == case.sizes[name] + twice


def check_every_source_has_its_share(case: Case) -> None:
    with order_of(case) as (order, plans):
        drawn = Counter[str]()
        steps = 20
        for step in range(steps):
            drawn.update(source for _, source in {(draw.place, draw.source) for draw in order.samples_of(step)})
        bounds = order.error_bound()

    units = {name: len(plans[name]) if plans else size for name, size in case.sizes.items()}
    weights = case.weights or dict.fromkeys(units, 1.0)
    if case.rules.temperature is not None:
        weights = {name: float(size) for name, size in units.items()}
    places_of_a_turn = GLOBAL_BATCH if case.rules.unit == "step" else case.rules.bucket.size if case.rules.bucket else 1
    for name, weight in weights.items():
        share = weight / math.fsum(weights.values()) * steps * GLOBAL_BATCH
        assert abs(drawn[name] - share) <= bounds[name] * places_of_a_turn + 1e-6
        assert bounds[name] < 1


CHECKS = [check_one_global_order, check_nothing_lost_nothing_twice, check_every_source_has_its_share]


def run(check: Callable[[Case], None], number: int) -> None:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=number, deadline=None, suppress_health_check=health)(given(cases())(check))()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_a_hundred_cases(check: Callable[[Case], None]) -> None:
    run(check, 100)


@pytest.mark.long
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_a_thousand_cases(check: Callable[[Case], None]) -> None:
    run(check, 1000)
