"""Which weights are gathered at a time: what must hold for any order of module calls."""

import pytest

from orchestrator.training.memory import gathering as module
from orchestrator.training.memory.gathering import gathering

LAYERS = tuple(range(8))
SIZES = (100,) * 8
CALLS = tuple((layer,) for layer in LAYERS)
THERE_AND_BACK = (*CALLS, *reversed(CALLS))


def test_nothing_but_the_layer_at_work_is_whole_where_nothing_is_fetched_ahead_or_needed_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REUSE_ELEMENTS", 0)

    assert gathering.__wrapped__(SIZES, THERE_AND_BACK, 0, 0) == (100, 0)


def test_what_is_needed_again_soon_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REUSE_ELEMENTS", 500)  # the last layers are needed again within five layers

    most, _ = gathering.__wrapped__(SIZES, THERE_AND_BACK, 0, 0)

    assert most == 300  # layer 5 has four layers between its two calls, layer 4 has six


def test_a_small_model_is_whole_at_the_turn() -> None:
    assert gathering(SIZES, THERE_AND_BACK, 0, 50_000_000) == (800, 700)


def test_small_parameters_are_whole_all_the_time_and_not_counted_here() -> None:
    assert gathering((100, 7, 100), ((0, 1), (2,), (2,), (0, 1)), 10, 0)[0] == 200


def test_fetching_ahead_stops_at_the_bucket() -> None:
    forward_only = CALLS  # nothing is needed again, as of a frozen encoder

    most, fetch = gathering(SIZES, forward_only, 0, 250)

    assert fetch == 300  # whole parameters, until the bucket is full
    assert most == 600  # each call fetches that much more ahead, whatever is there already
