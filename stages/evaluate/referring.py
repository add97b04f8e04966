"""Referring segmentation: an expression in, the pixels that it means out; strictly, and as GLaMM's release asks."""

import random
from collections.abc import Callable, Sequence

from PIL import Image

from stages.evaluate import masks
from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools, expect, expect_size
from stages.expressions import described
from stages.family import Refers
from stages.samples import Sample
from stages.vision import Mask, rle_from_mask, union

MOST_EXPRESSIONS = 3  # of an image, in the released evaluation


def read_expressions(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads every expression that means a mask; two expressions of one region are two questions."""
    said = [
        Said(phrase=text, mask=region.mask)
        for region in sample.regions
        if region.mask is not None and not region.crowd
        for text in described(region)
    ]
    return Answer(caption="", said=tuple(said)) if said else None


def read_some_expressions(sample: Sample, seed: int) -> Answer | None:
    """Draws up to three of them in any order, in lower case. The release draws without a seed; here it has one."""
    everything = read_expressions(sample)
    if everything is None:
        return None
    chosen: Sequence[Said] = everything.said
    if len(chosen) >= MOST_EXPRESSIONS:
        chosen = random.Random(f"{seed} {sample.key}").sample(chosen, MOST_EXPRESSIONS)  # noqa: S311 - no secret
    said = (Said(phrase=one.phrase.lower(), mask=one.mask) for one in chosen)
    return Answer(caption="", said=tuple(said))


def ask_expressions(
    model: Refers, images: Sequence[Image.Image], references: Sequence[Answer], max_new_tokens: int
) -> list[Answer]:
    """Asks for each expression alone and lets the model answer in its own words."""

    def point(image: Image.Image, texts: Sequence[str]) -> list[Sequence[Mask]]:
        return [model.refer(image, text, max_new_tokens=max_new_tokens).masks_HW for text in texts]

    return _answers(images, references, point)


def ask_told(
    model: Refers, images: Sequence[Image.Image], references: Sequence[Answer], _max_new_tokens: int
) -> list[Answer]:
    """Tells the model the words of its answers, all expressions of an image in one dialogue, and asks for masks."""

    def point(image: Image.Image, texts: Sequence[str]) -> list[Sequence[Mask]]:
        told = model.refer_told(image, texts)
        expect(len(texts), len(told), "masks for expressions")
        return [() if mask_HW is None else (mask_HW,) for mask_HW in told]

    return _answers(images, references, point)


def _answers(
    images: Sequence[Image.Image],
    references: Sequence[Answer],
    point: Callable[[Image.Image, Sequence[str]], Sequence[Sequence[Mask]]],
) -> list[Answer]:
    answers = []
    for image, reference in zip(images, references, strict=True):
        texts = [said.phrase for said in reference.said]
        said = (_said(image, text, found) for text, found in zip(texts, point(image, texts), strict=True))
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def _said(image: Image.Image, expression: str, masks_HW: Sequence[Mask]) -> Said:
    for mask_HW in masks_HW:
        expect_size(image, mask_HW, expression)
    mask = rle_from_mask(union(masks_HW)) if masks_HW else None
    return Said(phrase=expression, mask=mask, num_masks=len(masks_HW))


def score_expressions(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Scores every expression alike; one without a mask counts as nothing found."""
    areas = _areas(answers, references)
    ious = [masks.iou(*area) for area in areas]
    counts = [said.num_masks for answer in answers for said in answer.said]
    return {
        "ciou": masks.cumulative_iou(areas),
        "giou": masks.mean(ious),
        "precision50": masks.mean([float(one >= masks.MATCH_IOU) for one in ious]),
        "pointed_once": masks.mean([float(count == 1) for count in counts]),
    }


def score_told(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Scores as the released script does, down to the small numbers that it adds to its divisors."""
    areas = _areas(answers, references)
    return {"ciou": masks.cumulative_iou_compat(areas), "giou": masks.mean_iou_compat(areas)}


def _areas(answers: Sequence[Answer], references: Sequence[Answer]) -> list[masks.Areas]:
    both = [
        (mine.mask, true.mask)
        for answer, reference in zip(answers, references, strict=True)
        for mine, true in zip(answer.said, reference.said, strict=True)
    ]
    return [masks.areas(mine, true) for mine, true in both if true is not None]


_MEANINGS = {
    "ciou": "intersections over unions, each summed over all expressions (the papers' number)",
    "giou": "mean IoU of the expressions",
}
REFER = Benchmark(
    reference=read_expressions,
    ability=Refers,
    ask=ask_expressions,
    score=score_expressions,
    protocol=(
        "Referring segmentation, every expression of the data in a dialogue of its own, answered greedily in the "
        "model's own words. Several masks of one answer are joined; an answer without a mask has found nothing. "
        "Stricter than the papers' protocol, which tells the model its answer: compare with refer_compat."
    ),
    meanings={
        **_MEANINGS,
        "precision50": "expressions with an IoU of at least 0.5",
        "pointed_once": "expressions answered with exactly one mask",
    },
    compat=frozenset(),
)
REFER_COMPAT = Benchmark(
    reference=read_some_expressions,
    ability=Refers,
    ask=ask_told,
    score=score_told,
    protocol=(
        "Referring segmentation as GLaMM's release does it: up to three expressions an image, drawn at random (here "
        "from the stage's seed, there from none), in one dialogue whose answers are given to the model, so that it "
        "always points. What was cut off with a dialogue that is too long counts as nothing found. Every image counts "
        "once on any number of ranks; the release counts some twice where their number does not divide."
    ),
    meanings=_MEANINGS,
    compat=frozenset({"ciou", "giou"}),
)
