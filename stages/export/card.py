"""Writes the model card: what this model is, where it comes from, and how good it was found to be."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.artifacts import MANIFEST, Artifact, Checkpoint, Report, Shards
from orchestrator.records import record
from orchestrator.stage import StageContext
from stages import ABILITIES
from stages.export.stage import ExportModel
from stages.family import ADAPTER

FRONT_MATTER = """---
library_name: orch
tags: [vision-language, grounded-captions, {family}]
{licence}---
"""

# how `orch predict` asks for what an ability of stages/family.py gives
_ASKED = {
    **dict.fromkeys(("Grounds", "LocatesWords", "SegmentsPanoptic"), ""),
    **dict.fromkeys(("Refers", "RefersByBox"), ' --refer "the left cup"'),
    "DescribesRegions": " --box 10,10,60,60",
    "Answers": ' --box 10,10,60,60 --prompt "Describe <bbox>."',
    "DescribesDensely": " --dense",
    "Embeds": ' --text "a red cup" --text "a dog"',
    "EmbedsMasked": ' --mask cup.png --text "a red cup" --text "a dog"',
}


@record
class Ancestor:
    """A stage that the model descends from, and what it read."""

    name: str
    stage: str
    fingerprint: str
    inputs: tuple[tuple[str, Mapping[str, str]], ...]  # label -> kind and path


def make_card(config: ExportModel.Config, checkpoint: Checkpoint, report: Report | None, context: StageContext) -> str:
    """Returns the card as Markdown."""
    facts = checkpoint.facts()
    run = context.directory.parent
    ancestors = list(_ancestors(checkpoint.path.parent, run, set()))
    title = config.title or f"{facts['family']} from {run.name}"
    parts = [
        FRONT_MATTER.format(
            family=facts["family"], licence=f"license: {_line(config.licence)}\n" if config.licence else ""
        ),
        f"# {_line(title)}\n",
        _opening(facts, run),
        _scores(report),
        _data(ancestors, run),
        _bases(checkpoint, ancestors),
        _lineage(checkpoint, ancestors, run),
        _use(config.form, str(facts["family"])),
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


def _lineage(checkpoint: Checkpoint, ancestors: Sequence[Ancestor], run: Path) -> str:
    lines = ["## Lineage\n", f"- checkpoint `{checkpoint.path.parent.name}`, digest `{checkpoint.digest()[:16]}`"]
    for ancestor in ancestors:
        lines.append(f"- stage `{ancestor.name}` ({ancestor.stage}), fingerprint `{ancestor.fingerprint[:16]}`")
        lines += [
            f"  - {label}: {artifact['kind']} `{_inside(Path(artifact['path']), run)}`, digest "
            f"`{Artifact(Path(artifact['path'])).digest()[:16] or 'none'}`"
            for label, artifact in ancestor.inputs
        ]
    code = _json(run / "code" / "COMMIT")
    if code:
        dirty = ", with uncommitted changes" if code.get("dirty") else ""
        lines.append(f"- code: commit `{code.get('commit', 'unknown')}`{dirty}")
    return "\n".join(lines) + "\n"


def _data(ancestors: Sequence[Ancestor], run: Path) -> str:
    """Lists the data that the model and its ancestors learnt from, each with its licence."""
    lines = []
    seen: set[Path] = set()
    for ancestor in ancestors:
        for _, artifact in ancestor.inputs:
            path = Path(artifact["path"])
            if artifact["kind"] != Shards.kind or path in seen:
                continue
            seen.add(path)
            facts = _facts(path)
            told = [facts.get("source", "unknown"), facts.get("split", ""), facts.get("samples", "")]
            licence = facts.get("licence") or "not stated: find out before you publish"
            cells = [f"`{_inside(path, run)}`", *(_cell(str(one)) for one in (*told, licence))]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    head = "| shards | source | split | samples | licence |\n|---|---|---|---:|---|"
    return "\n".join(["## Data\n", head, *lines]) + "\n"


def _bases(checkpoint: Checkpoint, ancestors: Sequence[Ancestor]) -> str:
    """Lists the published weights that the model began with; their licences bind it, too."""
    inputs = [Path(artifact["path"]) for ancestor in ancestors for _, artifact in ancestor.inputs]
    found: dict[str, str] = {}
    for path in (checkpoint.path, *inputs):
        found |= _facts(path).get("published", {}).get("sources", {})
    if not found:
        return ""
    lines = [f"- `{_cell(Path(path).name)}`: {title}" for path, title in found.items()]
    return "\n".join(["## Weights it began with\n", "Their licences hold for this model, too.\n", *lines]) + "\n"


def _ancestors(stage_directory: Path, run: Path, seen: set[str]) -> Iterator[Ancestor]:
    """Walks from a stage to what it was made from, nearest first; stays inside the run."""
    plain = _json(stage_directory / "stage.json")
    if not plain or plain["name"] in seen:
        return
    seen.add(plain["name"])
    inputs = tuple(pair for name, given in plain["inputs"].items() for pair in _artifacts(name, given))
    yield Ancestor(name=plain["name"], stage=plain["stage"], fingerprint=plain["fingerprint"], inputs=inputs)
    for _, artifact in inputs:
        parent = Path(artifact["path"]).parent
        if parent.parent == run:
            yield from _ancestors(parent, run, seen)


def _artifacts(name: str, given: Any) -> Iterator[tuple[str, Mapping[str, str]]]:
    if not given:
        return
    if "kind" in given and isinstance(given["kind"], str):
        yield name, given
    else:
        yield from ((f"{name}.{key}", artifact) for key, artifact in given.items())


def _use(form: str, family: str) -> str:
    if form == ADAPTER:
        return (
            "## Use\n\nThis is the adapter of the language model alone, with its embeddings and head; the other parts "
            'of the model are in an export of the form "merged".\n\n```python\nfrom peft import PeftModel\n\n'
            "base.resize_token_embeddings(len(tokenizer))  # the language model that it was trained on\n"
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n```\n'
        )
    asked = dict.fromkeys(_ASKED[ability] for ability in ABILITIES.get(family, ()) if ability in _ASKED)
    commands = [f"orch predict THIS_FOLDER IMAGE{asking} --output drawn.png" for asking in asked]
    shell = ["```", *commands, "```\n"] if commands else []
    python = ["from pathlib import Path\n", "from stages.family import load_family\n"]
    loads = f'model = load_family("{family}").load_export(Path("THIS_FOLDER"))'
    return "\n".join(["## Use\n", *shell, "```python", *python, loads, "```\n"])


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


def _facts(path: Path) -> dict[str, Any]:
    facts = _json(path / MANIFEST).get("facts")
    return facts if isinstance(facts, dict) else {}


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


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
