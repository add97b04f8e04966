"""A claim: our figure, a peer's, their ratio, the bar, and whether it holds; as JSON for programs, as a table."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Claim = dict[str, Any]
Direction = Literal["at least", "at most"]


def claim(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float] | None,
    unit: str,
    *,
    peer_name: str | None,
    bar: float | None,
    direction: Direction = "at least",
    note: str = "",
) -> Claim:
    """Compares the medians; where there is a peer the bar is one of their ratio, else of our figure."""
    mine = statistics.median(ours)
    theirs = statistics.median(peer) if peer else None
    ratio = mine / theirs if theirs else None
    judged = mine if peer is None and peer_name is None else ratio
    return {
        "claim": name,
        "ours": mine,
        "peer": theirs,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ratio,
        "spread": {"ours": spread(ours), "peer": spread(peer) if peer else None},
        "bar": bar,
        "holds": _holds(judged, bar, direction),
        "note": note if bar is None or direction == "at least" else f"{note}; the bar is an upper one".lstrip("; "),
    }


def cannot(name: str, ours: Sequence[float], unit: str, *, peer_name: str, bar: float | None, why: str) -> Claim:
    """Shows a cell that a peer cannot fill, with its own error."""
    found = claim(name, ours, None, unit, peer_name=peer_name, bar=bar)
    return found | {"holds": None, "note": f"cannot: {why}"}


def spread(values: Sequence[float]) -> float:
    """Returns how far the values lie apart, in parts of their median."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def _holds(value: float | None, bar: float | None, direction: Direction) -> bool | None:
    if value is None or bar is None:
        return None
    return value >= bar if direction == "at least" else value <= bar


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Returns what every benchmark understands; its module's docstring says what it measures."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON as described in the interface")
    parser.add_argument("--quick", action="store_true", help="a small version of the same")
    return parser


def say(words: str) -> None:
    """Says on stderr, with the time, how far a benchmark is: the whole takes minutes."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def told(cell: str, found: list[Claim]) -> list[Claim]:
    """Says that a part of a benchmark is done, and returns what it found."""
    say(f"{cell}: {len(found)} claims")
    return found


def show(claims: Sequence[Claim], machine: Mapping[str, Any], versions: Mapping[str, str], *, as_json: bool) -> None:
    """Prints the claims: as a table, or as the JSON of the interface. `machine` is as it was before measuring."""
    if as_json:
        print(json.dumps({"machine": machine, "versions": versions, "claims": claims}, indent=1))
    else:
        _print_table(claims)


def _print_table(claims: Sequence[Claim]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    table = Table("claim", "ours", "peer", "", "unit", "ratio", "bar", "holds", "note", box=None, pad_edge=False)
    for one in claims:
        holds = {True: "yes", False: "NO", None: ""}[one["holds"]]
        table.add_row(
            one["claim"], _figure(one["ours"], one["spread"]["ours"]), _figure(one["peer"], one["spread"]["peer"]),
            one["peer_name"] or "", one["unit"], _number(one["ratio"]), _number(one["bar"]), holds, one["note"],
        )  # fmt: skip
    console.print(table, markup=False)


def _figure(value: float | None, apart: float | None) -> str:
    return "" if value is None else f"{_number(value)} ±{100 * (apart or 0) / 2:.0f}%"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Describes the machine, and how busy it is: figures of a busy one are worth little."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": models[0].partition(": ")[2] if models else platform.machine(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Names what ours ran with."""
    names = ("orch", "numpy", "pillow", "torch")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a working tree
            found[name] = "not installed"
    return found
