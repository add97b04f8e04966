"""What a data set consists of: its parts, the files each of them needs, and who reads them.

Paths are relative to the root, the folder that holds all data sets side by side (llava/, visual_genome/, coco/, ...).
"""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, Protocol

from orchestrator.records import record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stages.convert.raw import Attempt, Notes, RawPart


# Which texts of a region count as its expressions: its phrases (regions that share a place in the caption share one),
# its caption, only its further phrases, only the places in captions that mean it, or none (category names).
ExpressionText = Literal["phrase", "caption", "more_phrases", "grounding", "none"]


@record
class Part:
    """One annotation file of a data set, or a pair of them: what a split and a subset name."""

    split: str
    subset: str
    reader: str  # "module:function" of a Source
    annotations: tuple[str, ...]
    images: tuple[str, ...]  # every one must exist; the first that holds a file gives it
    more_images: tuple[str, ...] = ()  # searched too, where they exist
    masks: tuple[str, ...] = ()  # folders of panoptic PNGs
    listed: tuple[str, ...] = ()  # folders whose files are the records: each holds one, or many
    text: ExpressionText = "phrase"
    default: bool = True  # belongs to the split when no subset is named


@record
class Entry:
    """A data set: its parts, and what its authors say about using it."""

    parts: tuple[Part, ...]
    licence: str
    own: bool = False  # one's own data: a recipe names the file and the images of the one part, and any split

    def chosen(self, split: str, subset: str | None) -> tuple[Part, ...]:
        """Returns the parts that a recipe's split and subset mean, in table order; empty if there are none."""
        of_split = [part for part in self.parts if part.split == split]
        return tuple(part for part in of_split if part.subset == subset or (subset is None and part.default))

    def named(self, split: str, file: str, images: str | None) -> tuple[Part, ...]:
        """Returns the part of one's own data: `file` and the folder `images`, by default that of the file."""
        beside = PurePosixPath(file).parent.as_posix()
        folder = beside if images is None else images
        name = PurePosixPath(file).stem
        return tuple(
            replace(part, split=split, subset=name, annotations=(file,), images=(folder,), masks=(folder,))
            for part in self.parts
        )


class Source(Protocol):
    """Reads one part of a data set, in the order of its file."""

    def __call__(self, raw: "RawPart", notes: "Notes") -> "Iterator[Attempt]":
        """Yields exactly one `notes.attempt` a record of the file, broken ones as well: their order numbers them.

        It is called in every process that converts. Broken records go to the notes, never into a sample.
        """
