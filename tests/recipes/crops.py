"""Eight real pictures with real masks and texts: what the sample pack's photographs show around eight things, cut out.

Masks are COCO's panoptic ones, texts are Pix2Cap's of the pack; they are written as a data set of one's own.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.vision import panoptic_ids
from tests.stages.conversion import RAW

SIDE_PX = 144
EACH = 4  # crops of a photograph
REGIONS = 2  # of a crop, the largest
LEAST_SHARE = 0.04  # of a crop, for a region


def write_crops(folder: Path, *, each: int = EACH) -> int:
    """Writes crops, masks and `data.jsonl` into a folder; returns how many pictures."""
    (folder / "masks").mkdir(parents=True)
    lines = []
    for split in ("train", "val"):
        told = json.loads((RAW / f"pix2cap_coco/pix2cap_coco_{split}.json").read_text(encoding="utf-8"))
        (entry,) = told["annotations"]
        (image,) = told["images"]
        photograph = Image.open(RAW / f"coco/{split}2017" / image["file_name"]).convert("RGB")
        ids_HW = panoptic_ids((RAW / f"coco/panoptic_{split}2017" / entry["file_name"]).read_bytes())
        said = {one["id"]: one["description"] for one in entry["segments_info"] if not one["iscrowd"]}
        things = sorted((one for one in entry["segments_info"] if one["id"] in said), key=lambda one: -one["area"])
        for number, one in enumerate(things[3 : 3 + each]):  # the largest are background
            lines.append(_crop(folder, f"{split}{number}", photograph, ids_HW, one["bbox"], said))
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _crop(
    folder: Path, name: str, photograph: Image.Image, ids_HW: Any, box_xywh: list[float], said: dict[int, str]
) -> dict[str, Any]:
    left, top = (
        int(min(max(start + length / 2 - SIDE_PX / 2, 0), most - SIDE_PX))
        for start, length, most in zip(box_xywh[:2], box_xywh[2:], photograph.size, strict=True)
    )
    photograph.crop((left, top, left + SIDE_PX, top + SIDE_PX)).save(folder / f"{name}.png")
    inside_HW = ids_HW[top : top + SIDE_PX, left : left + SIDE_PX]
    found, counts = np.unique(inside_HW, return_counts=True)
    largest = sorted((count, int(one)) for one, count in zip(found, counts, strict=True) if int(one) in said)
    caption, regions = "", []
    for count, one in reversed(largest[-REGIONS:]):
        if count < LEAST_SHARE * SIDE_PX**2:
            continue
        phrase = said[one].partition(",")[0].rstrip(".")
        mask = f"masks/{name}_{one}.png"
        Image.fromarray((inside_HW == one).astype(np.uint8) * 255).save(folder / mask)
        caption = f"{caption}; {phrase}" if caption else phrase
        regions.append({"mask": mask, "phrase": phrase, "spans": [[len(caption) - len(phrase), len(caption)]]})
    return {"image": f"{name}.png", "caption": f"{caption}.", "regions": regions}
