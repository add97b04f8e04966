"""Turns a raw data set into shards, and says exactly what was kept, left out and repaired."""

import dataclasses
import difflib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Raw, Shards
from orchestrator.errors import InputError, Preempted
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext
from stages.convert.parts import Entry, Part, Source

if TYPE_CHECKING:
    from stages.convert.counts import Counts
    from stages.convert.raw import Found, Notes, RawPart

SKIPPED = "skipped.jsonl"
_TABLE = "stages.convert.sources"


class ConvertShards(Stage):
    """Turns a raw data set, in the layout its authors published, into shards."""

    @record
    class Config:
        """Which part of which data set."""

        source: str
        root: Path | None = None  # the folder that holds the data sets; null = the input `raw`
        split: str = "train"
        subset: str | None = None  # one annotation file of the split, by its name; null = the usual ones
        limit: int | None = None  # samples kept; null = all
        samples_per_shard: int = 1000

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
            for name, value in (("limit", config.limit), ("samples_per_shard", config.samples_per_shard))
            if value is not None and value < 1
        }
        if (config.root is None) == (self.inputs.raw is None):
            given = "neither" if config.root is None else "both"
            found["config.root"] = f"exactly one of config.root and inputs.raw is needed, {given} given"
        if config.source not in _sources():
            return found | {"config.source": _unknown("source", config.source, list(_sources()))}
        found |= self._unknown_part()
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
        paths = [] if root is None else [root / name for part in parts for name in part.annotations]
        return chosen | {
            str(path): f"{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths if path.is_file()
        }

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Converts on the first rank; the others have nothing to do. Collective: every rank must call."""
        if not context.world.is_main:
            return {"shards": {}}
        root = self.config.root if self.inputs.raw is None else self.inputs.raw.path
        parts = self._parts()
        if missing := _missing(root, parts):
            raise InputError(f"{self.config.source}: missing: {', '.join(missing)}")
        return {"shards": self._convert(root, parts, context)}

    def _convert(self, root: Path, parts: Sequence[Part], context: StageContext) -> dict[str, Any]:
        from orchestrator.data.writer import ShardWriter
        from stages.convert.counts import Counts
        from stages.convert.raw import Notes

        notes, counts = Notes(), {part.subset: Counts(text=part.text) for part in parts}
        directory = self.outputs.shards.path
        done, of_parts = 0, dict.fromkeys(counts, 0)
        with ShardWriter(directory, samples_per_shard=self.config.samples_per_shard) as writer:
            for raw, found in _limited(_found(root, parts, notes), self.config.limit):
                if context.stop():
                    raise Preempted(f"asked to stop after {done} samples; a conversion starts again from the first")
                writer.write(found.sample.key, found.sample.to_members())
                counts[raw.part.subset].add(found)
                of_parts[raw.part.subset] = raw.about
                done += 1
                about = min(sum(of_parts.values()), self.config.limit or sys.maxsize)
                context.progress.advance(done, max(about, done + 1), "sample", skipped=len(notes.skipped))
            written = writer.close()
        context.progress.advance(done, done, "sample", skipped=len(notes.skipped))
        _write_lines(directory / SKIPPED, notes.skipped)
        if not done:
            raise InputError(f"nothing of {self.config.source} could be kept: {_reasons(notes)}")
        return written | self._facts(counts, notes)

    def _facts(self, counts: "Mapping[str, Counts]", notes: "Notes") -> dict[str, Any]:
        from stages.convert.counts import total
        from stages.samples import SCHEMA

        return {
            "schema": SCHEMA,
            "source": self.config.source,
            "split": self.config.split,
            "subsets": list(counts),
            "licence": _sources()[self.config.source].licence,
            "counts": total(counts.values()),
            "counts_per_subset": {subset: count.plain() for subset, count in counts.items()},
            "skipped": {"total": len(notes.skipped), "reasons": notes.counts()},
            "repaired": dict(sorted(notes.repaired.items())),
        }

    def _parts(self) -> tuple[Part, ...]:
        entry = _sources().get(self.config.source)
        return () if entry is None else entry.chosen(self.config.split, self.config.subset)

    def _unknown_part(self) -> dict[str, str]:
        """Explains a split or subset that the source does not have."""
        config, parts = self.config, _sources()[self.config.source].parts
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


def _found(root: Path, parts: Sequence[Part], notes: "Notes") -> "Iterator[tuple[RawPart, Found]]":
    """Reads the parts one after the other, in the order of their files."""
    from stages.convert.raw import RawPart

    for part in parts:
        module, _, function = part.reader.partition(":")
        source: Source = getattr(importlib.import_module(module), function)
        raw = RawPart(root, part)
        try:
            for found in source(raw, notes):
                yield raw, found
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # outside of a record: nothing to skip
            files = ", ".join(str(root / name) for name in part.annotations)
            raise InputError(f"{files}: not in the layout of {part.subset} ({error!r})") from error


def _limited(found: "Iterator[tuple[RawPart, Found]]", limit: int | None) -> "Iterator[tuple[RawPart, Found]]":
    for number, one in enumerate(found, start=1):
        yield one
        if number == limit:
            return


def _missing(root: Path, parts: Sequence[Part]) -> list[str]:
    """Lists, without a repeat, the full paths of what the parts need and the disk does not have."""
    files = [root / name for part in parts for name in part.annotations]
    folders = [root / name for part in parts for name in part.images + part.masks]
    paths = [path for path in files if not path.is_file()] + [path for path in folders if not path.is_dir()]
    return list(dict.fromkeys(os.path.abspath(path) for path in paths))  # noqa: PTH100 - resolve() would hide links


def _unknown(what: str, given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"there is no {what} named {given!r}.{hint} Allowed: {', '.join(allowed)}"


def _reasons(notes: "Notes") -> str:
    counted = [f"{reason} ({count} times)" for reason, count in notes.counts().items()]
    example = f", e.g. {notes.skipped[0]['record']}: {notes.skipped[0]['detail']}" if notes.skipped else ""
    return ("; ".join(counted) + example) or "its annotation files hold no records"


def _write_lines(path: Path, notes: Sequence[Mapping[str, str]]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.write_text("".join(json.dumps(note, ensure_ascii=False) + "\n" for note in notes), encoding="utf-8")
    draft.replace(path)
