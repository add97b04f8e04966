"""The parts of the report about what happened: a summary, the graph, stages and attempts, the slow ranks."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.registration import Promotion
from orchestrator.report.chain import OUTSIDE, SYMBOLS, Node, chain_graph
from orchestrator.report.gather import RunView, StageView
from orchestrator.report.text import duration, moment, percent, safe

MOST_STRAGGLERS = 200


def badge(state: str) -> str:
    """Shows a state in words, with a sign and a colour."""
    return f'<span class="badge {safe(state)}">{SYMBOLS.get(state, "?")} {safe(state)}</span>'


def summary(run: RunView) -> str:
    """Says in a sentence how far the run came, and what stopped it."""
    status = run.status
    parts = [f"<p>{badge(str(status['state']))} {safe(_how_far(run).rstrip('.'))}.</p>"]
    where = f"recipe {status['recipe']}"
    if status.get("started"):
        where += f", launched {moment(status['started'])}"
    if status.get("host"):
        where += f" on {status['host']} ({status['launcher']})"
    spent_s = sum(attempt_s(attempt) for stage in run.stages for attempt in stage.status["attempts"])
    where += f"; {duration(spent_s)} of work in all attempts"
    if run.spent is not None and run.spent.useful is not None:
        where += f", goodput {percent(run.spent.useful)}"
    parts.append(f'<p class="soft small">{safe(where)}.</p>')
    if status["registered"]:
        parts.append(f"<p>In MLflow's registry: {safe(Promotion(**status['registered']))}.</p>")
    parts += [f'<p class="missed">{safe(note)}</p>' for note in status.get("notes", [])]
    return "".join(parts)


def chain(run: RunView) -> str:
    """Draws where everything comes from: artifacts from outside, the stages, and what they hand each other."""
    nodes = [*_outside(run)]
    for stage in run.stages:
        given = {outside.path: outside.role for outside in stage.outside}
        nodes.append(
            Node(
                name=stage.name, key=stage.key, state=stage.state, parents=(*given, *stage.parents),
                roles={**given, **stage.roles},
            )
        )  # fmt: skip
    return chain_graph(nodes) or '<p class="soft">Nothing was launched yet.</p>'


def stages(run: RunView) -> str:
    """Lists every stage with its attempts."""
    head = (
        "<tr><th>stage</th><th>state</th><th class='number'>steps</th><th class='number'>time</th>"
        "<th>attempts</th><th>why</th></tr>"
    )
    rows = "".join(_stage_row(stage) for stage in run.stages)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def stragglers(run: RunView) -> str:
    """Lists the ranks that were slower than the others; empty where none was."""
    found = [(stage.name, event) for stage in run.stages for event in stage.stragglers]
    if not found:
        return ""
    head = (
        "<tr><th>stage</th><th class='number'>step</th><th class='number'>rank</th><th>node</th>"
        "<th class='number'>needs for a step</th><th class='number'>waits for data</th>"
        "<th class='number'>others wait</th><th class='number'>computes</th></tr>"
    )
    rows = "".join(_straggler_row(name, event) for name, event in found[:MOST_STRAGGLERS])
    more = len(found) - MOST_STRAGGLERS
    told = f'<p class="soft">{more} more are in the journals.</p>' if more > 0 else ""
    return (
        f'<p class="soft small">As many times as long as the median of all ranks; every step waits for the slowest.</p>'
        f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>{told}'
    )


def attempt_s(attempt: Mapping[str, Any]) -> float:
    """Returns how long an attempt took, or has taken so far."""
    return max(0.0, float(attempt.get("ended") or time.time()) - float(attempt["started"]))


def _how_far(run: RunView) -> str:
    done = sum(stage.state in {"done", "reused"} for stage in run.stages)
    text = f"{done} of {len(run.stages)} stages are done"
    broken = next((stage for stage in run.stages if stage.state in {"failed", "cancelled"}), None)
    running = next((stage for stage in run.stages if stage.state == "running"), None)
    if broken:
        last = _last_attempt(broken)
        cause = f" ({last.get('cause')}): {last.get('detail')}" if last.get("cause") else ""
        return f"{text}; {broken.name} {broken.state}{cause}"
    if running:
        step = running.status.get("step")
        return f"{text}; {running.name} is running" + (f", step {step} of {running.status['steps']}" if step else "")
    return text if done == len(run.stages) else f"{text}; this run is not finished"


def _outside(run: RunView) -> Iterator[Node]:
    """Yields what stages read that none of them has written, each once."""
    seen = set()
    for stage in run.stages:
        for outside in stage.outside:
            if outside.path not in seen:
                seen.add(outside.path)
                title = "/".join(Path(outside.path).parts[-2:])
                yield Node(name=outside.path, key=outside.kind, state=OUTSIDE, parents=(), title=title)


def _stage_row(stage: StageView) -> str:
    status = stage.status
    attempts: list[Mapping[str, Any]] = status["attempts"]
    reached = status["step"] if status["step"] is not None else _last_attempt(stage).get("to_step")
    steps = "" if status["steps"] is None else f"{reached or 0} / {status['steps']}"
    spent = duration(sum(attempt_s(attempt) for attempt in attempts)) if attempts else ""
    return (
        f'<tr id="stage-{safe(stage.name)}"><td><b>{safe(stage.name)}</b><br>'
        f'<span class="soft small">{safe(stage.key)}</span></td><td>{badge(stage.state)}</td>'
        f'<td class="number">{safe(steps)}</td><td class="number">{spent}</td>'
        f"<td>{'<br>'.join(_attempt(attempt) for attempt in attempts)}</td>"
        f'<td class="soft">{safe(stage.reason)}</td></tr>'
    )


def _attempt(attempt: Mapping[str, Any]) -> str:
    text = f"{attempt['number']}: {attempt['state']}"
    if attempt.get("from_step") is not None and attempt.get("to_step") is not None:
        text += f", steps {attempt['from_step']} to {attempt['to_step']}"
    text += f", {duration(attempt_s(attempt))}"
    if attempt.get("cause"):
        text += f", {attempt['cause']}"
    nodes = ", ".join(attempt.get("nodes", ()))
    where = f"job {attempt['job_id']} on {nodes}" if nodes else ""
    told = [str(attempt.get(name) or "") for name in ("detail", "decision")]
    lines = "".join(f'<br><span class="small soft">{safe(line)}</span>' for line in (*told, where) if line)
    evidence = "".join(f"<li>{safe(line)}</li>" for line in attempt.get("evidence", ()))
    found = f'<details class="small"><summary>evidence</summary><ul>{evidence}</ul></details>' if evidence else ""
    return f"{safe(text)}{lines}{found}"


def _last_attempt(stage: StageView) -> Mapping[str, Any]:
    attempts: list[Mapping[str, Any]] = stage.status["attempts"]
    return attempts[-1] if attempts else {}


def _straggler_row(stage: str, event: Mapping[str, Any]) -> str:
    cells = "".join(
        f'<td class="number">{safe(_measure(event.get(name), unit))}</td>'
        for name, unit in (("times", "times"), ("wait_s", "s"), ("usual_wait_s", "s"), ("compute_times", "times"))
    )
    return (
        f'<tr><td>{safe(stage)}</td><td class="number">{safe(event.get("step", ""))}</td>'
        f'<td class="number">{safe(event.get("rank", ""))}</td><td>{safe(event.get("node", ""))}</td>{cells}</tr>'
    )


def _measure(value: Any, unit: str) -> str:
    return f"{value:.3g} {unit}" if isinstance(value, int | float) else ""
