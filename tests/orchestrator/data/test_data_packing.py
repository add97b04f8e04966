"""Packs and buckets: which samples share a place or lie side by side."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.data.lengths import Lengths
from orchestrator.data.order import Draw, Order
from orchestrator.data.packing import PackingPlan, make_plan
from orchestrator.data.rules import BucketRule, OrderRules, PackRule
from orchestrator.errors import DamagedArtifact, InputError

LENGTHS = st.lists(st.integers(0, 120), min_size=1, max_size=300).filter(any)


def captions(number: int, seed: int = 0) -> NDArray[np.int64]:
    """Draws lengths as conversations have them: most are short, few are long."""
    return np.random.default_rng(seed).lognormal(5.7, 0.8, number).astype(np.int64).clip(16, 2048)


def members(plan: PackingPlan) -> list[list[int]]:
    return [plan.members(unit).tolist() for unit in range(len(plan))]


@given(
    values=LENGTHS,
    budget=st.integers(1, 100),
    window=st.integers(1, 100),
    too_long=st.sampled_from(["alone", "leave_out"]),
)
@settings(max_examples=100, deadline=None)
def test_every_usable_sample_is_in_exactly_one_pack_and_no_pack_is_over_its_budget(
    values: list[int], budget: int, window: int, too_long: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    usable = [i for i, length in enumerate(values) if length > 0 and (too_long == "alone" or length <= budget)]
    rule = PackRule(budget=budget, window=window, too_long=too_long)
    if not usable:
        return

    plan = make_plan(tmp_path_factory.mktemp("plan"), Lengths.of(np.array(values)), rule)

    packs = members(plan)
    assert usable == sorted(number for pack in packs for number in pack)
    assert all(sum(values[i] for i in pack) <= budget or len(pack) == 1 for pack in packs)
    assert all(len({number // window for number in pack}) == 1 for pack in packs)
    assert plan.facts["samples"] == len(usable)
    assert plan.facts["unmeasured"] == values.count(0)
    assert plan.facts["too_long"] == sum(length > budget for length in values)
    used = sum(min(values[i], budget) for i in usable)
    assert plan.facts["padding"] == pytest.approx(1 - used / (budget * len(packs)))


@given(values=LENGTHS, size=st.integers(1, 16), more=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_every_measured_sample_is_in_a_bucket_and_all_buckets_are_full(
    values: list[int], size: int, more: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rule = BucketRule(size=size, window=size + more)

    plan = make_plan(tmp_path_factory.mktemp("plan"), Lengths.of(np.array(values)), rule)

    buckets = members(plan)
    usable = {i for i, length in enumerate(values) if length}
    assert usable == {number for bucket in buckets for number in bucket}
    assert {size} == {len(bucket) for bucket in buckets}
    repeated = len(buckets) * size - len(usable)
    assert plan.facts["repeated"] == repeated < size
    used, held = sum(values[i] for b in buckets for i in b), sum(max(values[i] for i in b) * size for b in buckets)
    assert plan.facts["padding"] == pytest.approx(1 - used / held)


@pytest.mark.parametrize(
    "values",
    [captions(100_000), np.random.default_rng(1).integers(30, 150, 100_000), np.arange(100_000) % 1000 + 1],
    ids=["conversations", "captions", "evenly up to half the budget"],
)
def test_padding_is_at_most_three_percent(values: NDArray[np.int64], tmp_path: Path) -> None:
    packs = make_plan(tmp_path / "packs", Lengths.of(values), PackRule(budget=2048))
    buckets = make_plan(tmp_path / "buckets", Lengths.of(values), BucketRule(size=16))

    assert packs.facts["padding"] < 0.01
    assert buckets.facts["padding"] < 0.03


def test_two_hundred_thousand_samples_are_planned_in_seconds(tmp_path: Path) -> None:
    lengths = Lengths.of(captions(200_000))
    started = time.perf_counter()

    make_plan(tmp_path, lengths, PackRule(budget=2048))

    assert time.perf_counter() - started < 10  # it takes about 0.15 s


def test_equal_lengths_make_equal_plans_and_a_plan_is_made_once(tmp_path: Path) -> None:
    lengths, rule = Lengths.of(captions(5000)), PackRule(budget=2048)
    one, other = make_plan(tmp_path / "one", lengths, rule), make_plan(tmp_path / "other", lengths, rule)
    made = (tmp_path / "one" / "starts.npy").stat().st_mtime_ns

    again = make_plan(tmp_path / "one", lengths, rule)

    assert one.digest == other.digest == again.digest
    assert made == (tmp_path / "one" / "starts.npy").stat().st_mtime_ns
    assert (tmp_path / "one" / "members.npy").read_bytes() == (tmp_path / "other" / "members.npy").read_bytes()


@pytest.mark.parametrize(
    ("values", "rule"),
    [(captions(5000, seed=1), PackRule(budget=2048)), (captions(5000), PackRule(budget=4096))],
    ids=["other lengths", "another rule"],
)
def test_another_rule_or_other_lengths_make_another_plan(
    values: NDArray[np.int64], rule: PackRule, tmp_path: Path
) -> None:
    before = make_plan(tmp_path, Lengths.of(captions(5000)), PackRule(budget=2048))

    after = make_plan(tmp_path, Lengths.of(values), rule)

    assert before.digest != after.digest
    assert sorted(number for pack in members(after) for number in pack) == list(range(5000))


def test_a_plan_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    lengths, rule = Lengths.of(captions(500)), PackRule(budget=2048)
    whole = make_plan(tmp_path, lengths, rule)
    (tmp_path / "plan.json").unlink()  # it is written last
    (tmp_path / "members.npy").write_bytes(b"half")

    assert make_plan(tmp_path, lengths, rule).digest == whole.digest


def test_files_of_another_plan_are_refused(tmp_path: Path) -> None:
    lengths, rule = Lengths.of(captions(500)), PackRule(budget=2048)
    make_plan(tmp_path / "one", lengths, rule)
    make_plan(tmp_path / "other", Lengths.of(captions(400)), rule)
    (tmp_path / "other" / "members.npy").replace(tmp_path / "one" / "members.npy")

    with pytest.raises(DamagedArtifact, match="not of the plan"):
        PackingPlan(tmp_path / "one", lengths)


def test_nothing_that_fits_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sample of the captions can be used: all are unmeasured or too long"):
        make_plan(tmp_path, Lengths.of(np.array([0, 99]), "the captions"), PackRule(budget=50))

    assert not (tmp_path / "plan.json").exists()


def order_of(values: NDArray[np.int64], rules: OrderRules, batch: int, directory: Path) -> tuple[Order, PackingPlan]:
    assert rules.units is not None
    plan = make_plan(directory, Lengths.of(values), rules.units)
    return Order(3, {"a": len(values)}, {}, batch, rules, {"a": plan}), plan


def test_the_samples_of_a_pack_share_a_place(tmp_path: Path) -> None:
    order, plan = order_of(captions(400), OrderRules(pack=PackRule(budget=2048)), 4, tmp_path)

    packs = {tuple(pack) for pack in members(plan)}
    for step in range(50):
        draws = order.samples_of(step)
        drawn = [tuple(draw.number for draw in draws if draw.place == place) for place in range(4)]
        assert set(drawn) <= packs
        assert [draw.place for draw in draws] == sorted(draw.place for draw in draws)


def test_a_part_of_a_bucket_is_the_same_part_for_any_micro_batch(tmp_path: Path) -> None:
    order, _ = order_of(captions(400), OrderRules(bucket=BucketRule(size=8)), 16, tmp_path)

    for step in range(20):
        parts = [order.samples_of(step, range(first, first + 2)) for first in range(0, 16, 2)]
        assert order.samples_of(step) == [draw for part in parts for draw in part]


@pytest.mark.parametrize("rules", [OrderRules(pack=PackRule(budget=2048)), OrderRules(bucket=BucketRule(size=8))])
def test_a_stand_in_is_no_longer_than_what_it_replaces_and_is_measured(rules: OrderRules, tmp_path: Path) -> None:
    values = captions(3000)
    values[::7] = 0  # could not be measured
    shortest = np.flatnonzero(values == values[values > 0].min())
    values[shortest[1:]] += 1  # so that one is the very shortest
    order, _ = order_of(values, rules, 8, tmp_path)

    for draw in (draw for step in range(20) for draw in order.samples_of(step)):
        for attempt in (1, 2, 3):
            stand_in = order.substitute(draw, attempt)
            assert 0 < values[stand_in.number] <= values[draw.number] or draw.number == shortest[0]
            assert stand_in.number != draw.number
            assert stand_in._replace(number=draw.number) == draw


def test_even_the_shortest_sample_has_a_stand_in(tmp_path: Path) -> None:
    order, _ = order_of(np.array([10, 50, 60, 3]), OrderRules(pack=PackRule(budget=100)), 1, tmp_path)

    assert order.substitute(Draw("a", 0, 3, 1, 0), 1).number == 0  # the shortest of the others


def test_plans_of_other_samples_or_by_another_rule_are_refused(tmp_path: Path) -> None:
    rules = OrderRules(pack=PackRule(budget=2048))
    plan = make_plan(tmp_path, Lengths.of(captions(400)), PackRule(budget=4096))

    with pytest.raises(InputError, match=r"shards\.a: its packing plan was made by another rule or of other samples"):
        Order(0, {"a": 400}, {}, 4, rules, {"a": plan})
    with pytest.raises(ValueError, match=r"plans are needed of exactly \['a'\], not \[\]"):
        Order(0, {"a": 400}, {}, 4, rules)


def test_a_global_batch_is_so_many_whole_buckets() -> None:
    with pytest.raises(InputError, match=r"order.bucket.size: global_batch = 12 is no multiple of 8"):
        Order(0, {"a": 400}, {}, 12, OrderRules(bucket=BucketRule(size=8)))


def test_what_was_drawn_is_told_in_samples(tmp_path: Path) -> None:
    order, plan = order_of(captions(400), OrderRules(pack=PackRule(budget=2048)), 4, tmp_path)

    drawn = sum(len(order.samples_of(step)) for step in range(len(plan)))  # four epochs

    assert order.drawn_before(len(plan)) == {"a": drawn} == {"a": 1600}


def test_the_plan_says_on_disk_what_it_is(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, Lengths.of(captions(400)), PackRule(budget=2048))

    document = json.loads((tmp_path / "plan.json").read_text())

    assert document["rule"] == {"budget": 2048, "window": 8192, "too_long": "leave_out"}
    assert document["digest"] == plan.digest
    assert np.load(tmp_path / "starts.npy").dtype == np.uint64
    assert np.load(tmp_path / "members.npy").dtype == np.uint32
