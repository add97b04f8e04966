"""The parts of the report for whoever wants it again: data, code, inputs, fingerprints, environment, commands."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.report.gather import RunView, StageView, inputs_of, place_of
from orchestrator.report.text import brief, plain, safe

MOST_DATA_FACTS = 12
LONGEST_DIFF = 100_000  # characters


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
    dirty = ", with uncommitted changes" if run.code.get("dirty") else ""
    parts = [f"<p>Code: commit <code>{safe(commit)}</code>{dirty}; snapshot in <code>code/</code>.</p>"]
    if run.diff:
        cut = ", the first part of it" if len(run.diff) > LONGEST_DIFF else ""
        summary = f"What was changed since that commit{cut} (code/changes.diff)"
        parts.append(f"<details><summary>{summary}</summary><pre>{brief(run.diff, LONGEST_DIFF)}</pre></details>")
    if versions := _versions(run):
        listed = ", ".join(f"{safe(name)} {safe(version)}" for name, version in versions.items())
        parts.append(f"<p>Versions: {listed}.</p>")
    rows = "".join(_provenance_row(stage) for stage in run.stages)
    head = (
        "<tr><th>stage</th><th>fingerprint</th><th>inputs</th><th>outputs</th><th>seed</th><th>asked for</th>"
        "<th>MLflow run</th></tr>"
    )
    return "".join(parts) + f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def reproduce(run: RunView) -> str:
    """Gives the commands that make this run again, go on with it, and use what it made."""
    folder = shlex.quote(str(run.directory))
    lines = []
    commit = run.code.get("commit")
    if isinstance(commit, str) and commit.isalnum():
        lines.append(f"git checkout {commit}")
        if run.diff:
            lines.append(f"git apply {folder}/code/changes.diff")
    lines += [f"orch plan {folder}/recipe.yaml", f"orch launch {folder}/recipe.yaml", f"orch status {folder}"]
    if run.status["state"] != "done":
        lines.append(f"orch resume {folder}")
    for stage in run.stages:
        for name, manifest in stage.outputs.items():
            if manifest["kind"] == "export":
                export = shlex.quote(str(place_of(run.directory, stage.name, stage.document["outputs"][name])))
                lines.append(f"orch predict {export} IMAGE --output drawn.png")
    recipe = f"<details><summary>The resolved recipe</summary><pre>{safe(run.recipe)}</pre></details>"
    return f"<pre>{safe(chr(10).join(lines))}</pre>{recipe if run.recipe else ''}"


def _data_row(name: str, manifest: Mapping[str, Any]) -> str:
    facts: Mapping[str, Any] = manifest.get("facts", {})
    hidden = {"samples", "licence", "samples_per_tar", "versions", "inputs", "stage", "commit", "config"}
    shown = list(_flat({key: value for key, value in facts.items() if key not in hidden}))
    text = "; ".join(f"{key} {value}" for key, value in shown[:MOST_DATA_FACTS])
    more = f"; and {len(shown) - MOST_DATA_FACTS} more in the manifest" if len(shown) > MOST_DATA_FACTS else ""
    return (
        f'<tr><td>{safe(name)}</td><td class="number">{safe(facts.get("samples", ""))}</td>'
        f'<td class="small">{safe(text + more)}</td><td class="small">{safe(facts.get("licence", ""))}</td>'
        f"<td><code>{safe(str(manifest.get('digest', ''))[:12])}</code></td></tr>"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner not in ("", None, []):
            yield (
                f"{prefix}{key}",
                str(inner if isinstance(inner, str | int | float) else plain(json.dumps(inner))[:80]),
            )


def _versions(run: RunView) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in run.stages:
        for manifest in stage.outputs.values():
            versions = manifest.get("facts", {}).get("versions", {})
            found.update({str(name): str(version) for name, version in versions.items()})
    return found


def _provenance_row(stage: StageView) -> str:
    inputs = "<br>".join(
        f'<span title="{safe(artifact["path"])}">{safe(name)} ({safe(artifact["kind"])})</span>'
        for name, artifact in inputs_of(stage.document)
    )
    outputs = "<br>".join(
        f"{safe(name)} <code>{safe(str(manifest.get('digest', ''))[:12])}</code>"
        for name, manifest in stage.outputs.items()
    )
    fingerprint = safe(stage.document.get("fingerprint", ""))
    return (
        f'<tr><td>{safe(stage.name)}</td><td><code class="cut" title="{fingerprint}">{fingerprint}</code></td>'
        f'<td class="small">{inputs}</td><td class="small">{outputs}</td>'
        f'<td>{safe(stage.document.get("seed", ""))}</td><td class="small">{safe(_asked(stage))}</td>'
        f"<td><code>{safe(stage.status.get('mlflow_run_id') or '')}</code></td></tr>"
    )


def _asked(stage: StageView) -> str:
    """Says what was asked of the machines."""
    resources: Mapping[str, Any] = stage.document.get("resources", {})
    units = {
        "nodes": "node{s}", "gpus_per_node": "GPU{s} a node", "tasks_per_node": "process{es} a node",
        "cpus_per_task": "core{s} a process", "memory_gb": "GB a node", "hours": "h",
    }  # fmt: skip
    found = [(resources[name], unit) for name, unit in units.items() if resources.get(name)]
    plurals = [{"s": "", "es": ""} if amount == 1 else {"s": "s", "es": "es"} for amount, _ in found]
    return ", ".join(f"{amount} {unit.format(**plural)}" for (amount, unit), plural in zip(found, plurals, strict=True))
