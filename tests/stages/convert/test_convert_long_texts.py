"""The data sets of long-text retrieval: what the published scorers read of them, and what is named as broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.vision import mask_from_rle
from tests.stages.conversion import Converted, convert
from tests.stages.long_text_files import (
    DCI_FILE,
    DOCCI,
    URBAN1K,
    mask_png,
    write_dci,
    write_docci,
    write_sharegpt4v,
    write_urban1k,
)
from tests.stages.raw_edits import edit, edit_line, reasons, skipped

DOCCI_FILE = "docci/docci_descriptions.jsonlines"
SHARE_FILE = "sharegpt4v/data/share-captioner_coco_lcs_sam_1246k_1107.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that holds all four."""
    folder = tmp_path / "made"
    write_urban1k(folder)
    write_docci(folder)
    write_sharegpt4v(folder, 3)
    write_dci(folder)
    return folder


def captions(made: Converted) -> list[str]:
    return [sample.caption for sample in made.samples()]


def test_urban1k_pairs_each_image_with_the_whole_text_of_its_name(tmp_path: Path, root: Path) -> None:
    made = convert(tmp_path, root, source="urban1k", split="test")

    assert captions(made) == [URBAN1K[name].strip() for name in ("1", "10", "2")]
    assert [sample.key for sample in made.samples()][1] == "urban1k-00000001-10"
    assert made.facts["counts"] | {"images": 3, "captions": 3} == made.facts["counts"]
    assert "CC BY-NC 4.0" in made.facts["licence"]


def test_urban1k_names_images_without_text_and_texts_without_image(tmp_path: Path, root: Path) -> None:
    (root / "Urban1k/caption/1.txt").unlink()
    (root / "Urban1k/image/2.jpg").unlink()
    (root / "Urban1k/caption/10.txt").write_bytes(b"\xff\xfe no text")
    (root / "Urban1k/image/3.jpg").write_bytes((root / "Urban1k/image/1.jpg").read_bytes())
    (root / "Urban1k/caption/3.txt").write_text(" \n")
    (root / "Urban1k/image/4.jpg").write_bytes((root / "Urban1k/image/1.jpg").read_bytes())
    (root / "Urban1k/caption/4.txt").write_text("Kept.")

    made = convert(tmp_path, root, source="urban1k", split="test")

    assert captions(made) == ["Kept."]
    found = {one["record"].split()[1]: one["reason"] for one in skipped(made)}
    assert found == {
        "1": "image has no text", "2": "image is missing", "10": "malformed record", "3": "caption is empty"
    }  # fmt: skip


@pytest.mark.parametrize(("split", "numbers"), [("train", [0]), ("test", [1, 3]), ("qual_dev", [2])])
def test_a_split_of_docci_holds_its_own_lines(tmp_path: Path, root: Path, split: str, numbers: list[int]) -> None:
    made = convert(tmp_path, root, source="docci", split=split)

    assert captions(made) == [f"A photograph, number {number}, described at length." for number in numbers]
    assert [sample.key for sample in made.samples()] == [
        f"docci_{split}-{number:08d}-{DOCCI[number][0]}" for number in numbers
    ]


def test_what_pixclips_script_takes_of_docci_are_the_first_thousand_lines_of_any_split(tmp_path: Path) -> None:
    write_docci(tmp_path / "made", 1002)

    made = convert(tmp_path, tmp_path / "made", source="docci", split="all")

    assert made.facts["subsets"] == ["docci_first_1000"]
    assert made.facts["samples"] == 1000
    assert captions(made)[-1].startswith("A photograph, number 999,")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.update(image_file="../images/test_00000.jpg"), "image name leaves its folder"),
        (lambda plain: plain.update(image_file="gone.jpg"), "image is missing"),
        (lambda plain: plain.update(description="  "), "caption is empty"),
        (lambda plain: plain.update(description=["a"]), "malformed record"),
        (lambda plain: plain.update(description="half \ud83d"), "does not fit its image or caption"),
        (lambda plain: plain.pop("description"), "malformed record"),
    ],
)
def test_a_broken_line_of_docci_is_named(tmp_path: Path, root: Path, change: Callable[[Any], Any], reason: str) -> None:
    edit_line(root / DOCCI_FILE, 1, change)

    made = convert(tmp_path, root, source="docci", split="test")

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"] == "docci_test[1]"
    assert made.facts["samples"] == 1


def test_a_line_of_docci_that_tells_no_split_is_named_in_each(tmp_path: Path, root: Path) -> None:
    lines = (root / DOCCI_FILE).read_text().splitlines()
    (root / DOCCI_FILE).write_text("\n".join([lines[0], "{", *lines[2:]]))

    for split in ("train", "test"):
        made = convert(tmp_path / split, root, source="docci", split=split)
        assert reasons(made) == {"malformed record": 1}


def test_the_first_thousand_of_sharegpt4v_are_the_test_and_the_others_for_training(tmp_path: Path) -> None:
    write_sharegpt4v(tmp_path / "made", 1003)

    test = convert(tmp_path / "test", tmp_path / "made", source="sharegpt4v", split="test")
    train = convert(tmp_path / "train", tmp_path / "made", source="sharegpt4v", split="train")

    assert (test.facts["samples"], train.facts["samples"]) == (1000, 3)
    assert captions(test)[999] == "The image shows thing 999. It is seen from above."  # one line, as Long-CLIP has it
    assert captions(train)[0].startswith("The image shows thing 1000.")
    assert test.facts["counts"]["images"] == 2  # beside the texts, and in COCO's own folder
    assert test.facts["counts"]["captions"] == 1000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain[1].update(image="/etc/passwd"), "image name leaves its folder"),
        (lambda plain: plain[1]["conversations"].pop(), "malformed record"),
        (lambda plain: plain[1]["conversations"].reverse(), "second turn is not the answer"),
        (lambda plain: plain[1]["conversations"][1].update(value="\n"), "caption is empty"),
        (lambda plain: plain[1].update(conversations=None), "malformed record"),
    ],
)
def test_a_broken_record_of_sharegpt4v_is_named(
    tmp_path: Path, root: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit(root / SHARE_FILE, change)

    made = convert(tmp_path, root, source="sharegpt4v", split="test")

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"] == "sharegpt4v_1k[1] 0000001"
    assert made.facts["samples"] == 2


def test_the_text_of_dci_is_both_captions_and_its_masks_are_regions(tmp_path: Path, root: Path) -> None:
    made = convert(tmp_path, root, source="dci", split="all")

    first, second = made.samples()
    assert first.caption == "A castle, number 0.\nThe sky above it is clear."
    assert [(region.phrase, region.caption) for region in first.regions] == [
        ("a tower", "A tower of grey stone."),
        ("a wall", ""),
    ]
    assert [region.box_xyxy_px for region in first.regions] == [(2, 4, 12, 20), (20, 4, 30, 20)]
    assert first.regions[0].mask is not None
    assert mask_from_rle(first.regions[0].mask).sum() == 16 * 10
    assert second.regions == ()
    assert made.facts["repaired"] == {"mask marked unusable by its authors: left out": 1}
    assert made.facts["counts"]["expressions"] == 1


def test_the_extra_caption_of_dci_can_stand_alone(tmp_path: Path, root: Path) -> None:
    made = convert(tmp_path, root, source="dci", split="all", subset="dci_extra")

    assert captions(made) == ["The sky above it is clear."] * 2


def test_a_split_of_dci_holds_the_files_that_it_names(tmp_path: Path, root: Path) -> None:
    edit(root / "densely_captioned_images/splits.json", lambda plain: plain["test"].append("gone.json"))

    made = convert(tmp_path, root, source="dci", split="test")

    assert [caption.splitlines()[0] for caption in captions(made)] == ["A castle, number 0."]
    assert reasons(made) == {"annotation file is missing": 1}
    assert skipped(made)[0]["record"] == "dci_extended_test[1] gone.json"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain["mask_data"]["0"].update(outer_mask="iVBOR*"), "malformed record"),
        (lambda plain: plain["mask_data"]["0"].update(outer_mask="AAAA"), "does not fit its image or caption"),
        (lambda plain: plain["mask_data"]["0"].update(outer_mask=mask_png(slice(0, 0))), "mask is empty"),
        (lambda plain: plain["mask_data"]["0"].pop("label"), "malformed record"),
        (lambda plain: plain["mask_data"].update({"0": None}), "malformed record"),
    ],
)
def test_a_broken_mask_of_dci_is_left_out_alone(
    tmp_path: Path, root: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit(root / DCI_FILE, change)

    made = convert(tmp_path, root, source="dci", split="all")

    assert reasons(made) == {f"region: {reason}": 1}
    assert skipped(made)[0]["record"] == "dci_extended[0] 0a1b.json mask 0"
    assert [region.phrase for region in made.samples()[0].regions] == ["a wall"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.pop("extra_caption"), "malformed record"),
        (lambda plain: plain.update(short_caption=" ", extra_caption=""), "caption is empty"),
        (lambda plain: plain.update(image="photos/sa_1.jpg"), "image is missing"),
        (lambda plain: plain.update(mask_data=[1]), "malformed record"),
    ],
)
def test_a_broken_file_of_dci_is_named(tmp_path: Path, root: Path, change: Callable[[Any], Any], reason: str) -> None:
    edit(root / DCI_FILE, change)

    made = convert(tmp_path, root, source="dci", split="all")

    assert reasons(made) == {reason: 1}
    assert made.facts["samples"] == 1
