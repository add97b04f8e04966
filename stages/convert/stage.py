"""Turns a raw data set into shards, and says exactly what was kept, left out and repaired."""

import dataclasses
import difflib
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.artifacts import Raw, Shards
from orchestrator.errors import InputError
from orchestrator.records import incidental, record
from orchestrator.stage import Stage, StageContext
from stages.convert.parts import Entry, Part, Source

if TYPE_CHECKING:
    from stages.convert.chunks import Chunks
    from stages.convert.raw import Attempt, Notes, RawPart

_TABLE = "stages.convert.sources"
_CHUNKS = "chunks"  # receipts of finished chunks, in the folder of the stage

log = logging.getLogger(__name__)


class ConvertShards(Stage):
    """Turns a raw data set, in the layout its authors published, into shards.

    A tar is made of `samples_per_shard` records in a row; that is the unit of work, and of what a next attempt keeps.
    """

    keeps_parts: ClassVar[bool] = True

    @record
    class Config:
        """Which part of which data set."""

        source: str
        root: Path | None = None  # the folder that holds the data sets; null = the input `raw`
        split: str = "train"
        subset: str | None = None  # one annotation file of the split, by its name; null = the usual ones
        file: str | None = None  # of source jsonl: one record a line, see OWN_DATA.md; its name below the root
        images: str | None = None  # of source jsonl: the folder of images and masks; null = that of the file
        limit: int | None = None  # records read, in the order of the files; null = all
        samples_per_shard: int = 1000  # records a tar is made of: it has less samples where some are left out
        processes: int | None = incidental()  # of a rank; null = one for each core it may use

    @record
    class Inputs:
        """A made data set, where no root is given."""

        raw: Raw | None = None

    @record
    class Outputs:
        """Shards, with skipped.jsonl beside them."""

        shards: Shards

    def faults(self) -> Mapping[str, str]:
        """Names an unknown source, split or subset, and every annotation file or image folder that is missing."""
        config = self.config
        found = {
            f"config.{name}": f"must be 1 or more, not {value}"
            for name in ("limit", "samples_per_shard", "processes")
            if (value := getattr(config, name)) is not None and value < 1
        }
        if (config.root is None) == (self.inputs.raw is None):
            given = "neither" if config.root is None else "both"
            found["config.root"] = f"exactly one of config.root and inputs.raw is needed, {given} given"
        if config.source not in _sources():
            return found | {"config.source": _unknown("source", config.source, list(_sources()))}
        found |= self._unnamed_file() if _sources()[config.source].own else self._unknown_part()
        # a made data set is not there yet when its recipe is planned; `run` looks again
        if config.root is not None and (missing := _missing(config.root, self._parts())):
            found["config.root"] = f"missing: {', '.join(missing)}"
        return found

    def code_roots(self) -> tuple[str, ...]:
        """Names the modules that read the chosen parts."""
        return tuple(sorted({part.reader.partition(":")[0] for part in self._parts()}))

    def outside(self) -> Mapping[str, str]:
        """Watches the parts chosen, and their annotation files below `root`: size and time of change.

        A made data set needs no watching: it has a digest.
        """
        parts, root = self._parts(), self.config.root
        chosen = {f"part {part.subset}": json.dumps(dataclasses.asdict(part), sort_keys=True) for part in parts}
        paths = [] if root is None else [root / name for part in parts for name in part.annotations + part.listed]
        return chosen | {
            str(path): f"{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths if path.exists()
        }

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Converts, every rank its chunks; the first one reports. Collective: every rank must call."""
        root = self.config.root if self.inputs.raw is None else self.inputs.raw.path
        parts = self._parts()
        if missing := _missing(root, parts):
            raise InputError(f"{self.config.source}: missing: {', '.join(missing)}")
        return {"shards": self._convert(root, parts, context)}

    def _convert(self, root: Path, parts: Sequence[Part], context: StageContext) -> dict[str, Any]:
        from stages.convert.chunks import Chunks
        from stages.convert.raw import Notes, RawPart
        from stages.convert.share import Share, cores_of

        config, world = self.config, context.world
        chunks = Chunks(self.outputs.shards.path, context.directory / _CHUNKS, self._plan(context.fingerprint))
        if world.is_main and (finished := chunks.tidy()):
            log.info("%d chunks of an earlier attempt are finished and stay as they are", finished)
        cores = cores_of(world)  # also where the recipe says how many: it is collective
        world.barrier()
        notes, raws = Notes(), [RawPart(root, part) for part in parts]
        share = Share(chunks, notes, raws, config.processes or cores, context)
        records = share.convert(_attempts(raws, notes), config.samples_per_shard, config.limit)
        if not world.is_main:
            return {}
        return self._facts(chunks, -(-records // config.samples_per_shard), raws, notes) | _categories(raws)

    def _facts(self, chunks: "Chunks", number: int, raws: "Sequence[RawPart]", notes: "Notes") -> dict[str, Any]:
        from stages.convert.report import report
        from stages.samples import SCHEMA

        parts = [raw.part for raw in raws]
        try:
            facts = report(self.config.source, chunks, number, parts, notes.skipped, self.outputs.shards.path)
        except InputError:
            chunks.forget()  # whatever was wrong may be right next time
            raise
        return facts | {
            "schema": SCHEMA,
            "source": self.config.source,
            "split": self.config.split,
            "subsets": [part.subset for part in parts],
            "licence": _sources()[self.config.source].licence,
        }

    def _plan(self, fingerprint: str) -> str:
        """Returns what a finished chunk must have been made of to be kept."""
        config = dataclasses.replace(self.config, processes=None)
        raw = None if self.inputs.raw is None else self.inputs.raw.digest()
        made_of = [fingerprint, repr(config), raw, dict(self.outside())]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def _parts(self) -> tuple[Part, ...]:
        config, entry = self.config, _sources().get(self.config.source)
        if entry is None:
            return ()
        if entry.own:
            return () if self._unnamed_file() else entry.named(config.split, config.file, config.images)
        return entry.chosen(config.split, config.subset)

    def _unnamed_file(self) -> dict[str, str]:
        """Explains what is wrong with the names of one's own files."""
        config, found = self.config, {}
        if config.file is None:
            found["config.file"] = f"source {config.source} needs the name of its file below the root"
        if config.subset is not None:
            found["config.subset"] = f"source {config.source} has no subsets, its file says what is read"
        for name, path in (("file", config.file), ("images", config.images)):
            if path is not None and not _inside(path):
                found[f"config.{name}"] = f"must be a name below the root, without '..', not {path!r}"
        return found

    def _unknown_part(self) -> dict[str, str]:
        """Explains a split or subset that the source does not have."""
        config, parts = self.config, _sources()[self.config.source].parts
        if own := [name for name in ("file", "images") if getattr(config, name) is not None]:
            return {
                f"config.{name}": f"source {config.source} has files of its own: use split and subset" for name in own
            }
        splits = list(dict.fromkeys(part.split for part in parts))
        if config.split not in splits:
            return {"config.split": _unknown(f"split of {config.source}", config.split, splits)}
        subsets = [part.subset for part in parts if part.split == config.split]
        if config.subset is not None and config.subset not in subsets:
            where = f"subset of {config.source}, split {config.split}"
            return {"config.subset": _unknown(where, config.subset, subsets)}
        return {}


def _sources() -> Mapping[str, Entry]:
    """Returns the table of data sets.

    It is found by name, like the readers it names: a data set that joins the table must not make all others convert
    anew. What a conversion does depend on, its own parts and readers, is in `outside` and `code_roots`.
    """
    table: Mapping[str, Entry] = importlib.import_module(_TABLE).SOURCES
    return table


def _attempts(raws: "Sequence[RawPart]", notes: "Notes") -> "Iterator[tuple[Part, Attempt]]":
    """Reads the parts one after the other, in the order of their files."""
    for raw in raws:
        part = raw.part
        module, _, function = part.reader.partition(":")
        source: Source = getattr(importlib.import_module(module), function)
        try:
            for attempt in source(raw, notes):
                yield part, attempt
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # outside of a record: nothing to skip
            files = ", ".join(str(raw.root / name) for name in part.annotations + part.listed)
            raise InputError(f"{files}: not in the layout of {part.subset} ({error!r})") from error


def _categories(raws: "Sequence[RawPart]") -> dict[str, Any]:
    """Returns the categories that the data's own files list, where they do."""
    found = {one["id"]: one for raw in raws for one in raw.categories}
    return {"categories": list(found.values())} if found else {}


def _missing(root: Path, parts: Sequence[Part]) -> list[str]:
    """Lists, without a repeat, the full paths of what the parts need and the disk does not have."""
    files = [root / name for part in parts for name in part.annotations]
    folders = [root / name for part in parts for name in part.images + part.masks + part.listed]
    paths = [path for path in files if not path.is_file()] + [path for path in folders if not path.is_dir()]
    return list(dict.fromkeys(os.path.abspath(path) for path in paths))  # noqa: PTH100 - resolve() would hide links


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _unknown(what: str, given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"there is no {what} named {given!r}.{hint} Allowed: {', '.join(allowed)}"
