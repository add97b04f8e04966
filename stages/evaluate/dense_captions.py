"""Dense captioning: boxes found and described, and the mean AP over how well places and words must fit (DenseCap)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from orchestrator.records import record
from stages.boxes import Floats, box_ious
from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools, expect
from stages.expressions import described
from stages.family import DescribesDensely
from stages.samples import Sample
from stages.vision import Box

IOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEORS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
MERGE_IOU = 0.7  # of true boxes that become one with several texts
MOST = 100  # boxes of an image
RECALL_POINTS, RECALL_POINTS_COMPAT = 101, 100

# texts that were said and their references -> METEOR of each; not the same as the METEOR of all
Meteors = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]


@record
class Found:
    """What was found, how sure, and each truth that it may be."""

    score: float
    overlaps: tuple[float, ...]  # with the truths of its image
    meteors: tuple[float, ...]  # of its text against the texts of each; 0 where nothing overlaps


def grid_precision(images: Sequence[tuple[Sequence[Found], int]], *, compat: bool) -> float:
    """Means the AP over IOUS x METEORS; `images` are what was found in each, and how many truths it has.

    compat, as DenseCap's script counts: whatever is found belongs to the truth that it overlaps most, even one that is
    taken, and nothing else; the first one takes it, right or not. strict: it takes, of the truths that are left and
    fit in place and words, the one that it overlaps most. A place fits from its threshold on, words above theirs.
    """
    total = sum(truths for _, truths in images)
    scores = np.array([one.score for found, _ in images for one in found])
    order = np.argsort(-scores, kind="stable")
    values = []
    taken = _compat_choices(images) if compat else None
    for iou in IOUS:
        for meteor in METEORS:
            if taken is not None:
                right = np.array([place >= iou and words > meteor for place, words in taken], dtype=np.bool_)
            else:
                right = _strict_hits(images, iou, meteor)
            points = RECALL_POINTS_COMPAT if compat else RECALL_POINTS
            values.append(average_precision(right[order], total, points=points))
    return float(np.mean(values))


def average_precision(right: np.ndarray, truths: int, *, points: int) -> float:
    """Averages the best precision from each of `points` recalls on, 0 and 1 among them; the surest answers first."""
    if not truths or not len(right):
        return 0.0
    hits = np.cumsum(right)
    recall, precision = hits / truths, hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, np.linspace(0, 1, points), side="left")
    return float(np.mean([best[at] if at < len(best) else 0.0 for at in first]))


def merged(boxes_xyxy: Sequence[Box], texts: Sequence[Sequence[str]]) -> tuple[list[Box], list[tuple[str, ...]]]:
    """Makes one box of those that overlap by MERGE_IOU, the largest crowd first: their mean, with all their texts."""
    left = list(range(len(boxes_xyxy)))
    ious_NN = box_ious(boxes_xyxy, boxes_xyxy)
    found: list[Box] = []
    said: list[tuple[str, ...]] = []
    while left:
        close = ious_NN[np.ix_(left, left)] >= MERGE_IOU
        np.fill_diagonal(close, val=True)
        chosen = [left[at] for at in np.flatnonzero(close[int(close.sum(axis=1).argmax())])]
        x0, y0, x1, y1 = np.mean([boxes_xyxy[number] for number in chosen], axis=0).tolist()
        found.append((x0, y0, x1, y1))
        said.append(tuple(text for number in chosen for text in texts[number]))
        left = [number for number in left if number not in chosen]
    return found, said


def _compat_choices(images: Sequence[tuple[Sequence[Found], int]]) -> list[tuple[float, float]]:
    """Returns for all that was found its overlap and METEOR; of what came late, nothing."""
    chosen = []
    for found, _ in images:
        mine: list[tuple[float, float]] = [(-1.0, -1.0)] * len(found)
        taken: set[int] = set()
        for at in _surest(found):
            overlaps = found[at].overlaps
            best = int(np.argmax(overlaps)) if overlaps and max(overlaps) > 0 else None
            if best is not None and best not in taken:
                taken.add(best)
                mine[at] = (overlaps[best], found[at].meteors[best])
        chosen += mine
    return chosen


def _strict_hits(images: Sequence[tuple[Sequence[Found], int]], iou: float, meteor: float) -> np.ndarray:
    hits = []
    for found, _ in images:
        mine = [False] * len(found)
        taken: set[int] = set()
        for at in _surest(found):
            both = enumerate(zip(found[at].overlaps, found[at].meteors, strict=True))
            fits = [(place, n) for n, (place, words) in both if place >= iou and words > meteor and n not in taken]
            if fits:
                taken.add(max(fits, key=lambda one: (one[0], -one[1]))[1])
                mine[at] = True
        hits += mine
    return np.array(hits, dtype=np.bool_)


def _surest(found: Sequence[Found]) -> Iterable[int]:
    return sorted(range(len(found)), key=lambda at: -found[at].score)


def read_dense(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads the described regions, merged where they overlap."""
    both = [
        (region.box_xyxy_px, texts) for region in sample.regions if not region.crowd and (texts := described(region))
    ]
    boxes, said = merged([box for box, _ in both], [texts for _, texts in both])
    truths = [Said(phrase=texts[0], box_xyxy_px=box, others=texts[1:]) for box, texts in zip(boxes, said, strict=True)]
    return Answer(caption="", said=tuple(truths)) if truths else None


def ask_dense(
    model: DescribesDensely, images: Sequence[Image.Image], references: Sequence[Answer], max_new_tokens: int
) -> list[Answer]:
    """Asks for everything that an image shows; of each image the surest boxes count."""
    told = model.describe_densely(images, max_new_tokens=max_new_tokens)
    expect(len(references), len(told), "lists of described boxes for images")
    answers = []
    for boxes in told:
        surest = sorted(boxes, key=lambda one: -one.score)[:MOST]
        said = (Said(phrase=one.caption, box_xyxy_px=one.box_xyxy_px, score=one.score) for one in surest)
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def score_dense(answers: Sequence[Answer], references: Sequence[Answer], tools: Tools) -> dict[str, float]:
    """Scores places and words together, and how many of the true boxes were found at all."""
    images = [
        _found(answer, reference, tools.captions.each) for answer, reference in zip(answers, references, strict=True)
    ]
    near = [bool((ious_GP >= 0.5).any()) for ious_GP in _by_truth(answers, references)]
    return {
        "map": grid_precision(images, compat=True),
        "map_strict": grid_precision(images, compat=False),
        "recall50": float(np.mean(near)) if near else 0.0,
    }


def _found(answer: Answer, reference: Answer, meteors: Meteors) -> tuple[list[Found], int]:
    ious_PG = box_ious(_boxes(answer), _boxes(reference))
    pairs = [(p, g) for p, g in np.argwhere(ious_PG >= IOUS[0]).tolist()]
    texts = [(said.phrase, *said.others) for said in reference.said]
    values = meteors([answer.said[p].phrase for p, _ in pairs], [texts[g] for _, g in pairs]) if pairs else []
    table_PG = np.zeros_like(ious_PG)
    for (p, g), value in zip(pairs, values, strict=True):
        table_PG[p, g] = value
    found = [
        Found(score=said.score or 0.0, overlaps=tuple(ious_PG[p]), meteors=tuple(table_PG[p]))
        for p, said in enumerate(answer.said)
    ]
    return found, len(reference.said)


def _by_truth(answers: Sequence[Answer], references: Sequence[Answer]) -> Iterable[Floats]:
    for answer, reference in zip(answers, references, strict=True):
        yield from box_ious(_boxes(reference), _boxes(answer))


def _boxes(answer: Answer) -> list[Box]:
    return [said.box_xyxy_px for said in answer.said if said.box_xyxy_px is not None]


DENSE_CAPTIONS = Benchmark(
    reference=read_dense,
    ability=DescribesDensely,
    ask=ask_dense,
    score=score_dense,
    protocol=(
        "Dense captioning as DenseCap defines it: true boxes that overlap by 0.7 become one with several references; "
        "AP at each IoU of 0.3 to 0.7 and each METEOR of 0 to 0.25 (an IoU counts from its threshold on, a METEOR "
        "above it), at most 100 boxes an image, mean over the grid. compat: 100 recall points, and a box belongs to "
        "the one true box that it overlaps most, even if that is taken. strict: 101 points, the best that is left."
    ),
    meanings={
        "map": "mean AP over IoU and METEOR (0 to 1), as DenseCap's script matches",
        "map_strict": "the same with the best match that is left",
        "recall50": "true boxes that some box overlaps by at least 0.5, whatever it says",
    },
    compat=frozenset({"map"}),
    worded=frozenset({"map", "map_strict"}),
)
