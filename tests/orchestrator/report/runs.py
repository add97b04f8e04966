"""Writes run folders as the launcher, the workers and the stages do, for the tests of the report."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stages
from orchestrator.artifacts import Artifact, Checkpoint, Export, Raw, Report, Shards, write_json
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.state import Attempt, Launch, StageState, write_launch, write_state
from orchestrator.world import World
from stages.evaluate.stage import Evaluate
from stages.samples import Sample
from tests.stages.oracle import write_oracle
from tests.stages.scenes import scene, write_shards

STARTED = 1_760_000_000.0
KINDS: Mapping[str, type[Artifact]] = {kind.kind: kind for kind in (Checkpoint, Export, Raw, Report, Shards)}

# name -> (key, inputs as {input: "stage.output"}, output, its kind, steps)
CHAIN: Mapping[str, tuple[str, Mapping[str, str], str, str, int | None]] = {
    "scenes": ("make_shapes", {}, "raw", "raw", None),
    "captions": ("convert_shards", {"raw": "scenes.raw"}, "shards", "shards", None),
    "regions": ("convert_shards", {"raw": "scenes.raw"}, "shards", "shards", None),
    "grounded": ("convert_shards", {"raw": "scenes.raw"}, "shards", "shards", None),
    "pix2cap": ("convert_shards", {"raw": "scenes.raw"}, "shards", "shards", None),
    "held_out": ("convert_shards", {"raw": "scenes.raw"}, "shards", "shards", None),
    "align": ("glamm_feature_alignment", {"shards": "captions.shards"}, "model", "checkpoint", 60),
    "region": ("glamm_region_pretraining", {"model": "align.model", "shards": "regions.shards"}, "model",
               "checkpoint", 300),
    "gcg": ("glamm_gcg_tuning", {"model": "region.model", "shards": "grounded.shards"}, "model", "checkpoint", 1200),
    "sft": ("glamm_pix2cap_sft", {"model": "gcg.model", "shards": "pix2cap.shards"}, "model", "checkpoint", 30),
    "score": ("evaluate", {"model": "sft.model", "shards": "held_out.shards"}, "report", "report", None),
    "export": ("export", {"model": "sft.model", "report": "score.report"}, "model", "export", None),
}  # fmt: skip


def write_run(
    run: Path, states: Mapping[str, str], *, samples: tuple[Sample, ...] = tuple(scene(n) for n in range(6)),
    attempts: Mapping[str, tuple[Attempt, ...]] | None = None, ended: float | None = STARTED + 400, note: str = "",
) -> Path:  # fmt: skip
    """Writes a run of the chain; a stage's state is `states`' or "done"; done stages have outputs and curves."""
    run.mkdir(parents=True)
    for name in CHAIN:
        write_stage(run, name, states.get(name, "done"), samples, (attempts or {}).get(name, ()))
    (run / "recipe.yaml").write_text("name: bars\nstages: {}\n")
    (run / "code").mkdir()
    write_json(run / "code/COMMIT", {"commit": "0123abcd" * 5, "dirty": True})
    entries = tuple({"name": name, "action": "run", "reason": "never ran"} for name in CHAIN)
    launch = Launch(
        recipe="bars", launcher="local", host="workstation", user="ada", started=STARTED, stages=entries, ended=ended,
        notes=(note,) if note else (),
    )  # fmt: skip
    write_launch(run, launch)
    return run


def copy_run(run: Path, place: Path) -> Path:
    """Copies a run, its own paths included."""
    shutil.copytree(run, place)
    for document in place.glob("*/stage.json"):
        document.write_text(document.read_text().replace(str(run), str(place)))
    return place


def write_stage(run: Path, name: str, state: str, samples: tuple[Sample, ...], attempts: tuple[Attempt, ...]) -> None:
    key, inputs, output, kind, steps = CHAIN[name]
    directory = run / name
    directory.mkdir()
    document = {
        "name": name, "stage": key, "target": f"stages:{key}", "config": {}, "after": [], "seed": 17,
        "inputs": {given: described(run, source, wrapped=given == "shards") for given, source in inputs.items()},
        "outputs": {output: {"kind": kind, "path": str(directory / output)}},
        "fingerprint": fingerprint_of(name), "steps": steps,
    }  # fmt: skip
    write_json(directory / "stage.json", document)
    if not attempts and state not in {"waiting", "queued"}:
        ended = None if state == "running" else STARTED + 30
        attempts = (
            Attempt(
                number=1, launcher="local", job_id="1", nodes=("workstation",), started=STARTED, ended=ended,
                state=state, from_step=0 if steps else None, to_step=steps,
            ),
        )  # fmt: skip
    write_state(directory, StageState(state=state, attempts=attempts))
    if attempts:
        reached = 0 if steps is None else steps if state == "done" else steps // 2
        write_journal(directory, attempts, reached)
    if state == "done":
        write_output(run, name, samples)


def write_output(run: Path, name: str, samples: tuple[Sample, ...]) -> None:
    _, _, output, kind, _ = CHAIN[name]
    path = run / name / output
    facts: dict[str, Any] = {"versions": {"python": "3.11.7", "torch": "2.13.0"}}
    if kind == "shards":
        write_shards(path, samples)
        facts |= {"samples": len(samples), "source": "grand_f", "licence": "made here", "counts": {"phrases": 12}}
    elif kind == "checkpoint":
        write_oracle(path, samples)
        facts |= {"family": "oracle", "step": 30}
    elif kind == "report":
        facts |= write_scores(run, samples)
    else:
        path.mkdir()
        (path / "README.md").write_text("made by a test")
    KINDS[kind](path).commit(fingerprint_of(name), facts=facts)


def write_scores(run: Path, samples: tuple[Sample, ...]) -> dict[str, Any]:
    """Evaluates an oracle with known errors, so that metrics.json and pictures are what Evaluate writes."""
    assert isinstance(stages.FAMILIES, dict)
    stages.FAMILIES["oracle"] = "tests.stages.oracle:OracleFamily"
    config = Evaluate.Config(
        benchmarks=["gcg", "region_captions"], untrained=True, pictures=3, at_least={"gcg": {"miou": 0.5}},
        gains={"gcg": {"cider": 3.0}}, caption_scorer="plain",
    )  # fmt: skip
    model = write_oracle(run / "score/oracle", samples, shift_px=2, forget=1)
    journal = Journal(run / "score")
    context = StageContext(
        directory=run / "score", name="score", fingerprint=fingerprint_of("score"), seed=3, world=World.alone(),
        journal=journal, progress=Progress(None), stop=lambda: False,
    )  # fmt: skip
    inputs = Evaluate.Inputs(model=model, shards={"held_out": Shards(run / "held_out/shards")})
    facts = Evaluate(config, inputs, Evaluate.Outputs(report=Report(run / "score/report"))).run(context)["report"]
    journal.close()
    del stages.FAMILIES["oracle"]
    return dict(facts)


def write_journal(directory: Path, attempts: tuple[Attempt, ...], steps: int) -> None:
    """Writes what training does: each attempt starts up for eight seconds, then makes a step every tenth of one."""
    lines: list[dict[str, Any]] = []
    for attempt in attempts:
        lines.append({"event": "attempt", "time": attempt.started + 2, "number": attempt.number, "ranks": 2})
        first, last = attempt.from_step or 0, steps if attempt.to_step is None else attempt.to_step
        for step in range(first + 1, last + 1):
            lines += step_events(step, steps, attempt.started + 8 + 0.1 * (step - first - 1))
    (directory / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def step_events(step: int, steps: int, time: float) -> list[dict[str, Any]]:
    loss = 0.4 + 5 * math.exp(-step / steps * 5) + 0.3 * math.sin(step * 12.9) ** 3
    lines: list[dict[str, Any]] = [{"event": "loss", "time": time, "step": step, "value": loss, "data_wait_s": 0.01}]
    if step % 10 == 0:
        values = {
            "loss": loss, "loss/text": loss * 0.6, "loss/masks": loss * 0.4, "lr": 3e-4 * (1 - step / steps),
            "grad_norm": 1 + 1 / step, "samples_per_s": 31.0, "data_wait_share": 0.02,
        }  # fmt: skip
        lines.append({"event": "metrics", "time": time, "step": step, "values": values})
    if step % 100 == 0:
        slow = {
            "rank": 1,
            "node": "workstation",
            "times": 1.8,
            "wait_s": 0.2,
            "usual_wait_s": 0.01,
            "compute_times": 1.0,
        }
        lines.append({"event": "straggler", "time": time, "step": step, **slow})
    return lines


def described(run: Path, source: str, *, wrapped: bool) -> dict[str, Any]:
    stage, _, output = source.partition(".")
    artifact = {"kind": CHAIN[stage][3], "path": str(run / stage / output)}
    return {stage: artifact} if wrapped else artifact


def fingerprint_of(name: str) -> str:
    return name.encode().hex().ljust(64, "0")[:64]
