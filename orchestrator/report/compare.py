"""Two runs beside each other: what was set differently, how the losses went, which scores are better."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from orchestrator.goodput import Spending
from orchestrator.history import compare as differences_of_work
from orchestrator.redaction import HIDDEN, SECRET_NAME
from orchestrator.report.charts import line_chart
from orchestrator.report.curves import LOSS, limit_for, loss_lines
from orchestrator.report.gather import Points, RunView, StageView
from orchestrator.report.text import brief, duration, percent, safe, shown
from orchestrator.report.useful import clock_s

MOST_DIFFERENCES, OPEN = 2000, 40  # keys; those that are not folded away
LONGEST_VALUE = 200
BUDGET = 100_000  # points, all charts together
SAME = 5e-4  # scores that differ by less look the same in three decimals


def comparison(run: RunView, other: RunView) -> str:
    """Compares a run with another one, key by key, curve over curve, score beside score."""
    names = run.directory.resolve().name, other.directory.resolve().name
    if names[0] == names[1]:
        names = str(run.directory), str(other.directory)
    ours, theirs = safe(names[0]), safe(names[1])
    head = f"<p>This run, <b>{ours}</b>, against <b>{theirs}</b> (<code>{safe(other.directory)}</code>).</p>"
    parts = {
        "Scores": _scores(run, other, ours, theirs),
        "Settings that differ": _settings(run, other, ours, theirs),
        "Losses over each other": _losses(run, other, names),
        "Time": _time(run, other, ours, theirs),
    }
    return head + "".join(f"<h3>{title}</h3>{body}" for title, body in parts.items())


def _scores(run: RunView, other: RunView, ours: str, theirs: str) -> str:
    """Compares the scores of evaluations of the same name; of every score of `evaluate`, more is better."""
    mine, yours = dict(_flat_scores(run)), dict(_flat_scores(other))
    rows = []
    for key in mine | yours:
        is_, was = mine.get(key), yours.get(key)
        rows.append(
            f"<tr><td>{safe(key)}</td>{_score(is_, was)}{_score(was, is_)}"
            f'<td class="number">{"" if is_ is None or was is None else f"{is_ - was:+.3f}"}</td>'
            f"<td>{_verdict(is_, was, ours, theirs)}</td></tr>"
        )
    if not rows:
        return '<p class="soft">Neither of the runs has evaluated a model.</p>'
    head = (
        f'<tr><th>score</th><th class="number">{ours}</th><th class="number">{theirs}</th>'
        '<th class="number">difference</th><th>better</th></tr>'
    )
    told = (
        '<p class="soft small">More is better for all of them. One run each: how much a score moves from seed to seed '
        "is not in these numbers.</p>"
    )
    return f"{_table(head, rows)}{told}"


def _flat_scores(run: RunView) -> Iterator[tuple[str, float]]:
    for scores in run.scores:
        for name, benchmark in scores.metrics["benchmarks"].items():
            for score, value in benchmark["scores"].items():
                yield f"{scores.stage} · {name} · {score}", float(value)


def _score(value: float | None, beside: float | None) -> str:
    if value is None:
        return '<td class="number soft">none</td>'
    better = beside is not None and value - beside > SAME
    return f'<td class="number">{f"<b>{value:.3f}</b>" if better else f"{value:.3f}"}</td>'


def _verdict(is_: float | None, was: float | None, ours: str, theirs: str) -> str:
    if is_ is None or was is None:
        return '<span class="soft">only one has it</span>'
    if abs(is_ - was) <= SAME:
        return '<span class="soft">equal</span>'
    return f'<span class="passed">▲ {ours}</span>' if is_ > was else f'<span class="missed">▼ {theirs}</span>'


def _settings(run: RunView, other: RunView, ours: str, theirs: str) -> str:
    """Lists every key of recipe and stages whose value differs, and every stage whose code or inputs do."""
    mine, yours = _flat("", _recipe(run)), _flat("", _recipe(other))
    keys = [key for key in {**mine, **yours} if mine.get(key, ...) != yours.get(key, ...)]
    found = [(key, mine.get(key, ...), yours.get(key, ...)) for key in keys]
    found += list(_work(run, other))
    if not found:
        return '<p class="soft">Recipe, code and inputs are the same.</p>'
    head = f"<tr><th>key</th><th>{ours}</th><th>{theirs}</th></tr>"
    rows = [
        f"<tr><td><code>{safe(key)}</code></td><td>{_value(key, is_)}</td><td>{_value(key, was)}</td></tr>"
        for key, is_, was in found[:MOST_DIFFERENCES]
    ]
    more = len(found) - MOST_DIFFERENCES
    told = f'<p class="soft">{more} more keys differ.</p>' if more > 0 else ""
    rest = f"<details><summary>{len(rows) - OPEN} more</summary>{_table(head, rows[OPEN:])}{told}</details>"
    return f'<div class="settings">{_table(head, rows[:OPEN])}{rest if len(rows) > OPEN else ""}</div>'


def _recipe(run: RunView) -> Any:
    """Reads the recipe, each stage's config as it was typed, defaults included."""
    try:
        plain = yaml.safe_load(run.recipe)
    except yaml.YAMLError:
        plain = None
    recipe: dict[str, Any] = plain if isinstance(plain, dict) else {}
    written = recipe.get("stages")
    stages: dict[str, Any] = dict(written) if isinstance(written, dict) else {}
    for stage in run.stages:
        as_written = stages.get(stage.name)
        document = {name: stage.document.get(name) for name in ("stage", "config", "seed")}
        stages[stage.name] = {**(as_written if isinstance(as_written, dict) else {}), **document}
    return {**recipe, "stages": stages}


def _work(run: RunView, other: RunView) -> Iterator[tuple[str, Any, Any]]:
    """Yields in what else the work of equally named stages differs: inputs and files outside, and code, each once."""
    theirs = {stage.name: _identity(stage) for stage in other.stages}
    code: dict[str, tuple[str, str]] = {}
    for stage in run.stages:
        is_, was = _identity(stage), theirs.get(stage.name)
        if not is_ or not was or is_ == was:
            continue
        for change in differences_of_work(was, is_, {}):
            if change.key.startswith("code: "):
                code[change.key] = (change.is_, change.was)
            elif not change.key.startswith(("config", "stage", "target", "seed")):
                yield f"stages.{stage.name} {change.key}", change.is_, change.was
    yield from ((key, is_, was) for key, (is_, was) in code.items())


def _identity(stage: StageView) -> Mapping[str, Any]:
    found = stage.document.get("identity")
    return found if isinstance(found, dict) else {}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: leaf for name, inner in value.items() for key, leaf in _flat(f"{prefix}.{name}", inner).items()}
    return {prefix.removeprefix("."): value}


def _value(key: str, value: Any) -> str:
    if value is ...:
        return '<span class="soft">not there</span>'
    if SECRET_NAME.search(key):
        return HIDDEN
    return brief(value if isinstance(value, str) else json.dumps(value, default=str), LONGEST_VALUE)


def _losses(run: RunView, other: RunView, names: tuple[str, str]) -> str:
    theirs = {stage.name: stage.curves[LOSS] for stage in other.stages if LOSS in stage.curves}
    both = [(stage.name, stage.curves[LOSS], theirs[stage.name]) for stage in run.stages
            if LOSS in stage.curves and stage.name in theirs]  # fmt: skip
    if not both:
        return '<p class="soft">No stage of the same name has trained in both.</p>'
    most = limit_for([len(points) for _, mine, yours in both for points in (mine, mine, yours, yours)], BUDGET)
    charts = [_both(stage, mine, yours, names, most) for stage, mine, yours in both]
    return f'<div class="charts">{"".join(charts)}</div>'


def _both(stage: str, mine: Points, yours: Points, names: tuple[str, str], most: int) -> str:
    lines = [*loss_lines(mine, names[0], 0), *loss_lines(yours, names[1], 1)]
    chart = line_chart(lines, x_name="step", y_name="loss", title=f"Loss of {stage} in both runs", most=most)
    last = f"last loss {shown(mine[-1][1])} and {shown(yours[-1][1])}"
    return f'<div><h4>{safe(stage)}</h4>{chart}<p class="soft small">{last}</p></div>'


def _time(run: RunView, other: RunView, ours: str, theirs: str) -> str:
    if run.spent is None or other.spent is None:
        return '<p class="soft">It cannot be added up.</p>'
    theirs_by_name = {stage.name: stage for stage in other.spent.parts}
    useful = ["" if spent.useful is None else percent(spent.useful) for spent in (run.spent, other.spent)]
    rows = [
        _time_row("the run", run.spent, other.spent),
        f"<tr><td>goodput</td><td>{useful[0]}</td><td>{useful[1]}</td></tr>",
    ]
    rows += [_time_row(stage.name, stage, theirs_by_name[stage.name]) for stage in run.spent.parts
             if stage.name in theirs_by_name]  # fmt: skip
    return _table(f"<tr><th>in attempts, by the clock</th><th>{ours}</th><th>{theirs}</th></tr>", rows)


def _time_row(name: str, mine: Spending, yours: Spending) -> str:
    return f"<tr><td>{safe(name)}</td><td>{duration(clock_s(mine))}</td><td>{duration(clock_s(yours))}</td></tr>"


def _table(head: str, rows: list[str]) -> str:
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
