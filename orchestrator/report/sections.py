"""The parts of the report about the run itself: stages and attempts, curves, data, provenance, commands."""

import datetime as dt
import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from orchestrator.report.chain import SYMBOLS, Node, chain_graph
from orchestrator.report.charts import Line, curves_by_kind, line_chart
from orchestrator.report.gather import RunView, StageView, inputs_of

UNITS: Mapping[str, tuple[str, str]] = {
    "lr": ("Learning rate", "learning rate"),
    "grad_norm": ("Gradient norm", "norm before clipping"),
    "samples_per_s": ("Throughput", "samples per second"),
    "data_wait_share": ("Waiting for data", "share of the time"),
    "data_wait_s": ("Waiting for data, a step", "seconds"),
    "bad_samples": ("Lost samples", "samples, since the start"),
    "bad_fraction": ("Lost samples, of those drawn", "share, since the start"),
}
MOST_DATA_FACTS = 12


def badge(state: str) -> str:
    """Shows a state in words, with a sign and a colour."""
    return f'<span class="badge {escape(state)}">{SYMBOLS.get(state, "?")} {escape(state)}</span>'


def summary(run: RunView) -> str:
    """Says in a sentence how far the run came, and what stopped it."""
    status = run.status
    done = sum(stage.state in {"done", "reused"} for stage in run.stages)
    text = f"{done} of {len(run.stages)} stages are done"
    broken = [stage for stage in run.stages if stage.state in {"failed", "cancelled"}]
    running = [stage for stage in run.stages if stage.state == "running"]
    if broken:
        last = _last_attempt(broken[0])
        cause = f" ({last.get('cause')}): {last.get('detail')}" if last.get("cause") else ""
        text += f"; {broken[0].name} {broken[0].state}{cause}"
    elif running:
        step = running[0].status.get("step")
        text += f"; {running[0].name} is running" + (f", step {step} of {running[0].status['steps']}" if step else "")
    elif done < len(run.stages):
        text += "; this run is not finished"
    parts = [f"<p>{badge(str(status['state']))} {escape(text.rstrip('.'))}.</p>"]
    where = f"recipe {status['recipe']}"
    if status.get("started"):
        where += f", launched {moment(status['started'])}"
    if status.get("host"):
        where += f" on {status['host']} ({status['launcher']})"
    spent_s = sum(_seconds(attempt) for stage in run.stages for attempt in stage.status["attempts"])
    parts.append(f'<p class="soft small">{escape(where)}; {duration(spent_s)} of work in all attempts.</p>')
    parts += [f'<p class="missed">{escape(str(note))}</p>' for note in status.get("notes", [])]
    return "".join(parts)


def chain(run: RunView) -> str:
    """Draws the stages and what they hand each other."""
    nodes = [Node(name=stage.name, key=stage.key, state=stage.state, parents=stage.parents) for stage in run.stages]
    return chain_graph(nodes) or '<p class="soft">Nothing was launched yet.</p>'


def stages(run: RunView) -> str:
    """Lists every stage with its attempts."""
    head = (
        "<tr><th>stage</th><th>state</th><th class='number'>steps</th><th class='number'>time</th>"
        "<th>attempts</th><th>why</th></tr>"
    )
    rows = "".join(_stage_row(stage) for stage in run.stages)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def curves(run: RunView) -> str:
    """Draws the curves of every training stage."""
    parts = []
    for stage in run.stages:
        losses, others = curves_by_kind(stage.curves)
        chart = line_chart(losses, x_name="step", y_name="loss", title=f"Loss of {stage.name}", marks=stage.restarts)
        if not chart:
            continue
        more = "".join(_small_chart(stage, name, points) for name, points in others.items())
        summary_text = "Learning rate, gradients, throughput"
        hidden = f'<details><summary>{summary_text}</summary><div class="charts">{more}</div></details>'
        parts.append(f"<div><h3>{escape(stage.name)}</h3>{chart}{hidden if more else ''}</div>")
    return f'<div class="charts">{"".join(parts)}</div>' if parts else '<p class="soft">No stage has trained yet.</p>'


def data(run: RunView) -> str:
    """Shows the counts that the manifests of all data artifacts state."""
    rows = []
    for stage in run.stages:
        for name, manifest in stage.outputs.items():
            if manifest["kind"] in {"shards", "raw"}:
                rows.append(_data_row(f"{stage.name}.{name}", manifest))
    if not rows:
        return '<p class="soft">No data artifact of this run is complete.</p>'
    head = "<tr><th>artifact</th><th class='number'>samples</th><th>facts</th><th>licence</th><th>digest</th></tr>"
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def provenance(run: RunView) -> str:
    """Says which code and which inputs made what."""
    commit = str(run.code.get("commit") or "unknown")
    dirty = ", with uncommitted changes (the diff is beside it)" if run.code.get("dirty") else ""
    parts = [f"<p>Code: commit <code>{escape(commit)}</code>{dirty}; snapshot in <code>code/</code>.</p>"]
    if versions := _versions(run):
        shown = ", ".join(f"{escape(name)} {escape(version)}" for name, version in versions.items())
        parts.append(f"<p>Versions: {shown}.</p>")
    rows = "".join(_provenance_row(stage) for stage in run.stages)
    head = "<tr><th>stage</th><th>fingerprint</th><th>inputs</th><th>outputs</th><th>seed</th><th>MLflow run</th></tr>"
    return "".join(parts) + f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def reproduce(run: RunView) -> str:
    """Gives the commands that make this run again, go on with it, and use what it made."""
    folder = shlex.quote(str(run.directory))
    lines = []
    commit = run.code.get("commit")
    if isinstance(commit, str) and commit.isalnum():
        lines.append(f"git checkout {commit}")
    lines += [f"orch plan {folder}/recipe.yaml", f"orch launch {folder}/recipe.yaml", f"orch status {folder}"]
    if run.status["state"] != "done":
        lines.append(f"orch resume {folder}")
    for stage in run.stages:
        for name, manifest in stage.outputs.items():
            if manifest["kind"] == "export":
                export = shlex.quote(str(stage.document["outputs"][name]["path"]))
                lines.append(f"orch predict {export} IMAGE --output drawn.png")
    recipe = f"<details><summary>The resolved recipe</summary><pre>{escape(run.recipe)}</pre></details>"
    return f"<pre>{escape(chr(10).join(lines))}</pre>{recipe if run.recipe else ''}"


def moment(seconds: float) -> str:
    """Writes a point in time, in UTC."""
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """Writes a length of time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _stage_row(stage: StageView) -> str:
    status = stage.status
    attempts: list[Mapping[str, Any]] = status["attempts"]
    steps = (
        "" if status["steps"] is None else f"{status['step'] if status['step'] is not None else 0} / {status['steps']}"
    )
    spent = duration(sum(_seconds(attempt) for attempt in attempts)) if attempts else ""
    return (
        f'<tr id="stage-{escape(stage.name)}"><td><b>{escape(stage.name)}</b><br>'
        f'<span class="soft small">{escape(stage.key)}</span></td><td>{badge(stage.state)}</td>'
        f'<td class="number">{steps}</td><td class="number">{spent}</td>'
        f"<td>{'<br>'.join(_attempt(attempt) for attempt in attempts)}</td>"
        f'<td class="soft">{escape(stage.reason)}</td></tr>'
    )


def _attempt(attempt: Mapping[str, Any]) -> str:
    text = f"{attempt['number']}: {attempt['state']}"
    if attempt.get("from_step") is not None and attempt.get("to_step") is not None:
        text += f", steps {attempt['from_step']} to {attempt['to_step']}"
    text += f", {duration(_seconds(attempt))}"
    if attempt.get("cause"):
        text += f", {attempt['cause']}"
    detail = f'<br><span class="small soft">{escape(str(attempt["detail"]))}</span>' if attempt.get("detail") else ""
    return escape(text) + detail


def _seconds(attempt: Mapping[str, Any]) -> float:
    import time

    return max(0.0, float(attempt.get("ended") or time.time()) - float(attempt["started"]))


def _last_attempt(stage: StageView) -> Mapping[str, Any]:
    attempts: list[Mapping[str, Any]] = stage.status["attempts"]
    return attempts[-1] if attempts else {}


def _small_chart(stage: StageView, name: str, points: Any) -> str:
    title, unit = UNITS.get(name, (name, name))
    chart = line_chart([Line(name=name, points=points)], x_name="step", y_name=unit, title=f"{title} of {stage.name}")
    return f"<div><h3>{escape(title)}</h3>{chart}</div>" if chart else ""


def _data_row(name: str, manifest: Mapping[str, Any]) -> str:
    facts: Mapping[str, Any] = manifest.get("facts", {})
    samples = facts.get("samples", "")
    hidden = {"samples", "licence", "samples_per_tar", "versions", "inputs", "stage", "commit", "config"}
    shown = list(_flat({key: value for key, value in facts.items() if key not in hidden}))
    text = "; ".join(f"{key} {value}" for key, value in shown[:MOST_DATA_FACTS])
    more = f"; and {len(shown) - MOST_DATA_FACTS} more in the manifest" if len(shown) > MOST_DATA_FACTS else ""
    return (
        f'<tr><td>{escape(name)}</td><td class="number">{escape(str(samples))}</td>'
        f'<td class="small">{escape(text + more)}</td><td class="small">{escape(str(facts.get("licence", "")))}</td>'
        f"<td><code>{escape(str(manifest.get('digest', ''))[:12])}</code></td></tr>"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner not in ("", None, []):
            shown = inner if isinstance(inner, str | int | float) else json.dumps(inner)[:80]
            yield f"{prefix}{key}", str(shown)


def _versions(run: RunView) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in run.stages:
        for manifest in stage.outputs.values():
            versions = manifest.get("facts", {}).get("versions", {})
            found.update({str(name): str(version) for name, version in versions.items()})
    return found


def _provenance_row(stage: StageView) -> str:
    inputs = ", ".join(f"{name} ({artifact['kind']})" for name, artifact in inputs_of(stage.document))
    outputs = "<br>".join(
        f"{escape(name)} <code>{escape(str(manifest.get('digest', ''))[:12])}</code>"
        for name, manifest in stage.outputs.items()
    )
    fingerprint = escape(str(stage.document.get("fingerprint", ""))[:16])
    return (
        f"<tr><td>{escape(stage.name)}</td><td><code>{fingerprint}</code></td>"
        f'<td class="small">{escape(inputs)}</td><td class="small">{outputs}</td>'
        f"<td>{escape(str(stage.document.get('seed', '')))}</td>"
        f"<td><code>{escape(str(stage.status.get('mlflow_run_id') or ''))}</code></td></tr>"
    )
