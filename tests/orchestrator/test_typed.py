from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestrator.errors import Fault, InputError
from orchestrator.records import hidden, incidental, record
from orchestrator.typed import plain, typed


@record
class Inner:
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError("lr must be above 0")


@record
class Outer:
    steps: int
    name: str = "x"
    on: bool = False
    root: Path | None = None
    mode: Literal["a", "b"] = "a"
    words: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 2)
    weights: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    inners: tuple[Inner, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)
    choice: int | str = 1
    free: Any = None
    maybe: Inner | None = None
    noise: int = incidental(default=0)
    secret: str | None = hidden()


def test_plain_data_becomes_records_all_the_way_down() -> None:
    given = {
        "steps": 3, "root": "/a/b", "words": ["x"], "size": [3, 4], "weights": {"a": 1}, "inner": {"lr": 2},
        "inners": [{"lr": 1}, {}], "named": {"k": {"lr": 3}}, "choice": "many", "free": {"x": [1]}, "maybe": {},
    }  # fmt: skip
    faults: list[Fault] = []

    outer = typed(Outer, given, "", faults)

    assert faults == []
    assert outer == Outer(
        steps=3, root=Path("/a/b"), words=("x",), size=(3, 4), weights={"a": 1.0}, inner=Inner(lr=2.0),
        inners=(Inner(lr=1.0), Inner()), named={"k": Inner(lr=3.0)}, choice="many", free={"x": [1]}, maybe=Inner(),
    )  # fmt: skip


def test_records_survive_the_way_through_plain_data() -> None:
    outer = Outer(steps=3, root=Path("a"), inners=(Inner(lr=0.5),), named={"k": Inner()}, weights={"b": 1.0, "a": 2.0})

    assert typed(Outer, plain(outer), "", []) == outer
    assert "noise" not in plain(outer, skip="incidental")
    assert "secret" not in plain(outer)
    assert list(plain(outer)["weights"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        ({}, "c.steps", "is missing; needs a whole number"),
        ({"steps": 1.5}, "c.steps", "1.5 is not a whole number"),
        ({"steps": True}, "c.steps", "True is not a whole number"),
        ({"steps": None}, "c.steps", "None is not a whole number"),
        ({"steps": 1, "on": "perhaps"}, "c.on", "'perhaps' is not true or false"),
        ({"steps": 1, "mode": "c"}, "c.mode", "'c' is not one of the choices; allowed: a, b"),
        ({"steps": 1, "words": "x"}, "c.words", "'x' is not a list"),
        ({"steps": 1, "size": [1]}, "c.size", "needs 2 values, has 1: [1]"),
        ({"steps": 1, "size": [1, "x"]}, "c.size.1", "'x' is not a whole number"),
        ({"steps": 1, "weights": {"a": "much"}}, "c.weights.a", "'much' is not a number"),
        ({"steps": 1, "inner": {"lr": -1}}, "c.inner.lr", "must be above 0, not -1.0"),
        ({"steps": 1, "inners": [{}, {"lr": 0}]}, "c.inners.1.lr", "must be above 0, not 0.0"),
        ({"steps": 1, "named": {"k": {"l": 0}}}, "c.named.k.l", "is not known here; did you mean 'lr'? allowed: lr"),
        ({"steps": 1, "maybe": {"lr": 0}}, "c.maybe.lr", "must be above 0, not 0.0"),
        ({"steps": 1, "secret": "x"}, "c.secret", "is not known here; allowed: steps, name,"),
        ({"steps": 1, "root": ["x"]}, "c.root", "['x'] is not a path"),
        (5, "c", "5 is not a mapping; allowed keys: steps, name,"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(given: Any, key: str, message: str) -> None:
    faults: list[Fault] = []
    typed(Outer, given, "c", faults)

    assert [fault.key for fault in faults] == [key]
    assert faults[0].message.startswith(message)


def test_all_wrong_values_are_told_in_one_pass() -> None:
    faults: list[Fault] = []
    typed(Outer, {"stps": 1, "on": "x", "inner": {"lr": "fast"}, "named": {"a": {"b": 1}, "c": 3}}, "", faults)

    assert {fault.key for fault in faults} == {"stps", "steps", "on", "inner.lr", "named.a.b", "named.c"}
