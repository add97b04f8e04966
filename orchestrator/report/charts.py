"""Line charts as inline SVG: axes with units, a description in words, complete without a script.

The curves stand in an inner `svg` in their own units: x in steps from the first one, y in ten-thousandths of the plane
from its top. So zooming is a matter of its `viewBox`, and what is drawn is also what the script reads values from.
"""

import math
from collections.abc import Sequence
from typing import Literal

from orchestrator.records import record
from orchestrator.report.text import safe, shown

Points = Sequence[tuple[float, float]]

WIDTH_PX, HEIGHT_PX = 560, 260
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 56, 22, 12, 42
MOST_POINTS = 8000  # of one curve: enough for a zoom of eight times the width of the plane
PLANE = 10_000  # the height of the plane in its own units
LOG_FROM = 30.0  # largest by smallest value: from here on a linear axis hides the tail
COLOURS = 6
MOST_LABELLED = 6  # restarts; more labels would cover each other


@record
class Line:
    """One curve."""

    name: str
    points: Points
    kind: Literal["plain", "smooth", "raw"] = "plain"  # a smoothed one is drawn over its raw one, which is faint then
    colour: int | None = None  # None = the next one


def line_chart(
    lines: Sequence[Line], *, x_name: str, y_name: str, title: str, marks: Sequence[float] = (), most: int = MOST_POINTS
) -> str:
    """Draws curves over a common axis, no more than `most` points each; `marks` are x positions of restarts.

    Empty text if there is nothing to draw.
    """
    kept = [(line, finite(line.points)) for line in lines]
    drawn = [_drawn(line, points, most) for line, points in kept if points]
    if not drawn:
        return ""
    plane = _plane([point for one in drawn for point in one.points])
    curves = "".join(_curve(plane, one.line, one.points, number) for number, one in enumerate(drawn))
    inner = (
        f'<svg class="plane" x="{LEFT_PX}" y="{TOP_PX}" width="{WIDTH_PX - LEFT_PX - RIGHT_PX}" '
        f'height="{HEIGHT_PX - TOP_PX - BOTTOM_PX}" viewBox="0 0 {_short(plane.x_extent)} {PLANE}" '
        f'preserveAspectRatio="none">{curves}</svg>'
    )
    axes = "".join([*_axes(plane), *_restarts(plane, marks)])
    chart = (
        f'<svg class="chart" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" '
        f'aria-label="{safe(f"{title}: {_in_words(drawn)}")}" {_scale(plane)} '
        f'data-marks="{" ".join(_short(mark) for mark in marks)}"><g class="axes">{axes}</g>{inner}'
        f"{_names(plane, x_name, y_name)}</svg>"
    )
    skipped = sum(len(line.points) - len(points) for line, points in kept)
    return f'<figure class="curves">{_legend(drawn)}{chart}<div class="below"></div>{_honesty(drawn, skipped)}</figure>'


def smoothed(points: Points, *, share: float = 0.05) -> list[tuple[float, float]]:
    """Averages each point with its neighbours, `share` of all points together."""
    half = int(len(points) * share / 2)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for index, (x, _) in enumerate(points):
        near = min(half, index, len(points) - 1 - index)  # symmetric, so that the ends are not pulled inwards
        first, last = index - near, index + near + 1
        result.append((x, (sums[last] - sums[first]) / (last - first)))
    return result


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Keeps the lowest and the highest point of each of equally many groups, so that no peak is lost."""
    groups = _groups(points, most)
    if not groups:
        return points
    kept: list[tuple[float, float]] = []
    for group in range(groups):
        part = points[group * len(points) // groups : (group + 1) * len(points) // groups]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [points[0], *kept[1:-1], points[-1]]


def _groups(points: Points, most: int) -> int:
    return 0 if len(points) <= max(4, most) else max(4, most) // 2


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Chooses round numbers between two bounds. The script does the same when it zooms."""
    extent = high - low
    if extent <= 0 or not math.isfinite(extent):
        return [low]
    raw = extent / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


@record
class _Drawn:
    """A line as it is drawn."""

    line: Line
    points: Points
    of: int  # so many there are
    groups: int  # in which the lowest and the highest were kept; 0 = every point is drawn


def _drawn(line: Line, points: Points, most: int) -> _Drawn:
    return _Drawn(line=line, points=thinned(points, most), of=len(points), groups=_groups(points, most))


@record
class _Plane:
    """How numbers become places."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    logarithmic: bool

    @property
    def x_extent(self) -> float:
        return (self.x_high - self.x_low) or 1.0

    def down(self, y: float) -> float:
        """Returns how far below the top a value lies, as a share of the height."""
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.y_low, self.y_high, y))
        return 1.0 - (value - low) / ((high - low) or 1.0)

    def x_px(self, x: float) -> float:
        return LEFT_PX + (x - self.x_low) / self.x_extent * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y_px(self, y: float) -> float:
        return TOP_PX + self.down(y) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)

    def y_ticks(self) -> list[float]:
        if not self.logarithmic:
            return ticks(self.y_low, self.y_high, 5)
        first, last = math.floor(math.log10(self.y_low)), math.ceil(math.log10(self.y_high))
        steps = (1, 2, 5) if last - first <= 3 else (1,)
        every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [value for value in every if self.y_low <= value <= self.y_high]


def _plane(points: Points) -> _Plane:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) >= LOG_FROM
    low, high = min(ys), max(ys)
    if not logarithmic:
        low = min(low, 0.0) if low < high / 2 or low == high else low
        spare = (high - low) * 0.04 or 0.5
        low, high = (low if low == 0 else low - spare), high + spare
    return _Plane(x_low=min(xs), x_high=max(xs), y_low=low, y_high=high, logarithmic=logarithmic)


def _scale(plane: _Plane) -> str:
    """Tells the script what the plane shows, in full precision."""
    log = ' data-log="1"' if plane.logarithmic else ""
    return f'data-x="{plane.x_low!r} {plane.x_high!r}" data-y="{plane.y_low!r} {plane.y_high!r}"{log}'


def _axes(plane: _Plane) -> list[str]:
    bottom, right = HEIGHT_PX - BOTTOM_PX, WIDTH_PX - RIGHT_PX
    parts = []
    for value in plane.y_ticks():
        y = plane.y_px(value)
        parts.append(f'<line class="grid" x1="{LEFT_PX}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT_PX - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(value)}</text>')
    for value in ticks(plane.x_low, plane.x_high, 6):
        x = plane.x_px(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_step(value)}</text>')
    return parts


def _restarts(plane: _Plane, marks: Sequence[float]) -> list[str]:
    parts = []
    for number, mark in enumerate(marks, start=2):
        if plane.x_low <= mark <= plane.x_high:
            x = plane.x_px(mark)
            parts.append(
                f'<line class="restart" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP_PX}" y2="{HEIGHT_PX - BOTTOM_PX}"/>'
            )
            if len(marks) <= MOST_LABELLED:
                parts.append(f'<text class="tick" x="{x + 4:.1f}" y="{TOP_PX + 10}">attempt {number}</text>')
    return parts


def _names(plane: _Plane, x_name: str, y_name: str) -> str:
    """Names the axes; unlike the ticks, names stay when the script zooms."""
    bottom, right = HEIGHT_PX - BOTTOM_PX, WIDTH_PX - RIGHT_PX
    y_words = y_name + (" (log scale)" if plane.logarithmic else "")
    return (
        f'<line class="axis" x1="{LEFT_PX}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="name" x="{(LEFT_PX + right) / 2}" y="{HEIGHT_PX - 6}" text-anchor="middle">{safe(x_name)}</text>'
        f'<text class="name" transform="rotate(-90)" x="{-(TOP_PX + bottom) / 2}" y="12" text-anchor="middle">'
        f"{safe(y_words)}</text>"
    )


def _curve(plane: _Plane, line: Line, points: Points, number: int) -> str:
    pairs = [f"{_short(x - plane.x_low)},{_short(round(plane.down(y) * PLANE, 1))}" for x, y in points]
    dot = " dot" if len(points) == 1 else ""
    if dot:  # a line without length, whose round ends are the dot
        pairs *= 2
    return f'<polyline class="curve {_look(line, number)}{dot}" points="{" ".join(pairs)}"/>'


def _look(line: Line, number: int) -> str:
    colour = number if line.colour is None else line.colour
    return f"c{colour % COLOURS}" + ("" if line.kind == "plain" else f" {line.kind}")


def _step(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e7 else shown(value)


def _short(value: float) -> str:
    """Writes a coordinate in full for whole numbers, in seven digits for others."""
    return str(int(value)) if value == int(value) else f"{value:.7g}"


def _legend(drawn: Sequence[_Drawn]) -> str:
    """Names the lines; without a script the boxes do nothing, so the style hides them then."""
    keys = "".join(
        f'<label class="key {one.line.kind}"><input type="checkbox" checked>'
        '<svg width="26" height="10" aria-hidden="true">'
        f'<path class="curve {_look(one.line, number)}" d="M1,5 H25"/></svg>{safe(one.line.name)}</label>'
        for number, one in enumerate(drawn)
    )
    return f'<figcaption class="keys">{keys}</figcaption>'


def _honesty(drawn: Sequence[_Drawn], skipped: int) -> str:
    """Says what of the data is not in the drawing."""
    of = max((one.of for one in drawn if one.groups), default=0)
    said = []
    if of:
        groups = max(one.groups for one in drawn)
        said.append(f"of {of:,} points, the lowest and the highest of each of {groups:,} groups are drawn")
    if skipped:
        said.append(f"{skipped:,} {'value is' if skipped == 1 else 'values are'} not finite and not drawn")
    return f'<p class="soft small honest">{safe("; ".join(said)).capitalize()}.</p>' if said else ""


def _in_words(drawn: Sequence[_Drawn]) -> str:
    return "; ".join(
        f"{one.line.name} from {shown(one.points[0][1])} at {shown(one.points[0][0])} "
        f"to {shown(one.points[-1][1])} at {shown(one.points[-1][0])}"
        for one in drawn
    )


def finite(points: Points) -> list[tuple[float, float]]:
    """Leaves out what no chart can show."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
