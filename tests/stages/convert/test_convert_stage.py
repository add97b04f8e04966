"""The conversion as a stage: its faults before the start, what its plan watches, how it stops."""

import json
import os
import shutil
from pathlib import Path

import pytest

from orchestrator.artifacts import Raw
from orchestrator.errors import InputError, Preempted
from orchestrator.stage import StageContext
from stages.convert.raw import RawPart, json_list
from stages.convert.sources import SOURCES
from tests.stages.conversion import COMMITTED, context_in, convert, stage_for

ALIGNMENT = "llava/blip_laion_cc_sbu_558k.json"
HUMAN = "grandf/annotations/train/GranDf_HA_GCG_train.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


# -------------------------------------------------------------------------------------------------- before the start


def test_an_unknown_source_is_answered_with_a_near_one_and_all(tmp_path: Path) -> None:
    faults = stage_for(tmp_path, COMMITTED, source="visual_genom").faults()

    assert "Did you mean 'visual_genome'?" in faults["config.source"]
    assert "Allowed: llava, visual_genome, grand_f, pix2cap_coco" in faults["config.source"]


def test_an_unknown_split_names_those_of_the_source(tmp_path: Path) -> None:
    faults = stage_for(tmp_path, COMMITTED, source="pix2cap_coco", split="vall").faults()

    assert "Did you mean 'val'? Allowed: train, val" in faults["config.split"]


def test_an_unknown_subset_names_those_of_the_split(tmp_path: Path) -> None:
    faults = stage_for(tmp_path, COMMITTED, source="grand_f", subset="OpenPsgGCG_val").faults()

    assert "Allowed: GranDf_HA_GCG_train, OpenPsgGCG_train" in faults["config.subset"]


def test_every_missing_file_and_folder_is_named_by_its_full_path(raw: Path, tmp_path: Path) -> None:
    (raw / HUMAN).unlink()
    shutil.rmtree(raw / "coco" / "train2017")

    fault = stage_for(tmp_path, raw, source="grand_f").faults()["config.root"]

    assert fault == f"missing: {raw / HUMAN}, {raw / 'coco/train2017'}"


def test_a_file_where_a_folder_belongs_is_missing(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "llava" / "images")
    (raw / "llava" / "images").write_text("not a folder")

    assert "llava/images" in stage_for(tmp_path, raw, source="llava").faults()["config.root"]


@pytest.mark.parametrize(("both", "word"), [(False, "neither given"), (True, "both given")])
def test_exactly_one_of_root_and_raw_is_needed(both: bool, word: str, tmp_path: Path) -> None:  # noqa: FBT001
    made = Raw(tmp_path / "made") if both else None

    faults = stage_for(tmp_path, COMMITTED if both else None, raw=made, source="llava").faults()

    assert word in faults["config.root"]


def test_numbers_below_one_are_faults(tmp_path: Path) -> None:
    faults = stage_for(tmp_path, COMMITTED, source="llava", limit=0, samples_per_shard=-1).faults()

    assert faults == {
        "config.limit": "must be 1 or more, not 0",
        "config.samples_per_shard": "must be 1 or more, not -1",
    }


def test_a_made_data_set_that_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    stage = stage_for(tmp_path, None, raw=Raw(tmp_path / "later"), source="llava")

    assert stage.faults() == {}
    with pytest.raises(InputError, match=r"later/llava/blip_laion_cc_sbu_558k\.json"):
        stage.run(context_in(tmp_path))


def test_the_plan_sees_that_an_annotation_file_changed(raw: Path, tmp_path: Path) -> None:
    stage = stage_for(tmp_path, raw, source="llava")
    before = dict(stage.outside())

    os.utime(raw / ALIGNMENT, ns=(1, 1))
    touched = dict(stage.outside())
    (raw / "visual_genome" / "image_data.json").write_text("[]")

    assert {key for key in before if before[key] != touched[key]} == {str(raw / ALIGNMENT)}
    assert stage.outside() == touched  # other data sets are none of its business


def test_code_is_followed_into_the_reader_of_the_source_and_no_other(tmp_path: Path) -> None:
    assert stage_for(tmp_path, COMMITTED, source="llava").code_roots() == ("stages.convert.llava",)
    assert stage_for(tmp_path, COMMITTED, source="nothing").code_roots() == ()


# ------------------------------------------------------------------------------------------------------- the running


def test_asked_to_stop_it_leaves_no_half_tar(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    stage = stage_for(tmp_path, COMMITTED, source="llava")
    stopping = StageContext(
        directory=tmp_path, name="test", fingerprint="f", seed=0, world=context.world, journal=context.journal,
        progress=context.progress, stop=lambda: True,
    )  # fmt: skip

    with pytest.raises(Preempted):
        stage.run(stopping)

    assert list((tmp_path / "shards").iterdir()) == []


def test_what_an_attempt_left_behind_does_not_get_into_the_next(tmp_path: Path) -> None:
    convert(tmp_path, COMMITTED, source="grand_f", samples_per_shard=1)
    made = convert(tmp_path, COMMITTED, source="grand_f", samples_per_shard=100)

    assert sorted(path.name for path in made.directory.glob("*.tar")) == ["shard-000000.tar"]


@pytest.mark.parametrize("spacing", ["", " ", "\n  "])
def test_a_long_list_is_read_across_the_borders_of_its_chunks(tmp_path: Path, spacing: str) -> None:
    records = [{"number": number, "text": 'é🐎\\"]}' * (number % 50)} for number in range(20_000)] + [12, 3456]
    text = "[" + f",{spacing}".join(
        json.dumps(record, ensure_ascii=number % 2 == 0) for number, record in enumerate(records)
    )
    (tmp_path / "list.json").write_text(text + spacing + "]\n", encoding="utf-8")

    assert (tmp_path / "list.json").stat().st_size > 3 << 20
    read = list(json_list(tmp_path / "list.json"))
    assert [value for value, _ in read] == records
    assert [text[end - 1] for _, end in read] == [json.dumps(record)[-1] for record in records]


def test_how_many_records_a_list_has_is_estimated_while_it_is_read(tmp_path: Path) -> None:
    (part,) = SOURCES["llava"].chosen("train", None)
    (tmp_path / "llava").mkdir()
    (tmp_path / ALIGNMENT).write_text(json.dumps([{"id": f"{number:09d}"} for number in range(3000)]))
    raw = RawPart(tmp_path, part)

    for _, _ in zip(range(100), raw.list(0), strict=False):
        pass

    assert 2900 <= raw.about <= 3100
