"""Localized Narratives: what was said, when, and where the mouse was; every point is kept, wherever it lies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stages.conversion import COMMITTED, Converted, convert
from tests.stages.raw_edits import edit_line, reasons, skipped

FILE = "localized_narratives/coco_val_localized_narratives.jsonl"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


def narratives(tmp_path: Path, root: Path, subset: str | None = None) -> Converted:
    return convert(tmp_path, root, source="localized_narratives", split="val", subset=subset)


def plains(root: Path) -> list[Any]:
    return [json.loads(line) for line in (root / FILE).read_text().splitlines()]


def test_a_narrative_is_a_sample_and_an_image_can_have_several(tmp_path: Path) -> None:
    samples = narratives(tmp_path, COMMITTED).samples()

    assert [sample.caption for sample in samples] == [plain["caption"] for plain in plains(COMMITTED)]
    assert len({sample.image for sample in samples}) == 2
    assert len({sample.key for sample in samples}) == 3


def test_points_keep_their_places_and_times_over_all_pieces_of_the_trace(tmp_path: Path) -> None:
    for sample, plain in zip(narratives(tmp_path, COMMITTED).samples(), plains(COMMITTED), strict=True):
        trace = [(point["x"], point["y"], point["t"]) for piece in plain["traces"] for point in piece]

        assert [(point.x_unit, point.y_unit, point.time_s) for point in sample.points] == trace
        assert any(not 0 <= value <= 1 for x, y, _ in trace for value in (x, y)) or len(plain["traces"]) > 0


def test_some_points_of_the_pack_lie_outside_of_their_picture(tmp_path: Path) -> None:
    points = [point for sample in narratives(tmp_path, COMMITTED).samples() for point in sample.points]

    assert any(not 0 <= value <= 1 for point in points for value in (point.x_unit, point.y_unit))


def test_a_point_has_the_words_that_were_being_said(tmp_path: Path) -> None:
    for sample, plain in zip(narratives(tmp_path, COMMITTED).samples(), plains(COMMITTED), strict=True):
        spoken = [(one["utterance"], one["start_time"], one["end_time"]) for one in plain["timed_caption"]]

        assert [(one.text, one.start_s, one.end_s) for one in sample.utterances] == spoken
        for point in sample.points:
            during = [text for text, start, end in spoken if start <= point.time_s <= end]
            assert point.word in (during or [""])


def test_pieces_of_a_trace_in_another_order_are_put_in_order_of_time(raw: Path, tmp_path: Path) -> None:
    before = narratives(tmp_path / "before", raw).samples()
    edit_line(raw / FILE, 0, lambda plain: plain["traces"].reverse())

    assert narratives(tmp_path / "after", raw).samples() == before


@pytest.mark.parametrize("points", [0, 1])
def test_a_trace_of_one_point_or_none_keeps_its_caption(raw: Path, tmp_path: Path, points: int) -> None:
    edit_line(raw / FILE, 0, lambda plain: plain.update(traces=[plain["traces"][0][:points]]))

    made = narratives(tmp_path, raw)

    assert len(made.samples()[0].points) == points
    assert made.facts["counts"]["captions"] == 3
    assert made.facts["counts"]["points"] == 579 + 257 + 845 + points


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain["traces"][0][0].update(x=float("nan")), "does not fit its image or caption"),
        (lambda plain: plain["traces"][0][0].update(t=float("inf")), "does not fit its image or caption"),
        (lambda plain: plain["timed_caption"][0].update(end_time=float("nan")), "does not fit its image or caption"),
        (lambda plain: plain["traces"][0][0].pop("x"), "malformed record"),
        (lambda plain: plain.update(traces=[[None]]), "malformed record"),
        (lambda plain: plain.update(traces=7), "malformed record"),
        (lambda plain: plain.update(caption=" "), "caption is empty"),
        (lambda plain: plain.update(caption=None), "malformed record"),
        (lambda plain: plain.update(image_id="7"), "image is missing"),
        (lambda plain: plain.update(image_id="../142238"), "image_id is not a number"),
        (lambda plain: plain.update(image_id="\uff11\uff14\uff12"), "image_id is not a number"),
        (
            lambda plain: plain.update(dataset_id="flickr30k", image_id="../val2017/000000142238"),
            "image name leaves its folder",
        ),
        (lambda plain: plain.update(caption="half \ud83d"), "does not fit its image or caption"),
        (lambda plain: plain.pop("dataset_id"), "malformed record"),
    ],
)
def test_a_broken_narrative_is_named_and_left_out(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit_line(raw / FILE, 1, change)

    made = narratives(tmp_path, raw)

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"] == "coco_val[1]"
    assert made.facts["samples"] == 2


@pytest.mark.parametrize("line", ["{", "null", "7", "[]", '"text"', "[" * 100_000, "\ufeff", "{}"])
def test_a_line_that_is_no_narrative_is_left_out(raw: Path, tmp_path: Path, line: str) -> None:
    lines = (raw / FILE).read_text().splitlines()
    (raw / FILE).write_text("\n\n".join([lines[0], line, *lines[1:]]), encoding="utf-8")

    made = narratives(tmp_path, raw)

    assert reasons(made) == {"malformed record": 1}
    assert made.facts["samples"] == 3


def test_the_files_of_a_large_set_are_read_one_after_the_other(raw: Path, tmp_path: Path) -> None:
    lines = [*(raw / FILE).read_text().splitlines(keepends=True), ""]
    for number, line in enumerate(lines):
        path = raw / f"localized_narratives/coco_train_localized_narratives-{number:05d}-of-00004.jsonl"
        path.write_text(line)
    shutil.copytree(raw / "coco" / "val2017", raw / "coco" / "train2017", dirs_exist_ok=True)

    made = convert(tmp_path / "train", raw, source="localized_narratives", split="train")

    assert [sample.caption for sample in made.samples()] == [plain["caption"] for plain in plains(COMMITTED)]
    assert [sample.key.split("-")[1] for sample in made.samples()] == ["00000000", "00000001", "00000002"]


def test_narratives_of_other_sets_name_their_pictures_by_their_id(raw: Path, tmp_path: Path) -> None:
    images = raw / "semantic/ade20k/images/validation"
    images.mkdir()
    shutil.copy(raw / "semantic/ade20k/images/training/ADE_train_00000001.jpg", images / "ADE_val_00000007.jpg")
    plain = plains(raw)[0] | {"dataset_id": "ADE20k_validation", "image_id": "ADE_val_00000007"}
    (raw / "localized_narratives/ade20k_validation_localized_narratives.jsonl").write_text(json.dumps(plain))

    (sample,) = narratives(tmp_path, raw, "ade20k_validation").samples()

    assert sample.caption == plain["caption"]
