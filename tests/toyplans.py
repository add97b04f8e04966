"""A small house of stages on disk, for tests of planning: real Stage classes in a package of their own."""

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.artifacts import Artifact, write_json
from orchestrator.plan import Catalog, Plan, PlannedStage, make_plan
from orchestrator.recipe import load_recipe

STAGES = '''
"""Toy stages."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Checkpoint, Raw, Report, Shards
from orchestrator.records import file, folder, incidental, record
from orchestrator.stage import Stage


@record
class Optim:
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError("lr must be above 0")


@record
class Train:
    steps: int = 10
    optim: Optim = field(default_factory=Optim)
    log_every: int = incidental(default=5)


class Convert(Stage):
    @record
    class Config:
        source: str = "coco"
        root: Path | None = None
        listing: Path | None = None

    @record
    class Outputs:
        shards: Shards
        rest: Shards

    def code_roots(self):
        return (__name__.rpartition(".")[0] + ".sources." + self.config.source,)

    def outside(self):
        return {} if self.config.root is None else {"root": str(len(list(self.config.root.iterdir())))}

    def run(self, context):
        raise NotImplementedError


class FolderOnly(Stage):
    @record
    class Config:
        root: Path = folder()
        words: Path = file()

    @record
    class Outputs:
        raw: Raw

    def run(self, context):
        raise NotImplementedError


class Endless(Stage):
    def run(self, context):
        raise NotImplementedError


class Align(Stage):
    @record
    class Config:
        train: Train = field(default_factory=Train)
        mixture: dict[str, float] = field(default_factory=dict)

    @record
    class Inputs:
        shards: dict[str, Shards]
        start: Checkpoint | None

    @record
    class Outputs:
        model: Checkpoint

    family = "toy"

    def faults(self):
        unknown = [name for name in self.config.mixture if name not in self.inputs.shards]
        return {f"config.mixture.{name}": "names no input" for name in unknown}

    def steps(self):
        return self.config.train.steps

    def run(self, context):
        from .task import loss

        return loss()


class Tune(Align):
    @record
    class Inputs:
        model: Checkpoint
        shards: dict[str, Shards]


class Evaluate(Stage):
    @record
    class Inputs:
        model: Checkpoint

    @record
    class Outputs:
        report: Report

    asks_family = True

    def run(self, context):
        raise NotImplementedError
'''

MODULES = {
    "__init__": "",
    "stages": STAGES,
    "task": "from .inner import losses\n\ndef loss():\n    return losses.loss(1)\n",
    "inner/__init__": "",
    "inner/losses": '"""Losses."""\n\n\ndef loss(x):\n    """Returns it."""\n    return 2.0 * x\n',
    "family": "class Toy:\n    size = 1\n",
    "sources/__init__": "",
    "sources/coco": "def read():\n    return 1\n",
    "sources/grand": "def read():\n    return 2\n",
}
CHAIN: dict[str, Any] = {
    "name": "toy",
    "seed": 1,
    "stages": {
        "captions": {"stage": "convert"},
        "align": {"stage": "align", "inputs": {"shards": {"captions": "captions.shards"}}},
        "tune": {"stage": "tune", "inputs": {"model": "align.model", "shards": {"captions": "captions.shards"}}},
        "score": {"stage": "evaluate", "inputs": {"model": "tune.model"}},
    },
}
_numbers = itertools.count()


@dataclass
class House:
    """A package of stages, a recipe and a run folder, all in one temporary folder."""

    place: Path
    package: str
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def catalog(self) -> Catalog:
        names = {"convert": "Convert", "align": "Align", "tune": "Tune", "evaluate": "Evaluate", "places": "FolderOnly"}
        names["endless"] = "Endless"
        stages = {key: f"{self.package}.stages:{name}" for key, name in names.items()}
        return Catalog(stages=stages, families={"toy": f"{self.package}.family:Toy"})

    @property
    def run_dir(self) -> Path:
        return self.place / "runs" / "toy"

    def module(self, name: str) -> Path:
        return self.place / self.package / f"{name}.py"

    def write_recipe(self) -> Path:
        path = self.place / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe, sort_keys=False))
        return path

    def plan(self, *overrides: str) -> Plan:
        return make_plan(load_recipe(self.write_recipe(), overrides), self.catalog, self.run_dir)

    def stage(self, name: str, *overrides: str) -> PlannedStage:
        return next(stage for stage in self.plan(*overrides).stages if stage.name == name)

    def fingerprints(self, *overrides: str) -> dict[str, str]:
        return {stage.name: stage.fingerprint for stage in self.plan(*overrides).stages}

    def actions(self, *overrides: str) -> dict[str, str]:
        return {stage.name: stage.action for stage in self.plan(*overrides).stages}


def build_house(place: Path) -> House:
    """Writes the package, under a name that no other test has imported; the caller puts `place` on sys.path."""
    package = f"toyhouse_{next(_numbers)}"
    for name, text in MODULES.items():
        path = place / package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
    return House(place=place, package=package, recipe=yaml.safe_load(yaml.safe_dump(CHAIN)))


def finish(stage: PlannedStage, content: str = "work", inputs: Mapping[str, str] | None = None) -> None:
    """Leaves what a worker leaves when a stage is done: inputs.json, outputs with their manifests."""
    first = next(iter(stage.outputs.values()))
    directory = first.path.parent
    write_json(directory / "inputs.json", dict(inputs) if inputs is not None else input_digests(stage))
    for output in stage.outputs.values():
        output.path.mkdir(exist_ok=True)
        (output.path / "data.bin").write_text(f"{content} of {stage.name}")
        output.commit(stage.fingerprint)


def input_digests(stage: PlannedStage) -> dict[str, str]:
    """Returns the digests of a stage's inputs by wired name."""
    found: dict[str, str] = {}
    for name, given in stage.inputs.items():
        if isinstance(given, Artifact):
            found[name] = given.digest()
        elif given is not None:
            found.update({f"{name}.{item}": artifact.digest() for item, artifact in given.items()})
    return found


def save_checkpoint(directory: Path, step: int, *, complete: bool = True) -> None:
    """Leaves a checkpoint as training does: the manifest last, or not at all."""
    folder = directory / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("weights")
    if complete:
        write_json(folder / "manifest.json", {"step": step})
