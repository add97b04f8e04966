"""Masks in files: a PNG or run lengths, of the image's size, with something in them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import InputError
from stages.mask_files import read_mask
from stages.vision import rle_from_mask

MASK_HW = np.zeros((20, 30), dtype=np.bool_)
MASK_HW[3:9, 4:25] = True


def read(path: Path) -> np.ndarray:
    return read_mask(path, width_px=30, height_px=20)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_all_of_a_png_that_is_not_black_is_meant(tmp_path: Path, mode: str) -> None:
    Image.fromarray(MASK_HW.astype(np.uint8) * (255 if mode == "1" else 40)).convert(mode).save(tmp_path / "mask.png")

    assert (read(tmp_path / "mask.png") == MASK_HW).all()


@pytest.mark.parametrize("counts", ["text", "list"])
def test_run_lengths_are_cocos(tmp_path: Path, counts: str) -> None:
    rle = rle_from_mask(MASK_HW)
    runs = np.diff(np.flatnonzero(np.diff(MASK_HW.ravel(order="F"), prepend=False)), prepend=0).tolist()
    plain = {"size": [20, 30], "counts": rle.counts if counts == "text" else [*runs, 600 - sum(runs)]}
    (tmp_path / "mask.json").write_text(json.dumps(plain))

    assert (read(tmp_path / "mask.json") == MASK_HW).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is neither a PNG nor JSON"),
        (b"[1, 2]", "needs size and counts"),
        (b'{"size": [20, 30], "counts": [1, 2]}', "do not add up to 30 x 20"),
        (b'{"size": null, "counts": ""}', "is no mask"),
        (b'{"size": [30, 20], "counts": [0, 600]}', "has 20 x 30 pixels, the image 30 x 20"),
        (b'{"size": [20, 30], "counts": [600]}', "has not one pixel"),
        (b"\xff\xd8\xff\xe0", "needed is a PNG or COCO"),
        (b"\x89PNG\r\n\x1a\nrest", "neither a JPEG nor a PNG"),
        (b"[" * 100_000, "is neither a PNG nor JSON"),
    ],
)
def test_what_is_no_mask_of_the_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mask").write_bytes(content)

    with pytest.raises(InputError, match=message) as refused:
        read(tmp_path / "mask")
    assert str(tmp_path / "mask") in str(refused.value)


@pytest.mark.parametrize("path", ["gone.png", ".", "/dev/zero"])
def test_what_is_no_file_is_not_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=re.escape("there is no file")):
        read(tmp_path / path)
