"""How much of the time was useful, as bars: of the run and of each stage, as `goodput.py` has added it up."""

from collections.abc import Mapping

from orchestrator.goodput import CLASSES, Spending
from orchestrator.report.gather import RunView
from orchestrator.report.text import duration, percent, safe

QUEUE = "queue"
# class -> what it is called, and what it is; the class is also its colour in page.css
MEANINGS: Mapping[str, tuple[str, str]] = {
    "queue": ("queue", "from when a stage could have begun to its beginning, in the latest launch"),
    "startup": ("start-up", "from the beginning of an attempt to its first step"),
    "productive": ("useful", "computing steps that count, and the work of stages without steps"),
    "evaluation": ("evaluation", "the work of stages that only measure"),
    "redone": ("re-done", "steps that a later attempt computed again, or will have to"),
    "checkpoint": ("checkpoint", "what training stood still for saves"),
    "data_wait": ("data wait", "waiting for data in steps that count, on the rank that waited longest"),
    "idle": ("idle", "held after the last step or save: finishing outputs, a hang, an end that was noticed late"),
    "unknown": ("not recorded", "attempts of stages without steps that did not end well"),
}
ORDER = ("productive", "evaluation", "redone", "startup", "checkpoint", "data_wait", "idle", "unknown")


def goodput_bars(run: RunView) -> str:
    """Draws where the time went: a bar for the whole run, one for each stage, and what the colours mean."""
    spent = run.spent
    if spent is None or not spent.parts:
        return '<p class="soft">Nothing was tried yet.</p>'
    longest = max((stage.held_hours for stage in spent.parts), default=0.0)
    rows = "".join(_row(stage, longest) for stage in spent.parts)
    head = (
        "<tr><th>stage</th><th>its time</th><th class='number'>useful</th><th class='number'>held</th>"
        "<th class='number'>by the clock</th><th class='number'>queue</th></tr>"
    )
    bars = f'<div class="whole">{_bar(spent, spent.held_hours, ORDER, "time that was held")}'
    if spent.hours[QUEUE] > 0:
        bars += f'<span class="soft small">with the queue:</span>{_queued(spent)}'
    return (
        f"<p>{_sentence(spent)}</p>{bars}</div>{_keys(spent)}"
        f'<div class="wide"><table class="spent"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


def clock_s(spent: Spending) -> float:
    """Returns how long attempts took by the clock, together."""
    return sum(seconds for name, seconds in spent.seconds.items() if name != QUEUE)


def _sentence(spent: Spending) -> str:
    share = "" if spent.useful is None else f"<b>{percent(spent.useful)}</b> of the {spent.unit} time was useful. "
    mixed = any(stage.unit != spent.unit for stage in spent.parts)
    without = " Stages without GPUs are not in the sum." if mixed else ""
    held = " What is held counts once for each GPU, or each process of a stage that asks for no GPU."
    return f"{share}From journals and state files; what they do not say is not guessed.{held}{without}"


def _queued(spent: Spending) -> str:
    return _bar(spent, spent.held_hours + spent.hours[QUEUE], (QUEUE, *ORDER), "time with the queue")


def _bar(spent: Spending, longest: float, order: tuple[str, ...], of: str) -> str:
    """Draws hours by class; a bar is as long as its share of the longest one."""
    all_hours = sum(spent.hours[name] for name in order) or 1.0
    found = [name for name in order if spent.hours[name] > 0]
    told = "; ".join(f"{MEANINGS[name][0]} {_amount(spent.hours[name])}" for name in found)
    parts = "".join(
        f'<span class="use {name}" style="width:{100 * spent.hours[name] / all_hours:.3f}%" '
        f'title="{MEANINGS[name][0]}: {_amount(spent.hours[name])}, {percent(spent.hours[name] / all_hours)}"></span>'
        for name in found
    )
    width = max(1.0, 100 * all_hours / (longest or 1.0))
    return f'<div class="stack" role="img" aria-label="{safe(of)}: {told}" style="width:{width:.2f}%">{parts}</div>'


def _keys(spent: Spending) -> str:
    held = spent.held_hours or 1.0
    items = "".join(
        f'<li><span class="use {name}"></span><b>{MEANINGS[name][0]}</b> {_amount(spent.hours[name])}'
        f"{'' if name == QUEUE else f', {percent(spent.hours[name] / held)}'}"
        f'<span class="soft small">: {MEANINGS[name][1]}</span></li>'
        for name in (*ORDER, QUEUE)
        if spent.hours[name] > 0
    )
    return f'<ul class="uses">{items}</ul>'


def _row(stage: Spending, longest: float) -> str:
    return (
        f'<tr><td>{safe(stage.name)}</td><td class="stacks">{_bar(stage, longest, ORDER, stage.name)}</td>'
        f'<td class="number">{"" if stage.useful is None else percent(stage.useful)}</td>'
        f'<td class="number">{_amount(stage.held_hours)}</td><td class="number">{duration(clock_s(stage))}</td>'
        f'<td class="number">{duration(stage.seconds[QUEUE])}</td></tr>'
    )


def _amount(hours: float) -> str:
    return duration(3600 * hours)


assert {*MEANINGS} == {*CLASSES} == {*ORDER, QUEUE}  # noqa: S101 - a class that joins must be drawn
