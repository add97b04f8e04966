"""The data sets of the long-text benchmarks, small and made, in the layouts that their authors publish."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH_PX, HEIGHT_PX = 48, 32
URBAN1K = {"1": "A street with three cars.\nThe first is red.\n", "10": "A square.", "2": "Two cyclists wait."}
DOCCI = (("train_00000", "train"), ("test_00000", "test"), ("qual_dev_00000", "qual_dev"), ("test_00001", "test"))
DCI_FILE = "densely_captioned_images/annotations/0a1b.json"


def jpeg(number: int) -> bytes:
    """Returns a JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH_PX, HEIGHT_PX), (number * 40 % 256, 90, 160)).save(buffer, format="JPEG")
    return buffer.getvalue()


def mask_png(columns: slice) -> str:
    """Returns a mask of some columns as DCI writes it: zeros and ones in a PNG, as base64."""
    mask_HW = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.uint8)
    mask_HW[4:20, columns] = 1
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_urban1k(root: Path) -> None:
    """Writes pairs of files."""
    for folder in ("image", "caption"):
        (root / "Urban1k" / folder).mkdir(parents=True)
    for number, (name, text) in enumerate(URBAN1K.items()):
        (root / f"Urban1k/image/{name}.jpg").write_bytes(jpeg(number))
        (root / f"Urban1k/caption/{name}.txt").write_text(text, encoding="utf-8")


def write_docci(root: Path, records: int = len(DOCCI)) -> None:
    """Writes a JSON object a line, the splits in turn."""
    (root / "docci/images").mkdir(parents=True)
    lines = []
    for number in range(records):
        name, split = DOCCI[number % len(DOCCI)] if records <= len(DOCCI) else (f"train_{number:05d}", "train")
        if records <= len(DOCCI) or number == 0:
            (root / f"docci/images/{name}.jpg").write_bytes(jpeg(number))
        image = f"{name}.jpg" if records <= len(DOCCI) else "train_00000.jpg"
        described = f"A photograph, number {number}, described at length."
        lines.append({"example_id": name, "split": split, "image_file": image, "description": described})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (root / "docci/docci_descriptions.jsonlines").write_text(text, encoding="utf-8")


def write_sharegpt4v(root: Path, records: int) -> None:
    """Writes one JSON list; the first image lies with ShareGPT4V, the second with COCO, and so on in turn."""
    (root / "sharegpt4v/data/sam/images").mkdir(parents=True)
    (root / "coco/train2017").mkdir(parents=True, exist_ok=True)
    (root / "sharegpt4v/data/sam/images/sa_1.jpg").write_bytes(jpeg(1))
    (root / "coco/train2017/000000000009.jpg").write_bytes(jpeg(2))
    images = ("sam/images/sa_1.jpg", "coco/train2017/000000000009.jpg")
    plain = [
        {
            "id": f"{number:07d}",
            "image": images[number % 2],
            "conversations": [
                {"from": "human", "value": "<image>\nWhat do you see happening in this image?"},
                {"from": "gpt", "value": f"The image shows thing {number}.\nIt is seen from above."},
            ],
        }
        for number in range(records)
    ]
    path = root / "sharegpt4v/data/share-captioner_coco_lcs_sam_1246k_1107.json"
    path.write_text(json.dumps(plain), encoding="utf-8")


def write_dci(root: Path) -> None:
    """Writes a file an image, and the splits."""
    base = root / "densely_captioned_images"
    for folder in ("annotations", "photos"):
        (base / folder).mkdir(parents=True)
    masks = {
        "0": dci_mask(0, slice(2, 12), label="a tower", caption="A tower of grey stone.", mask_quality=0),
        "1": dci_mask(1, slice(20, 30), label="a wall", mask_quality=1),
        "2": dci_mask(2, slice(33, 40), mask_quality=2),
    }
    for number, (file, photo) in enumerate((("0a1b.json", "sa_1.jpg"), ("2c3d.json", "sa_2.jpg"))):
        (base / "photos" / photo).write_bytes(jpeg(number))
        plain = {
            "image": photo,
            "short_caption": f"A castle, number {number}.",
            "extra_caption": "The sky above it is clear.",
            "mask_data": masks if number == 0 else {},
            "mask_keys": list(masks) if number == 0 else [],
        }
        (base / "annotations" / file).write_text(json.dumps(plain), encoding="utf-8")
    splits = {"train": ["2c3d.json"], "valid": [], "test": ["0a1b.json"]}
    (base / "splits.json").write_text(json.dumps(splits), encoding="utf-8")


def dci_mask(number: int, columns: slice, **said: Any) -> dict[str, Any]:
    """Returns an entry of `mask_data`."""
    bounds = {"topLeft": {"x": columns.start, "y": 4}, "bottomRight": {"x": columns.stop, "y": 20}}
    tree: dict[str, Any] = {"parent": -1, "requirements": [], "bounds": bounds, "area": 16 * 10}
    return {"idx": number, "outer_mask": mask_png(columns), **tree, **said}
