"""The attempts of a run over time: a row a stage, a bar an attempt, in which state it ended and why."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from orchestrator.records import record
from orchestrator.report.chain import SYMBOLS
from orchestrator.report.gather import RunView, StageView
from orchestrator.report.text import brief, duration, moment, safe

NAME_PX, TIME_PX, ROW_PX, BAR_PX, TOP_PX = 150, 880, 26, 16, 24
BREAK_PX = 34  # of a time in which nothing was tried
LONGEST_IDLE = 0.15  # of all time in attempts, beyond which such a time is cut out
MOST_BREAKS = 8
FEWEST_PX = 2.0  # of a bar that would be too short to be seen
LONGEST_NAME, LETTER_PX = 20, 6.4
TICKS = 6
LABEL_PX = 80  # of a tick; closer ones would cover each other

# round lengths of time between two ticks, in seconds
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800)


def timeline(run: RunView, now: float) -> str:
    """Draws every attempt; times without any are cut out, and said to be."""
    stages = [stage for stage in run.stages if stage.status["attempts"]]
    if not stages:
        return '<p class="soft">Nothing was tried yet.</p>'
    clock = _clock([attempt for stage in stages for attempt in stage.status["attempts"]], now)
    height_px = TOP_PX + ROW_PX * len(stages) + 4
    parts = [*_ticks(clock, height_px), *_breaks(clock, height_px)]
    for row, stage in enumerate(stages):
        parts += _row(stage, TOP_PX + row * ROW_PX, clock, now)
    width_px = NAME_PX + TIME_PX + 12
    told = safe(f"{len(stages)} stages, from {moment(clock.spans[0].start)} to {moment(clock.spans[-1].end)}")
    return (
        f'<div class="wide tall"><svg class="timeline" width="{width_px}" height="{height_px}" '
        f'viewBox="0 0 {width_px} {height_px}" role="img" aria-label="Attempts over time: {told}. The table of stages '
        f'and attempts says the same in words.">{"".join(parts)}</svg></div>'
        f'<p class="soft small">Times since {safe(moment(clock.spans[0].start))}. A bar is an attempt: ✓ done, ✗ '
        "failed and why, ■ cancelled, ▶ running.</p>"
    )


@record
class _Span:
    """A time in which something was tried, and where it stands."""

    start: float
    end: float
    left_px: float


@record
class _Clock:
    """How time becomes place."""

    spans: tuple[_Span, ...]
    s_per_px: float

    def x_px(self, time: float) -> float:
        span = next((span for span in self.spans if time <= span.end), self.spans[-1])
        return span.left_px + (min(max(time, span.start), span.end) - span.start) / self.s_per_px


def _clock(attempts: Sequence[Mapping[str, Any]], now: float) -> _Clock:
    busy = sorted((float(a["started"]), max(float(a["started"]), float(a["ended"] or now))) for a in attempts)
    merged = [busy[0]]
    for start, end in busy[1:]:
        if start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    gaps_s = sorted((after[0] - before[1] for before, after in pairwise(merged)), reverse=True)
    longest_s = max(60.0, LONGEST_IDLE * sum(end - start for start, end in merged), *gaps_s[MOST_BREAKS:][:1])
    spans = [merged[0]]
    for start, end in merged[1:]:
        if start - spans[-1][1] > longest_s:
            spans.append((start, end))
        else:
            spans[-1] = (spans[-1][0], end)
    shown_s = sum(end - start for start, end in spans) or 1.0
    room_px = TIME_PX - BREAK_PX * (len(spans) - 1)
    placed, left_px = [], float(NAME_PX)
    for start, end in spans:
        placed.append(_Span(start=start, end=end, left_px=left_px))
        left_px += (end - start) * room_px / shown_s + BREAK_PX
    return _Clock(spans=tuple(placed), s_per_px=shown_s / room_px)


def _ticks(clock: _Clock, height_px: int) -> Iterator[str]:
    """Yields lines at round times since the beginning."""
    begin = clock.spans[0].start
    wanted_s = clock.s_per_px * TIME_PX / TICKS
    step_s = next((step for step in STEPS_S if step >= wanted_s), STEPS_S[-1])
    while step_s < wanted_s:
        step_s *= 2
    last_px = -1e9
    for span in clock.spans:
        number = -int(-(span.start - begin) // step_s)
        while begin + number * step_s <= span.end:
            x = clock.x_px(begin + number * step_s)
            number += 1
            if x - last_px < LABEL_PX:
                continue
            last_px = x
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP_PX - 6}" y2="{height_px}"/>'
            yield f'<text class="tick" x="{x + 3:.1f}" y="12">{_since((number - 1) * step_s, step_s)}</text>'


def _breaks(clock: _Clock, height_px: int) -> Iterator[str]:
    for before, after in pairwise(clock.spans):
        x = after.left_px - BREAK_PX / 2
        gap = duration(after.start - before.end)
        yield (
            f'<g class="break"><title>{safe(gap)} without an attempt</title>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP_PX - 6}" y2="{height_px}"/>'
            f'<text class="tick" transform="translate({x - 4:.1f},{height_px - 4}) rotate(-90)">{safe(gap)}</text></g>'
        )


def _row(stage: StageView, top_px: int, clock: _Clock, now: float) -> Iterator[str]:
    middle_px = top_px + ROW_PX / 2
    name = brief(stage.name, LONGEST_NAME)
    yield f'<text class="title" x="0" y="{middle_px + 4:.0f}">{name}<title>{safe(stage.name)}</title></text>'
    attempts: list[Mapping[str, Any]] = stage.status["attempts"]
    for index, attempt in enumerate(attempts):
        following = attempts[index + 1] if index + 1 < len(attempts) else None
        end_px = NAME_PX + TIME_PX + 12.0 if following is None else clock.x_px(float(following["started"]))
        yield _bar(attempt, top_px, clock, now, room_to_px=end_px)


def _bar(attempt: Mapping[str, Any], top_px: int, clock: _Clock, now: float, *, room_to_px: float) -> str:
    started, ended = float(attempt["started"]), float(attempt["ended"] or now)
    left_px, right_px = clock.x_px(started), clock.x_px(ended)
    width_px = max(FEWEST_PX, right_px - left_px)
    state = str(attempt["state"])
    words = f"attempt {attempt['number']}: {state}, {duration(max(0.0, ended - started))}"
    if attempt.get("cause"):
        words += f", {attempt['cause']}: {attempt['detail']}"
    label = f"{SYMBOLS.get(state, '?')} {attempt.get('cause') or ''}".strip()
    inside = len(label) * LETTER_PX + 8 <= width_px
    at_px = left_px + 5 if inside else left_px + width_px + 4
    fits = inside or at_px + len(label) * LETTER_PX <= room_to_px
    text = f'<text x="{at_px:.1f}" y="{top_px + ROW_PX / 2 + 4:.0f}">{safe(label)}</text>' if fits else ""
    return (
        f'<g class="try {safe(state)}"><title>{safe(words)}</title><rect x="{left_px:.1f}" '
        f'y="{top_px + (ROW_PX - BAR_PX) // 2}" width="{width_px:.1f}" height="{BAR_PX}" rx="3"/>{text}</g>'
    )


def _since(seconds: float, step_s: float) -> str:
    """Writes a time since the beginning, as finely as ticks stand."""
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")]
    finest = next(index for index, size_s in enumerate((86400, 3600, 60, 1)) if step_s % size_s == 0)
    shown = [f"{amount} {unit}" for amount, unit in parts[: finest + 1] if amount]
    return " ".join(shown) or "0"
