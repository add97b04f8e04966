"""GranD: objects with and without masks, captions whose phrases point at them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InputError
from stages.vision import mask_from_coco, mask_from_rle
from tests.stages.conversion import COMMITTED, Converted, convert
from tests.stages.raw_edits import edit, reasons, skipped

FILE = "grand/annotations/sa_142238.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


def converted(tmp_path: Path, root: Path) -> Converted:
    return convert(tmp_path, root, source="grand")


def record(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / FILE).read_text())["sa_142238.jpg"])


def test_objects_have_masks_and_floating_objects_do_not(tmp_path: Path) -> None:
    plain = record(COMMITTED)
    sample = converted(tmp_path, COMMITTED).samples()[0]

    for region, one in zip(sample.regions, plain["objects"] + plain["floating_objects"], strict=True):
        assert region.box_xyxy_px == tuple(one["bbox"])
        assert [region.phrase, *region.more_phrases] == one["labels"]
        assert region.score == one["score"]
        assert (region.mask is None) == ("segmentation" not in one)
        if region.mask is not None:
            assert (mask_from_rle(region.mask) == mask_from_coco(one["segmentation"])).all()


def test_attributes_are_the_caption_of_their_object_without_the_noise_of_a_chat(tmp_path: Path) -> None:
    captions = [region.caption for region in converted(tmp_path, COMMITTED).samples()[0].regions]

    assert captions[:4] == [
        "a blond man lifted in the air",  # a list of one, with noise
        "a man with a number on his back; the man is wearing a black cap",  # a list of two
        "",  # null
        "a man in blue kit looking up",  # a text
    ]


def test_phrases_of_every_caption_mean_the_objects_they_point_at(tmp_path: Path) -> None:
    plain = record(COMMITTED)
    sample = converted(tmp_path, COMMITTED).samples()[0]
    dense = {(span, at) for at, region in enumerate(sample.regions) for span in region.spans}

    assert sample.caption == plain["dense_caption"]["caption"]
    assert dense == {
        (tuple(one["tokens_positive"]), at) for one in plain["dense_caption"]["details"] for at in one["ids"]
    }
    for caption, said in zip(sample.more_captions, plain["short_captions"], strict=True):
        assert caption.text == said["caption"]
        assert [(one.span, one.regions) for one in caption.groundings] == [
            (tuple(detail["tokens_positive"]), (detail["id"],)) for detail in said["details"]
        ]


def edited(raw: Path, tmp_path: Path, change: Callable[[Any], Any]) -> Converted:
    edit(raw / FILE, lambda plain: change(plain["sa_142238.jpg"]))
    return converted(tmp_path, raw)


def test_phrases_at_a_wrong_place_are_looked_for(raw: Path, tmp_path: Path) -> None:
    before = converted(tmp_path / "before", raw).samples()

    made = edited(
        raw, tmp_path / "after", lambda plain: plain["short_captions"][0]["details"][0].update(tokens_positive=[0, 3])
    )

    assert made.samples() == before
    assert made.facts["repaired"] == {}


@pytest.mark.parametrize("place", [[0, 3], [-5, 9000], [3, 3]])
def test_a_phrase_that_is_not_in_its_caption_is_counted_and_stays_words(
    raw: Path, tmp_path: Path, place: list[int]
) -> None:
    change = {"phrase": "a purple whale", "tokens_positive": place}

    made = edited(raw, tmp_path, lambda plain: plain["short_captions"][0]["details"][0].update(change))

    assert made.facts["repaired"] == {"phrase is not in the caption: caption kept without its regions": 1}
    assert made.facts["counts"]["expressions"] == 22
    assert made.facts["counts"]["captions"] == 6


def test_a_phrase_that_means_nothing_that_is_there_is_counted_and_stays_words(raw: Path, tmp_path: Path) -> None:
    made = edited(raw, tmp_path, lambda plain: plain["short_captions"][0]["details"][0].update(id=777))

    assert made.facts["repaired"] == {"phrase means no object that was kept: caption kept without its regions": 1}
    assert made.facts["counts"]["expressions"] == 22


def test_phrases_inside_one_another_are_both_kept(raw: Path, tmp_path: Path) -> None:
    inner = {"phrase": "grass", "tokens_positive": [64, 69], "ids": [7], "bbox": []}

    made = edited(raw, tmp_path, lambda plain: plain["dense_caption"]["details"].append(inner))

    assert made.samples()[0].regions[7].spans == ((58, 69), (64, 69))
    assert made.facts["counts"]["expressions"] == 24


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.update(bbox=[9, 9, 9, 9]), "box is empty or outside of the image"),
        (lambda one: one.update(bbox=[1, 2, 3]), "does not fit its image or caption"),
        (lambda one: one.update(segmentation={"size": [2, 2], "counts": "04"}), "mask has another size than its image"),
        (
            lambda one: one.update(segmentation={"size": [427, 640], "counts": "zzz"}),
            "does not fit its image or caption",
        ),
        (lambda one: one.update(labels=[]), "malformed record"),
        (lambda one: one.update(score=None), "malformed record"),
        (lambda one: one.update(attributes=[7]), "malformed record"),
    ],
)
def test_a_broken_object_is_left_out_alone_and_phrases_no_longer_point_at_it(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    made = edited(raw, tmp_path, lambda plain: change(plain["objects"][0]))

    assert reasons(made) == {f"region: {reason}": 1}
    assert skipped(made)[0]["record"] == "grand[0] sa_142238.json object 0"
    assert made.facts["counts"]["regions"] == 20
    phrases = {
        sample.regions[at].phrase
        for sample in made.samples()[:1]
        for one in sample.more_captions
        for grounding in one.groundings
        for at in grounding.regions
    }
    assert phrases == {"ball", "grass", "person"}


def test_files_of_an_early_level_have_no_dense_caption(raw: Path, tmp_path: Path) -> None:
    made = edited(raw, tmp_path, lambda plain: plain.pop("dense_caption"))

    sample = made.samples()[0]
    assert sample.caption == "two rugby players jump for the ball on green grass"
    assert len(sample.more_captions) == 1
    assert made.facts["counts"]["captions"] == 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "malformed record"),
        ("[]", "malformed record"),
        ("{}", "malformed record"),
        ('{"a": 1, "b": 2}', "malformed record"),
        ('{"nothing.jpg": {}}', "image is missing"),
        ('{"../images/sa_142238.jpg": {}}', "image name leaves its folder"),
        ('{"sa_142238.jpg": {}}', "malformed record"),
        ('{"sa_142238.jpg": null}', "malformed record"),
        ('{"sa_142238.jpg": {"objects": [], "floating_objects": []}}', "no caption and no region is left"),
        ("[" * 100_000, "malformed record"),
    ],
)
def test_a_file_that_is_no_record_is_skipped_and_named(raw: Path, tmp_path: Path, content: str, reason: str) -> None:
    (raw / FILE).write_text(content)

    made = converted(tmp_path, raw)

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"] == "grand[0] sa_142238.json"
    assert made.facts["samples"] == 1


def test_files_of_other_kinds_are_no_records_and_a_missing_folder_is_a_fault(raw: Path, tmp_path: Path) -> None:
    (raw / "grand/annotations/README.txt").write_text("not a record")
    (raw / "grand/annotations/folder.json").mkdir()

    assert converted(tmp_path / "all", raw).facts["records"] == 2

    shutil.rmtree(raw / "grand/annotations")
    with pytest.raises(InputError, match=r"missing: .*grand/annotations"):
        converted(tmp_path / "none", raw)
