"""What a model says when it is asked about one image: as JSON, and as a panel to be drawn. One function a question."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.family import (
    Answers,
    DescribesDensely,
    DescribesRegions,
    Embeds,
    EmbedsMasked,
    GroundedCaption,
    Grounds,
    LocatesWords,
    Model,
    Refers,
    RefersByBox,
    SegmentsPanoptic,
    unable,
)
from stages.pictures import Mark, Panel
from stages.samples import Turn
from stages.vision import Box, Mask, box_of_mask, rle_from_mask

MAX_NEW_TOKENS = 256
Vectors = NDArray[np.float32]
BOX_TOKEN = "<bbox>"  # noqa: S105 - a word of the vocabulary


@record
class Reply:
    """What was said to one question."""

    kind: str  # the list of the answer that it belongs to: turns, regions, referred, words, found, segments, ranked
    plain: tuple[dict[str, Any], ...]
    panel: Panel


def unasked(model: Model, picture: Image.Image) -> list[Reply]:
    """Lets a model say what it is made to say of an image when nothing is asked."""
    if isinstance(model, Grounds):
        (grounded,) = model.ground([picture], max_new_tokens=MAX_NEW_TOKENS)
        return [_turn(None, grounded)]
    if isinstance(model, LocatesWords):
        return [_words(model, picture)]
    if isinstance(model, SegmentsPanoptic):
        return [_segments(model, picture)]
    if isinstance(model, Embeds):
        raise InputError("this model writes nothing: say with --text what the image, a --box or a --mask may show")
    raise unable(model, Grounds)


def conversed(model: Model, picture: Image.Image, prompts: Sequence[str], boxes: Sequence[Box]) -> list[Reply]:
    """Puts prompts, each after the answers to those before; boxes stand for the `<bbox>`s in order."""
    if not isinstance(model, Answers):
        raise unable(model, Answers)
    said: list[tuple[str, GroundedCaption]] = []
    for prompt in prompts:
        before = [Turn(question=question, answer=answer.caption) for question, answer in said]
        used = sum(text.count(BOX_TOKEN) for text in (prompt, *(turn.question for turn in before)))
        said.append((prompt, model.answer(picture, prompt, boxes[:used], before=before)))
    return [_turn(prompt, answer) for prompt, answer in said]


def referred(model: Model, picture: Image.Image, expressions: Sequence[str]) -> list[Reply]:
    """Asks where expressions are: pixels of a model that gives them, else boxes."""
    if isinstance(model, Refers):
        return [_pointed(model, picture, text) for text in expressions]
    if not isinstance(model, RefersByBox):
        raise unable(model, Refers)
    (boxes,) = model.refer_boxes([picture], [expressions])
    return [
        Reply(
            kind="referred",
            plain=({"expression": text, "box_xyxy_px": list(box)},),
            panel=Panel(title=text, caption="", marks=(Mark(phrase=text, box_xyxy_px=box),)),
        )
        for text, box in zip(expressions, boxes, strict=True)
    ]


def described(model: Model, picture: Image.Image, boxes: Sequence[Box]) -> list[Reply]:
    """Asks for a caption of each box."""
    if not isinstance(model, DescribesRegions):
        raise unable(model, DescribesRegions)
    (texts,) = model.describe_regions([picture], [boxes], max_new_tokens=MAX_NEW_TOKENS)
    both = list(zip(boxes, texts, strict=True))
    marks = tuple(Mark(phrase=text, box_xyxy_px=box) for box, text in both)
    plain = tuple({"box_xyxy_px": list(box), "caption": text} for box, text in both)
    return [Reply(kind="regions", plain=plain, panel=Panel(title=" ", caption="", marks=marks))]


def found(model: Model, picture: Image.Image) -> list[Reply]:
    """Asks for everything, each with its box and a caption."""
    if not isinstance(model, DescribesDensely):
        raise unable(model, DescribesDensely)
    (boxes,) = model.describe_densely([picture], max_new_tokens=MAX_NEW_TOKENS)
    marks = tuple(Mark(phrase=one.caption, box_xyxy_px=one.box_xyxy_px) for one in boxes)
    plain = tuple(
        {"box_xyxy_px": list(one.box_xyxy_px), "caption": one.caption, "score": one.score} for one in boxes
    )  # fmt: skip
    return [Reply(kind="found", plain=plain, panel=Panel(title=" ", caption="", marks=marks))]


def ranked(
    model: Model, picture: Image.Image, texts: Sequence[str], boxes: Sequence[Box], masks_HW: Sequence[Mask] = ()
) -> list[Reply]:
    """Asks how well each text fits the image, or each box and what each mask shows of it: cosines, the best first."""
    if masks_HW and not isinstance(model, EmbedsMasked):
        raise _blind_to_masks(model, masks_HW)
    if not isinstance(model, Embeds):
        raise unable(model, Embeds)
    seen: list[Vectors] = []
    if boxes:
        seen += model.embed_regions([picture], [boxes], [[None] * len(boxes)])
    if masks_HW and isinstance(model, EmbedsMasked):
        seen.append(model.embed_masked(picture, masks_HW))
    if not seen:
        seen.append(model.embed_images([picture], [None]))
    cosines_RT = np.concatenate(seen) @ model.embed_texts(texts).T
    places = [*((box, None) for box in boxes), *((box_of_mask(mask_HW), mask_HW) for mask_HW in masks_HW)]
    return [
        _ranked(box, mask_HW, sorted(zip(texts, cosines_T, strict=True), key=lambda pair: -pair[1]))
        for (box, mask_HW), cosines_T in zip(places or [(None, None)], cosines_RT.tolist(), strict=True)
    ]


def _ranked(box: Box | None, mask_HW: Mask | None, order: Sequence[tuple[str, float]]) -> Reply:
    plain: dict[str, Any] = {"texts": [{"text": text, "cosine": round(cosine, 6)} for text, cosine in order]}
    best = order[0][0]
    around = None if mask_HW is not None else box
    marks = () if box is None else (Mark(phrase=best, box_xyxy_px=around, mask_HW=mask_HW),)
    panel = Panel(
        title=best, caption="", marks=marks, notes=tuple(f"{cosine:.3f}  {text}" for text, cosine in order)
    )  # fmt: skip
    shown = {} if mask_HW is None else _mask(mask_HW)
    return Reply(kind="ranked", plain=({"box_xyxy_px": box and list(box), **shown, **plain},), panel=panel)


def _blind_to_masks(model: Model, masks_HW: Sequence[Mask]) -> InputError:
    """Returns the error for a model that reads no masks; one that reads boxes can be asked about those around them."""
    told = str(unable(model, EmbedsMasked))
    if isinstance(model, Embeds | DescribesRegions):
        boxes = (",".join(f"{edge:g}" for edge in box) for mask_HW in masks_HW if (box := box_of_mask(mask_HW)))
        told += f". It reads boxes: --box {' --box '.join(boxes)} instead of --mask"
    return InputError(told)


def _turn(prompt: str | None, said: GroundedCaption) -> Reply:
    phrases = [{"phrase": part.phrase, "span": list(part.span), **_mask(part.mask_HW)} for part in said.phrases]
    marks = tuple(Mark(phrase=part.phrase, span=part.span, mask_HW=part.mask_HW) for part in said.phrases)
    return Reply(
        kind="turns",
        plain=({"prompt": prompt, "caption": said.caption, "phrases": phrases},),
        panel=Panel(title=prompt or " ", caption=said.caption, marks=marks),
    )


def _pointed(model: Refers, picture: Image.Image, text: str) -> Reply:
    said = model.refer(picture, text, max_new_tokens=MAX_NEW_TOKENS)
    plain = {"expression": text, "text": said.text, "masks": [_mask(mask_HW) for mask_HW in said.masks_HW]}
    marks = tuple(Mark(phrase=text, mask_HW=mask_HW) for mask_HW in said.masks_HW)
    return Reply(kind="referred", plain=(plain,), panel=Panel(title=text, caption=said.text, marks=marks))


def _words(model: LocatesWords, picture: Image.Image) -> Reply:
    (said,) = model.locate_words([picture], max_new_tokens=MAX_NEW_TOKENS)
    marks = tuple(
        Mark(phrase=said.caption[slice(*word.span)], span=word.span, points_xy_px=word.points_xy_px)
        for word in said.words
    )
    words = [
        {"word": mark.phrase, "span": list(word.span), "points_xy_px": [list(point) for point in word.points_xy_px]}
        for mark, word in zip(marks, said.words, strict=True)
    ]
    plain = {"caption": said.caption, "words": words}
    return Reply(kind="words", plain=(plain,), panel=Panel(title=" ", caption=said.caption, marks=marks))


def _segments(model: SegmentsPanoptic, picture: Image.Image) -> Reply:
    (segments,) = model.segment([picture], max_new_tokens=MAX_NEW_TOKENS)
    plain = tuple(
        {"category": one.category, "category_id": one.category_id, "caption": one.caption, "score": one.score,
         **_mask(one.mask_HW)}
        for one in segments
    )  # fmt: skip
    marks = tuple(Mark(phrase=one.caption or one.category, mask_HW=one.mask_HW) for one in segments)
    return Reply(kind="segments", plain=plain, panel=Panel(title=" ", caption="", marks=marks))


def _mask(mask_HW: Mask) -> dict[str, Any]:
    rle = rle_from_mask(mask_HW)
    return {
        "mask": {"size": [rle.height_px, rle.width_px], "counts": rle.counts},
        "share_of_image": float(mask_HW.mean()),
    }
