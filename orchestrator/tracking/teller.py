"""Compares a story with the ledger and tells MLflow what is missing, in an order that may break off anywhere."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Artifact
from orchestrator.errors import TrackingRefused
from orchestrator.tracking.journals import read_batch
from orchestrator.tracking.ledger import Ledger, told_model
from orchestrator.tracking.origin import origin_tags
from orchestrator.tracking.spent import spending_points
from orchestrator.tracking.story import Link, Story, params_of

if TYPE_CHECKING:
    from orchestrator.tracking.store import DatasetFacts, ModelFacts, Store

log = logging.getLogger(__name__)

DATA_KINDS = frozenset({"shards", "raw"})
MODEL_KINDS = frozenset({"checkpoint", "export"})
MODEL_PAGE_FILES = ("manifest.json", "README.md", "config.json")
PARENT_TAG = "mlflow.parentRunId"
LARGEST_FILE_BYTES = 64 * 2**20


class Teller:
    """Tells MLflow one story after another; remembers in each story's ledger what was told."""

    def __init__(self, connect: Callable[[], "Store"], uri: str, experiment: str) -> None:
        """Connects when there is something to tell, not before."""
        self._connect = connect
        self._opened: Store | None = None
        self._uri = uri
        self._experiment_name = experiment
        self._answered: set[str] = set()  # runs of which the last batch got an answer; others are asked what they have
        self.points = 0  # told so far

    def begin(self, story: Story) -> str:
        """Makes sure that a run exists for the story, and goes on if the story does; returns its id."""
        ledger = Ledger.load(story.directory, self._uri)
        run_id = ledger.mlflow_run_id or self._begin(story, ledger, None)
        if story.ended_ms is None and ledger.status != story.status:
            try:
                self._tell_status(story, ledger, run_id)
            except TrackingRefused:
                ledger.forget()
                return self._begin(story, ledger, None)
        return run_id

    def tell(self, story: Story, parent: str | None) -> str:
        """Tells what is new in a story and returns the id of its run. Raises TrackingAway when it has to stop."""
        ledger = Ledger.load(story.directory, self._uri)
        try:
            return self._tell(story, ledger, parent)
        except TrackingRefused:
            if ledger.mlflow_run_id is None or self.store.knows(ledger.mlflow_run_id):
                raise
        log.warning("MLflow no longer knows the run of %s: it is told again from the start", story.directory)
        ledger.forget()
        return self._tell(story, ledger, parent)

    @property
    def store(self) -> "Store":
        """Returns the MLflow that it tells; connects the first time."""
        if self._opened is None:
            self._opened = self._connect()
        return self._opened

    def _tell(self, story: Story, ledger: Ledger, parent: str | None) -> str:
        run_id = ledger.mlflow_run_id or self._begin(story, ledger, parent)
        if ledger.status != story.status and story.ended_ms is None:
            self._tell_status(story, ledger, run_id)
        self._tell_params(ledger, run_id, story.params)
        self._tell_inputs(story, ledger, run_id)
        self._tell_journal(story, ledger, run_id)
        self._tell_spending(story, ledger, run_id)
        self._tell_tags(story, ledger, run_id, parent)
        for path in story.files:
            self._tell_file(story.directory, path, ledger, run_id)
        for link in story.outputs:
            self._tell_output(story, link, ledger, run_id)
        if ledger.status != story.status:
            self._tell_status(story, ledger, run_id)  # last: a run that says FINISHED has said everything
        return run_id

    def _begin(self, story: Story, ledger: Ledger, parent: str | None) -> str:
        ledger.save()  # the key first: a forwarder that dies now finds the run again instead of making another
        ledger.experiment_id = self.store.experiment(self._experiment_name)
        ledger.mlflow_run_id = self.store.run(
            ledger.key,
            ledger.experiment_id,
            story.name,
            parent=parent,
            started_ms=story.started_ms,
            user=story.tags["mlflow.user"],
        )
        ledger.save()
        return ledger.mlflow_run_id

    def _tell_status(self, story: Story, ledger: Ledger, run_id: str) -> None:
        self.store.status(run_id, story.status, story.ended_ms)
        ledger.status = story.status
        ledger.save()

    def _tell_params(self, ledger: Ledger, run_id: str, params: Mapping[str, str]) -> None:
        new = {name: value for name, value in params.items() if name not in ledger.params}
        if new:
            self.store.params(run_id, new)
            ledger.params |= new
            ledger.save()

    def _tell_tags(self, story: Story, ledger: Ledger, run_id: str, parent: str | None) -> None:
        # MLflow never lets a parameter change; settings that do not change the work may, so they become a tag
        moved = sorted(name for name, value in story.params.items() if ledger.params.get(name, value) != value)
        tags = dict(story.tags)
        if moved:
            tags["orch.changed_params"] = ", ".join(f"{name}={story.params[name]}" for name in moved)[:5000]
        if ledger.redone:
            tags["orch.redone_points"] = str(ledger.redone)
        told = ledger.tags
        new = {name: value for name, value in tags.items() if told.get(name) != value}
        if story.settled:
            new = {name: value for name, value in new.items() if name not in told}
        if parent is not None and told.get(PARENT_TAG) != parent:
            new[PARENT_TAG] = parent
        if new:
            self.store.tags(run_id, new)
            ledger.tags |= new
            ledger.save()

    def _tell_journal(self, story: Story, ledger: Ledger, run_id: str) -> None:
        while True:
            batch = read_batch(story.directory, ledger.offset, ledger.last_steps)
            if batch.end == ledger.offset:
                return
            points = batch.points if run_id in self._answered else self.store.unheard(run_id, batch.points)
            self._answered.discard(run_id)
            self.store.points(run_id, points)
            self._answered.add(run_id)
            self._tell_params(ledger, run_id, params_of(batch.params))
            for path in batch.files:
                self._tell_file(story.directory, path, ledger, run_id)
            ledger.offset, ledger.last_steps = batch.end, dict(batch.last_steps)
            ledger.redone += batch.redone
            ledger.save()
            self.points += len(points)

    def _tell_spending(self, story: Story, ledger: Ledger, run_id: str) -> None:
        """Tells where the hours went, once something has ended; of a stage that goes on, again at its next end."""
        if story.run is None or story.ended_ms is None or ledger.spent_ms == story.ended_ms:
            return
        points = spending_points(story.run, story)
        self.store.points(run_id, points)
        ledger.spent_ms = story.ended_ms
        ledger.save()
        self.points += len(points)

    def _tell_file(self, directory: Path, relative: str, ledger: Ledger, run_id: str) -> None:
        path = directory / relative
        if not path.is_file():
            return
        if not path.resolve().is_relative_to(directory.resolve()):
            log.warning("%s leads out of %s: it is not sent to MLflow", relative, directory)
            return
        facts = path.stat()
        version = f"{facts.st_size} {facts.st_mtime_ns}"
        name = path.resolve().relative_to(directory.resolve()).as_posix()
        if ledger.files.get(name) == version:
            return
        if facts.st_size > LARGEST_FILE_BYTES:
            log.warning("%s is larger than %d MB: it stays on disk only", path, LARGEST_FILE_BYTES // 2**20)
        else:
            folder = Path(name).parent.as_posix()
            self.store.file(run_id, path, None if folder == "." else folder)
        ledger.files[name] = version
        ledger.save()

    def _tell_inputs(self, story: Story, ledger: Ledger, run_id: str) -> None:
        for link in story.inputs:
            if link.kind in DATA_KINDS:
                facts = dataset_facts(story, link)
                identity = f"{facts.name}@{facts.digest}"
                if identity not in ledger.datasets:
                    self.store.dataset(run_id, facts)
                    ledger.datasets.append(identity)
                    ledger.save()
            elif link.kind in MODEL_KINDS:
                model_id = told_model(link.path, self._uri)
                if model_id is not None and model_id not in ledger.model_inputs:
                    self.store.model_input(run_id, model_id)
                    ledger.model_inputs.append(model_id)
                    ledger.save()

    def _tell_output(self, story: Story, link: Link, ledger: Ledger, run_id: str) -> None:
        artifact = Artifact(link.path)
        manifest = artifact.manifest()
        if manifest is None or manifest["fingerprint"] != story.fingerprint:
            return
        if link.kind == "report":
            for entry in manifest["files"]:
                self._tell_file(story.directory, f"{link.path.name}/{entry['path']}", ledger, run_id)
        told = ledger.models.get(link.path.name, {})
        if link.kind in MODEL_KINDS and told.get("digest") != manifest["digest"]:
            experiment = ledger.experiment_id or self.store.experiment(self._experiment_name)
            facts = model_facts(story, link, manifest, ledger.key, origin_tags(story, self._uri))
            model_id = self.store.model_output(run_id, experiment, facts)
            ledger.models[link.path.name] = {"id": model_id, "digest": manifest["digest"]}
            ledger.save()


def dataset_facts(story: Story, link: Link) -> "DatasetFacts":
    """Returns what MLflow is told of the data a stage reads: from the manifest, or the bare path of raw data."""
    from orchestrator.tracking.store import DatasetFacts

    manifest = Artifact(link.path).manifest() or {"digest": "", "facts": {}}
    facts: dict[str, Any] = dict(manifest["facts"])
    digest = manifest["digest"] or hashlib.sha256(str(link.path).encode()).hexdigest()
    return DatasetFacts(
        name=link.title,
        digest=str(digest),
        path=link.path,
        role=link.name,
        purpose="training" if story.steps is not None else story.stage,
        schema=facts.pop("schema", None),
        profile=facts,
    )


def model_facts(
    story: Story, link: Link, manifest: Mapping[str, Any], key: str, origin: Mapping[str, str]
) -> "ModelFacts":
    """Returns what MLflow is told of a checkpoint or an export: origin and what its manifest says, no weights."""
    from orchestrator.tracking.store import ModelFacts

    facts = manifest["facts"]
    model = facts.get("model")
    step = facts.get("step")
    files = [path for name in MODEL_PAGE_FILES if (path := link.path / name).is_file()]
    return ModelFacts(
        key=f"{key}-{link.path.name}-{manifest['digest'][:12]}",
        name=f"{story.tags['orch.recipe']}-{story.name}-{link.path.name}".replace(".", "_").replace(":", "_"),
        kind=str(facts.get("family") or link.kind),
        step=int(step if step is not None else story.steps or 0),
        params=params_of(model) if isinstance(model, Mapping) else {},
        tags={
            "orch.kind": link.kind,
            "orch.path": str(link.path),
            "orch.digest": str(manifest["digest"]),
            "orch.fingerprint": story.fingerprint,
            "orch.files": json.dumps(len(manifest["files"])),
            **origin,
        },
        files=tuple(path for path in files if path.stat().st_size <= LARGEST_FILE_BYTES),
    )
