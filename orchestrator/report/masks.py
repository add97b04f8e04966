"""Masks as outlines that a page can draw: COCO's run lengths to the path of an SVG. Trusts nothing that it reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.records import record

MOST_PIXELS = 100_000_000
PLACES_TRIED = 200
MOST_CORNERS = 40_000  # of one mask: 400 kB; noise that is more ragged is left out

Column = list[tuple[int, int]]  # rows from ... to (excluded), from top to bottom
Corner = tuple[int, int]  # x, y


@record
class Outline:
    """What a mask covers."""

    path: str  # of an SVG, in pixels of the image
    inside_xy: tuple[float, float]  # a place well inside, for a number
    share: float  # of the picture


def outline_of(mask: Any) -> Outline | None:
    """Returns the outline of {"size": [height, width], "counts": text}; None if it is empty or is no mask."""
    columns = _columns(mask)
    if columns is None or not any(columns):
        return None
    rings = _rings(columns)
    if rings is None:
        return None
    covered = sum(bottom - top for column in columns for top, bottom in column)
    share = covered / (len(columns) * int(mask["size"][0]))
    return Outline(path="".join(_path(ring) for ring in rings), inside_xy=_inside(columns), share=share)


def _columns(mask: Any) -> list[Column] | None:
    """Reads the runs of set pixels, column by column; None if the run lengths do not add up to the size."""
    if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), str):
        return None
    match mask.get("size"):
        case [int(height), int(width)] if height > 0 and width > 0 and height * width <= MOST_PIXELS:
            pass
        case _:
            return None
    columns: list[Column] = [[] for _ in range(width)]
    at = 0
    for number, length in enumerate(_runs(mask["counts"])):
        if length < 0 or at + length > height * width:
            return None
        if number % 2 and length:
            _fill(columns, at, at + length, height)
        at += length
    return columns if at == height * width else None


def _runs(counts: str) -> Iterator[int]:
    """Undoes COCO's text form: 5 bits a character, low bits first, differences to the run before the last one."""
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 40:
            yield -1  # no such mask
            return
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        yield runs[-1]
        value = shift = 0


def _fill(columns: list[Column], start: int, end: int, height: int) -> None:
    """Notes a run of set pixels, which may go on over several columns."""
    while start < end:
        x, top = divmod(start, height)
        bottom = min(height, top + end - start)
        if columns[x] and columns[x][-1][1] == top:  # two runs with nothing between them
            columns[x][-1] = (columns[x][-1][0], bottom)
        else:
            columns[x].append((top, bottom))
        start += bottom - top


def _rings(columns: Sequence[Column]) -> list[list[Corner]] | None:
    """Follows the edges around all that is set, clockwise; None if there are too many."""
    following: dict[Corner, list[Corner]] = {}
    for number, (start, end) in enumerate(_edges(columns)):
        if number == MOST_CORNERS:
            return None
        following.setdefault(start, []).append(end)
    rings = []
    while following:
        first = next(iter(following))
        ring, corner = [first], _next(following, first)
        while corner != first:
            ring.append(corner)
            corner = _next(following, corner)
        rings.append(ring)
    return rings


def _next(following: dict[Corner, list[Corner]], corner: Corner) -> Corner:
    ends = following[corner]
    end = ends.pop()
    if not ends:
        del following[corner]
    return end


def _edges(columns: Sequence[Column]) -> Iterator[tuple[Corner, Corner]]:
    """Yields the edges of set pixels with what is set on their right hand."""
    before: Column = []
    for x, column in enumerate([*columns, []]):
        for top, bottom in column:
            yield (x, top), (x + 1, top)
            yield (x + 1, bottom), (x, bottom)
        for top, bottom in _without(column, before):
            yield (x, bottom), (x, top)
        for top, bottom in _without(before, column):
            yield (x, top), (x, bottom)
        before = column


def _without(column: Column, other: Column) -> Iterator[tuple[int, int]]:
    """Yields what of a column's runs lies in no run of another one."""
    index = 0
    for start, bottom in column:
        top = start
        while index < len(other) and other[index][1] <= top:
            index += 1
        at = index
        while at < len(other) and other[at][0] < bottom:
            if other[at][0] > top:
                yield top, other[at][0]
            top = max(top, other[at][1])
            at += 1
        if top < bottom:
            yield top, bottom


def _path(ring: Sequence[Corner]) -> str:
    """Writes a ring in relative steps, straight stretches as one."""
    x, y = ring[0]
    parts = [f"M{x},{y}"]
    across = down = 0
    for next_x, next_y in ring[1:]:
        step_x, step_y = next_x - x, next_y - y
        if (step_x and down) or (step_y and across):
            parts.append(f"h{across}" if across else f"v{down}")
            across = down = 0
        across, down, x, y = across + step_x, down + step_y, next_x, next_y
    if across or down:
        parts.append(f"h{across}" if across else f"v{down}")
    return "".join(parts) + "z"


def _inside(columns: Sequence[Column]) -> tuple[float, float]:
    """Returns the middle of a run around which much is set: up and down, and to both sides."""
    runs = [(x, top, bottom) for x, column in enumerate(columns) for top, bottom in column]

    def room(run: tuple[int, int, int]) -> tuple[int, int]:
        x, top, bottom = run
        beside = _beside(columns, x, (top + bottom) // 2)
        return min(bottom - top, 2 * beside), beside

    x, top, bottom = max(runs[:: max(1, len(runs) // PLACES_TRIED)], key=room)
    return x + 0.5, (top + bottom) / 2


def _beside(columns: Sequence[Column], x: int, y: int) -> int:
    """Counts the columns to the nearer side in which a row is set."""
    for away in range(1, len(columns)):
        for beside in (x - away, x + away):
            inside = 0 <= beside < len(columns)
            if not inside or not any(top <= y < bottom for top, bottom in columns[beside]):
                return away
    return len(columns)
