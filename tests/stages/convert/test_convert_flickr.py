"""Flickr30k: GranD-f's merged file with masks, and MDETR's with boxes alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.stages.conversion import COMMITTED, convert
from tests.stages.raw_edits import edit, reasons, skipped

WITH_MASKS = "grandf/annotations/train/flickr_mergedGT_GCG_train.json"
WITHOUT = "flickr30k/mdetr_annotations/final_flickr_mergedGT_train.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break, with MDETR's file beside GranD-f's."""
    root = Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))
    shutil.copytree(root / "grandf/flikcr_30k/train", root / "flickr30k/flickr30k-images")
    plain = json.loads((root / WITH_MASKS).read_text())
    for annotation in plain["annotations"]:
        del annotation["sam_mask"]
    (root / WITHOUT).parent.mkdir()
    (root / WITHOUT).write_text(json.dumps(plain))
    return root


def test_both_files_say_the_same_but_for_the_masks(raw: Path, tmp_path: Path) -> None:
    with_masks = convert(tmp_path / "a", raw, source="grand_f", subset="flickr_mergedGT_GCG_train")
    without = convert(tmp_path / "b", raw, source="flickr30k")

    def said(made: Any) -> list[Any]:
        return [
            (sample.caption, [(region.phrase, region.spans, region.box_xyxy_px) for region in sample.regions])
            for sample in made.samples()
        ]

    assert said(with_masks) == said(without)
    assert with_masks.facts["counts"] == without.facts["counts"]
    assert {region.mask is None for sample in without.samples() for region in sample.regions} == {True}
    assert {region.mask is None for sample in with_masks.samples() for region in sample.regions} == {False}


@pytest.mark.parametrize(
    "change", [{"tokens_positive": [[5, 900]]}, {"tokens_positive": [[5]]}, {"bbox": [9, 9, 0, 0]}]
)
def test_a_broken_phrase_skips_its_sentence_and_keeps_the_others(raw: Path, tmp_path: Path, change: Any) -> None:
    edit(raw / WITHOUT, lambda plain: plain["annotations"][0].update(change))

    made = convert(tmp_path, raw, source="flickr30k")

    assert made.facts["skipped"]["total"] == 1
    assert skipped(made)[0]["record"].startswith("final_flickr_mergedGT_train[0] ")
    assert made.facts["samples"] == 3


def test_annotations_of_no_sentence_are_named(raw: Path, tmp_path: Path) -> None:
    edit(raw / WITHOUT, lambda plain: plain["annotations"].append({"image_id": 777}))

    assert reasons(convert(tmp_path, raw, source="flickr30k")) == {"annotation belongs to no image": 1}
