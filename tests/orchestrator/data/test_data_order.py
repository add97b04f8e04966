"""Which samples make up which step."""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.order import Draw, Order, share
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


def test_a_billion_samples_cost_no_more_than_ten() -> None:
    sizes = {f"source {i}": 10**9 + i for i in range(20)}
    start = time.perf_counter()

    order = Order(1, sizes, {name: 1.0 + i for i, name in enumerate(sizes)}, 64)
    for step in range(10**15, 10**15 + 100):
        assert all(0 <= draw.number < sizes[draw.source] for draw in order.samples_of(step))

    assert time.perf_counter() - start < 1.0  # generous: it takes about 0.02 s


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
