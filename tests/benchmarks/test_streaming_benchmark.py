"""The benchmark says what it measured, in the form of the interface, and its claims about damage hold."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import cannot, claim
from benchmarks.streaming.damage import survive_damage

ROOT = Path(__file__).parents[2]
KEYS = {"claim", "ours", "peer", "peer_name", "unit", "ratio", "spread", "bar", "holds", "note"}


def benchmark(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.streaming", *arguments]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_the_json_is_as_the_interface_says() -> None:
    document = json.loads(benchmark("--quick", "--json", "--peers", "none", "--cells", "ace").stdout)

    assert document.keys() == {"machine", "versions", "claims"}
    assert all(one.keys() == KEYS for one in document["claims"])
    assert {one["claim"][0] for one in document["claims"]} == set("ace")
    (memory,) = [one for one in document["claims"] if one["claim"].endswith("peak")]
    assert memory["holds"] is True  # 200 MB for 10^9 samples does not depend on how busy the machine is


def test_mistakes_name_what_is_allowed() -> None:
    assert "litdata, none; cells abcde" in benchmark("--peers", "tfrecord", code=2).stderr


@pytest.mark.slow
def test_no_wrong_sample_comes_out_of_any_damage_and_the_intact_ones_are_kept(tmp_path: Path) -> None:
    claims = survive_damage(tmp_path)

    assert len(claims) == 20
    assert [one["claim"] for one in claims if one["holds"] is not True] == []
    assert sum(one["peer"] for one in claims if "wrong" in one["claim"]) > 0  # the faults are such that others fail


@pytest.mark.parametrize(
    ("ours", "peer", "bar", "direction", "holds"),
    [
        ([30.0, 40.0, 50.0], [4.0], 10.0, "at least", True),
        ([30.0, 39.0, 50.0], [4.0], 10.0, "at least", False),
        ([1.0], [100.0], 0.01, "at most", True),
        ([2.0], [100.0], 0.01, "at most", False),
        ([2.0], [1.0], None, "at least", None),
    ],
)
def test_a_claim_compares_medians(ours: list[float], peer: list[float], bar: Any, direction: Any, holds: Any) -> None:
    made = claim("c", ours, peer, "s", peer_name="p", bar=bar, direction=direction)

    assert made["holds"] is holds
    assert made.keys() == KEYS


def test_without_a_peer_our_own_figure_is_judged() -> None:
    assert claim("c", [150.0], None, "MB", peer_name=None, bar=200.0, direction="at most")["holds"] is True
    assert claim("c", [250.0], None, "MB", peer_name=None, bar=200.0, direction="at most")["holds"] is False


def test_who_cannot_is_shown_with_its_error() -> None:
    shown = cannot("c", [1.0], "s", peer_name="p", bar=10.0, why="TypeError: no")

    assert (shown["peer"], shown["holds"], shown["note"]) == (None, None, "cannot: TypeError: no")
    assert shown.keys() == KEYS


def test_every_peer_is_pinned() -> None:
    pins = (ROOT / "benchmarks" / "streaming" / "peers.txt").read_text(encoding="utf-8").splitlines()

    assert {"webdataset==1.0.2", "megatron-energon==7.4.1", "mosaicml-streaming==0.13.0", "litdata==0.2.76"} <= set(
        pins
    )
    assert all("==" in pin for pin in pins if not pin.startswith("#"))
