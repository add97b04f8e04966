"""Semantic segmentation: a region a class, in the numbering of ADE20K, COCO-Stuff and Mapillary."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import InputError
from stages.vision import mask_from_rle
from tests.stages.conversion import COMMITTED, convert
from tests.stages.raw_edits import reasons, skipped

LABELS = "semantic/ade20k/annotations/training/ADE_train_00000001.png"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


def small_maps(raw: Path, labels: Path, images: Path, numbers: list[list[int]], *, mode: str = "L") -> None:
    """Writes one picture and its map."""
    for folder in (labels, images):
        (raw / folder).mkdir(parents=True)
    picture = Image.fromarray(np.array(numbers, dtype=np.uint8))
    if mode == "P":
        picture.putpalette([255, 0, 0] * 256)
    picture.save(raw / labels / "one.png")
    Image.new("RGB", picture.size).save(raw / images / "one.jpg")


def test_classes_of_ade20k_are_the_pixels_of_their_numbers(tmp_path: Path) -> None:
    names = json.loads((COMMITTED / "semantic/ade20k_classes.json").read_text())
    numbers = np.asarray(Image.open(COMMITTED / LABELS))
    sample = convert(tmp_path, COMMITTED, source="ade20k").samples()[0]

    assert [region.phrase for region in sample.regions] == [names[one - 1] for one in np.unique(numbers) if one]
    for region in sample.regions:
        assert region.mask is not None
        assert (mask_from_rle(region.mask) == (numbers == names.index(region.phrase) + 1)).all()


def test_coco_stuff_counts_from_zero_and_leaves_out_255(raw: Path, tmp_path: Path) -> None:
    small_maps(raw, Path("semantic/cocostuff/train2017"), Path("coco/more"), [[0, 0, 181], [255, 255, 181]])
    shutil.copy(raw / "coco/more/one.jpg", raw / "coco/train2017/one.jpg")
    lines = ["0: unlabeled", "1: person", *(f"{number}: thing {number}" for number in range(2, 182)), "182: wood"]
    (raw / "semantic/cocostuff_classes.txt").write_text("\n".join(lines))

    made = convert(tmp_path, raw, source="coco_stuff")

    (sample,) = made.samples()
    assert [(region.phrase, region.box_xyxy_px) for region in sample.regions] == [
        ("person", (0, 0, 2, 1)), ("wood", (2, 0, 3, 2)),
    ]  # fmt: skip
    assert made.facts["repaired"] == {}


def test_mapillary_names_its_classes_in_its_own_config_and_its_maps_have_palettes(raw: Path, tmp_path: Path) -> None:
    folder = Path("semantic/mapillary/training")
    small_maps(raw, folder / "v2.0/labels", folder / "images", [[0, 1, 1], [2, 2, 2]], mode="P")
    labels = [{"readable": "Bird"}, {"readable": "Ground Animal"}, {"readable": "Unlabeled"}]
    (raw / "semantic/mapillary/config_v2.0.json").write_text(json.dumps({"labels": labels}))

    (sample,) = convert(tmp_path, raw, source="mapillary").samples()

    assert [(region.phrase, region.box_xyxy_px) for region in sample.regions] == [
        ("bird", (0, 0, 1, 1)), ("ground animal", (1, 0, 3, 1)),
    ]  # fmt: skip


def test_a_number_without_a_class_is_counted(raw: Path, tmp_path: Path) -> None:
    numbers = np.asarray(Image.open(raw / LABELS)).copy()
    numbers[0, 0] = 200
    Image.fromarray(numbers).save(raw / LABELS)

    assert convert(tmp_path, raw, source="ade20k").facts["repaired"] == {"number without a class: left unlabelled": 1}


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("L", (10, 10), 5), "mask has another size than its image"),
        (Image.new("RGB", (640, 427)), "mask is no picture of numbers"),
        (Image.new("L", (640, 427), 0), "no region is left"),
    ],
    ids=["size", "mode", "nothing"],
)
def test_a_map_that_does_not_fit_is_skipped(raw: Path, tmp_path: Path, picture: Image.Image, reason: str) -> None:
    picture.save(raw / LABELS)

    made = convert(tmp_path, raw, source="ade20k")

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"] == "ade20k_train[0] ADE_train_00000001.png"
    assert made.facts["samples"] == 1


@pytest.mark.parametrize("kept", [0, 20, 300])
def test_a_cut_off_map_is_skipped(raw: Path, tmp_path: Path, kept: int) -> None:
    (raw / LABELS).write_bytes((raw / LABELS).read_bytes()[:kept])

    assert reasons(convert(tmp_path, raw, source="ade20k")) == {"mask is damaged": 1}


def test_a_map_without_its_picture_is_skipped(raw: Path, tmp_path: Path) -> None:
    (raw / "semantic/ade20k/images/training/ADE_train_00000001.jpg").unlink()

    assert reasons(convert(tmp_path, raw, source="ade20k")) == {"image is missing": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"7", b"\xff\xfe"])
def test_a_broken_list_of_classes_ends_the_conversion_and_is_named(raw: Path, tmp_path: Path, content: bytes) -> None:
    (raw / "semantic/ade20k_classes.json").write_bytes(content)

    with pytest.raises(InputError, match=r"ade20k_classes\.json"):
        convert(tmp_path, raw, source="ade20k")
