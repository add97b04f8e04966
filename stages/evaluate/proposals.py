"""Expressions among given regions: each is the region that it fits best, alone or with its spatial words.

Shapes: R regions of an image, D dimensions of an embedding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark
from stages.evaluate.boxes import score_boxes
from stages.evaluate.masked import mask_of
from stages.evaluate.relations import Chances, chances_of, entity_of
from stages.evaluate.retrieval import Vectors
from stages.expressions import described
from stages.family import Embeds
from stages.samples import Sample
from stages.vision import Box

BLUR_PX = 100  # of the background
SCALE = 100.0  # of a cosine, before it becomes a chance: CLIP's; the releases take the model's own

Shown = Literal["whole", "crop"]  # beside the region before a blurred background: the image, or what lies in the box


def read_expressions(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads every expression, and among which regions it is to be found: those of its image. One alone asks nothing."""
    said = [
        Said(phrase=text, box_xyxy_px=region.box_xyxy_px, mask=region.mask)
        for region in sample.regions
        if not region.crowd
        for text in described(region)
    ]
    return Answer(caption="", said=tuple(said)) if len({one.box_xyxy_px for one in said}) > 1 else None


def choose_among(
    model: Embeds,
    images: Sequence[Image.Image],
    references: Sequence[Answer],
    _limit: int,
    *,
    shown: Shown,
    relations: bool,
) -> list[Answer]:
    """Chooses for each expression the region that fits best, both ways in which it is shown added up."""
    answers = []
    for image, reference in zip(images, references, strict=True):
        regions = {said.box_xyxy_px: said for said in reference.said if said.box_xyxy_px is not None}
        boxes = list(regions)
        seen_RD = _seen(model, image, list(regions.values()), shown)
        texts = [said.phrase for said in reference.said]
        places = _related(model, texts, seen_RD, boxes) if relations else _nearest(model, texts, seen_RD)
        said = (Said(phrase=text, box_xyxy_px=boxes[place]) for text, place in zip(texts, places, strict=True))
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def _seen(model: Embeds, image: Image.Image, regions: Sequence[Said], shown: Shown) -> Vectors:
    """Embeds every region before a blurred background and in another way, and adds up: R x D."""
    masks = [mask_of(said, image) for said in regions]
    blurred = image.filter(ImageFilter.GaussianBlur(BLUR_PX))
    before = [Image.composite(image, blurred, Image.fromarray(mask_HW.astype(np.uint8) * 255)) for mask_HW in masks]
    before_RD = model.embed_images(before, masks)
    if shown == "whole":
        return before_RD + model.embed_images([image] * len(masks), masks)
    crops = [_cut(image, said.box_xyxy_px) for said in regions if said.box_xyxy_px is not None]
    return before_RD + model.embed_images(crops, [None] * len(crops))


def _cut(image: Image.Image, box: Box) -> Image.Image:
    """Cuts out every pixel that a box touches."""
    x0, y0, x1, y1 = box
    return image.crop((int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1))))


def _nearest(model: Embeds, texts: Sequence[str], seen_RD: Vectors) -> list[int]:
    return [int(place) for place in (model.embed_texts(texts) @ seen_RD.T).argmax(axis=1)]


def _related(model: Embeds, texts: Sequence[str], seen_RD: Vectors, boxes: Sequence[Box]) -> list[int]:
    """Weighs how well each region fits a whole expression by how well it fits its parts in their relations."""
    entities = [entity_of(text) for text in texts]
    parts = [part for entity in entities if entity is not None for part in entity.texts()]
    asked = list(dict.fromkeys([*texts, *parts]))
    cosines = dict(zip(asked, model.embed_texts(asked) @ seen_RD.T, strict=True))
    alone: Callable[[str], Chances] = lambda text: _chances(cosines[text])  # noqa: E731 - a name for its type
    places = []
    for text, entity in zip(texts, entities, strict=True):
        chances_R = alone(text) if entity is None else alone(text) * chances_of(entity, alone, boxes)
        places.append(int(chances_R.argmax()))
    return places


def _chances(cosines_R: Vectors) -> Chances:
    powers_R = np.exp(SCALE * (cosines_R.astype(np.float64) - cosines_R.max()))
    chances_R: Chances = powers_R / powers_R.sum()
    return chances_R


_MEANINGS = {
    "precision50": "expressions whose region has an IoU above 0.5 with the one meant",
    "mean_iou": "mean IoU of the expressions",
}
_AMONG = (
    "Zero-shot referring expressions among given regions: those of the image in the data, as masks, where the releases "
    "take a detector's proposals as well. A region's score is its cosine with the expression"
)
_WORDS = (
    "Spatial words are resolved by ReCLIP's rules for relations and superlatives; which words belong to which thing is "
    "decided by the words alone, where the releases ask a dependency parser (spaCy)."
)
_WHOLE = "in the whole image, and before a background blurred by 100 px, added up"
_CROP = "in a crop of its box, and before a background blurred by 100 px, added up"


def _benchmark(shown: Shown, how: str, *, relations: bool) -> Benchmark:
    return Benchmark(
        reference=read_expressions,
        ability=Embeds,
        ask=partial(choose_among, shown=shown, relations=relations),
        score=score_boxes,
        protocol=f"{_AMONG} {how}.{' ' + _WORDS if relations else ''}",
        meanings=_MEANINGS,
        compat=frozenset(),
    )


REFER_PROPOSALS = _benchmark("whole", _WHOLE, relations=False)
REFER_PROPOSALS_PARSED = _benchmark("whole", f"{_WHOLE}, as in PixCLIP's release", relations=True)
REFER_PROPOSALS_RECLIP = _benchmark("crop", f"{_CROP}, as in ReCLIP", relations=True)
