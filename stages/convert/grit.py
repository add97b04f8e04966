"""GRIT after img2dataset: captions whose noun chunks have boxes, and the referring expressions these grow into."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from stages.convert.raw import Attempt, BrokenRecord, Found, Notes, Picture, RawPart, boxed
from stages.plain import numbers
from stages.samples import Region

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

_COLUMNS = ["key", "caption", "noun_chunks", "ref_exps"]
_BATCH_ROWS = 1024  # in memory at a time
_FOLDER_DIGITS = 5  # of an img2dataset key: the number of its folder, then its own in there

Place = tuple[int, int]


def read(raw: RawPart, notes: Notes) -> Iterator[Attempt]:
    """Yields one sample a row. Its chunks are regions; a referring expression is another phrase of its chunk's region.

    Boxes are divided by the size of the picture, so they fit whatever size img2dataset scaled it to.
    """
    files = list(raw.files(0, ".parquet"))
    raw.about = sum(_parquet(path).metadata.num_rows for path in files)
    number = 0
    for path in files:
        for batch in _batches(path):
            for row in range(batch.num_rows):
                name = f"{raw.record(number, None)} {path.name}"
                yield from notes.attempt(name, partial(_found, raw, notes, number, name, batch, row))
                number += 1


def _batches(path: Path) -> "Iterator[RecordBatch]":
    batches = _parquet(path).iter_batches(_BATCH_ROWS, columns=_COLUMNS, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (ValueError, OSError) as error:  # Arrow's own errors derive from these
            raise InputError(f"{path} is damaged: {error}") from None
        if batch is None:
            return
        yield batch


def _parquet(path: Path) -> "ParquetFile":
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is no parquet file: {error}") from None


def _found(raw: RawPart, notes: Notes, number: int, name: str, batch: "RecordBatch", row: int) -> Found:
    (plain,) = batch.slice(row, 1).to_pylist()
    picture = _picture(raw, plain["key"])
    caption = plain["caption"]
    chunks = plain["noun_chunks"] or []
    grown = _expressions(plain["ref_exps"] or [], chunks, caption, name, notes)
    regions = []
    for at, chunk in enumerate(chunks):
        build = partial(_region, chunk, grown.get(at, []), caption, picture, notes)
        region = notes.judged(f"{name} noun_chunks[{at}]", build, piece="region")
        regions += [] if region is None else [region]
    if not regions:
        raise BrokenRecord("no region is left", picture.name)
    return picture.found(raw.key(number, picture.name), caption=caption, regions=tuple(regions))


def _picture(raw: RawPart, key: str) -> Picture:
    """Reads <key>.jpg, or <folder>/<key>.jpg as img2dataset leaves it."""
    try:
        return raw.picture(f"{key}.jpg")
    except BrokenRecord as error:
        if error.reason != "image is missing" or len(key) <= _FOLDER_DIGITS:
            raise
        return raw.picture(f"{key[:_FOLDER_DIGITS]}/{key}.jpg")


def _expressions(plains: list[Any], chunks: list[Any], caption: str, name: str, notes: Notes) -> dict[int, list[str]]:
    """Returns chunk -> the expressions that grew out of it: they have its box, and its words among theirs."""
    grown: dict[int, list[str]] = {}
    for at, plain in enumerate(plains):
        own = notes.judged(f"{name} ref_exps[{at}]", partial(_grown, plain, chunks, caption), piece="expression")
        if own is not None:
            chunk, text = own
            grown.setdefault(chunk, []).append(text)
    return grown


def _grown(plain: Any, chunks: list[Any], caption: str) -> tuple[int, str]:
    start, end = _place(plain, caption)
    for at, chunk in enumerate(chunks):
        if chunk[2:6] == plain[2:6] and start <= chunk[0] and chunk[1] <= end:
            return at, caption[start:end]
    raise BrokenRecord("it belongs to no noun chunk", repr(caption[start:end])[:200])


def _region(chunk: Any, more_phrases: list[str], caption: str, picture: Picture, notes: Notes) -> Region:
    start, end = _place(chunk, caption)
    x0, y0, x1, y1, score = numbers(chunk, 7, "noun chunk")[2:]
    box = (x0 * picture.width_px, y0 * picture.height_px, x1 * picture.width_px, y1 * picture.height_px)
    return Region(
        box_xyxy_px=boxed(box, picture, notes),
        mask=None,
        phrase=caption[start:end],
        more_phrases=tuple(more_phrases),
        spans=((start, end),),
        score=score,
        source="grit",
    )


def _place(plain: Any, caption: str) -> Place:
    start, end = (int(number) for number in numbers(plain, 7, "place, box and score")[:2])
    if not 0 <= start < end <= len(caption):
        raise BrokenRecord("its place is not in the caption", f"[{start}, {end}) of {len(caption)} characters")
    return start, end
