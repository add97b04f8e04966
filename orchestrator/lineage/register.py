"""Every stage and artifact of the runs folders, found by where they lie, by their content, and by fingerprint."""

from collections.abc import Iterator
from pathlib import Path

from orchestrator.history import ARCHIVE, STAGE
from orchestrator.lineage.papers import Made, Output, Read, StagePapers, bare_stage, read_made, read_stage, real
from orchestrator.records import record


@record
class Thing:
    """An artifact, or the place where one was, is to be, or is said to be."""

    id: str
    path: str
    kind: str
    digest: str
    made: Made | None  # None where there is none of this content
    maker: StagePapers | None  # whose output it is
    output: str = ""  # its name there


class Register:
    """Stages and artifacts of runs: those of the folders given, and those that their inputs lead to."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self.stages: dict[Path, StagePapers] = {}
        self._things: dict[str, Thing] = {}  # by where they lie
        self._by_content: dict[str, list[Thing]] = {}
        self._by_fingerprint: dict[str, list[StagePapers]] = {}
        self._runs: set[Path] = set()
        self._looked_at: set[Path] = set()

    def add_runs(self, folder: Path) -> None:
        """Reads every run of a folder."""
        for run in sorted(_folders(folder)):
            self.add_run(run)

    def add_run(self, run: Path) -> None:
        """Reads every stage of a run, its archive included."""
        place = real(run)
        if place is None or place in self._runs:
            return
        self._runs.add(place)
        for folder in _folders(place):
            if (folder / STAGE).is_file():
                self._add_stage(folder, place, archived=False)
        for stage in _folders(place / ARCHIVE):
            for folder in _folders(stage):
                if (folder / STAGE).is_file():
                    self._add_stage(folder, place, archived=True)
                else:
                    self._add_put_away(folder)

    def at(self, path: str | Path) -> Thing | None:
        """Returns what lies at a place, which may lead to a run that was not read yet; None if there is nothing."""
        place = real(path)
        if place is None:
            return None
        if str(place) not in self._things and place not in self._looked_at:
            self._looked_at.add(place)
            self._discover(place)
        return self._things.get(str(place))

    def alike(self, digest: str) -> list[Thing]:
        """Returns all that has this content."""
        return self._by_content.get(digest, [])

    def stages_of(self, fingerprint: str) -> list[StagePapers]:
        """Returns the stages of this fingerprint, those in archives last."""
        return sorted(self._by_fingerprint.get(fingerprint, []), key=lambda stage: (stage.archived, str(stage.folder)))

    def resolve(self, read: Read, reader: StagePapers) -> tuple[Thing, str]:
        """Returns the artifact that a stage read, and what has to be said about it: moved, overwritten, gone."""
        here = self.at(read.path) if read.path else None
        if here is not None and (not read.digest or here.digest == read.digest):
            return here, ""
        what = "is not there any more" if here is None or here.made is None else "holds other content by now"
        found = sorted(self.alike(read.digest), key=lambda thing: _distance(thing, read, reader)) if read.digest else []
        if found:
            same_place = Path(found[0].path).parts[-2:] == Path(read.path).parts[-2:]
            kept_with = reader.archived and found[0].maker is not None and found[0].maker.archived  # of one older plan
            moved = bool(read.path) and not same_place and not kept_with
            return found[0], f"was read as {read.path}, which {what}" if moved else ""
        fingerprint, _, output = read.origin.partition(":")
        if here is not None and here.made is None and (not read.origin or _is_of(here, fingerprint)):
            return here, ""
        maker = next(iter(self.stages_of(fingerprint)), None) if fingerprint else None
        lost = Thing(
            id=f"lost:{read.path}:{read.digest}", path=read.path, kind=read.kind, digest=read.digest, made=None,
            maker=maker, output=output,
        )  # fmt: skip
        return lost, f"{read.path} {what}" if read.path else "nothing in the runs folders has this content"

    def _discover(self, place: Path) -> None:
        """Reads the run in which a place lies, or the artifact there that belongs to none."""
        if (place.parent / STAGE).is_file():
            above = place.parent.parent
            self.add_run(above.parent.parent if above.parent.name == ARCHIVE else above)
        if str(place) in self._things:
            return
        made = read_made(place)
        if made is not None:
            self._add_bare(made)
        elif place.exists():
            self._add(Thing(id=str(place), path=str(place), kind="raw", digest="", made=None, maker=None))

    def _add_stage(self, folder: Path, run: Path, *, archived: bool) -> None:
        stage = read_stage(folder, run, archived=archived)
        if stage is None:
            return
        self.stages[folder] = stage
        self._by_fingerprint.setdefault(stage.fingerprint, []).append(stage)
        for output in stage.outputs:
            self._add(_thing_of(stage, output))

    def _add_put_away(self, folder: Path) -> None:
        """Adds outputs that were taken out of the way because they were damaged: no stage.json lies beside them."""
        for path in _folders(folder):
            made = read_made(path)
            if made is not None:
                self._add_bare(made)

    def _add_bare(self, made: Made) -> None:
        """Adds an artifact whose stage is elsewhere: a copy of what a known stage wrote, or all that is left of it."""
        originals = [thing for thing in self.alike(made.digest) if thing.maker is not None]
        maker = None if originals else bare_stage(made)
        if maker is not None:
            self.stages[maker.folder] = maker
            self._by_fingerprint.setdefault(maker.fingerprint, []).append(maker)
        place = str(real(made.path) or made.path)
        output = made.path.name if maker is not None else ""
        self._add(
            Thing(id=place, path=place, kind=made.kind, digest=made.digest, made=made, maker=maker, output=output)
        )

    def _add(self, thing: Thing) -> None:
        self._things.setdefault(thing.path, thing)
        if thing.digest:
            self._by_content.setdefault(thing.digest, []).append(thing)


def _thing_of(stage: StagePapers, output: Output) -> Thing:
    place = str(real(output.path) or output.path)
    digest = "" if output.made is None else output.made.digest
    return Thing(
        id=place, path=place, kind=output.kind, digest=digest, made=output.made, maker=stage, output=output.name
    )


def _is_of(thing: Thing, fingerprint: str) -> bool:
    return thing.maker is not None and fingerprint in ("", thing.maker.fingerprint)


def _distance(thing: Thing, read: Read, reader: StagePapers) -> tuple[bool, bool, bool, str]:
    """Orders artifacts of one content: those of known stages, of the reader's run, in the place it was read from."""
    run = None if thing.maker is None else thing.maker.run
    elsewhere = Path(thing.path).parts[-2:] != Path(read.path).parts[-2:]
    return thing.maker is None, run != reader.run, elsewhere, thing.path


def _folders(folder: Path) -> Iterator[Path]:
    """Yields the folders in a folder that can be read, in order; drafts and hidden ones are none."""
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return
    yield from found
