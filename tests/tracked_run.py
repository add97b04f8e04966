"""A run folder as launches, supervisors and workers leave it, made without training anything."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.artifacts import Artifact, Checkpoint, Export, Report, Shards, write_json
from orchestrator.causes import Cause
from orchestrator.journal import Journal
from orchestrator.state import STAGE, Ending, Launch, State, close_attempt, open_attempt, read_launch, write_launch
from orchestrator.vigil import ALERTS

KINDS: dict[str, type[Artifact]] = {"shards": Shards, "checkpoint": Checkpoint, "report": Report, "export": Export}
STAGES: dict[str, dict[str, Any]] = {
    "grounded": {"stage": "convert_shards", "inputs": {}, "outputs": {"shards": "shards"}},
    "align": {
        "stage": "toy_train",
        "inputs": {"shards": {"captions": "grounded.shards"}},
        "outputs": {"model": "checkpoint"},
    },
    "gcg": {
        "stage": "toy_train",
        "inputs": {"model": "align.model", "shards": {"grounded": "grounded.shards"}},
        "outputs": {"model": "checkpoint"},
    },
    "score": {
        "stage": "evaluate",
        "inputs": {"model": "gcg.model", "shards": {"held_out": "grounded.shards"}},
        "outputs": {"report": "report"},
    },
    "export": {
        "stage": "export",
        "inputs": {"model": "gcg.model", "report": "score.report"},
        "outputs": {"model": "export"},
    },
}
CHAIN = ("grounded", "align", "gcg", "score")
FACTS: dict[str, dict[str, Any]] = {
    "shards": {"schema": "sample-1", "samples": 96, "counts": {"regions": 310}, "source": "shapes", "licence": "CC0"},
    "checkpoint": {"family": "toy", "model": {"width": 64, "towers": {"image": 2}}, "step": 40},
    "report": {"scores": {"gcg": {"miou": 0.62, "cider": 1.5}}, "passed": True},
    "export": {"family": "toy", "model": {"width": 64}},
}


class TrackedRun:
    """Writes what a run of four stages writes, one event at a time."""

    def __init__(
        self, directory: Path, uri: str | None, names: Iterable[str] = CHAIN, register: dict[str, Any] | None = None,
        also: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Makes a launched run whose stages have not begun."""
        self.directory = directory
        self._names = tuple(names)
        self.facts = FACTS
        self.content = ""  # of what is written, beside the name of the stage: another one, another digest
        self.register, self.also = register, also
        (directory / "logs").mkdir(parents=True)
        (directory / "code").mkdir()
        write_json(directory / "code" / "COMMIT", {"commit": "c0ffee", "dirty": True})
        (directory / "recipe.yaml").write_text("name: tracked\n", encoding="utf-8")
        for name in self._names:
            (directory / name).mkdir()
            write_json(directory / name / STAGE, self.document(name))
        self.launch(uri)

    def launch(self, uri: str | None) -> None:
        """Begins a launch, as the launcher does."""
        record = Launch(
            recipe="tracked",
            launcher="local",
            host="here",
            user="ada",
            started=1_700_000_000.0,
            stages=tuple({"name": name, "action": "run", "reason": "no earlier work"} for name in self._names),
            tracking={"uri": uri, "experiment": None, "register": self.register, "also": self.also},
            pid=None,
        )
        write_launch(self.directory, record)

    def end(self) -> None:
        """Ends the launch, as the supervisor does."""
        record = read_launch(self.directory)
        assert record is not None
        write_launch(self.directory, replace(record, ended=1_700_000_900.0))

    def document(self, name: str) -> dict[str, Any]:
        """Returns the stage.json of a stage."""
        entry = STAGES[name]
        return {
            "name": name,
            "stage": entry["stage"],
            "target": "tests.toys:Toy",
            "config": {
                "train": {"steps": 40, "optim": {"lr": 0.001}},
                "prompt": "x" * 7000,
                "layers": [1, 2],
                "llm": None,
            },
            "inputs": self._inputs(entry["inputs"]),
            "outputs": {
                output: {"kind": kind, "path": str(self.directory / name / output)}
                for output, kind in entry["outputs"].items()
            },
            "after": [],
            "seed": 17,
            "fingerprint": f"{name}-fingerprint",
            "identity": {},
            "resources": {"nodes": 1},
            "steps": 40 if entry["stage"] == "toy_train" else None,
        }

    def begin(self, name: str) -> None:
        """Begins an attempt of a stage."""
        open_attempt(self.directory / name, launcher="local", job_id="4711", nodes=("here",))

    def steps(self, name: str, first: int, last: int) -> None:
        """Journals a loss and a rate for each step."""
        journal = Journal(self.directory / name)
        for step in range(first, last + 1):
            journal.metrics(step, {"loss": 1.0 / step, "lr": 0.001})
        journal.close()

    def alert(self, name: str, rule: str, words: str, state: str = "begun") -> None:
        """Notes that a rule was broken, or is kept again, as whoever watches over a stage does."""
        told = {"time": 1_700_000_100.0, "state": state, "attempt": 1, "rule": rule, "text": words}
        with (self.directory / name / ALERTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    def finish(self, name: str) -> None:
        """Commits the outputs of a stage and closes its attempt."""
        for output, kind in STAGES[name]["outputs"].items():
            folder = self.directory / name / output
            folder.mkdir()
            (folder / "content.bin").write_bytes(f"{name}{self.content}".encode())
            if kind == "report":
                (folder / "metrics.json").write_text(json.dumps({"benchmarks": {}}), encoding="utf-8")
                (folder / "pictures").mkdir()
                Image.new("RGB", (8, 8), "teal").save(folder / "pictures" / "scene.png")
            KINDS[kind](folder).commit(f"{name}-fingerprint", self.facts[kind])
        close_attempt(self.directory / name, Ending(state="done"))

    def fail(self, name: str, cause: Cause, detail: str, state: State = "failed") -> None:
        """Closes the attempt of a stage that did not finish."""
        close_attempt(self.directory / name, Ending(state=state, cause=cause, detail=detail))

    def whole(self) -> None:
        """Runs everything to the end."""
        for name in self._names:
            self.begin(name)
            if STAGES[name]["stage"] == "toy_train":
                self.steps(name, 1, 40)
            self.finish(name)
        (self.directory / "report.html").write_text("<h1>report</h1>", encoding="utf-8")
        self.end()

    def _inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        resolved: dict[str, Any] = {}
        for name, value in inputs.items():
            if isinstance(value, dict):
                resolved[name] = self._inputs(value)
            else:
                stage, output = value.split(".")
                resolved[name] = {
                    "kind": STAGES[stage]["outputs"][output],
                    "path": str(self.directory / stage / output),
                }
        return resolved
