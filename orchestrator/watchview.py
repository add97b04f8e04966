"""What the watch view looks like: what is known of a run as the lines of a terminal, however small. Draws nothing."""

import itertools
import math
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from orchestrator.costs import spending_in_words
from orchestrator.display import (
    COLORS,
    duration,
    job_in_words,
    lasted_s,
    moment,
    progress_in_words,
    queue_in_words,
    rate_in_words,
    silence_in_words,
)
from orchestrator.glance import Picture, Series
from orchestrator.messages import in_one_line
from orchestrator.records import record

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
SIGNS: Mapping[str, str] = {
    "running": "▶", "done": "✓", "reused": "✓", "failed": "✗", "cancelled": "✗", "queued": "…", "waiting": "·",
}  # fmt: skip
ASCII_SIGNS: Mapping[str, str] = {
    "running": ">", "done": "+", "reused": "+", "failed": "x", "cancelled": "x", "queued": "~", "waiting": ".",
}  # fmt: skip
# metric -> how it is called, and how its value is written
CURVES: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", "{:.4g}"),
    "samples_per_s": ("samples/s", "{:.4g}"),
    "data_wait_share": ("data wait", "{:.1%}"),
    "grad_norm": ("grad norm", "{:.3g}"),
    "mfu": ("MFU", "{:.1%}"),
}
ORDER = ("running", "failed", "cancelled", "queued", "waiting", "done", "reused")  # by what one wants to see first
NAME_WIDTH, WIDEST_CURVE = 24, 60
MOST_WARNED, MOST_WAITING = 4, 3


@record
class Trouble:
    """Why what is shown may be old."""

    text: str
    since_s: float


def frame(
    picture: Picture | None, width: int, height: int, *, trouble: Trouble | None = None, ascii_only: bool = False
) -> list[Text]:
    """Returns the lines of the view, at most `height` of at most `width` cells."""
    page = _page(picture, width, height, trouble, ascii_only=ascii_only)[:height]
    for line in page:
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return page


def _page(picture: Picture | None, width: int, height: int, trouble: Trouble | None, *, ascii_only: bool) -> list[Text]:
    if picture is None:
        return [Text("reading the run ..."), *_trouble_lines(trouble)]
    top = [*_head(picture, width), *_trouble_lines(trouble)]
    foot = [Text("q or Ctrl-C leaves, the run goes on    logs: orch logs RUN STAGE --follow", style="dim")]
    warned = _warnings(picture, width)
    warned = [*warned[:1], *warned[1:][-(height // 4) :]] if height >= 8 else []
    room = height - len(top) - len(warned) - len(foot) - 1
    body = _stages(picture, width, room, ascii_only=ascii_only)
    padding = [Text("")] * max(0, height - len(top) - len(body) - len(warned) - len(foot))
    return [*top, *body, *padding, *warned, *foot]


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Draws a curve in one line, the newest on the right; where there are too many values, means of neighbours."""
    bars = ASCII_BARS if ascii_only else BARS
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [at * len(values) // count for at in range(count + 1)]
    means = [sum(values[one:two]) / (two - one) for one, two in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low
    if not math.isfinite(span) or span <= 1e-9 * max(abs(low), abs(high)):
        return bars[0] * count
    return "".join(bars[min(len(bars) - 1, int((mean - low) / span * len(bars)))] for mean in means)


def _head(picture: Picture, width: int) -> Iterator[Text]:
    status = picture.status
    began, ended = status["started"], status["ended"]
    line = Text(Path(status["run"]).name, style="bold")
    line.append(f"  {status['state']}", style=COLORS.get(status["state"], ""))
    line.append(f"  on {status['launcher']}" if status["launcher"] else "")
    line.append(f"  for {duration((ended or time.time()) - began)}" if began else "")
    clock = time.strftime("%H:%M:%S")
    line.append(" " * max(1, width - line.cell_len - len(clock)) + clock, style="dim")
    yield line
    counts = Counter(stage["state"] for stage in status["stages"])
    told = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    yield Text(f"{len(status['stages'])} stages: {told}")
    if picture.spending is not None and picture.spending.held_hours > 0:
        yield Text(spending_in_words(picture.spending), style="dim")
    if silence := silence_in_words(status):
        yield Text(in_one_line(silence), style="yellow")


def _trouble_lines(trouble: Trouble | None) -> Iterator[Text]:
    if trouble is not None:
        words = trouble.text or "the file system does not answer"
        yield Text(f"no news from the run folder for {duration(trouble.since_s)}: {in_one_line(words)}", style="yellow")


def _stages(picture: Picture, width: int, room: int, *, ascii_only: bool) -> list[Text]:
    """Shows what matters in some lines: what runs with its curves, what failed, what comes next; counts the rest."""
    stages: Sequence[Mapping[str, Any]] = picture.status["stages"]
    names = min(NAME_WIDTH, max((len(stage["name"]) for stage in stages), default=0))
    chosen = _chosen(stages, room)
    lines: dict[str, list[Text]] = {name: [] for name in chosen}
    left = room - len(chosen) - 1
    by_name = {stage["name"]: stage for stage in stages}
    for name in chosen:  # a line more for each, by what one wants to see first, while there is room
        lines[name] = [_line(by_name[name], names, ascii_only=ascii_only)]
    for name in sorted(chosen, key=lambda one: ORDER.index(by_name[one]["state"])):
        more = list(_details(by_name[name], picture.series.get(name, {}), width, ascii_only=ascii_only))[: max(0, left)]
        lines[name] += more
        left -= len(more)
    shown = [line for stage in stages if stage["name"] in lines for line in lines[stage["name"]]]
    rest = Counter(stage["state"] for stage in stages if stage["name"] not in lines)
    if rest:
        told = ", ".join(f"{rest[state]} {state}" for state in ORDER if rest[state])
        shown.append(Text(f"  and {told}", style="dim"))
    return shown


def _chosen(stages: Sequence[Mapping[str, Any]], room: int) -> list[str]:
    """Names the stages that are shown: all where they fit, else what runs, failed, is queued and comes next."""
    if len(stages) < room - len(CURVES):
        return [stage["name"] for stage in stages]
    of: dict[str, list[str]] = {state: [] for state in ORDER}
    for stage in stages:
        of[stage["state"]].append(stage["name"])
    most = max(1, room - 1 - (len(CURVES) if of["running"] else 0))
    wanted = [
        *of["running"], *of["failed"], *of["cancelled"], *of["queued"], *of["waiting"][:MOST_WAITING], *of["done"][-1:],
    ]  # fmt: skip
    return wanted[:most]


def _line(stage: Mapping[str, Any], names: int, *, ascii_only: bool) -> Text:
    state, name = stage["state"], in_one_line(stage["name"])
    sign = (ASCII_SIGNS if ascii_only else SIGNS).get(state, "?")
    name = name if len(name) <= names else name[: names - 1] + ("." if ascii_only else "…")
    line = Text(f"{sign} {name:<{names}}  ")
    line.append(f"{state:<9}", style=COLORS.get(state, ""))
    return line.append("  " + in_one_line("  ".join(filter(None, _facts(stage)))))


def _facts(stage: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is to be said of a stage beside its name and state, what matters most first."""
    state, attempts = stage["state"], stage["attempts"]
    last = attempts[-1] if attempts else None
    if state == "running" and last is not None:
        yield progress_in_words(stage) or "starting"
        if stage["step"] is not None and stage["steps"]:
            yield f"{stage['step'] / stage['steps']:.0%}"
        yield f"ETA {duration(stage['eta_s'])}" if stage["eta_s"] is not None else ""
        yield rate_in_words(stage["progress"])
        yield f"for {duration(lasted_s(last))}"
        yield f"attempt {last['number']}" if len(attempts) > 1 else ""
    elif state == "queued":
        yield queue_in_words(stage)
    elif state in {"failed", "cancelled"} and last is not None:
        yield f"{last['cause'] or 'unknown'} after {duration(lasted_s(last))}"
        yield f"at step {last['to_step']}" if last["to_step"] is not None else ""
        yield f"{len(attempts)} attempts" if len(attempts) > 1 else ""
    elif state == "done" and last is not None:
        yield f"in {duration(lasted_s(last))}" + (f", {len(attempts)} attempts" if len(attempts) > 1 else "")
    elif state == "waiting":
        yield stage["reason"]


def _details(stage: Mapping[str, Any], series: Mapping[str, Series], width: int, *, ascii_only: bool) -> Iterator[Text]:
    """Yields the lines below a stage's own: its curves, where it runs, how its attempts ended."""
    if stage["state"] == "running":
        for metric, (label, form) in CURVES.items():
            if metric in series and series[metric].last is not None:
                yield _curve(series[metric], label, form, width, ascii_only=ascii_only)
        if stage["attempts"][-1]["launcher"] != "local":
            yield Text(f"    {job_in_words(stage['attempts'][-1])}", style="dim")
    if stage["state"] in {"running", "queued", "failed"}:
        for attempt in reversed([one for one in stage["attempts"] if one["cause"] is not None]):
            step = f" at step {attempt['to_step']}" if attempt["to_step"] is not None else ""
            head = f"attempt {attempt['number']} {attempt['state']} ({attempt['cause']}){step}"
            yield Text(f"    {head}: {in_one_line(attempt['detail'])}", style="dim")


def _curve(series: Series, label: str, form: str, width: int, *, ascii_only: bool) -> Text:
    value = form.format(series.last)
    room = min(WIDEST_CURVE, width - 4 - 11 - 2 - len(value))
    line = Text(f"    {label:<11}", style="dim")
    line.append(sparkline(series.points, room, ascii_only=ascii_only), style="cyan")
    return line.append(f"  {value}")


def _warnings(picture: Picture, width: int) -> list[Text]:
    """Returns the last things that went wrong, the newest at the bottom, below a line of their own."""
    notes = [f"! {in_one_line(str(note))}" for note in picture.status["notes"]]
    told = [f"! {moment(one.time)} {in_one_line(one.stage)}: {in_one_line(one.text)}" for one in picture.warnings]
    shown = [
        Text(line, style="yellow")
        for words in [*notes, *told][-MOST_WARNED:]
        for line in textwrap.wrap(words, max(width, 10), max_lines=2, placeholder=" ...", subsequent_indent="  ")
    ]
    return [Text("-" * min(width, 12), style="dim"), *shown] if shown else []
