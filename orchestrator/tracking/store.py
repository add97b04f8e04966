"""MLflow as the forwarder needs it: every call may be repeated without telling anything twice.

The only module that imports mlflow; it is imported only when there is something to tell.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import TrackingAway, TrackingRefused
from orchestrator.records import record
from orchestrator.redaction import hide
from orchestrator.tracking.addresses import with_password
from orchestrator.tracking.journals import POINTS_PER_BATCH, Point

PARAMS_PER_BATCH = TAGS_PER_BATCH = 100
DIGEST_LENGTH = 36
KEY_TAG = "orch.key"
SAME_MODEL = ("orch.fingerprint", "orch.digest")  # a version with these tags is this export
ALIAS_TAG = "orch.alias"
VERSIONS_TAG = "mlflow.modelVersions"  # of a model: by it, MLflow's page of the model lists them
EXISTS = "RESOURCE_ALREADY_EXISTS"
FINAL_ANSWERS = frozenset(
    {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", EXISTS, "RESOURCE_DOES_NOT_EXIST"}
)
# of a registry, these are answers too: it is none, or not for us. What else it is told is told all the same
NO_REGISTRY = FINAL_ANSWERS | {"PERMISSION_DENIED", "NOT_IMPLEMENTED", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED"}
NO_ENTRY = {
    "UNAUTHENTICATED": "it does not know us: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, are wrong, expired or not set",
    "PERMISSION_DENIED": "this user may not write there",
}

T = TypeVar("T")


@record
class DatasetFacts:
    """What MLflow is told of a data set that a stage reads."""

    name: str
    digest: str
    path: Path
    role: str  # the input it is read as
    purpose: str  # "training", or the stage that reads it
    schema: Any
    profile: Mapping[str, Any]


@record
class ModelFacts:
    """What MLflow is told of a checkpoint or an export that a stage wrote."""

    key: str
    name: str
    kind: str
    step: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    files: tuple[Path, ...]  # small ones, shown on the model's page


@record
class VersionFacts:
    """What the registry is told of an export."""

    name: str  # of the registered model
    alias: str | None
    run_id: str
    model_id: str
    tags: Mapping[str, str]
    description: str


class Store:
    """An MLflow, by address."""

    def __init__(self, uri: str, artifacts: Path | None) -> None:
        """Connects; a new SQLite file gets its tables now, which takes a few seconds."""
        self._artifacts = artifacts
        with _answers():
            self._client = MlflowClient(tracking_uri=with_password(uri))

    def experiment(self, name: str) -> str:
        """Returns the id of an experiment, made if it is missing; its pictures lie beside the database."""
        with _answers():
            found = self._client.get_experiment_by_name(name)
            if found is None:
                return self._made_experiment(name)
            if found.lifecycle_stage != "active":
                raise TrackingRefused(
                    f"the experiment {name!r} was deleted in MLflow: restore it, or set tracking.experiment"
                )
            return str(found.experiment_id)

    def _made_experiment(self, name: str) -> str:
        location = None if self._artifacts is None else str(self._artifacts / _file_name(name))
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(name) if error.error_code == EXISTS else None
            if found is None:
                raise
            return str(found.experiment_id)  # another recipe's forwarder was faster

    def run(self, key: str, experiment: str, name: str, *, parent: str | None, started_ms: int, user: str) -> str:
        """Returns the id of the run with this key, made if it is missing."""
        with _answers():
            for found in self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1):
                return str(found.info.run_id)
            tags = {KEY_TAG: key, "mlflow.user": user, **({} if parent is None else {"mlflow.parentRunId": parent})}
            return str(self._client.create_run(experiment, start_time=started_ms, tags=tags, run_name=name).info.run_id)

    def knows(self, run_id: str) -> bool:
        """Tells whether the run is still there, deleted or not."""
        try:
            with _answers():
                self._client.get_run(run_id)
        except TrackingRefused:
            return False
        return True

    def points(self, run_id: str, points: Sequence[Point]) -> None:
        """Records numbers. MLflow keeps one of equal (name, step, time, value), so a repeated batch adds nothing."""
        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        for some in _pieces(metrics, POINTS_PER_BATCH):
            with _answers():
                self._client.log_batch(run_id, metrics=some)

    def unheard(self, run_id: str, points: Sequence[Point]) -> list[Point]:
        """Leaves out what is there of a curve that only goes on: points up to the last step of their metric.

        A batch that is repeated costs MLflow many times what a new one does; over long histories, more than a request
        may take.
        """
        with _answers():
            metrics = self._client.get_run(run_id).data.to_proto().metrics
        last = {metric.key: metric.step for metric in metrics}
        return [point for point in points if point.step > last.get(point.key, point.step - 1)]

    def params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Records parameters, which must be new or as they were."""
        for some in _pieces([Param(key, value) for key, value in params.items()], PARAMS_PER_BATCH):
            with _answers():
                self._client.log_batch(run_id, params=some)

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        for some in _pieces([RunTag(key, value) for key, value in tags.items()], TAGS_PER_BATCH):
            with _answers():
                self._client.log_batch(run_id, tags=some)

    def status(self, run_id: str, status: str, ended_ms: int | None) -> None:
        """Sets what the run is doing; with its end if it ended."""
        with _answers():
            if ended_ms is None:
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status=status, end_time=ended_ms)

    def file(self, run_id: str, path: Path, folder: str | None) -> None:
        """Copies a file to the run's artifacts, over an older one of its name."""
        with _answers():
            self._client.log_artifact(run_id, str(path), folder)

    def dataset(self, run_id: str, facts: DatasetFacts) -> None:
        """Lists a data set among the inputs of a run."""
        dataset = Dataset(
            name=facts.name,
            digest=facts.digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": str(facts.path)}),
            schema=json.dumps(facts.schema),
            profile=json.dumps(facts.profile),
        )
        tags = [
            InputTag("mlflow.data.context", facts.purpose),
            InputTag("orch.input", facts.role),
            InputTag("orch.digest", facts.digest),
        ]
        with _answers():
            self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def model_input(self, run_id: str, model_id: str) -> None:
        """Lists a model among the inputs of a run."""
        with _answers():
            self._client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

    def model_output(self, run_id: str, experiment: str, facts: ModelFacts) -> str:
        """Records a model and that this run made it; returns the id of the model."""
        with _answers():
            model_id = self._model(run_id, experiment, facts)
            for path in facts.files:
                self._client.log_model_artifact(model_id, str(path))
            self._client.finalize_logged_model(model_id, "READY")
            made = self._client.get_run(run_id).outputs
            if model_id not in {output.model_id for output in (made.model_outputs if made else [])}:
                self._client.log_outputs(run_id, [LoggedModelOutput(model_id, facts.step)])
            return model_id

    def version(self, facts: VersionFacts) -> str:
        """Makes a model a version of a registered one, unless it is; returns the version. The alias never goes back."""
        with _answers(NO_REGISTRY):
            found = self._version(facts)
            number, model = str(found.version), self._client.get_logged_model(facts.model_id)
            listed = json.loads(model.tags.get(VERSIONS_TAG, "[]"))
            if not any(one["name"] == facts.name and str(one["version"]) == number for one in listed):
                listed.append({"name": facts.name, "version": found.version})  # a server does so itself
                self._client.set_logged_model_tags(facts.model_id, {VERSIONS_TAG: json.dumps(listed)})
            if facts.alias is not None and found.tags.get(ALIAS_TAG) != facts.alias:
                holder = self._client.get_registered_model(facts.name).aliases.get(facts.alias)
                if holder is None or int(holder) <= int(number):
                    self._client.set_registered_model_alias(facts.name, facts.alias, number)
                    # so that it is given once: who moves it by hand is not overruled by a forwarder that forgot
                    self._client.set_model_version_tag(facts.name, number, ALIAS_TAG, facts.alias)
            return number

    def _version(self, facts: VersionFacts) -> ModelVersion:
        same = " and ".join(f"tags.`{name}` = '{facts.tags[name]}'" for name in SAME_MODEL)
        found = self._client.search_model_versions(f"name = '{facts.name}' and {same}")
        if found:
            return min(found, key=lambda version: int(version.version))
        if not self._client.search_registered_models(f"name = '{facts.name}'", max_results=1):
            try:
                self._client.create_registered_model(facts.name)
            except MlflowException as error:
                if error.error_code != EXISTS:  # if it does, another recipe's forwarder was faster
                    raise
        return self._client.create_model_version(
            facts.name,
            source=self._client.get_logged_model(facts.model_id).artifact_location,
            run_id=facts.run_id,
            model_id=facts.model_id,
            tags=dict(facts.tags),
            description=facts.description,
            await_creation_for=0,
        )

    def _model(self, run_id: str, experiment: str, facts: ModelFacts) -> str:
        for found in self._client.search_logged_models([experiment], f"tags.`{KEY_TAG}` = '{facts.key}'"):
            return str(found.model_id)
        made = self._client.create_logged_model(
            experiment,
            name=facts.name,
            source_run_id=run_id,
            tags={**facts.tags, KEY_TAG: facts.key},
            params=dict(facts.params),
            model_type=facts.kind,
        )
        return str(made.model_id)


@contextmanager
def _answers(final: frozenset[str] = FINAL_ANSWERS) -> Iterator[None]:
    """Turns every way in which MLflow can fail into one of two: not now, or never, which `final` answers mean."""
    try:
        yield
    except MlflowException as error:
        words = hide(str(error).partition("\n")[0])[:400]
        hint = NO_ENTRY.get(str(error.error_code))
        words = f"MLflow lets nobody in, {hint} ({words})" if hint else words
        if error.error_code in final:
            raise TrackingRefused(words if hint else f"MLflow refuses: {words}") from None
        raise TrackingAway(words) from None
    except (OSError, SQLAlchemyError) as error:  # RequestException is an OSError
        raise TrackingAway(hide(str(error))[:400]) from None


def _pieces(values: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(values), size):
        yield list(values[start : start + size])


def _file_name(experiment: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in experiment).lstrip(".") or "_"
