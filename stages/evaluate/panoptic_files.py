"""Writes panoptic answers as COCO's panoptic results are laid out: a PNG of segment numbers an image, one JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.artifacts import write_json
from stages.evaluate.answers import Answer
from stages.vision import Mask, box_of_mask, mask_from_rle, panoptic_png, xywh_from_xyxy

FOLDER, INDEX = "panoptic", "panoptic.json"


def write_panoptic(
    answers: Sequence[tuple[str, Answer, Answer]], categories: Sequence[Mapping[str, Any]], directory: Path
) -> None:
    """Writes `panoptic/KEY.png` for each image and `panoptic.json`, segments with `caption` and `score`.

    `answers` are keys of samples, which become image ids, what was said, and what is true, which tells their sizes.
    `categories` are those of a manifest: {"id", "name", "thing"}. A segment without a pixel, or of another category, is
    left out.
    """
    (directory / FOLDER).mkdir()
    ids = {str(one["name"]): int(one["id"]) for one in categories}
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for key, answer, reference in answers:
        masks = [(one, mask_from_rle(one.mask)) for one in answer.said if one.mask is not None and one.category in ids]
        kept = [(one, mask_HW) for one, mask_HW in masks if mask_HW.any()]
        height, width = next((one.mask.height_px, one.mask.width_px) for one in reference.said if one.mask is not None)
        ids_HW, segments = np.zeros((height, width), dtype=np.int32), list[dict[str, Any]]()
        for number, (one, mask_HW) in enumerate(kept, start=1):
            ids_HW[mask_HW] = number
            said = {"caption": one.phrase, "score": one.score, "category_id": ids[one.category], "iscrowd": 0}
            segments.append({"id": number, **said, "area": int(mask_HW.sum()), "bbox": _xywh(mask_HW)})
        (directory / FOLDER / f"{key}.png").write_bytes(panoptic_png(ids_HW))
        images.append({"id": key, "width": width, "height": height})
        annotations.append({"image_id": key, "file_name": f"{key}.png", "segments_info": segments})
    named = [{"id": one["id"], "name": one["name"], "isthing": int(one["thing"])} for one in categories]
    write_json(directory / INDEX, {"images": images, "annotations": annotations, "categories": named})


def _xywh(mask_HW: Mask) -> list[float]:
    box = box_of_mask(mask_HW)
    assert box is not None, "whoever calls has left out empty masks"  # noqa: S101
    return list(xywh_from_xyxy(box))
