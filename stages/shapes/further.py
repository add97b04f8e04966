"""Further layouts, for recipes that ask for more than the usual ones: GranD, RefCOCO, ADE20K (and narratives.py)."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.shapes.layouts import Layout, bbox_of, owners_of, rle_of
from stages.shapes.narratives import Narratives
from stages.shapes.scenes import SHAPES, Scene
from stages.shapes.words import grounded_caption, segment_description, short_caption, short_phrase, thing_phrase

_VAL_EVERY = 8  # of RefCOCO's scenes the last of so many is for validation: all splits are in one file


class Grand(Layout):
    """GranD: a file of annotations an image, objects with attributes, a dense caption and a short one."""

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Writes an image and its annotations."""
        name = f"sa_{number + 1:06d}"
        self._save(f"grand/images/{name}.jpg", jpeg)
        owners, said, short = owners_of(scene), grounded_caption(scene), short_caption(scene)
        boxes = [_xyxy(bbox_of(scene, owner)) for owner in owners]
        dense = [
            {"phrase": said.text[start:end], "tokens_positive": [start, end], "ids": [place], "bbox": [boxes[place]]}
            for place, (start, end) in enumerate(said.spans)
        ]
        brief = []
        for place, thing in enumerate(scene.things):
            phrase = short_phrase(thing)
            start = short.lower().index(phrase)
            span = [start, start + len(phrase)]
            brief.append({"phrase": phrase, "tokens_positive": span, "id": place, "bbox": boxes[place]})
        self._save_json(f"grand/annotations/{name}.json", {
            f"{name}.jpg": {
                "objects": [
                    {"id": place, "bbox": boxes[place], "labels": [_label(scene, owner)], "score": 0.9, "depth": 0.5,
                     "attributes": [segment_description(scene, owner)], "segmentation": rle_of(scene, owner),
                     "segmentation_source": "SAM"}
                    for place, owner in enumerate(owners)
                ],
                "floating_objects": [], "floating_attributes": [], "relationships": {}, "id_counter": len(owners),
                "short_captions": [{"caption": short, "details": brief}],
                "dense_caption": {"caption": said.text, "details": dense},
            },
        })  # fmt: skip

    def finish(self) -> None:
        """Has nothing left to write."""


class RefCoco(Layout):
    """RefCOCO: expressions that mean one object, in a pickle, with COCO's instances beside it."""

    def __init__(self, root: Path) -> None:
        """Starts without references."""
        super().__init__(root)
        self._refs: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []
        self._objects: list[dict[str, Any]] = []

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds an image, with two expressions for each thing."""
        name, (height, width) = f"COCO_train2014_{number + 1:012d}.jpg", scene.owner_HW.shape
        self._save(f"images/mscoco/images/train2014/{name}", jpeg)
        self._images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
        split = "val" if number % _VAL_EVERY == _VAL_EVERY - 1 else "train"
        for owner, thing in enumerate(scene.things):
            ann_id = len(self._objects) + 1
            self._objects.append({
                "id": ann_id, "image_id": number + 1, "category_id": 1 + SHAPES.index(thing.shape), "iscrowd": 0,
                "bbox": bbox_of(scene, owner), "segmentation": rle_of(scene, owner),
                "area": int(scene.mask(owner).sum()),
            })  # fmt: skip
            sentences = [
                {"sent": said, "raw": said, "sent_id": 2 * ann_id + place, "tokens": said.split()}
                for place, said in enumerate((short_phrase(thing), thing_phrase(thing)))
            ]
            self._refs.append({
                "ref_id": ann_id, "ann_id": ann_id, "image_id": number + 1, "split": split, "sentences": sentences,
                "category_id": 1 + SHAPES.index(thing.shape), "file_name": name.replace(".jpg", f"_{ann_id}.jpg"),
                "sent_ids": [one["sent_id"] for one in sentences],
            })  # fmt: skip

    def finish(self) -> None:
        """Writes references and objects."""
        categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES, start=1)]
        plain = {"images": self._images, "annotations": self._objects, "categories": categories}
        self._save_json("refcoco/instances.json", plain)
        self._save("refcoco/refs(unc).p", pickle.dumps(self._refs, protocol=2))


class Ade20k(Layout):
    """ADE20K: a picture of class numbers beside each image; 0 is unlabelled."""

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Writes an image and its picture of numbers."""
        name = f"ADE_train_{number + 1:08d}"
        numbers_HW = np.zeros(scene.owner_HW.shape, dtype=np.uint8)
        for owner, thing in enumerate(scene.things):
            numbers_HW[scene.mask(owner)] = 1 + SHAPES.index(thing.shape)
        buffer = io.BytesIO()
        Image.fromarray(numbers_HW).save(buffer, format="PNG")
        self._save(f"semantic/ade20k/images/training/{name}.jpg", jpeg)
        self._save(f"semantic/ade20k/annotations/training/{name}.png", buffer.getvalue())

    def finish(self) -> None:
        """Writes the names of the classes."""
        self._save_json("semantic/ade20k_classes.json", list(SHAPES))


FURTHER: Mapping[str, type[Layout]] = {
    "grand": Grand,
    "refcoco": RefCoco,
    "ade20k": Ade20k,
    "narratives": Narratives,
}


def _label(scene: Scene, owner: int) -> str:
    return "ground" if owner < 0 else scene.things[owner].shape


def _xyxy(box_xywh_px: list[int]) -> list[int]:
    x, y, width, height = box_xywh_px
    return [x, y, x + width, y + height]
