"""Which samples make up which step."""

import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.order import Draw, Order, share
from orchestrator.data.rules import OrderRules, ShuffleRule
from orchestrator.errors import InputError

SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60), min_size=1, max_size=5)
WORLDS = st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(1, 5))  # ranks, micro-batch, accumulation


@given(SIZES, st.integers(0, 2**31), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_every_sample_is_drawn_exactly_once_in_every_epoch_of_its_source(
    sizes: dict[str, int], seed: int, global_batch: int
) -> None:
    order = Order(seed, sizes, {}, global_batch)

    drawn = [draw for step in range(120) for draw in order.samples_of(step)]

    for name, size in sizes.items():
        numbers = [draw.number for draw in drawn if draw.source == name]
        epochs = [draw.epoch for draw in drawn if draw.source == name]
        assert [place // size for place in range(len(epochs))] == epochs
        for start in range(0, len(numbers) - size + 1, size):
            assert list(range(size)) == sorted(numbers[start : start + size])


@given(SIZES, st.integers(0, 2**31), WORLDS, st.integers(0, 10**12))
@settings(max_examples=100, deadline=None)
def test_the_global_batch_of_a_step_is_the_same_for_every_world(
    sizes: dict[str, int], seed: int, world: tuple[int, int, int], step: int
) -> None:
    ranks, micro_batch, accumulation = world
    global_batch = ranks * micro_batch * accumulation
    order = Order(seed, sizes, {}, global_batch)

    parts = [share(rank, ranks, micro_batch, global_batch) for rank in range(ranks)]
    by_micro_step = [
        draw for micro in zip(*parts, strict=True) for part in micro for draw in order.samples_of(step, part)
    ]

    assert order.samples_of(step) == by_micro_step
    assert {accumulation} == {len(part) for part in parts}


@given(SIZES, st.lists(st.integers(1, 100), min_size=5, max_size=5), st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_what_was_drawn_before_a_step_is_known_without_drawing_it(
    sizes: dict[str, int], weights: list[int], step: int
) -> None:
    order = Order(1, sizes, dict(zip(sizes, weights, strict=False)), 3)

    counted = Counter(draw.source for before in range(step) for draw in order.samples_of(before))

    assert {name: counted[name] for name in sizes} == order.drawn_before(step)


def test_all_samples_of_a_step_come_from_one_source() -> None:
    order = Order(5, {"a": 7, "b": 11, "c": 3}, {"a": 1.0, "b": 2.0, "c": 0.5}, 8)

    for step in range(200):
        assert {order.source_of(step)} == {draw.source for draw in order.samples_of(step)}


def test_the_order_of_the_mappings_does_not_matter() -> None:
    one = Order(5, {"a": 7, "b": 11}, {"a": 1.0, "b": 2.0}, 4)
    other = Order(5, {"b": 11, "a": 7}, {"b": 2.0, "a": 1.0}, 4)

    assert [one.samples_of(step) for step in range(50)] == [other.samples_of(step) for step in range(50)]


def test_another_seed_or_epoch_or_source_is_another_shuffle() -> None:
    def numbers(seed: int, source: str, step: int) -> list[int]:
        return [draw.number for draw in Order(seed, {source: 100}, {}, 100).samples_of(step)]

    first = numbers(0, "a", 0)

    assert first != numbers(1, "a", 0)
    assert first != numbers(0, "b", 0)
    assert first != numbers(0, "a", 1)
    assert first != list(range(100))


def test_the_seed_of_a_sample_is_its_own_in_every_epoch() -> None:
    order = Order(0, {"a": 500}, {}, 500)

    draws = [draw for step in range(20) for draw in order.samples_of(step)]

    assert len(draws) == len({draw.seed for draw in draws})
    assert all(0 <= draw.seed < 2**63 for draw in draws)


def test_the_order_of_a_release_is_the_order_of_the_next() -> None:
    order = Order(7, {"a": 10**9, "b": 12}, {"a": 0.9, "b": 0.1}, 2)

    assert [
        Draw("a", 0, 497822680, 4254514881381119405, 0),
        Draw("a", 0, 730934047, 3975082190090448150, 1),
    ] == order.samples_of(123_456_789)


BLOCKS = OrderRules(shuffle=ShuffleRule(mode="blocks"))


def seconds_a_step(size: int, start: int) -> float:
    order = Order(1, {"a": size, "b": size}, {"a": 3.0, "b": 1.0}, 64, BLOCKS)
    took = []
    for repeat in range(7):
        started = time.perf_counter()
        for step in range(start + 30 * repeat, start + 30 * repeat + 30):
            order.samples_of(step)
        took.append((time.perf_counter() - started) / 30)
    return min(took)


def test_any_step_of_any_size_is_found_as_quickly() -> None:
    found = [seconds_a_step(size, size // 64 * 9 // 10) for size in (10**4, 10**6, 10**9, 10**12)]

    assert max(found) < 4 * min(found)  # generous: a busy machine; without that they are within 20 %
    assert max(found) < 0.02


def test_a_billion_samples_take_less_than_200_mb() -> None:
    program = """
from pathlib import Path

from orchestrator.data.order import Order
from orchestrator.data.rules import OrderRules, ShuffleRule

rules = OrderRules(shuffle=ShuffleRule(mode="blocks"), max_epochs={"a": 3})
order = Order(1, {"a": 10**9, "b": 10**9, "c": 7}, {"a": 0.7, "b": 0.123457, "c": 0.1}, 512, rules)
for step in range(0, 10**9, 10**7):
    assert len(order.samples_of(step)) == 512
status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had at the fork
print(status.partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert int(done.stdout) < 200 * 1024  # KiB; it takes about 70 MB, most of it Python with numpy


def test_turns_of_samples_mix_sources_inside_a_step() -> None:
    order = Order(5, {"a": 70, "b": 110}, {"a": 1.0, "b": 3.0}, 8, OrderRules(unit="sample"))

    for step in range(50):
        assert Counter(draw.source for draw in order.samples_of(step)) == {"a": 2, "b": 6}
    with pytest.raises(InputError, match="the samples of a step come from several sources"):
        order.source_of(0)


@pytest.mark.parametrize("steps", [1, 7, 40, 333])
def test_turns_of_samples_are_exact_to_one_sample(steps: int) -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    order = Order(5, {"a": 70, "b": 110, "c": 9}, weights, 7, OrderRules(unit="sample"))

    for name, count in order.drawn_before(steps).items():
        assert abs(count - weights[name] * steps * 7) <= order.error_bound()[name] + 1e-9 < 1


def test_a_source_is_drawn_no_more_than_its_epochs_and_the_others_take_its_turns() -> None:
    order = Order(0, {"a": 40, "b": 100}, {"a": 3.0, "b": 1.0}, 4, OrderRules(max_epochs={"a": 2}))

    drawn = [draw for step in range(120) for draw in order.samples_of(step)]

    assert Counter(draw.number for draw in drawn if draw.source == "a") == dict.fromkeys(range(40), 2)
    assert {"b"} == {order.source_of(step) for step in range(30, 120)}
    assert order.steps is None
    order.require(10**9)


def test_epochs_that_end_before_training_does_are_refused_with_numbers() -> None:
    order = Order(0, {"a": 40, "b": 100}, {}, 8, OrderRules(max_epochs={"a": 2, "b": 1.5}))

    order.require(28)
    assert order.steps == 28
    with pytest.raises(
        InputError,
        match=r"max_epochs ends the data after 28 steps of 8 samples, but 29 steps are to be trained "
        r"\(a: 2 epochs of 40 samples are 80 in 10 steps; b: 1.5 epochs of 100 samples are 144 in 18 steps\); allowed",
    ):
        order.require(29)


def test_less_than_one_turn_is_refused() -> None:
    with pytest.raises(InputError, match=r"order.max_epochs.a: 0.5 epochs of 10 samples are less than the 8 of one"):
        Order(0, {"a": 10}, {}, 8, OrderRules(max_epochs={"a": 0.5}))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 100.0), (2.0, 10.0), (1e9, 1.0)])
def test_temperature_makes_weights_of_sizes(temperature: float, expected: float) -> None:
    order = Order(0, {"large": 10**6, "small": 10**4}, {}, 1, OrderRules(temperature=temperature))

    drawn = order.drawn_before(10**6)

    assert drawn["large"] / drawn["small"] == pytest.approx(expected, rel=1e-3)


def test_temperature_and_weights_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"order.temperature: makes weights of the sizes: leave mixture empty"):
        Order(0, {"a": 1}, {"a": 1.0}, 1, OrderRules(temperature=2.0))


@given(st.integers(2, 40), st.integers(0, 39), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_stand_ins_are_the_other_samples_of_the_source_each_once(size: int, number: int, epoch: int) -> None:
    order = Order(3, {"a": size, "b": 50}, {}, 4)
    draw = Draw("a", epoch, number % size, 77, 2)

    found = [order.substitute(draw, attempt) for attempt in range(1, size)]

    assert sorted(stand_in.number for stand_in in found) == [i for i in range(size) if i != draw.number]
    assert {draw} == {stand_in._replace(number=draw.number) for stand_in in found}
    assert found[0] == order.substitute(draw, size)


def test_the_only_sample_of_a_source_has_no_stand_in() -> None:
    with pytest.raises(InputError, match=r"shards\.a holds one sample only, and that is damaged"):
        Order(3, {"a": 1}, {}, 4).substitute(Draw("a", 0, 0, 77, 2), 1)


def test_the_digest_changes_with_all_that_decides_the_order_and_with_nothing_else() -> None:
    def digest(seed: int = 1, size: int = 9, weight: float = 1.0, batch: int = 4, rules: OrderRules = BLOCKS) -> str:
        return Order(seed, {"b": 5, "a": size}, {"a": weight, "b": 2.0}, batch, rules).digest()

    others = [digest(seed=2), digest(size=8), digest(weight=1.5), digest(batch=8), digest(rules=OrderRules())]

    assert len({digest(), *others}) == 6
    assert digest() == Order(1, {"a": 9, "b": 5}, {"b": 2.0, "a": 1.0}, 4, BLOCKS).digest()


@pytest.mark.parametrize(
    ("sizes", "weights", "named"),
    [
        ({}, {}, "shards: training needs at least one entry"),
        ({"a": 0}, {}, "shards.a: holds no samples"),
        ({"a": 1}, {"a": -1.0}, "mixture.a: a weight must be a finite number above 0"),
        ({"a": 1}, {"a": float("nan")}, "mixture.a"),
        ({"a": 1}, {"a": 0.0}, "mixture.a"),
        ({"a": 1, "b": 1}, {"a": 1.0}, "mixture: must weigh every entry .* missing: b"),
        ({"a": 1}, {"a": 1.0, "c": 1.0}, "mixture.c: no such entry under inputs.shards; allowed: a"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_by_name(
    sizes: dict[str, int], weights: dict[str, float], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        Order(0, sizes, weights, 1)


def test_a_global_batch_that_ranks_cannot_share_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(InputError, match=r"global_batch=10, .* allowed: global_batch=8 or 16, or micro_batch=1 or 5"):
        share(0, 2, 4, 10)


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(InputError, match="rank must be from 0 to 1, not 2"):
        share(2, 2, 1, 4)
