"""Writes scenes the way the authors of real data sets published theirs: same files, same keys, same types."""

import io
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.shapes.scenes import SHAPES, Scene
from stages.shapes.words import (
    dialogue,
    grounded_caption,
    segment_description,
    short_caption,
    thing_phrase,
)
from stages.vision import Box, box_of_mask, panoptic_png, rle_from_mask

_REQUESTS = ("Describe the picture briefly.", "What does the picture show?", "Name the shapes from left to right.")
_GROUND_CATEGORY = len(SHAPES) + 1
_CATEGORIES = [
    {"supercategory": "shape", "isthing": 1, "id": number, "name": name, "color": [60 * number, 40, 255 - 60 * number]}
    for number, name in enumerate(SHAPES, start=1)
] + [{"supercategory": "ground", "isthing": 0, "id": _GROUND_CATEGORY, "name": "ground", "color": [90, 90, 90]}]


class Layout(ABC):
    """A data set that scenes are added to one by one."""

    def __init__(self, root: Path) -> None:
        """Writes below `root`, the folder of all data sets."""
        self._root = root

    @abstractmethod
    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Writes the scene's files and remembers what the annotations say of it."""

    @abstractmethod
    def finish(self) -> None:
        """Writes the annotation files."""

    def _save(self, name: str, content: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _save_json(self, name: str, plain: Any) -> None:
        draft = f"{name}.{os.getpid()}.draft"
        self._save(draft, json.dumps(plain, ensure_ascii=False).encode("utf-8"))
        (self._root / draft).replace(self._root / name)


class LlavaAlignment(Layout):
    """LLaVA-Pretrain: one request and one short caption a picture."""

    def __init__(self, root: Path) -> None:
        """Starts without pairs."""
        super().__init__(root)
        self._pairs: list[dict[str, Any]] = []

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds a pair; the image placeholder stands before or after the request."""
        name, request = f"{number:09d}", _REQUESTS[number % len(_REQUESTS)]
        image = f"{number // 1000:05d}/{name}.jpg"
        self._save(f"llava/images/{image}", jpeg)
        asked = f"<image>\n{request}" if number % 2 else f"{request}\n<image>"
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": short_caption(scene)}]
        self._pairs.append({"id": name, "image": image, "conversations": said})

    def finish(self) -> None:
        """Writes the list of pairs."""
        self._save_json("llava/blip_laion_cc_sbu_558k.json", self._pairs)


class VisualGenome(Layout):
    """Visual Genome: a phrase for each box; training pictures only."""

    def __init__(self, root: Path) -> None:
        """Starts without pictures."""
        super().__init__(root)
        self._images: list[dict[str, Any]] = []
        self._regions: list[dict[str, Any]] = []

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds a picture and its regions."""
        image_id = 1_000_001 + number
        height, width = scene.owner_HW.shape
        self._save(f"visual_genome/VG_100K/{image_id}.jpg", jpeg)
        self._images.append({
            "width": width, "url": f"https://example.invalid/VG_100K/{image_id}.jpg", "height": height,
            "image_id": image_id, "coco_id": None, "flickr_id": None,
        })  # fmt: skip
        regions = [
            {"region_id": 10 * image_id + at, "width": w, "height": h, "image_id": image_id, "phrase": phrase,
             "y": y, "x": x}
            for at, (phrase, (x, y, w, h)) in enumerate(_described(scene))
        ]  # fmt: skip
        self._regions.append({"regions": regions, "id": image_id})

    def finish(self) -> None:
        """Writes regions and sizes."""
        self._save_json("visual_genome/region_descriptions.json", self._regions)
        self._save_json("visual_genome/image_data.json", self._images)


class VisualGenomeTest(Layout):
    """GRiT's split of Visual Genome for testing: an image entry for every region, image id = annotation id."""

    def __init__(self, root: Path) -> None:
        """Starts without regions."""
        super().__init__(root)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds a picture and its regions."""
        name = f"{2_000_001 + number}.jpg"
        height, width = scene.owner_HW.shape
        self._save(f"visual_genome/VG_100K_2/{name}", jpeg)
        for phrase, (x, y, w, h) in _described(scene):
            region_id = len(self._images) + 1
            self._images.append({"file_name": name, "height": height, "width": width, "id": region_id})
            self._annotations.append({
                "id": region_id, "image_id": region_id, "category_id": 1, "iscrowd": 0, "bbox": [x, y, w, h],
                "area": w * h, "caption": phrase,
            })  # fmt: skip

    def finish(self) -> None:
        """Writes test_caption.json."""
        category = {"supercategory": "object", "id": 1, "name": "object"}
        plain = {"images": self._images, "annotations": self._annotations, "categories": [category]}
        self._save_json("visual_genome/test_caption.json", plain)


class GrandF(Layout):
    """GranD-f, the human-annotated file: captions whose phrases carry masks; training pictures."""

    def __init__(self, root: Path) -> None:
        """Starts without captions."""
        super().__init__(root)
        self._records: list[dict[str, Any]] = []

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds a caption with a mask for each thing and for the ground."""
        stem = f"sa_{number + 1:06d}"
        height, width = scene.owner_HW.shape
        self._save(f"grandf/GranDf_HA_images/train/{stem}.jpg", jpeg)
        said = grounded_caption(scene)
        groundings = {
            said.text[start:end]: {"token_positives": [start, end], "rle_masks": [rle_of(scene, owner)]}
            for (start, end), owner in zip(said.spans, owners_of(scene), strict=True)
        }
        self._records.append({
            "file_name": f"{stem}.jpg", "height": height, "width": width, "image_id": stem, "caption": said.text,
            "groundings": groundings,
        })  # fmt: skip

    def finish(self) -> None:
        """Writes the list of captions."""
        self._save_json("grandf/annotations/train/GranDf_HA_GCG_train.json", self._records)


class GrandFVal(Layout):
    """GranD-f's benchmark pair: captions with labels, masks in the order of the labels."""

    def __init__(self, root: Path) -> None:
        """Starts without captions."""
        super().__init__(root)
        self._captions: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []
        self._masks: list[dict[str, Any]] = []

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds a caption, its labels and their masks."""
        stem = f"sa_{900_001 + number:06d}"
        height, width = scene.owner_HW.shape
        self._save(f"grandf/GranDf_HA_images/val_test/{stem}.jpg", jpeg)
        said = grounded_caption(scene)
        labels = [said.text[start:end] for start, end in said.spans]
        self._captions.append({"id": number, "image_id": stem, "caption": said.text, "labels": labels})
        self._images.append({"id": stem, "height": height, "width": width, "file_name": f"{stem}.jpg"})
        for owner in owners_of(scene):
            self._masks.append({
                "id": len(self._masks) + 1, "image_id": stem, "category_id": 1, "iscrowd": 0,
                "area": int(scene.mask(owner).sum()), "bbox": bbox_of(scene, owner),
                "segmentation": rle_of(scene, owner),
            })  # fmt: skip

    def finish(self) -> None:
        """Writes the pair."""
        folder, names = "grandf/annotations/val_test", [{"id": image["id"]} for image in self._images]
        captions = {"images": names, "annotations": self._captions}
        self._save_json(f"{folder}/val_gcg_coco_caption_gt.json", captions)
        category = [{"id": 1, "name": "object"}]
        masks = {"images": self._images, "annotations": self._masks, "categories": category}
        self._save_json(f"{folder}/val_gcg_coco_mask_gt.json", masks)


class Pix2Cap(Layout):
    """Pix2Cap-COCO with COCO's panoptic PNGs: a description for each segment; training also has LLaVA's dialogues."""

    def __init__(self, root: Path, *, split: str, first_id: int) -> None:
        """Starts without pictures."""
        super().__init__(root)
        self._split, self._first_id = split, first_id
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._dialogues: list[dict[str, Any]] = []

    def add(self, number: int, scene: Scene, jpeg: bytes) -> None:
        """Adds a picture, its panoptic PNG and its segments."""
        image_id = self._first_id + number
        stem = f"{image_id:012d}"
        height, width = scene.owner_HW.shape
        owners = owners_of(scene)
        ids = {owner: 1 + (at + 1) * 2_500_043 for at, owner in enumerate(owners)}  # all three bytes of an id are used
        ids_HW = np.zeros((height, width), dtype=np.int32)
        for owner in owners:
            ids_HW[scene.mask(owner)] = ids[owner]
        self._save(f"coco/{self._split}2017/{stem}.jpg", jpeg)
        self._save(f"coco/panoptic_{self._split}2017/{stem}.png", panoptic_png(ids_HW))
        self._images.append({"file_name": f"{stem}.jpg", "height": height, "width": width, "id": image_id})
        segments = [
            {"id": ids[owner], "category_id": _category(scene, owner), "iscrowd": 0, "bbox": bbox_of(scene, owner),
             "area": int(scene.mask(owner).sum()), "description": segment_description(scene, owner)}
            for owner in owners
        ]  # fmt: skip
        self._annotations.append({"segments_info": segments, "file_name": f"{stem}.png", "image_id": image_id})
        turns = [[{"from": "human", "value": ask}, {"from": "gpt", "value": reply}] for ask, reply in dialogue(scene)]
        turns[0][0]["value"] = f"<image>\n{turns[0][0]['value']}"
        said = [message for turn in turns for message in turn]
        self._dialogues.append({"id": stem, "image": f"{stem}.jpg", "conversations": said})

    def finish(self) -> None:
        """Writes the panoptic JSON, and for training the dialogues."""
        plain = {"images": self._images, "annotations": self._annotations, "categories": _CATEGORIES}
        self._save_json(f"pix2cap_coco/pix2cap_coco_{self._split}.json", plain)
        if self._split == "train":
            self._save_json("llava/llava_instruct_150k.json", self._dialogues)


def jpeg_of(scene: Scene) -> bytes:
    """Encodes a scene's picture; colours keep their full resolution."""
    buffer = io.BytesIO()
    Image.fromarray(scene.pixels_HW3).save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def owners_of(scene: Scene) -> list[int]:
    """Lists what a scene is made of: its things from left to right, then the ground (-1)."""
    return [*range(len(scene.things)), -1]


def _described(scene: Scene) -> list[tuple[str, list[int]]]:
    """Lists phrases with boxes: every thing, and all that is to be said about its looks."""
    return [(thing_phrase(thing), bbox_of(scene, number)) for number, thing in enumerate(scene.things)]


def _category(scene: Scene, owner: int) -> int:
    return _GROUND_CATEGORY if owner < 0 else 1 + SHAPES.index(scene.things[owner].shape)


def rle_of(scene: Scene, owner: int) -> dict[str, Any]:
    """Returns what belongs to an owner as COCO writes run lengths."""
    rle = rle_from_mask(scene.mask(owner))
    return {"size": [rle.height_px, rle.width_px], "counts": rle.counts}


def bbox_of(scene: Scene, owner: int) -> list[int]:
    """Returns the box around it: x, y, width, height in pixels."""
    return _xywh(box_of_mask(scene.mask(owner)))


def _xywh(box_xyxy_px: Box | None) -> list[int]:
    assert box_xyxy_px is not None, "every thing of a scene shows, and so does its ground"  # noqa: S101 - our own promise
    x0, y0, x1, y1 = (int(edge) for edge in box_xyxy_px)
    return [x0, y0, x1 - x0, y1 - y0]
