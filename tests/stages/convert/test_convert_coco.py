"""COCO's captions, instances and panoptic segments, and object parts in its layout; broken ones go alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import InputError
from stages.vision import box_of_mask, mask_from_rle
from tests.stages.conversion import COMMITTED, convert
from tests.stages.raw_edits import edit, reasons, skipped

CAPTIONS, INSTANCES = (f"coco/annotations/{kind}_val2017.json" for kind in ("captions", "instances"))
PANOPTIC = "coco/annotations/panoptic_train2017.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


# ---------------------------------------------------------------------------------------------------------- captions


def test_an_image_has_all_of_its_captions_in_the_order_of_the_file(tmp_path: Path) -> None:
    samples = convert(tmp_path, COMMITTED, source="coco", split="val").samples()
    plain = json.loads((COMMITTED / CAPTIONS).read_text())

    for sample, image in zip(samples, plain["images"], strict=True):
        texts = [one["caption"] for one in plain["annotations"] if one["image_id"] == image["id"]]
        assert [sample.caption, *(one.text for one in sample.more_captions)] == texts


@pytest.mark.parametrize("broken", ["  ", None, 7, ["a list"]])
def test_a_broken_caption_is_left_out_alone(raw: Path, tmp_path: Path, broken: object) -> None:
    edit(raw / CAPTIONS, lambda plain: plain["annotations"][0].update(caption=broken, id=123))

    made = convert(tmp_path, raw, source="coco", split="val")

    assert made.facts["counts"]["captions"] == 9
    assert "annotation 123" in skipped(made)[0]["record"]
    assert skipped(made)[0]["reason"].startswith("caption: ")


def test_texts_in_any_script_come_back_as_they_were(raw: Path, tmp_path: Path) -> None:
    text = "Zwei Männer 馬に乗る 🐎 \u202e\u05e2\u05d1\u05e8"
    edit(raw / CAPTIONS, lambda plain: plain["annotations"][0].update(caption=text))

    made = convert(tmp_path, raw, source="coco", split="val")

    assert text in {sample.caption for sample in made.samples()}


def test_half_a_character_is_left_out_and_named(raw: Path, tmp_path: Path) -> None:
    def change(plain: Any) -> None:
        plain["annotations"][0].update(caption="half \ud83d")
        plain["images"][1].update(file_name="000000439180\ud83d.jpg")

    edit(raw / CAPTIONS, change)

    made = convert(tmp_path, raw, source="coco", split="val")

    assert reasons(made) == {"caption: malformed record": 1, "image is missing": 1}
    assert made.facts["counts"]["captions"] == 4
    assert "ud83d" in skipped(made)[1]["record"]


@pytest.mark.parametrize("image_id", [None, 7, [1], {"a": 1}, "142238"])
def test_an_annotation_of_no_image_is_named_and_counted(raw: Path, tmp_path: Path, image_id: object) -> None:
    edit(raw / CAPTIONS, lambda plain: plain["annotations"][3].update(image_id=image_id))

    made = convert(tmp_path, raw, source="coco", split="val")

    assert reasons(made) == {"annotation belongs to no image": 1}
    assert skipped(made)[0]["record"] == "captions_val2017 annotations[3]"
    assert made.facts["counts"]["captions"] == 9


@pytest.mark.parametrize("broken", [None, 7, [], {}, {"id": [1]}, {"id": 5, "file_name": 5}])
def test_an_image_entry_of_any_wrong_shape_is_skipped(raw: Path, tmp_path: Path, broken: object) -> None:
    edit(raw / CAPTIONS, lambda plain: plain["images"].insert(0, broken))

    made = convert(tmp_path, raw, source="coco", split="val")

    assert made.facts["skipped"]["total"] == 1
    assert skipped(made)[0]["record"].startswith("captions_val2017[0]")
    assert made.facts["samples"] == 2


def test_an_image_nobody_speaks_about_is_skipped(raw: Path, tmp_path: Path) -> None:
    edit(raw / CAPTIONS, lambda plain: plain.update(annotations=plain["annotations"][:5]))

    assert reasons(convert(tmp_path, raw, source="coco", split="val")) == {"image has no captions": 1}


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"[]", b"{}", b'{"images": 7}', b'{"images": [], "annotations": {}}', b"[" * 100_000, b"\xff\xfe\xfd"],
)
def test_a_file_of_another_shape_ends_the_conversion_and_is_named(raw: Path, tmp_path: Path, content: bytes) -> None:
    (raw / CAPTIONS).write_bytes(content)

    with pytest.raises(InputError, match=r"coco/annotations/captions_val2017\.json"):
        convert(tmp_path, raw, source="coco", split="val")


# --------------------------------------------------------------------------------------------------------- instances


def instances(tmp_path: Path, root: Path) -> Any:
    return convert(tmp_path, root, source="coco", split="val", subset="instances_val2017")


def test_masks_of_polygons_and_of_crowds_are_those_of_cocos_own_tool(tmp_path: Path) -> None:
    from pycocotools import mask as coco

    plain = json.loads((COMMITTED / INSTANCES).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in plain["images"]}
    names = {category["id"]: category["name"] for category in plain["categories"]}
    samples = instances(tmp_path, COMMITTED).samples()
    regions = [region for sample in samples for region in sample.regions]
    of_images = [one for image in plain["images"] for one in plain["annotations"] if one["image_id"] == image["id"]]

    for region, annotation in zip(regions, of_images, strict=True):
        height, width = sizes[annotation["image_id"]]
        encoded = coco.frPyObjects(annotation["segmentation"], height, width)
        expected = coco.merge(encoded) if isinstance(encoded, list) else encoded
        assert region.mask is not None
        assert region.mask.counts == expected["counts"].decode()
        assert region.phrase == names[annotation["category_id"]]
        assert region.crowd == bool(annotation["iscrowd"])


def test_run_lengths_may_be_compressed_or_not(raw: Path, tmp_path: Path) -> None:
    from pycocotools import mask as coco

    def compress(plain: Any) -> None:
        for one in plain["annotations"]:
            if one["iscrowd"]:
                encoded = coco.frPyObjects(one["segmentation"], *one["segmentation"]["size"])
                one["segmentation"] = encoded | {"counts": encoded["counts"].decode()}

    plain_masks = instances(tmp_path / "plain", raw).samples()
    edit(raw / INSTANCES, compress)

    assert instances(tmp_path / "compressed", raw).samples() == plain_masks


def first(plain: Any) -> Any:
    return plain["annotations"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.update(bbox=[5000, 0, 5, 5]), "box is empty or outside of the image"),
        (lambda one: one.update(bbox=[50, 50, 0, 10]), "box is empty or outside of the image"),
        (lambda one: one.update(bbox=[50, 50, -5, 10]), "box is empty or outside of the image"),
        (lambda one: one.update(bbox=[float("nan"), 0, 5, 5]), "does not fit its image or caption"),
        (lambda one: one.update(bbox=[0, 0, float("inf"), 5]), "does not fit its image or caption"),
        (lambda one: one.update(bbox=["1", "1", "2", "2"]), "does not fit its image or caption"),
        (lambda one: one.update(bbox=None), "does not fit its image or caption"),
        (lambda one: one.update(segmentation=[]), "does not fit its image or caption"),
        (lambda one: one.update(segmentation=[[1, 1, 2, 2]]), "does not fit its image or caption"),
        (lambda one: one.update(segmentation=[[1, 1, 2, 2, 1e9, 3]]), "does not fit its image or caption"),
        (lambda one: one.update(segmentation=[[1, 1, 2, float("nan"), 3, 3]]), "does not fit its image or caption"),
        (lambda one: one.update(segmentation=[[1, 1, 1, 1, 1, 1]]), "mask is empty"),
        (
            lambda one: one.update(segmentation={"size": [2, 2], "counts": [0, 4]}),
            "mask has another size than its image",
        ),
        (lambda one: one.update(segmentation={"size": [427, 640], "counts": [427 * 640]}), "mask is empty"),
        (
            lambda one: one.update(segmentation={"size": [427, 640], "counts": [-1, 2]}),
            "does not fit its image or caption",
        ),
        (lambda one: one.update(segmentation={"size": [427, 640], "counts": [float("nan")]}), "malformed record"),
        (lambda one: one.update(segmentation={"size": [1e400, 640], "counts": [1]}), "malformed record"),
        (lambda one: one.update(category_id=99999), "malformed record"),
        (lambda one: one.pop("iscrowd"), "malformed record"),
    ],
)
def test_a_broken_object_is_left_out_alone(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit(raw / INSTANCES, lambda plain: change(first(plain)))

    made = instances(tmp_path, raw)

    assert reasons(made) == {f"region: {reason}": 1}
    assert "annotation 16223800" in skipped(made)[0]["record"]
    assert (made.facts["counts"]["regions"], made.facts["counts"]["crowd"]) == (39, 3)


def test_a_box_over_the_edge_is_cut(raw: Path, tmp_path: Path) -> None:
    edit(raw / INSTANCES, lambda plain: first(plain).update(bbox=[-10, -10, 30, 30]))

    made = instances(tmp_path, raw)

    assert made.facts["repaired"] == {"box cut to the image": 1}
    assert made.samples()[0].regions[0].box_xyxy_px == (0, 0, 20, 20)


def test_an_image_without_objects_is_skipped(raw: Path, tmp_path: Path) -> None:
    def keep_one_image(plain: Any) -> None:
        plain["annotations"] = [one for one in plain["annotations"] if one["image_id"] == 439180]

    edit(raw / INSTANCES, keep_one_image)

    assert reasons(instances(tmp_path, raw)) == {"image has no annotations": 1}


# ---------------------------------------------------------------------------------------------------------- panoptic


def test_segments_of_coco_have_the_names_of_their_categories_and_no_description(tmp_path: Path) -> None:
    made = convert(tmp_path, COMMITTED, source="coco", split="train", subset="panoptic_train2017")
    plain = json.loads((COMMITTED / PANOPTIC).read_text())
    names = {category["id"]: category["name"] for category in plain["categories"]}
    (sample,) = made.samples()

    segments = plain["annotations"][0]["segments_info"]
    assert [region.phrase for region in sample.regions] == [names[one["category_id"]] for one in segments]
    assert {region.caption for region in sample.regions} == {""}
    assert [int(np.count_nonzero(mask_from_rle(region.mask))) for region in sample.regions if region.mask] == [
        segment["area"] for segment in segments
    ]


# ------------------------------------------------------------------------------------------------------ object parts


def parts(root: Path) -> None:
    """Makes PACO's files out of COCO's: the same objects, the categories of PACO."""
    plain = json.loads((root / INSTANCES).read_text())
    for category, name in zip(
        plain["categories"], ["car_(automobile):wheel", "dog", "plastic_bag:inner_body"], strict=False
    ):
        category["name"] = name
    for image in plain["images"]:
        image["file_name"] = f"val2017/{image['file_name']}"
    for number, one in enumerate(plain["annotations"]):
        one["category_id"] = plain["categories"][number % 3]["id"]
    (root / "semantic/vlpart/paco/annotations").mkdir(parents=True)
    (root / "semantic/vlpart/paco/annotations/paco_lvis_v1_val.json").write_text(json.dumps(plain))


def test_parts_of_objects_are_said_in_both_ways(raw: Path, tmp_path: Path) -> None:
    parts(raw)

    made = convert(tmp_path, raw, source="paco_lvis", split="val")

    said = {(region.phrase, region.more_phrases) for sample in made.samples() for region in sample.regions}
    assert said == {
        ("car wheel", ("the wheel of the car",)),
        ("dog", ()),
        ("plastic bag inner body", ("the inner body of the plastic bag",)),
    }
    assert made.facts["counts"]["regions"] + made.facts["counts"]["crowd"] == 43
    assert made.facts["counts"]["expressions"] == 0


def test_pascal_part_is_read_from_its_own_folder(raw: Path, tmp_path: Path) -> None:
    parts(raw)
    folder = raw / "semantic/vlpart/pascal_part"
    (folder / "VOCdevkit/VOC2010").mkdir(parents=True)
    shutil.copytree(raw / "coco", folder / "VOCdevkit/VOC2010/JPEGImages")
    shutil.copy(raw / "semantic/vlpart/paco/annotations/paco_lvis_v1_val.json", folder / "train.json")

    made = convert(tmp_path, raw, source="pascal_part")

    assert made.facts["skipped"]["total"] == 0
    for region in made.samples()[0].regions:
        assert box_of_mask(mask_from_rle(region.mask)) is not None
