"""Puts what a set of shards holds into lines for people."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LINES_SHOWN = 20


def summary_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    """Writes the answer of `orch data inspect` for people."""
    size = f"{tars_in_words(shown['shards'])}, {size_in_words(shown['bytes'])}"
    yield f"{shown['path']}: {shown['samples']:,} samples in {size}"
    for name in ("source", "split", "schema", "licence"):
        if shown[name] is not None:
            yield f"{name}: {shown[name]}"
    yield from _member_lines(shown)
    for name in ("largest", "smallest"):
        if tar := shown[name]:
            yield f"{name} tar: {tar['tar']}, {size_in_words(tar['bytes'])}, {tar['samples']:,} samples"
    yield from _count_lines("counts", shown["counts"])
    skipped = shown["skipped"] or {}
    yield from _count_lines(f"skipped: {skipped.get('total', 0):,}", skipped.get("reasons"))
    yield from _count_lines("repaired", shown["repaired"])
    if tars := shown["without_index"]:
        yield f"without an index beside them: {len(tars):,} tars, {tars[0]} the first (walked through now, each time)"
    damage = [f"{one['tar']}  {one['key']}  {one['reason']}" for one in shown["damage"]] + shown["faults"]
    yield f"known damage: {len(damage)}" if damage else "known damage: none (orch data verify reads every byte)"
    yield from (f"  {line}" for line in damage[:LINES_SHOWN])
    if len(damage) > LINES_SHOWN:
        yield f"  and {len(damage) - LINES_SHOWN} more; --json lists all"


def adopted_lines(folder: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """Writes what `orch data index` made for people."""
    size = f"{tars_in_words(facts['shards'])}, {size_in_words(facts['bytes'])}"
    yield f"{folder}: {facts['samples']:,} samples in {size}, {facts['losses']:,} losses"
    yield from (f"  {one['tar']}  {one['key']}  {one['reason']}" for one in facts["damage"][:LINES_SHOWN])
    if facts["losses"] > LINES_SHOWN:
        yield f"  and {facts['losses'] - LINES_SHOWN:,} more; --json lists the first thousand"


def tars_in_words(count: int) -> str:
    """Reads `1 tar` or `12 tars`."""
    return f"{count:,} tar" + "s" * (count != 1)


def size_in_words(count: float) -> str:
    """Reads `12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _member_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    members, looked_at = shown["members"], shown["members_counted_in"]
    where = "" if looked_at >= shown["shards"] else f" (counted in {looked_at:,} tars)"
    for name, one in members.items():
        yield f"member {name}: {one['samples']:,} samples{where}, {size_in_words(one['mean_bytes'])} on average"


def _count_lines(title: str, counts: Mapping[str, int] | None) -> Iterator[str]:
    if counts:
        yield f"{title}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())
