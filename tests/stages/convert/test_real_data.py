"""All data sets on real photographs: everything is kept, counts and places are right, bytes are stable."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.convert.counts import WORDS
from stages.vision import box_of_mask, mask_from_rle, panoptic_ids
from tests.stages.conversion import COMMITTED, RAW, SHARED, convert

# source, split, subset -> images, captions, regions, crowd, expressions, turns, points: the table of the pack's README
EXPECTED = {
    ("llava", "train", None): (4, 4, 0, 0, 0, 4, 0),
    ("llava", "train", "llava_instruct_150k"): (2, 0, 0, 0, 0, 6, 0),
    ("visual_genome", "train", None): (2, 0, 24, 0, 24, 0, 0),
    ("visual_genome", "train", "train"): (1, 0, 12, 0, 12, 0, 0),
    ("visual_genome", "test", None): (1, 0, 12, 0, 12, 0, 0),
    ("grand_f", "train", "GranDf_HA_GCG_train"): (1, 1, 6, 0, 6, 0, 0),
    ("grand_f", "train", "OpenPsgGCG_train"): (1, 1, 6, 0, 6, 0, 0),
    ("grand_f", "train", "RefCOCOg_GCG_train"): (2, 2, 7, 0, 7, 0, 0),
    ("grand_f", "train", "flickr_mergedGT_GCG_train"): (2, 4, 19, 0, 10, 0, 0),
    ("grand_f", "train", None): (6, 8, 38, 0, 29, 0, 0),
    ("grand_f", "val", "OpenPsgGCG_val"): (1, 1, 4, 0, 4, 0, 0),
    ("grand_f", "val", None): (1, 1, 5, 0, 5, 0, 0),
    ("pix2cap_coco", "train", None): (1, 0, 30, 2, 30, 0, 0),
    ("pix2cap_coco", "val", None): (1, 0, 17, 1, 17, 0, 0),
    ("coco", "val", "captions_val2017"): (2, 10, 0, 0, 0, 0, 0),
    ("coco", "val", "instances_val2017"): (2, 0, 40, 3, 0, 0, 0),
    ("coco", "val", "panoptic_val2017"): (2, 0, 47, 3, 0, 0, 0),
    ("coco", "train", "panoptic_train2017"): (1, 0, 30, 2, 0, 0, 0),
    ("localized_narratives", "val", None): (2, 3, 0, 0, 0, 0, 2627),
    ("grand", "train", None): (2, 6, 21, 0, 23, 0, 0),
    ("grit", "train", None): (4, 4, 16, 0, 5, 0, 0),
    ("longgrit", "train", None): (2, 0, 6, 0, 6, 0, 0),
    ("ade20k", "train", None): (2, 0, 12, 0, 0, 0, 0),
}
# source -> split -> references, expressions; and images of all splits together
REFERRING = {
    "refcoco": ({"train": (3, 6), "val": (1, 2), "testA": (2, 4), "testB": (2, 4)}, 2),
    "refcoco+": ({"train": (2, 4), "val": (1, 1), "testA": (1, 2), "testB": (1, 2)}, 2),
    "refcocog": ({"train": (2, 3), "val": (1, 1), "test": (2, 3)}, 2),
}


@pytest.mark.parametrize("root", sorted({RAW, COMMITTED}), ids=lambda root: root.parent.name)
@pytest.mark.parametrize("part", EXPECTED, ids=lambda part: "-".join(map(str, part)))
def test_counts_are_those_of_the_pack_and_nothing_is_skipped_or_repaired(
    part: tuple[str, str, str | None], root: Path, tmp_path: Path
) -> None:
    source, split, subset = part

    facts = convert(tmp_path, root, source=source, split=split, subset=subset).facts

    assert facts["counts"] == dict(zip(WORDS, EXPECTED[part], strict=True))
    assert facts["skipped"] == {"total": 0, "reasons": {}}
    assert facts["repaired"] == {}
    assert (tmp_path / "shards" / "skipped.jsonl").read_text() == ""


@pytest.mark.parametrize("source", REFERRING)
def test_splits_of_referring_expressions_have_the_counts_of_the_pack(source: str, tmp_path: Path) -> None:
    splits, images = REFERRING[source]

    made = {split: convert(tmp_path / split, RAW, source=source, split=split) for split in splits}

    counted = {
        split: (one.facts["counts"]["regions"], one.facts["counts"]["expressions"]) for split, one in made.items()
    }
    assert counted == splits
    assert len({sample.image for one in made.values() for sample in one.samples()}) == images
    assert all(one.facts["skipped"]["total"] == 0 and one.facts["repaired"] == {} for one in made.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the sample pack at {SHARED}")
def test_the_committed_copy_is_the_pack() -> None:
    copied = [path.relative_to(COMMITTED) for path in COMMITTED.rglob("*") if path.is_file()]
    differing = [
        str(path)
        for path in copied
        if path.name != "README.md" and (COMMITTED / path).read_bytes() != (SHARED / path).read_bytes()
    ]

    assert len(copied) > 20
    assert differing == []


@pytest.mark.parametrize("part", [*EXPECTED, *((source, "train", None) for source in REFERRING)], ids=str)
def test_converting_twice_gives_the_same_bytes(part: tuple[str, str, str | None], tmp_path: Path) -> None:
    source, split, subset = part

    def digests(directory: Path, **config: int) -> dict[str, str]:
        made = convert(
            directory, RAW, source=source, split=split, subset=subset, samples_per_shard=3, **config
        ).directory
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made.iterdir()}

    first = digests(tmp_path / "first", processes=1)

    assert digests(tmp_path / "second", processes=3) == first
    assert "shard-000000.tar" in first


def test_phrases_of_grounded_captions_are_found_in_their_captions(tmp_path: Path) -> None:
    samples = convert(tmp_path, RAW, source="grand_f").samples()
    pairs = [
        (sample.caption[start:end].lower(), region.phrase.lower())
        for sample in samples
        for region in sample.regions
        for start, end in region.spans
    ]

    assert len(pairs) == 38
    assert [words for words, _ in pairs] == [phrase for _, phrase in pairs]


def test_the_parts_of_a_phrase_are_joined_into_one_mask(tmp_path: Path) -> None:
    (sample,) = convert(tmp_path, RAW, source="grand_f", subset="OpenPsgGCG_train").samples()
    plain = json.loads((RAW / "grandf/annotations/train/OpenPsgGCG_train.json").read_text())[0]
    parts = plain["groundings"]["Riders"]["rle_masks"]
    riders = sample.regions[0]

    assert riders.phrase == "Riders"
    assert len(parts) == 5
    assert riders.mask is not None
    assert mask_from_rle(riders.mask).sum() == sum(_area(part) for part in parts)


def test_masks_of_the_benchmark_follow_the_order_of_the_labels(tmp_path: Path) -> None:
    (sample,) = convert(tmp_path, RAW, source="grand_f", split="val").samples()
    plain = json.loads((RAW / "grandf/annotations/val_test/val_gcg_coco_mask_gt.json").read_text())

    assert [region.phrase for region in sample.regions][:2] == ["the ball", "A blond jumper"]
    assert [_pixels(region) for region in sample.regions] == [entry["area"] for entry in plain["annotations"]]


def test_sentences_of_flickr_keep_their_boxes_and_several_regions_for_the_same_words(tmp_path: Path) -> None:
    samples = convert(tmp_path, RAW, source="grand_f", subset="flickr_mergedGT_GCG_train").samples()
    last = samples[3]

    assert [region.phrase for region in last.regions].count("horses") == 4
    assert samples[0].regions[0].box_xyxy_px == (153, 217, 211, 357)


def test_panoptic_segments_are_the_pixels_of_their_ids(tmp_path: Path) -> None:
    (sample,) = convert(tmp_path, RAW, source="pix2cap_coco").samples()
    annotation = json.loads((RAW / "pix2cap_coco/pix2cap_coco_train.json").read_text())["annotations"][0]
    ids = panoptic_ids((RAW / "coco/panoptic_train2017" / annotation["file_name"]).read_bytes())

    for region, segment in zip(sample.regions, annotation["segments_info"], strict=True):
        assert region.mask is not None
        assert (mask_from_rle(region.mask) == (ids == segment["id"])).all()
        assert region.crowd == bool(segment["iscrowd"])
        assert region.caption == segment.get("description", "")
    assert [region.phrase for region in sample.regions if region.crowd] == ["person", "horse"]


def test_polygons_of_refcocog_lie_in_their_boxes(tmp_path: Path) -> None:
    for sample in convert(tmp_path, RAW, source="grand_f", subset="RefCOCOg_GCG_train").samples():
        for region in sample.regions:
            assert region.mask is not None
            assert box_of_mask(mask_from_rle(region.mask)) == region.box_xyxy_px


def test_questions_lose_the_placeholder_of_the_image(tmp_path: Path) -> None:
    samples = convert(tmp_path, RAW, source="llava").samples()

    assert samples[0].turns[0].question == "Give a short description of this picture."
    assert samples[0].caption == samples[0].turns[0].answer
    assert not any("<image>" in turn.question for sample in samples for turn in sample.turns)


def test_dialogues_have_turns_and_no_caption(tmp_path: Path) -> None:
    samples = convert(tmp_path, RAW, source="llava", subset="llava_instruct_150k").samples()

    assert [len(sample.turns) for sample in samples] == [3, 1, 2]
    assert [sample.caption for sample in samples] == ["", "", ""]
    assert len({sample.key for sample in samples}) == 3  # the ids of the original are not unique


def test_region_phrases_lose_their_trailing_space(tmp_path: Path) -> None:
    samples = convert(tmp_path, RAW, source="visual_genome").samples()
    plain = json.loads((RAW / "visual_genome/region_descriptions.json").read_text())
    phrases = [region["phrase"] for image in plain for region in image["regions"]]

    assert any(phrase != phrase.strip() for phrase in phrases)
    assert [region.phrase for sample in samples for region in sample.regions] == [text.strip() for text in phrases]


def test_a_limit_keeps_the_first_samples(tmp_path: Path) -> None:
    everything = convert(tmp_path / "all", RAW, source="grand_f").samples()
    limited = convert(tmp_path / "some", RAW, source="grand_f", limit=3)

    assert limited.samples() == everything[:3]
    assert limited.facts["samples"] == 3


def test_facts_say_where_the_shards_come_from(tmp_path: Path) -> None:
    facts = convert(tmp_path, RAW, source="grand_f", samples_per_shard=5).facts

    assert facts["schema"] == 1
    assert (facts["source"], facts["split"]) == ("grand_f", "train")
    assert facts["subsets"] == list(facts["counts_per_subset"])
    assert (facts["samples"], facts["shards"]) == (8, 2)
    assert facts["licence"]


def _pixels(region: Any) -> int:
    return int(np.count_nonzero(mask_from_rle(region.mask)))


def _area(plain: Any) -> int:
    from pycocotools import mask as coco

    return int(coco.area(plain))
