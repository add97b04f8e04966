"""Referring by boxes: an expression in, the one box that it means out."""

from collections.abc import Sequence

from PIL import Image

from stages.boxes import box_ious
from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools, expect
from stages.evaluate.masks import mean
from stages.expressions import described
from stages.family import RefersByBox
from stages.samples import Sample

_MATCH_IOU = 0.5


def read_boxed(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads every expression that means a box; two expressions of one region are two questions."""
    said = [
        Said(phrase=text, box_xyxy_px=region.box_xyxy_px)
        for region in sample.regions
        if not region.crowd
        for text in described(region)
    ]
    return Answer(caption="", said=tuple(said)) if said else None


def ask_boxes(
    model: RefersByBox, images: Sequence[Image.Image], references: Sequence[Answer], _max_new_tokens: int
) -> list[Answer]:
    """Asks for the box of every expression."""
    texts = [[said.phrase for said in reference.said] for reference in references]
    told = model.refer_boxes(images, texts)
    expect(len(images), len(told), "lists of boxes for images")
    answers = []
    for expressions, boxes in zip(texts, told, strict=True):
        expect(len(expressions), len(boxes), "boxes for expressions")
        said = (Said(phrase=text, box_xyxy_px=box) for text, box in zip(expressions, boxes, strict=True))
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def score_boxes(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Scores every expression alike."""
    ious = [
        float(box_ious([mine.box_xyxy_px], [true.box_xyxy_px])[0, 0])
        for answer, reference in zip(answers, references, strict=True)
        for mine, true in zip(answer.said, reference.said, strict=True)
        if mine.box_xyxy_px is not None and true.box_xyxy_px is not None
    ]
    return {"precision50": mean([float(one > _MATCH_IOU) for one in ious]), "mean_iou": mean(ious)}


REFER_BOXES = Benchmark(
    reference=read_boxed,
    ability=RefersByBox,
    ask=ask_boxes,
    score=score_boxes,
    protocol=(
        "Referring expression comprehension: every expression of the data, one box for each, right where its IoU with "
        "the true box is above 0.5; averaged over expressions."
    ),
    meanings={
        "precision50": "expressions whose box has an IoU above 0.5 (the papers' P@0.5)",
        "mean_iou": "mean IoU of the expressions",
    },
    compat=frozenset({"precision50"}),
)
