"""Broken records: named and left out with their reason, never half a sample; a broken file ends the conversion."""

import copy
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.errors import InputError
from tests.stages.conversion import COMMITTED, convert
from tests.stages.raw_edits import edit, reasons, skipped

ALIGNMENT = "llava/blip_laion_cc_sbu_558k.json"
HUMAN = "grandf/annotations/train/GranDf_HA_GCG_train.json"
REGIONS = "visual_genome/region_descriptions.json"
PANOPTIC = "pix2cap_coco/pix2cap_coco_train.json"
CAPTIONS, MASKS = (f"grandf/annotations/val_test/val_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "00014/../../secret.jpg", "a\0b.jpg", "..\\x.jpg"])
def test_a_name_that_leaves_its_folder_is_refused_even_if_the_file_exists(raw: Path, tmp_path: Path, name: str) -> None:
    picture = next((raw / "llava" / "images").rglob("*.jpg"))
    shutil.copy(picture, raw / "secret.jpg")
    shutil.copy(picture, raw / "llava" / "secret.jpg")
    edit(raw / ALIGNMENT, lambda plain: plain[1].update(image=name))

    made = convert(tmp_path, raw, source="llava")

    assert sum(reasons(made).values()) == 1
    assert next(iter(reasons(made))) in ("image name leaves its folder", "image name is not a path")
    assert made.facts["counts"]["images"] == 3


def test_a_mask_name_that_leaves_its_folder_is_refused(raw: Path, tmp_path: Path) -> None:
    edit(raw / PANOPTIC, lambda plain: plain["annotations"][0].update(file_name="../panoptic_val2017/000000142238.png"))

    with pytest.raises(InputError, match=r"mask name leaves its folder \(1 times\)"):
        convert(tmp_path, raw, source="pix2cap_coco")


def test_a_cut_off_image_is_skipped_and_named(raw: Path, tmp_path: Path) -> None:
    picture = raw / "llava/images/00014/000142239.jpg"
    picture.write_bytes(picture.read_bytes()[:2000])

    made = convert(tmp_path, raw, source="llava")

    assert reasons(made) == {"image is damaged": 1}
    assert skipped(made)[0]["record"] == "blip_laion_cc_sbu_558k[1] 000142239"
    assert str(picture) in skipped(made)[0]["detail"]
    assert made.facts["samples"] == 3


def test_an_image_that_is_missing_is_skipped(raw: Path, tmp_path: Path) -> None:
    (raw / "visual_genome/VG_100K/2142238.jpg").unlink()

    assert reasons(convert(tmp_path, raw, source="visual_genome")) == {"image is missing": 1}


def test_an_image_of_another_size_than_its_record_is_skipped(raw: Path, tmp_path: Path) -> None:
    Image.new("RGB", (100, 50)).save(raw / "visual_genome/VG_100K/2142238.jpg")

    made = convert(tmp_path, raw, source="visual_genome")

    assert reasons(made) == {"image has another size than its record": 1}


def test_a_panoptic_mask_of_another_size_is_refused(raw: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10)).save(buffer, format="PNG")
    (raw / "coco/panoptic_train2017/000000439180.png").write_bytes(buffer.getvalue())

    with pytest.raises(InputError, match="mask has another size than its image"):
        convert(tmp_path, raw, source="pix2cap_coco")


def test_a_segment_that_its_mask_does_not_have_breaks_the_record(raw: Path, tmp_path: Path) -> None:
    edit(raw / PANOPTIC, lambda plain: plain["annotations"][0]["segments_info"][0].update(id=12345))

    with pytest.raises(InputError, match=r"segment is not in the mask.*segment 12345"):
        convert(tmp_path, raw, source="pix2cap_coco")


def two_captions(plain: list[Any]) -> None:
    plain.append(copy.deepcopy(plain[0]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda grounding: grounding["rle_masks"][0].update(counts="zzz"), "does not fit its image or caption"),
        (
            lambda grounding: grounding["rle_masks"][0].update(size=[2, 2], counts="04"),
            "does not fit its image or caption",
        ),
        (lambda grounding: grounding.update(rle_masks=[]), "does not fit its image or caption"),
        (lambda grounding: grounding.update(rle_masks=[{"size": [360, 640], "counts": [360 * 640]}]), "mask is empty"),
        (lambda grounding: grounding.update(token_positives=[5, 5000]), "does not fit its image or caption"),
        (lambda grounding: grounding.update(token_positives=[5]), "malformed record"),
        (lambda grounding: grounding.pop("rle_masks"), "malformed record"),
    ],
)
def test_one_broken_phrase_skips_its_caption_and_keeps_the_next(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit(raw / HUMAN, two_captions)
    edit(raw / HUMAN, lambda plain: change(plain[0]["groundings"]["a grey horse"]))

    made = convert(tmp_path, raw, source="grand_f", subset="GranDf_HA_GCG_train")

    assert reasons(made) == {reason: 1}
    (sample,) = made.samples()
    assert len(sample.regions) == 6


@pytest.mark.parametrize("broken", [None, 7, [], {}, {"groundings": {}}, {"file_name": "sa_439180.jpg"}])
def test_records_of_any_wrong_shape_are_skipped(raw: Path, tmp_path: Path, broken: object) -> None:
    edit(raw / HUMAN, lambda plain: plain.insert(0, broken))

    made = convert(tmp_path, raw, source="grand_f", subset="GranDf_HA_GCG_train")

    assert made.facts["skipped"]["total"] == 1
    assert made.facts["samples"] == 1


def test_labels_and_masks_that_differ_in_number_are_refused(raw: Path, tmp_path: Path) -> None:
    edit(raw / MASKS, lambda plain: plain["annotations"].pop())

    with pytest.raises(InputError, match=r"labels and masks differ in number.*5 and 4"):
        convert(tmp_path, raw, source="grand_f", split="val")


def test_turns_that_do_not_alternate_are_skipped(raw: Path, tmp_path: Path) -> None:
    edit(raw / ALIGNMENT, lambda plain: plain[0]["conversations"].reverse())
    edit(raw / ALIGNMENT, lambda plain: plain[1].update(conversations=[]))

    assert reasons(convert(tmp_path, raw, source="llava")) == {"turns do not alternate human, gpt": 2}


def test_a_box_over_the_edge_is_cut_and_counted_and_one_outside_goes_alone(raw: Path, tmp_path: Path) -> None:
    def change(plain: Any) -> None:
        plain[0]["regions"][0].update(x=-5, y=-5, width=20, height=20)
        plain[0]["regions"][1].update(x=5000)
        plain[0]["regions"][2].update(phrase="  ")

    edit(raw / REGIONS, change)

    made = convert(tmp_path, raw, source="visual_genome")

    assert made.facts["repaired"] == {"box cut to the image": 1}
    assert reasons(made) == {"region: box is empty or outside of the image": 1, "region: phrase is empty": 1}
    assert made.samples()[0].regions[0].box_xyxy_px == (0, 0, 15, 15)
    assert made.facts["counts"]["regions"] == 22


def test_a_phrase_that_is_not_in_its_caption_keeps_its_region_and_is_counted(raw: Path, tmp_path: Path) -> None:
    edit(raw / CAPTIONS, lambda plain: plain["annotations"][0]["labels"].__setitem__(0, "a purple whale"))

    made = convert(tmp_path, raw, source="grand_f", split="val")

    assert made.facts["repaired"] == {"phrase is not in the caption: region kept without its place": 1}
    assert made.samples()[0].regions[0].spans == ()


def test_everything_skipped_is_an_error_that_says_why(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "llava/images")
    (raw / "llava/images").mkdir()

    with pytest.raises(InputError, match=r"nothing of llava could be kept: image is missing \(4 times\)"):
        convert(tmp_path, raw, source="llava")


@pytest.mark.parametrize("text", ["", "{}", "[{", '[{"a": 1}', "[1, 2", "\ufeff[]", "nonsense"])
def test_an_annotation_file_that_is_no_list_ends_the_conversion(raw: Path, tmp_path: Path, text: str) -> None:
    (raw / ALIGNMENT).write_text(text, encoding="utf-8")

    with pytest.raises(InputError, match=r"blip_laion_cc_sbu_558k|nothing of llava"):
        convert(tmp_path, raw, source="llava")


def test_an_annotation_file_that_is_not_text_ends_the_conversion(raw: Path, tmp_path: Path) -> None:
    (raw / ALIGNMENT).write_bytes(b'[{"id": "\xff\xfe"}]')

    with pytest.raises(InputError, match="not UTF-8"):
        convert(tmp_path, raw, source="llava")


@pytest.mark.parametrize("text", ["[]", "{", '{"images": []}', '{"images": {}, "annotations": [], "categories": []}'])
def test_a_panoptic_file_of_another_shape_ends_the_conversion(raw: Path, tmp_path: Path, text: str) -> None:
    (raw / PANOPTIC).write_text(text)

    with pytest.raises(InputError, match=r"pix2cap_coco_train\.json"):
        convert(tmp_path, raw, source="pix2cap_coco")


def test_lists_with_broken_members_outside_of_records_name_their_file(raw: Path, tmp_path: Path) -> None:
    edit(raw / "visual_genome/image_data.json", lambda plain: plain.append({"image_id": 1}))

    with pytest.raises(InputError, match=r"image_data\.json: not in the layout of region_descriptions"):
        convert(tmp_path, raw, source="visual_genome")
