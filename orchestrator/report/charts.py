"""Line charts as inline SVG: axes with units, a description in words, complete without a script."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from orchestrator.records import record

Points = Sequence[tuple[float, float]]

WIDTH_PX, HEIGHT_PX = 560, 260
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 56, 22, 12, 42
MOST_POINTS = 500
LOG_FROM = 30.0  # largest by smallest value: from here on a linear axis hides the tail


@record
class Line:
    """One curve."""

    name: str
    points: Points
    faint: bool = False  # drawn thin, behind the others


def line_chart(lines: Sequence[Line], *, x_name: str, y_name: str, title: str, marks: Sequence[float] = ()) -> str:
    """Draws curves over a common axis; `marks` are x positions of restarts. Empty text if there is nothing to draw."""
    drawn = [Line(name=line.name, points=thinned(_finite(line.points)), faint=line.faint) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    plane = _plane([point for line in drawn for point in line.points])
    parts = [*_axes(plane, x_name, y_name), *_restarts(plane, marks)]
    parts += [_curve(plane, line, number) for number, line in enumerate(drawn)]
    described = escape(f"{title}: {_in_words(drawn)}")
    plane_px = f"{LEFT_PX} {WIDTH_PX - RIGHT_PX} {TOP_PX} {HEIGHT_PX - BOTTOM_PX}"
    size = f'viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" data-plane="{plane_px}"'
    chart = f'<svg class="chart" {size} role="img" aria-label="{described}">{"".join(parts)}</svg>'
    return f"<figure>{_legend(drawn)}{chart}</figure>"


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


def thinned(points: Points) -> Points:
    """Keeps the lowest and the highest point of each of equally many pieces, so that no peak is lost."""
    if len(points) <= MOST_POINTS:
        return points
    pieces = MOST_POINTS // 2
    kept: list[tuple[float, float]] = []
    for piece in range(pieces):
        part = points[piece * len(points) // pieces : (piece + 1) * len(points) // pieces]
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(extremes)
    return [points[0], *kept[1:-1], points[-1]]


@record
class _Plane:
    """How numbers become pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    logarithmic: bool

    def x_px(self, x: float) -> float:
        share = (x - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return LEFT_PX + share * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y_px(self, y: float) -> float:
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.y_low, self.y_high, y))
        share = (value - low) / ((high - low) or 1.0)
        return HEIGHT_PX - BOTTOM_PX - share * (HEIGHT_PX - TOP_PX - BOTTOM_PX)

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


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Chooses round numbers between two bounds."""
    extent = high - low
    if extent <= 0 or not math.isfinite(extent):
        return [low]
    raw = extent / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def shown(value: float) -> str:
    """Writes a number for a label: four digits that matter, no trailing zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def _axes(plane: _Plane, x_name: str, y_name: str) -> list[str]:
    bottom, right = HEIGHT_PX - BOTTOM_PX, WIDTH_PX - RIGHT_PX
    parts = []
    for value in plane.y_ticks():
        y = plane.y_px(value)
        parts.append(f'<line class="grid" x1="{LEFT_PX}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT_PX - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(value)}</text>')
    for value in ticks(plane.x_low, plane.x_high, 6):
        x = plane.x_px(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{shown(value)}</text>')
    middle_px = (TOP_PX + bottom) / 2
    scale = " (log scale)" if plane.logarithmic else ""
    parts.append(f'<line class="axis" x1="{LEFT_PX}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="name" x="{(LEFT_PX + right) / 2}" y="{HEIGHT_PX - 6}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
    )
    parts.append(
        f'<text class="name" transform="rotate(-90)" x="{-middle_px}" y="12" text-anchor="middle">'
        f"{escape(y_name + scale)}</text>"
    )
    return parts


def _restarts(plane: _Plane, marks: Sequence[float]) -> list[str]:
    parts = []
    for number, mark in enumerate(marks, start=2):
        if plane.x_low <= mark <= plane.x_high:
            x = plane.x_px(mark)
            parts.append(
                f'<line class="restart" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP_PX}" y2="{HEIGHT_PX - BOTTOM_PX}"/>'
            )
            parts.append(f'<text class="tick" x="{x + 4:.1f}" y="{TOP_PX + 10}">attempt {number}</text>')
    return parts


def _curve(plane: _Plane, line: Line, number: int) -> str:
    pixels = [(plane.x_px(x), plane.y_px(y)) for x, y in line.points]
    kind = f"curve c{number % 6}{' faint' if line.faint else ''}"
    data = " ".join(f"{x:g},{y:.6g}" for x, y in line.points)
    name = escape(line.name)
    if len(pixels) == 1:
        (x, y), *_ = pixels
        return f'<circle class="{kind} dot" cx="{x:.1f}" cy="{y:.1f}" r="4" data-name="{name}" data-points="{data}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    return f'<polyline class="{kind}" points="{path}" data-name="{name}" data-points="{data}"/>'


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    entries = (
        f'<span class="key"><svg width="26" height="10" aria-hidden="true"><line class="curve c{number % 6}'
        f'{" faint" if line.faint else ""}" x1="0" x2="26" y1="5" y2="5"/></svg>{escape(line.name)}</span>'
        for number, line in enumerate(lines)
    )
    return f"<figcaption>{''.join(entries)}</figcaption>"


def _in_words(lines: Sequence[Line]) -> str:
    return "; ".join(
        f"{line.name} from {shown(line.points[0][1])} at {shown(line.points[0][0])} "
        f"to {shown(line.points[-1][1])} at {shown(line.points[-1][0])}"
        for line in lines
    )


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def curves_by_kind(curves: Mapping[str, Points]) -> tuple[list[Line], dict[str, Points]]:
    """Sorts a stage's metrics: the losses, which share a chart, and everything else by name."""
    losses = []
    if "loss" in curves:
        many = len(curves["loss"]) >= 40
        name = "loss, smoothed over 5 % of the steps" if many else "loss"
        losses.append(Line(name=name, points=smoothed(_finite(curves["loss"])) if many else curves["loss"]))
    losses += [Line(name=name, points=points) for name, points in sorted(curves.items()) if name.startswith("loss/")]
    if "loss" in curves and len(curves["loss"]) >= 40:
        losses.append(Line(name="loss of each step", points=curves["loss"], faint=True))
    others = {name: points for name, points in sorted(curves.items()) if name.partition("/")[0] != "loss"}
    return losses, {name: points for name, points in others.items() if not name.startswith("eval")}
