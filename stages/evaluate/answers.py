"""What can be said of an image, by a person or by a model: a caption and phrases with their pixels or boxes."""

from collections.abc import Mapping
from typing import Any

from orchestrator.records import record
from stages.evaluate.masks import Grounding
from stages.family import GroundedCaption
from stages.pictures import Mark, Panel
from stages.samples import Rle
from stages.vision import mask_from_rle, rle_from_mask

Box = tuple[float, float, float, float]


@record
class Said:
    """One phrase, and the mask or the box it is about."""

    phrase: str
    span: tuple[int, int] | None = None  # code points of the caption
    mask: Rle | None = None
    box_xyxy_px: Box | None = None


@record
class Answer:
    """Everything said of one image for one benchmark."""

    caption: str
    said: tuple[Said, ...]

    def grounding(self) -> Grounding:
        """Returns the phrases that carry masks."""
        grounded = [(said.phrase, said.mask) for said in self.said if said.mask is not None]
        return Grounding(phrases=tuple(phrase for phrase, _ in grounded), masks=tuple(mask for _, mask in grounded))

    def to_plain(self) -> dict[str, Any]:
        """Returns the answer as JSON holds it; masks as COCO run lengths."""
        return {"caption": self.caption, "phrases": [_plain(said) for said in self.said]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Answer":
        """Reads what `to_plain` returned."""
        return cls(caption=plain["caption"], said=tuple(_said(entry) for entry in plain["phrases"]))


def answer_of(grounded: GroundedCaption) -> Answer:
    """Turns a model's grounded caption into an answer."""
    said = (Said(phrase=part.phrase, span=part.span, mask=rle_from_mask(part.mask_HW)) for part in grounded.phrases)
    return Answer(caption=grounded.caption, said=tuple(said))


def panel_of(title: str, answer: Answer) -> Panel:
    """Turns an answer into a panel to be drawn."""
    marks = [
        Mark(
            phrase=said.phrase,
            span=said.span,
            mask_HW=None if said.mask is None else mask_from_rle(said.mask),
            box_xyxy_px=said.box_xyxy_px,
        )
        for said in answer.said
    ]
    return Panel(title=title, caption=answer.caption, marks=tuple(marks))


def _plain(said: Said) -> dict[str, Any]:
    plain: dict[str, Any] = {"phrase": said.phrase}
    if said.span is not None:
        plain["span"] = list(said.span)
    if said.mask is not None:
        plain["mask"] = {"size": [said.mask.height_px, said.mask.width_px], "counts": said.mask.counts}
    if said.box_xyxy_px is not None:
        plain["box_xyxy_px"] = list(said.box_xyxy_px)
    return plain


def _said(plain: Mapping[str, Any]) -> Said:
    mask, span, box = plain.get("mask"), plain.get("span"), plain.get("box_xyxy_px")
    return Said(
        phrase=plain["phrase"],
        span=None if span is None else (span[0], span[1]),
        mask=None if mask is None else Rle(height_px=mask["size"][0], width_px=mask["size"][1], counts=mask["counts"]),
        box_xyxy_px=None if box is None else (box[0], box[1], box[2], box[3]),
    )
