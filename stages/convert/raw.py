"""Reading raw data nobody has checked: names that stay in their folder, whole images, notes on what is left out."""

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from orchestrator.errors import InputError, SurroundingsError
from orchestrator.records import record
from stages.convert.parts import Part
from stages.samples import Caption, Region, Sample, TimedPoint, Turn, Utterance
from stages.vision import Box, clip_box, image_size_px

_CHUNK_CHARACTERS = 1 << 20
# what reading a record of any shape can raise: all of it means that the record is not what its data set promises
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_OF_ONE_FILE = {
    errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM
}  # fmt: skip
_LONGEST_NOTE = 1000  # characters
_UNSAFE_IN_KEYS = re.compile(r"[^A-Za-z0-9_+-]+")

T = TypeVar("T")


class BrokenRecord(Exception):
    """A record cannot become a sample; `reason` groups it with its like, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keeps both."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@record
class Found:
    """A sample and the picture it is about; a picture can have several samples."""

    sample: Sample
    picture: str


@record
class Picture:
    """A whole image file."""

    name: str  # relative to the root: equal names, equal pictures
    data: bytes
    width_px: int
    height_px: int

    def found(
        self, key: str, *, caption: str = "", regions: tuple[Region, ...] = (), points: tuple[TimedPoint, ...] = (),
        turns: tuple[Turn, ...] = (), more_captions: tuple[Caption, ...] = (), utterances: tuple[Utterance, ...] = (),
    ) -> Found:  # fmt: skip
        """Makes the sample that says this about the picture; InputError if it does not fit."""
        sample = Sample(
            key=key, image=self.data, width_px=self.width_px, height_px=self.height_px, caption=caption,
            regions=regions, points=points, turns=turns, more_captions=more_captions, utterances=utterances,
        )  # fmt: skip
        return Found(sample=sample, picture=self.name)


@record
class Attempt:
    """One raw record: its name, and what makes a sample of it, or several."""

    name: str
    build: Callable[[], Found | Sequence[Found]]


class Notes:
    """Everything that was left out or repaired: what, why, how often."""

    def __init__(self) -> None:
        """Starts empty."""
        self.skipped: list[dict[str, str]] = []
        self.repaired: Counter[str] = Counter()

    def skip(self, name: str, reason: str, detail: str) -> None:
        """Notes that a record, or one region of it, was left out."""
        note = {"record": name, "reason": reason, "detail": detail}
        # the texts come from data: half a character in them must not keep the note from being written
        shown = {key: text.encode("utf-8", "backslashreplace").decode()[:_LONGEST_NOTE] for key, text in note.items()}
        self.skipped.append(shown)

    def repair(self, reason: str) -> None:
        """Counts a small repair of something that was kept."""
        self.repaired[reason] += 1

    def attempt(self, name: str, build: Callable[[], Found | Sequence[Found]]) -> Iterator[Attempt]:
        """Yields one raw record. `build` is called later or never, in a process that does other records or none.

        So whatever costs time belongs into it, and nothing that another record needs.
        """
        yield Attempt(name=name, build=build)

    def judged(self, name: str, make: Callable[[], T], *, piece: str = "") -> T | None:
        """Returns what `make` makes of a record, or of a piece of one; None and a note if that is broken."""
        repaired = self.repaired.copy()
        try:
            return make()
        except BrokenRecord as error:
            reason, detail = error.reason, error.detail
        except InputError as error:
            reason, detail = "does not fit its image or caption", str(error)
        except MALFORMED as error:
            reason, detail = "malformed record", f"{type(error).__name__}: {error}"
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:  # a disk that goes away must not pass for a data set without images
                raise SurroundingsError(f"{name}: {error}") from error
            reason, detail = "file cannot be read", str(error)
        except Exception as error:
            error.add_note(f"while converting {name}")
            raise
        self.repaired = repaired  # what was repaired is not kept
        self.skip(name, f"{piece}: {reason}" if piece else reason, detail)
        return None

    def forget(self) -> None:
        """Starts again with nothing."""
        self.skipped.clear()
        self.repaired.clear()


class RawPart:
    """One part of a data set under a root: its annotation files, images and masks."""

    def __init__(self, root: Path, part: Part) -> None:
        """Reads `part` below `root`."""
        self.root = root
        self.part = part
        self.about = 0  # how many records it has: exact or an estimate, known once reading has begun
        self.categories: list[dict[str, Any]] = []  # panoptic files': {"id", "name", "thing"}, known as soon

    def missing(self) -> list[Path]:
        """Lists the annotation files and folders that do not exist."""
        part = self.part
        files = [path for name in part.annotations if not (path := self.root / name).is_file()]
        folders = part.images + part.masks + part.listed
        return files + [path for name in folders if not (path := self.root / name).is_dir()]

    def key(self, number: int, name: str) -> str:
        """Names a sample: unique within the data set, in the order of the file, fit for a tar."""
        stem = _UNSAFE_IN_KEYS.sub("_", PurePosixPath(name).stem)[:80]
        subset = _UNSAFE_IN_KEYS.sub("_", self.part.subset).lstrip("_")  # webdataset skips names that begin with "__"
        return f"{subset}-{number:08d}-{stem}"

    def record(self, number: int, plain: Any, *id_keys: str) -> str:
        """Names a record for the notes: its place in the file, and its id where it has one."""
        ids = [str(plain[key])[:120] for key in id_keys if isinstance(plain, dict) and key in plain]
        return " ".join([f"{self.part.subset}[{number}]", *ids])

    def object(self, index: int, *keys: str) -> dict[str, Any]:
        """Reads an annotation file that holds one JSON object with lists under these keys."""
        path = self.root / self.part.annotations[index]
        try:
            plain = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        if not isinstance(plain, dict):
            raise InputError(f"{path} holds a {type(plain).__name__}, an object is needed")
        if lacking := [key for key in keys if not isinstance(plain.get(key), list)]:
            raise InputError(f"{path} has no list under {', '.join(lacking)}")
        return plain

    def list(self, index: int) -> Iterator[Any]:
        """Yields the elements of an annotation file that holds one JSON list, without loading all of it."""
        path = self.root / self.part.annotations[index]
        size_bytes = path.stat().st_size
        for number, (value, characters) in enumerate(json_list(path), start=1):
            self.about = max(number, number * size_bytes // characters)
            yield value

    def lines(self, index: int) -> Iterator[bytes]:
        """Yields the lines of an annotation file that holds one JSON value a line, unread; empty lines are none."""
        for _, line in self.numbered_lines(index):
            yield line

    def numbered_lines(self, index: int) -> Iterator[tuple[int, bytes]]:
        """Yields what `lines` yields with the number that an editor shows for it."""
        path = self.root / self.part.annotations[index]
        size_bytes, read_bytes, records = path.stat().st_size, 0, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                read_bytes += len(line)
                if not line.isspace():
                    records += 1
                    self.about = max(records, records * size_bytes // read_bytes)
                    yield number, line

    def files(self, index: int, suffix: str) -> Iterator[Path]:
        """Yields the files of a folder of records, in the order of their names; those alone are kept in memory."""
        folder = self.root / self.part.listed[index]
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())
        self.about = len(names)
        yield from (folder / name for name in names)

    def picture(self, name: Any, size_px: tuple[int, int] | None = None) -> Picture:
        """Reads an image of the part; `size_px` (width, height) is what the annotations say it has."""
        path = self._file(name, self.part.images + self.part.more_images, "image")
        data = path.read_bytes()
        try:
            width_px, height_px = image_size_px(data)
        except InputError as error:
            raise BrokenRecord("image is damaged", f"{path}: {error}") from None
        if size_px is not None and size_px != (width_px, height_px):
            said = f"{size_px[0]} x {size_px[1]}"
            raise BrokenRecord(
                "image has another size than its record", f"{path}: {width_px} x {height_px}, not {said}"
            )
        relative = path.relative_to(self.root).as_posix()
        return Picture(name=relative, data=data, width_px=width_px, height_px=height_px)

    def beside(self, name: Any) -> bytes:
        """Reads another file that lies with the part's images."""
        return self._file(name, self.part.images, "file").read_bytes()

    def mask_png(self, name: Any) -> bytes:
        """Reads a panoptic PNG of the part."""
        return self._file(name, self.part.masks, "mask").read_bytes()

    def _file(self, name: Any, folders: tuple[str, ...], what: str) -> Path:
        # The name comes from data: it must stay below its folder. A symbolic link is the administrator's own doing.
        if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
            raise BrokenRecord(f"{what} name is not a path", repr(name)[:200])
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BrokenRecord(f"{what} name leaves its folder", repr(name)[:200])
        for folder in folders:
            path = self.root / folder / relative
            if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a name that is too long
                return path
        raise BrokenRecord(f"{what} is missing", f"{name} in none of {', '.join(folders)}")


def boxed(box_xyxy_px: Box, picture: Picture, notes: Notes) -> Box:
    """Cuts a box to its picture and counts that; refuses one that lies outside or is empty."""
    box = clip_box(box_xyxy_px, width_px=picture.width_px, height_px=picture.height_px)
    if box is None:
        size = f"{picture.width_px} x {picture.height_px} px"
        raise BrokenRecord("box is empty or outside of the image", f"{box_xyxy_px} in {size}")
    if box != box_xyxy_px:
        notes.repair("box cut to the image")
    return box


def json_list(path: Path) -> Iterator[tuple[Any, int]]:
    """Yields the elements of a file that holds one JSON list, each with the number of characters read up to its end.

    Memory stays at one element and one chunk.
    """
    try:
        yield from _elements(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from None
    except RecursionError as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def _elements(path: Path) -> Iterator[tuple[Any, int]]:
    decoder, before = json.JSONDecoder(), 0  # characters in front of `text`
    with path.open(encoding="utf-8") as file:
        text, at = file.read(_CHUNK_CHARACTERS), 0
        if not text.lstrip().startswith("["):
            raise InputError(f"{path} does not hold a JSON list")
        at = text.index("[") + 1
        while True:
            at = _next_element(text, at)
            if text[at : at + 1] == "]":
                return
            try:
                value, end = decoder.raw_decode(text, at)
                whole = end < len(text)  # a number at the end of the chunk may go on in the next one
            except ValueError as error:
                whole, value, end, problem = False, None, at, str(error)
            if whole:
                yield value, before + end
                at = end
                continue
            more = file.read(max(_CHUNK_CHARACTERS, len(text)))
            if not more:
                raise InputError(f"{path} ends in the middle, or is not JSON: {problem if end == at else 'no ]'}")
            before += at
            text, at = text[at:] + more, 0


def _next_element(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at
