"""How much of the time was useful, as bars: of the run, and of each stage."""

from collections.abc import Mapping

from orchestrator.report.gather import RunView, StageView
from orchestrator.report.spent import MEANINGS, USES, Seconds, Use, total
from orchestrator.report.text import duration, percent, safe


def goodput(run: RunView) -> float | None:
    """Returns the useful share of the time inside of attempts; None before anything was tried."""
    return _goodput(total(spent for stage in run.stages for spent in stage.spent))


def goodput_bars(run: RunView) -> str:
    """Draws where the time went: a bar for the whole run, one for each stage, and what the colours mean."""
    tried = [stage for stage in run.stages if stage.spent]
    if not tried:
        return '<p class="soft">Nothing was tried yet.</p>'
    every = total(spent for stage in tried for spent in stage.spent)
    inside = _inside(every)
    longest_s = max(sum(_inside(total(stage.spent)).values()) for stage in tried)
    on_gpus = any(_gpus(stage) for stage in tried)
    rows = "".join(_row(stage, longest_s, on_gpus=on_gpus) for stage in tried)
    head = (
        "<tr><th>stage</th><th>its time in attempts</th><th class='number'>useful</th><th class='number'>in attempts"
        f"</th><th class='number'>queue</th>{'<th class=number>GPU hours</th>' if on_gpus else ''}</tr>"
    )
    bars = f'<div class="whole">{_bar(inside, sum(inside.values()), "time in attempts")}'
    if every["queue"] > 0:
        bars += f'<span class="soft small">with the queue:</span>{_bar(every, sum(every.values()), "with the queue")}'
    return (
        f"<p>{_sentence(every)}</p>{bars}</div>{_keys(every)}"
        f'<div class="wide"><table class="spent"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


def _inside(spent: Seconds) -> dict[Use, float]:
    """Leaves out what was spent before attempts."""
    return {use: seconds for use, seconds in spent.items() if use != "queue"}


def _goodput(spent: Seconds) -> float | None:
    inside_s = sum(_inside(spent).values())
    return spent["useful"] / inside_s if inside_s > 0 else None


def _sentence(every: Seconds) -> str:
    share = _goodput(every)
    said = "" if share is None else f"<b>{percent(share)}</b> of the time in attempts was useful. "
    missing = "" if every["checkpoint"] else " Saving is part of the step after it where no word of it was recorded."
    return f"{said}From journals and state files; what they do not say is not guessed.{missing}"


def _bar(spent: Seconds, longest_s: float, of: str) -> str:
    all_s = sum(spent.values()) or 1.0
    found = [use for use in USES if spent.get(use, 0.0) > 0]
    told = "; ".join(f"{MEANINGS[use][0]} {duration(spent[use])}" for use in found)
    parts = "".join(
        f'<span class="use {use}" style="width:{100 * spent[use] / all_s:.3f}%" '
        f'title="{MEANINGS[use][0]}: {duration(spent[use])}, {percent(spent[use] / all_s)}"></span>'
        for use in found
    )
    width = max(1.0, 100 * all_s / (longest_s or 1.0))
    return f'<div class="stack" role="img" aria-label="{safe(of)}: {told}" style="width:{width:.2f}%">{parts}</div>'


def _keys(every: Mapping[Use, float]) -> str:
    inside_s = sum(_inside(every).values()) or 1.0
    items = "".join(
        f'<li><span class="use {use}"></span><b>{MEANINGS[use][0]}</b> {duration(every[use])}'
        f"{'' if use == 'queue' else f', {percent(every[use] / inside_s)}'}"
        f'<span class="soft small">: {MEANINGS[use][1]}</span></li>'
        for use in USES
        if every[use] > 0
    )
    return f'<ul class="uses">{items}</ul>'


def _row(stage: StageView, longest_s: float, *, on_gpus: bool) -> str:
    spent = total(stage.spent)
    share = _goodput(spent)
    inside = _inside(spent)
    inside_s = sum(inside.values())
    gpu_hours = f'<td class="number">{_gpus(stage) * inside_s / 3600:.2f}</td>' if on_gpus else ""
    return (
        f'<tr><td>{safe(stage.name)}</td><td class="stacks">{_bar(inside, longest_s, stage.name)}</td>'
        f'<td class="number">{"" if share is None else percent(share)}</td>'
        f'<td class="number">{duration(inside_s)}</td><td class="number">{duration(spent["queue"])}</td>'
        f"{gpu_hours}</tr>"
    )


def _gpus(stage: StageView) -> int:
    resources = stage.document.get("resources", {})
    return int(resources.get("nodes") or 1) * int(resources.get("gpus_per_node") or 0)
