"""Writes the model card: what this model is, where it comes from, and how good it was found to be."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Artifact, Checkpoint, Report
from orchestrator.stage import StageContext
from stages.export.stage import ExportModel

FRONT_MATTER = """---
library_name: orch
tags: [vision-language, grounded-captions, {family}]
{licence}---
"""


def make_card(config: ExportModel.Config, checkpoint: Checkpoint, report: Report | None, context: StageContext) -> str:
    """Returns the card as Markdown."""
    facts = checkpoint.facts()
    run = context.directory.parent
    title = config.title or f"{facts['family']} from {run.name}"
    parts = [
        FRONT_MATTER.format(
            family=facts["family"], licence=f"license: {_line(config.licence)}\n" if config.licence else ""
        ),
        f"# {_line(title)}\n",
        _opening(facts, run),
        _scores(report),
        _lineage(checkpoint, run),
        _use(),
        _model(facts),
        _recipe(run),
    ]
    return "\n".join(part for part in parts if part)


def _opening(facts: Mapping[str, Any], run: Path) -> str:
    steps = facts.get("step", "an unknown number of")
    return f"A model of the family `{facts['family']}` from the run `{run.name}`; its last stage took {steps} steps.\n"


def _scores(report: Report | None) -> str:
    if report is None:
        return "## Scores\n\nThis model was exported without an evaluation.\n"
    metrics = json.loads((report.path / "metrics.json").read_text(encoding="utf-8"))
    lines = ["## Scores\n"]
    for name, benchmark in metrics["benchmarks"].items():
        untrained = benchmark["untrained"] or {}
        lines += [f"### {name}, {benchmark['images']} images\n", "| score | this model | untrained | meaning |"]
        lines.append("|---|---:|---:|---|")
        for score, value in benchmark["scores"].items():
            before = f"{untrained[score]:.3f}" if score in untrained else ""
            lines.append(f"| {score} | {value:.3f} | {before} | {benchmark['meanings'][score]} |")
        lines.append(f"\n{benchmark['protocol']}\n")
    return "\n".join(lines)


def _lineage(checkpoint: Checkpoint, run: Path) -> str:
    lines = ["## Lineage\n", f"- checkpoint `{checkpoint.path.parent.name}`, digest `{checkpoint.digest()[:16]}`"]
    seen: set[str] = set()
    lines += _ancestors(checkpoint.path.parent, run, seen)
    code = _json(run / "code" / "COMMIT")
    if code:
        dirty = ", with uncommitted changes" if code.get("dirty") else ""
        lines.append(f"- code: commit `{code.get('commit', 'unknown')}`{dirty}")
    return "\n".join(lines) + "\n"


def _ancestors(stage_directory: Path, run: Path, seen: set[str]) -> Iterator[str]:
    """Walks from a stage to what it was made from, nearest first; stays inside the run."""
    plain = _json(stage_directory / "stage.json")
    if not plain or plain["name"] in seen:
        return
    seen.add(plain["name"])
    yield f"- stage `{plain['name']}` ({plain['stage']}), fingerprint `{plain['fingerprint'][:16]}`"
    parents = []
    for name, given in plain["inputs"].items():
        for label, artifact in _artifacts(name, given):
            path = Path(artifact["path"])
            digest = Artifact(path).digest()
            yield f"  - {label}: {artifact['kind']} `{_inside(path, run)}`, digest `{digest[:16] or 'none'}`"
            parents.append(path.parent)
    for parent in parents:
        if parent.parent == run:
            yield from _ancestors(parent, run, seen)


def _artifacts(name: str, given: Any) -> Iterator[tuple[str, Mapping[str, str]]]:
    if not given:
        return
    if "kind" in given and isinstance(given["kind"], str):
        yield name, given
    else:
        yield from ((f"{name}.{key}", artifact) for key, artifact in given.items())


def _use() -> str:
    return (
        "## Use\n\n```\norch predict THIS_FOLDER IMAGE --output drawn.png\n"
        'orch predict THIS_FOLDER IMAGE --box 10,10,60,60 --prompt "Describe <bbox>."\n```\n'
    )


def _model(facts: Mapping[str, Any]) -> str:
    shown = json.dumps(facts.get("model", {}), indent=1, ensure_ascii=False)
    return f"## Configuration\n\n```json\n{shown}\n```\n"


def _recipe(run: Path) -> str:
    try:
        text = (run / "recipe.yaml").read_text(encoding="utf-8")
    except OSError:
        return ""
    fence = "`" * max(4, *(len(line) - len(line.lstrip("`")) + 1 for line in text.splitlines() or [""]))
    return f"## Recipe\n\n{fence}yaml\n{text}{fence}\n"


def _line(text: str) -> str:
    return " ".join(text.split())


def _inside(path: Path, run: Path) -> str:
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}
