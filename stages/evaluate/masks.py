"""Scores of masks: IoU, AP at IoU 0.5, and how many reference masks were found.

P predicted phrases, G phrases of the reference. Each score has a `compat` form, computed as the released GLaMM
evaluation does, so that numbers can be compared, and where that form forgives mistakes a `strict` one beside it.
"""

import contextlib
import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

from orchestrator.records import record
from stages.samples import Rle

MATCH_IOU = 0.5
MATCH_SIMILARITY = 0.5

Floats = NDArray[np.float64]
Similarity = Callable[[str, str], float]


@record
class Grounding:
    """The phrases of one image and the mask of each, predicted or true."""

    phrases: tuple[str, ...]
    masks: tuple[Rle, ...]


@record
class Pair:
    """What was predicted for an image, and what is true of it."""

    predicted: Grounding
    truth: Grounding

    def phrases(self) -> tuple[str, ...]:
        """Returns the phrases of both."""
        return self.predicted.phrases + self.truth.phrases


def mean_iou(pairs: Sequence[Pair]) -> float:
    """Averages over images the mean IoU of the greedily matched pairs alone; an image without a match counts 0.

    Compat: phrases without a partner cost nothing, neither invented nor missed ones.
    """
    return mean([mean([iou for *_, iou in greedy_pairs(pair_ious(pair))]) for pair in pairs])


def mean_iou_strict(pairs: Sequence[Pair]) -> float:
    """Averages over images the mean IoU of every reference mask under the best assignment; a missed one counts 0."""
    return mean([_strict_iou(pair) for pair in pairs if pair.truth.masks])


def ap50(pairs: Sequence[Pair]) -> float:
    """Returns COCO's mask AP at IoU 0.5 without classes, every prediction scored 1.0, at most 100 an image."""
    truth, predicted = _coco_truth(pairs), _coco_predictions(pairs)
    if not truth["annotations"] or not predicted:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(predicted), "segm")
        evaluator.params.iouThrs = np.array([MATCH_IOU])
        evaluator.params.maxDets = [100]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    precision: Floats = evaluator.eval["precision"]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def mask_recall(pairs: Sequence[Pair], similarity: Similarity) -> float:
    """Returns the share of reference phrases found: mask IoU and phrase similarity both at least 0.5.

    Compat: an image's matching stops at its first best pair that fails either test, ties go to the earlier true mask,
    and the number of a mask is that of its phrase: where a matched one has none, the image's hits are all lost.
    """
    found = sum(_hits_until_first_miss(pair, similarity) for pair in pairs)
    return _share(found, sum(len(pair.truth.phrases) for pair in pairs))


def mask_recall_strict(pairs: Sequence[Pair], similarity: Similarity) -> float:
    """Returns the share of reference phrases found when masks are assigned one to one first and tested afterwards."""
    found = 0
    for pair in pairs:
        matches = best_pairs(pair_ious(pair))
        found += sum(_is_hit(pair, p, g, iou, similarity) for p, g, iou in matches)
    return _share(found, sum(len(pair.truth.masks) for pair in pairs))


def pair_ious(pair: Pair) -> Floats:
    """Returns the IoU of every predicted mask with every true one, [P, G]."""
    if not pair.predicted.masks or not pair.truth.masks:
        return np.zeros((len(pair.predicted.masks), len(pair.truth.masks)))
    predicted = [to_coco(mask) for mask in pair.predicted.masks]
    truth = [to_coco(mask) for mask in pair.truth.masks]
    return np.asarray(coco_mask.iou(predicted, truth, [0] * len(truth)), dtype=np.float64)


def greedy_pairs(ious_PG: Floats) -> list[tuple[int, int, float]]:
    """Matches by taking the largest IoU left, over and over, until none is above 0: (predicted, true, IoU)."""
    left, matched = ious_PG.copy(), []
    while left.size and left.max() > 0:
        p, g = (int(index) for index in np.unravel_index(int(left.argmax()), left.shape))
        matched.append((p, g, float(left[p, g])))
        left[p, :] = left[:, g] = 0
    return matched


def best_pairs(ious_PG: Floats) -> list[tuple[int, int, float]]:
    """Matches one to one with the largest sum of IoUs (Hungarian method); pairs that do not overlap are left out."""
    rows, columns = linear_sum_assignment(ious_PG, maximize=True)
    pairs = [(int(p), int(g), float(ious_PG[p, g])) for p, g in zip(rows, columns, strict=True)]
    return [pair for pair in pairs if pair[2] > 0]


Areas = tuple[int, int]  # pixels of the intersection, and of the union


def areas(predicted: Rle | None, truth: Rle) -> Areas:
    """Counts the pixels that two masks share, and those of both together; None is an empty mask."""
    true = to_coco(truth)
    if predicted is None:
        return 0, int(coco_mask.area(true))
    both = [to_coco(predicted), true]
    shared, together = (coco_mask.merge(both, intersect=only_shared) for only_shared in (True, False))
    return int(coco_mask.area(shared)), int(coco_mask.area(together))


def iou(intersection: int, together: int) -> float:
    """Returns the IoU; nothing predicted where nothing is true counts as 1."""
    return intersection / together if together else 1.0


def cumulative_iou(found: Sequence[Areas]) -> float:
    """Divides the sum of all intersections by that of all unions; nothing at all on both sides counts as 1."""
    return iou(sum(shared for shared, _ in found), sum(together for _, together in found)) if found else 0.0


def cumulative_iou_compat(found: Sequence[Areas]) -> float:
    """Divides as the released script does: 1e-10 more than the union."""
    return sum(shared for shared, _ in found) / (sum(together for _, together in found) + 1e-10)


def mean_iou_compat(found: Sequence[Areas]) -> float:
    """Averages as the released script does: every union is 1e-5 larger, and so is the number of expressions."""
    ious = [shared / (together + 1e-5) if together else 1.0 for shared, together in found]
    return sum(ious) / (len(ious) + 1e-5)


def to_coco(mask: Rle) -> dict[str, object]:
    """Returns the mask as pycocotools wants it."""
    return {"size": [mask.height_px, mask.width_px], "counts": mask.counts.encode()}


def _strict_iou(pair: Pair) -> float:
    return sum(iou for *_, iou in best_pairs(pair_ious(pair))) / len(pair.truth.masks)


def _hits_until_first_miss(pair: Pair, similarity: Similarity) -> int:
    hits = 0
    for g, p, overlap in greedy_pairs(pair_ious(pair).T):
        if overlap < MATCH_IOU:
            break
        if p >= len(pair.predicted.phrases) or g >= len(pair.truth.phrases):
            return 0  # the released script catches its own IndexError here and goes on with the next image
        if not _is_hit(pair, p, g, overlap, similarity):
            break
        hits += 1
    return hits


def _is_hit(pair: Pair, p: int, g: int, overlap: float, similarity: Similarity) -> bool:
    if overlap < MATCH_IOU:
        return False
    return similarity(pair.predicted.phrases[p], pair.truth.phrases[g]) >= MATCH_SIMILARITY


def _coco_truth(pairs: Sequence[Pair]) -> dict[str, list[dict[str, object]]]:
    annotations: list[dict[str, object]] = []
    for image_id, pair in enumerate(pairs, start=1):
        for mask in pair.truth.masks:
            annotations.append({**_coco_object(image_id, mask), "id": len(annotations) + 1, "iscrowd": 0})
    images = [_coco_image(image_id, pair) for image_id, pair in enumerate(pairs, start=1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "anything"}]}


def _coco_image(image_id: int, pair: Pair) -> dict[str, object]:
    masks = pair.truth.masks or pair.predicted.masks
    height_px, width_px = (masks[0].height_px, masks[0].width_px) if masks else (1, 1)
    return {"id": image_id, "height": height_px, "width": width_px}


def _coco_predictions(pairs: Sequence[Pair]) -> list[dict[str, object]]:
    return [
        {**_coco_object(image_id, mask), "score": 1.0}
        for image_id, pair in enumerate(pairs, start=1)
        for mask in pair.predicted.masks
    ]


def _coco_object(image_id: int, mask: Rle) -> dict[str, object]:
    rle = to_coco(mask)
    area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    return {"image_id": image_id, "category_id": 1, "segmentation": rle, "area": area, "bbox": box}


def mean(values: Sequence[float]) -> float:
    """Averages; 0 where there is nothing."""
    return float(np.mean(values)) if values else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
