"""Runs converters in tests: real raw data, made scenes, and what comes out of the tars."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Raw, Shards
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.records import record
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.convert.stage import ConvertShards
from stages.samples import Sample
from stages.shapes.stage import MakeShapes

REPOSITORY = Path(__file__).parents[2]
COMMITTED = REPOSITORY / "tests" / "data" / "raw"
SHARED = Path(os.environ.get("ORCH_RAW", REPOSITORY.parent / "shared" / "data" / "raw"))
RAW = SHARED if SHARED.is_dir() else COMMITTED


@record
class Converted:
    """What a conversion left."""

    directory: Path
    facts: dict[str, Any]

    def samples(self) -> list[Sample]:
        """Reads all samples, in order."""
        found: dict[str, dict[str, bytes]] = {}
        for path in sorted(self.directory.glob("shard-*.tar")):
            with tarfile.open(path) as tar:
                for entry in tar:
                    key, _, extension = entry.name.partition(".")
                    content = tar.extractfile(entry)
                    assert content is not None
                    found.setdefault(key, {})[extension] = content.read()
        return [Sample.from_members(key, members) for key, members in found.items()]


def context_in(
    directory: Path,
    *,
    seed: int = 17,
    fingerprint: str = "f" * 64,
    world: World | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> StageContext:
    """Makes the context of a process, by default a single one."""
    directory.mkdir(parents=True, exist_ok=True)
    return StageContext(
        directory=directory, name="test", fingerprint=fingerprint, seed=seed, world=world or World.alone(),
        journal=Journal(None), progress=Progress(directory, every_s=0.0), stop=stop,
    )  # fmt: skip


def stage_for(directory: Path, root: Path | None, *, raw: Raw | None = None, **config: Any) -> ConvertShards:
    """Makes a conversion that writes to directory/shards."""
    return ConvertShards(
        ConvertShards.Config(root=root, **config),
        ConvertShards.Inputs(raw=raw),
        ConvertShards.Outputs(shards=Shards(directory / "shards")),
    )


def convert(directory: Path, root: Path | None, *, raw: Raw | None = None, **config: Any) -> Converted:
    """Runs a conversion and returns what it left."""
    stage = stage_for(directory, root, raw=raw, **config)
    facts = stage.run(context_in(directory))["shards"]
    return Converted(directory=directory / "shards", facts=dict(facts))


def make_shapes(directory: Path, *, seed: int = 17, **config: Any) -> Raw:
    """Makes scenes below directory/raw."""
    raw = Raw(directory / "raw")
    stage = MakeShapes(MakeShapes.Config(**config), MakeShapes.Inputs(), MakeShapes.Outputs(raw=raw))
    assert stage.faults() == {}
    stage.run(context_in(directory, seed=seed))
    return raw
