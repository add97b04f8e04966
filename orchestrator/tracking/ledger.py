"""What MLflow has been told of a run or a stage: `tracking.json`, written by rename after everything delivered."""

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from orchestrator.artifacts import write_json

TRACKING = "tracking.json"


@dataclass(kw_only=True)
class Ledger:
    """What was told to the MLflow at `uri`; another address starts from nothing, under the same key."""

    directory: Path
    uri: str  # without password
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # finds the run again if its id was never noted
    mlflow_run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0  # bytes of the journal that are delivered
    last_steps: dict[str, int] = field(default_factory=dict)  # metric -> last step delivered
    redone: int = 0  # points that a resumed attempt repeated; each was delivered once
    spent_ms: int | None = None  # the end for which it was told where the hours went
    status: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)  # name@digest
    model_inputs: list[str] = field(default_factory=list)  # model ids
    models: dict[str, dict[str, str]] = field(default_factory=dict)  # folder of the output -> {"id", "digest"}
    registered: dict[str, str] = field(default_factory=dict)  # of an export: {"name", "alias", "digest", "version"}
    files: dict[str, str] = field(default_factory=dict)  # path below the folder -> size and time when sent

    @classmethod
    def load(cls, directory: Path, uri: str) -> Self:
        """Reads what was told to this address; nothing if it was never written."""
        plain = read_ledger(directory)
        if plain.get("uri") != uri:
            known = {"key": plain["key"]} if "key" in plain else {}
            return cls(directory=directory, uri=uri, **known)
        return cls(directory=directory, **plain)

    def save(self) -> None:
        """Writes it by rename."""
        plain = asdict(self)
        del plain["directory"]
        write_json(self.directory / TRACKING, plain)

    def forget(self) -> None:
        """Forgets everything but the key: MLflow no longer knows the run."""
        fresh = Ledger(directory=self.directory, uri=self.uri, key=self.key)
        self.__dict__.update(fresh.__dict__)
        self.save()


def read_ledger(directory: Path) -> dict[str, Any]:
    """Reads `tracking.json` as plain data; empty if there is none."""
    try:
        plain = json.loads((directory / TRACKING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def told_model(output: Path, uri: str) -> str | None:
    """Returns the MLflow model that stands for an output folder, of this run or another one tracked at `uri`."""
    plain = read_ledger(output.parent)
    if plain.get("uri") != uri:
        return None
    entry = plain.get("models", {}).get(output.name)
    return None if entry is None else str(entry["id"])
