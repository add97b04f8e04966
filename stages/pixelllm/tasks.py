"""What each kind of source teaches: rows of a prompt, its words, and a text with or without its place in the image."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.expressions import described
from stages.pixelllm.kinds import CAPTION, DENSE, REFER, REGION, SEGMENT, TRACE
from stages.samples import Region, Rle, Sample
from stages.traces import Corners, boxes_of
from stages.vision import Box

Found = TypeVar("Found")

# The release has as many wordings, whose words are not known to us: these are ours.
SHORT_REQUESTS = (
    "describe the image briefly", "what does the image show?", "a short caption of the image",
    "say in one sentence what is there", "caption the image",
)  # fmt: skip
LONG_REQUESTS = (
    "describe the image in detail", "what is where in the image?", "tell everything that the image shows",
    "give a long description of the image", "say what there is, and where it is", "walk through the image in words",
    "describe all parts of the image", "explain in detail what can be seen", "narrate the image",
    "describe the scene closely", "give a detailed account of the image",
)  # fmt: skip
WHERE_IS, OBJECT_OF = "where is", "an object of"


@record
class Row:
    """One text about an image: what is asked, about which part of it, and what is to be learnt from the text."""

    context: str
    text: str
    box_xyxy_px: Box | None = None  # what the prompt asks about; None: the whole image
    speaks: bool = True  # its words are to be said; else they are only read
    target_xyxy_px: Box | None = None  # where the text as a whole is: known once its last token has been read
    target_mask: Rle | None = None  # the pixels that the text as a whole means
    trace: tuple[Corners, ...] = ()  # where its tokens are, by how far along they stand


@record
class Rules:
    """How samples are spoken of."""

    max_regions: int = 32  # of one image, described by their boxes; published: 32, or 16 in the joint stage
    max_expressions: int = 16  # of one image, pointed at
    wordings: int | None = None  # of each bank of requests, the first ones; None: all
    augments: bool = False  # images are scaled, cut and mirrored as `augment.py` says of their kind


def rows_of(kind: str, sample: Sample, *, seed: int, rules: Rules) -> list[Row]:
    """Makes the rows of a sample, a function of the seed; InputError where it holds nothing that its kind asks for."""
    rows = _SPEAK[kind](sample, random.Random(seed), rules)  # noqa: S311 - wording, not secrets
    if not rows:
        raise InputError(f"sample {sample.key!r} holds nothing for the task {kind}: it needs {_NEEDS[kind]}")
    return rows


def refer_row(expression: str, target_xyxy_px: Box | None = None, target_mask: Rle | None = None) -> Row:
    """Asks where something is: the expression is context and text, and only read."""
    said = expression.strip().lower()
    return Row(
        context=f"{WHERE_IS} {said}", text=said, speaks=False, target_xyxy_px=target_xyxy_px, target_mask=target_mask
    )


def region_row(box_xyxy_px: Box, text: str = "") -> Row:
    """Asks what a box holds."""
    return Row(context=OBJECT_OF, text=text, box_xyxy_px=box_xyxy_px)


def caption_row(text: str = "", *, detailed: bool) -> Row:
    """Asks about the whole image, in the first of the wordings."""
    return Row(context=(LONG_REQUESTS if detailed else SHORT_REQUESTS)[0], text=text)


def _caption(sample: Sample, chance: random.Random, rules: Rules) -> list[Row]:
    texts = [text for text in (sample.caption, *(more.text for more in sample.more_captions)) if text.strip()]
    if not texts and sample.turns:
        turn = chance.choice(sample.turns)
        return [Row(context=turn.question, text=turn.answer)]
    return [Row(context=_wording(SHORT_REQUESTS, chance, rules), text=chance.choice(texts))] if texts else []


def _trace(sample: Sample, chance: random.Random, rules: Rules) -> list[Row]:
    boxes = boxes_of(sample.points, sample.utterances)
    if not boxes or not sample.caption.strip():
        return []
    return [Row(context=_wording(LONG_REQUESTS, chance, rules), text=sample.caption, trace=tuple(boxes))]


def _refer(sample: Sample, chance: random.Random, rules: Rules) -> list[Row]:
    said = [(text, region) for region in _single(sample) for text in described(region)]
    return [refer_row(text, region.box_xyxy_px) for text, region in _some(said, chance, rules.max_expressions)]


def _segment(sample: Sample, chance: random.Random, rules: Rules) -> list[Row]:
    masked = [region for region in _single(sample) if region.mask is not None]
    said = [(text, region) for region in masked for text in described(region)]
    chosen = _some(said, chance, rules.max_expressions)
    return [refer_row(text, region.box_xyxy_px, region.mask) for text, region in chosen]


def _region(sample: Sample, chance: random.Random, rules: Rules) -> list[Row]:
    said = [(texts, region) for region in _single(sample) if (texts := described(region))]
    chosen = _some(said, chance, rules.max_regions)
    return [region_row(region.box_xyxy_px, chance.choice(texts)) for texts, region in chosen]


def _single(sample: Sample) -> list[Region]:
    return [region for region in sample.regions if not region.crowd]


def _some(everything: Sequence[Found], chance: random.Random, most: int) -> list[Found]:
    return list(everything) if len(everything) <= most else chance.sample(everything, most)


def _wording(bank: Sequence[str], chance: random.Random, rules: Rules) -> str:
    return chance.choice(bank[: rules.wordings])


_SPEAK: Mapping[str, Callable[[Sample, random.Random, Rules], list[Row]]] = {
    CAPTION: _caption,
    TRACE: _trace,
    REFER: _refer,
    SEGMENT: _segment,
    REGION: _region,
    DENSE: _region,
}
_NEEDS: Mapping[str, str] = {
    CAPTION: "a caption, or questions with answers",
    TRACE: "a caption with utterances and a trace of at least two points",
    REFER: "regions with expressions",
    SEGMENT: "regions with expressions and masks",
    REGION: "described regions",
    DENSE: "described regions",
}
