"""What can be said of an image, by a person or by a model: a caption, and phrases with the places they are about."""

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from orchestrator.records import record
from stages.evaluate.masks import Grounding
from stages.family import GroundedCaption
from stages.pictures import Mark, Panel
from stages.samples import Rle, Turn
from stages.vision import mask_from_rle, rle_from_mask

Box = tuple[float, float, float, float]


Vector = tuple[float, ...]  # an embedding, in float32


@record
class Said:
    """One phrase, and the mask, the box or the points it is about."""

    phrase: str
    span: tuple[int, int] | None = None  # code points of the caption
    mask: Rle | None = None
    box_xyxy_px: Box | None = None
    points_xy_px: tuple[tuple[float, float], ...] = ()
    others: tuple[str, ...] = ()  # other words for the same thing
    num_masks: int | None = None  # how many were given for it and joined to `mask`; None: one, or none
    category: str = ""
    score: float | None = None  # how sure the model is of it, 0..1
    crowd: bool = False  # of the truth: many things in one, neither to be found nor missed
    seen_as: Vector | None = None  # where the model embeds what is seen: the image, or the place
    read_as: Vector | None = None  # where it embeds the phrase


_FACTS = ("num_masks", "category", "score", "crowd")  # what JSON holds as it is, where there is something to say
_VECTORS = ("seen_as", "read_as")


@record
class Answer:
    """Everything said of one image for one benchmark."""

    caption: str
    said: tuple[Said, ...]
    unpaired: Grounding | None = None  # phrases and masks in their orders, where not every one belongs to another
    size_px: tuple[int, int] | None = None  # width and height of the image, where scores are in parts of them
    asked: Turn | None = None  # of the truth: the question, where every image has its own

    def grounding(self) -> Grounding:
        """Returns the phrases that carry masks."""
        grounded = [(said.phrase, said.mask) for said in self.said if said.mask is not None]
        return Grounding(phrases=tuple(phrase for phrase, _ in grounded), masks=tuple(mask for _, mask in grounded))

    def as_written(self) -> Grounding:
        """Returns every phrase and every mask, also those without a partner: the two may differ in number."""
        return self.unpaired or self.grounding()

    def to_plain(self) -> dict[str, Any]:
        """Returns the answer as JSON holds it; masks as COCO run lengths."""
        plain: dict[str, Any] = {"caption": self.caption, "phrases": [_plain(said) for said in self.said]}
        if self.unpaired is not None:
            masks = [_plain_mask(mask) for mask in self.unpaired.masks]
            plain["unpaired"] = {"phrases": list(self.unpaired.phrases), "masks": masks}
        if self.size_px is not None:
            plain["size_px"] = list(self.size_px)
        if self.asked is not None:
            plain["asked"] = {**asdict(self.asked), "tests": list(self.asked.tests)}
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Answer":
        """Reads what `to_plain` returned."""
        said, unpaired = tuple(_said(entry) for entry in plain["phrases"]), plain.get("unpaired")
        if unpaired is not None:
            masks = tuple(_mask(mask) for mask in unpaired["masks"])
            unpaired = Grounding(phrases=tuple(unpaired["phrases"]), masks=masks)
        size, asked = plain.get("size_px"), plain.get("asked")
        return cls(
            caption=plain["caption"],
            said=said,
            unpaired=unpaired,
            size_px=None if size is None else (size[0], size[1]),
            asked=None if asked is None else Turn(**{**asked, "tests": tuple(asked["tests"])}),
        )


def answer_of(grounded: GroundedCaption) -> Answer:
    """Turns a model's grounded caption into an answer."""
    said = (Said(phrase=part.phrase, span=part.span, mask=rle_from_mask(part.mask_HW)) for part in grounded.phrases)
    loose, unpaired = grounded.unpaired, None
    if loose is not None:
        unpaired = Grounding(phrases=loose.phrases, masks=tuple(rle_from_mask(mask_HW) for mask_HW in loose.masks_HW))
    return Answer(caption=grounded.caption, said=tuple(said), unpaired=unpaired)


def panel_of(title: str, answer: Answer) -> Panel:
    """Turns an answer into a panel to be drawn."""
    marks = [
        Mark(
            phrase=": ".join(filter(None, (said.category, said.phrase))),
            span=said.span,
            mask_HW=None if said.mask is None else mask_from_rle(said.mask),
            box_xyxy_px=said.box_xyxy_px,
            points_xy_px=said.points_xy_px,
        )
        for said in answer.said
    ]
    notes = () if answer.asked is None else (f"Q: {answer.asked.question}",)
    return Panel(title=title, caption=answer.caption, marks=tuple(marks), notes=notes)


def _plain(said: Said) -> dict[str, Any]:
    plain: dict[str, Any] = {"phrase": said.phrase}
    if said.span is not None:
        plain["span"] = list(said.span)
    if said.mask is not None:
        plain["mask"] = _plain_mask(said.mask)
    if said.box_xyxy_px is not None:
        plain["box_xyxy_px"] = list(said.box_xyxy_px)
    if said.points_xy_px:
        plain["points_xy_px"] = [list(point) for point in said.points_xy_px]
    if said.others:
        plain["others"] = list(said.others)
    plain |= {name: value for name in _FACTS if (value := getattr(said, name)) not in {None, "", False}}
    plain |= {name: _packed(vector) for name in _VECTORS if (vector := getattr(said, name)) is not None}
    return plain


def _plain_mask(mask: Rle) -> dict[str, Any]:
    return {"size": [mask.height_px, mask.width_px], "counts": mask.counts}


def _said(plain: Mapping[str, Any]) -> Said:
    mask, span, box = plain.get("mask"), plain.get("span"), plain.get("box_xyxy_px")
    facts: dict[str, Any] = {name: plain[name] for name in _FACTS if name in plain}
    facts |= {name: _unpacked(plain[name]) for name in _VECTORS if name in plain}
    return Said(
        phrase=plain["phrase"],
        span=None if span is None else (span[0], span[1]),
        mask=None if mask is None else _mask(mask),
        box_xyxy_px=None if box is None else (box[0], box[1], box[2], box[3]),
        points_xy_px=tuple((x, y) for x, y in plain.get("points_xy_px", ())),
        others=tuple(plain.get("others", ())),
        **facts,
    )


def _packed(vector: Vector) -> str:
    """Writes an embedding as base64 of little-endian float32: a tenth of what its digits would take."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> Vector:
    return tuple(np.frombuffer(base64.b64decode(text), dtype="<f4").tolist())


def _mask(plain: Mapping[str, Any]) -> Rle:
    return Rle(height_px=plain["size"][0], width_px=plain["size"][1], counts=plain["counts"])
