"""Panoptic segments with captions: a class, pixels and a sentence for each, and how well all three are right.

Legend: G true segments, P predicted ones (row and column 0 of a table: pixels that are nobody's), H W pixels.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.records import record
from stages.evaluate import captions
from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools, expect, expect_size
from stages.evaluate.panoptic_captions import caption_map, caption_map_compat
from stages.family import SegmentsPanoptic
from stages.samples import Sample
from stages.vision import mask_from_rle, rle_from_mask

MATCH_IOU = 0.5  # above it, segments that do not overlap have one partner at most


@record
class Matched:
    """How the predicted segments of an image belong to the true ones."""

    pairs: tuple[tuple[int, int, float], ...]  # predicted, true, IoU
    spurious: tuple[int, ...]  # predicted segments that count as wrong
    missed: tuple[int, ...]  # true ones
    ignored: tuple[int, ...] = ()  # predicted ones that count neither way


@record
class Quality:
    """Panoptic quality, averaged over the classes that occur."""

    pq: float
    sq: float  # mean IoU of the matched
    rq: float  # F1 of matching


def read_segments(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads the segments: every region with a mask; crowds come along, marked."""
    said = tuple(
        Said(phrase=region.caption.strip(), category=region.phrase, mask=region.mask, crowd=region.crowd)
        for region in sample.regions
        if region.mask is not None
    )
    return Answer(caption="", said=said) if any(not one.crowd for one in said) else None


def ask_segments(
    model: SegmentsPanoptic, images: Sequence[Image.Image], _references: Sequence[Answer], max_new_tokens: int
) -> list[Answer]:
    """Asks for the segments of each image."""
    told = model.segment(images, max_new_tokens=max_new_tokens)
    expect(len(images), len(told), "lists of segments for images")
    answers = []
    for image, segments in zip(images, told, strict=True):
        for one in segments:
            expect_size(image, one.mask_HW, one.category)
        said = (
            Said(phrase=one.caption, category=one.category, mask=rle_from_mask(one.mask_HW), score=one.score)
            for one in segments
        )
        answers.append(Answer(caption="", said=tuple(said)))
    return answers


def match_segments(answer: Answer, reference: Answer) -> Matched:
    """Matches segments as COCO's panoptic API does: equal class, IoU above 0.5, without pixels that nobody labelled.

    A predicted segment that lies mostly on such pixels, or on a crowd of its class, counts neither way.
    """
    pixels_GP = shared_pixels(answer, reference)
    ious_GP = segment_ious(pixels_GP)
    pairs = [
        (p, g, float(ious_GP[g, p]))
        for g, true in enumerate(reference.said)
        for p, mine in enumerate(answer.said)
        if not true.crowd and true.category == mine.category and ious_GP[g, p] > MATCH_IOU
    ]
    found, taken = {g for _, g, _ in pairs}, {p for p, _, _ in pairs}
    # as there, of several crowds of one class the last one counts
    crowds = {true.category: g for g, true in enumerate(reference.said) if true.crowd}
    spurious, ignored = list[int](), list[int]()
    for p, mine in enumerate(answer.said):
        nobodys = pixels_GP[0, p + 1]
        if mine.category in crowds:
            nobodys = nobodys + pixels_GP[crowds[mine.category] + 1, p + 1]
        if p not in taken:
            (ignored if nobodys > 0.5 * pixels_GP[:, p + 1].sum() else spurious).append(p)
    missed = (g for g, true in enumerate(reference.said) if g not in found and not true.crowd)
    return Matched(pairs=tuple(pairs), spurious=tuple(spurious), missed=tuple(missed), ignored=tuple(ignored))


def shared_pixels(answer: Answer, reference: Answer) -> NDArray[np.int64]:
    """Counts the pixels that each true segment shares with each predicted one: (G + 1) x (P + 1)."""
    owners = [_owners(said) for said in (reference.said, answer.said)]
    size = next(owner_HW.shape for owner_HW in owners if owner_HW.size)
    true_HW, mine_HW = (owner_HW if owner_HW.size else np.zeros(size, dtype=np.int64) for owner_HW in owners)
    rows, columns = len(reference.said) + 1, len(answer.said) + 1
    counts = np.bincount((true_HW * columns + mine_HW).ravel(), minlength=rows * columns)
    return counts.reshape(rows, columns)


def segment_ious(pixels_GP: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the IoU of each true segment with each predicted one; unlabelled pixels are in no union."""
    shared = pixels_GP[1:, 1:]
    together = pixels_GP[1:].sum(axis=1)[:, None] + pixels_GP[1:, 1:].sum(axis=0)[None] - shared
    ious: NDArray[np.float64] = shared / np.maximum(together, 1)
    return ious


def panoptic_quality(answers: Sequence[Answer], references: Sequence[Answer], matches: Sequence[Matched]) -> Quality:
    """Returns PQ, SQ and RQ as COCO's panoptic API does: per class over all images, then the mean over classes."""
    ious: dict[str, float] = defaultdict(float)
    right: dict[str, int] = defaultdict(int)
    wrong: dict[str, int] = defaultdict(int)  # spurious and missed ones
    for answer, reference, matched in zip(answers, references, matches, strict=True):
        for _, g, iou in matched.pairs:
            ious[reference.said[g].category] += iou
            right[reference.said[g].category] += 1
        for category in (
            *(answer.said[p].category for p in matched.spurious),
            *(reference.said[g].category for g in matched.missed),
        ):
            wrong[category] += 1
    classes = sorted({*right, *wrong})
    if not classes:
        return Quality(pq=0.0, sq=0.0, rq=0.0)
    weights = [right[one] + 0.5 * wrong[one] for one in classes]
    return Quality(
        pq=float(np.mean([ious[one] / weight for one, weight in zip(classes, weights, strict=True)])),
        sq=float(np.mean([ious[one] / right[one] if right[one] else 0.0 for one in classes])),
        rq=float(np.mean([right[one] / weight for one, weight in zip(classes, weights, strict=True)])),
    )


def score_segments(answers: Sequence[Answer], references: Sequence[Answer], tools: Tools) -> dict[str, float]:
    """Scores segments, and the captions of those that were found."""
    matches = [match_segments(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    quality = panoptic_quality(answers, references, matches)
    said = [
        (answer.said[p].phrase, reference.said[g].phrase)
        for answer, reference, matched in zip(answers, references, matches, strict=True)
        for p, g, _ in matched.pairs
        if reference.said[g].phrase
    ]
    total = sum(len(one.pairs) + len(one.spurious) + len(one.missed) for one in matches)
    share = len(said) / total if total else 0.0
    texts, truths = [text for text, _ in said], [[truth] for _, truth in said]
    worded = tools.captions.score(texts, truths)
    equal = sum(captions.phrases_equal(text, truth) for text, truth in said)
    ious = [segment_ious(shared_pixels(answer, true)) for answer, true in zip(answers, references, strict=True)]
    return {
        "pq": quality.pq,
        "sq": quality.sq,
        "rq": quality.rq,
        "bleu4": captions.bleu4(texts, truths) * share,
        "rouge_l": captions.rouge_l(texts, truths) * share,
        "cider": worded.cider * share,
        "meteor": worded.meteor * share,
        "exact": equal / total if total else 0.0,
        "map": caption_map_compat(answers, references, ious),
        "map_strict": caption_map(answers, references, ious, [one.ignored for one in matches]),
    }


def _owners(said: Sequence[Said]) -> NDArray[np.int64]:
    """Numbers the pixels by their segment, from 1; 0 = nobody's. Empty where there is no segment."""
    owner_HW = np.zeros((0, 0), dtype=np.int64)
    for number, one in enumerate(said, start=1):
        if one.mask is not None:
            mask_HW = mask_from_rle(one.mask)
            owner_HW = owner_HW if owner_HW.size else np.zeros(mask_HW.shape, dtype=np.int64)
            owner_HW[mask_HW] = number
    return owner_HW


PANOPTIC = Benchmark(
    ability=SegmentsPanoptic,
    reference=read_segments,
    ask=ask_segments,
    score=score_segments,
    protocol=(
        "Panoptic segmentation with captions, as Pix2Cap's release scores it. PQ, SQ and RQ are COCO's panoptic API's: "
        "equal class, IoU above 0.5, unlabelled pixels and crowds ignored, mean over the classes that occur. Captions "
        "are scored on matched segments alone, then multiplied by matched / (matched + spurious + missed), so that "
        "missed and spurious segments cost; BLEU-4 and ROUGE-L are cut by a Penn-Treebank-like tokenizer. The mAP is a "
        "mean over mask IoU 0.3 to 0.7 and METEOR 0 to 0.25. Its released form has quirks that are kept: predictions "
        "are not sorted by score, the truth is scored against the prediction letter by letter, and every overlapping "
        "pair of one class is a prediction (of one image in the order of the data here, of the segments' numbers "
        "there). Strictly, predictions are sorted by score, each takes one true segment at most, and its own words are "
        "scored. Both METEORs of the mAP are NLTK's without WordNet's synonyms."
    ),
    meanings={
        "pq": "panoptic quality: SQ times RQ, class by class",
        "sq": "segmentation quality: mean IoU of matched segments",
        "rq": "recognition quality: F1 of matching",
        "bleu4": "BLEU-4 of matched captions times their share",
        "rouge_l": "ROUGE-L of matched captions times their share",
        "cider": "CIDEr-D of matched captions times their share",
        "meteor": "METEOR of matched captions times their share; the release prints 0",
        "exact": "segments found and described word for word, of all that are true or predicted",
        "map": "mean AP over mask IoU and METEOR, as released",
        "map_strict": "the same with predictions sorted, matched one to one and scored word by word",
    },
    compat=frozenset({"pq", "sq", "rq", "bleu4", "rouge_l", "cider", "map"}),
    worded=frozenset({"cider", "meteor"}),
)
