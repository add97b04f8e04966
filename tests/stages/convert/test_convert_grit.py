"""GRIT: noun chunks with boxes that fit pictures of any size, expressions that belong to their chunk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from orchestrator.errors import InputError
from stages.convert import grit
from tests.stages.conversion import COMMITTED, Converted, convert
from tests.stages.raw_edits import reasons, skipped

FILE = "grit/grit-20m/coyo_0_snappy.parquet"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


def rows(root: Path) -> list[dict[str, Any]]:
    return list(parquet.read_table(root / FILE).to_pylist())


def edit_row(root: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    plain = rows(root)
    change(plain[number])
    parquet.write_table(pa.Table.from_pylist(plain), root / FILE)


def converted(tmp_path: Path, root: Path) -> Converted:
    return convert(tmp_path, root, source="grit")


def test_chunks_are_the_words_at_their_places_with_boxes_in_pixels(tmp_path: Path) -> None:
    for sample, row in zip(converted(tmp_path, COMMITTED).samples(), rows(COMMITTED), strict=True):
        for region, (start, end, x0, y0, x1, y1, score) in zip(sample.regions, row["noun_chunks"], strict=True):
            assert region.phrase == row["caption"][int(start) : int(end)]
            assert region.spans == ((start, end),)
            size = (sample.width_px, sample.height_px) * 2
            assert region.box_xyxy_px == tuple(edge * side for edge, side in zip((x0, y0, x1, y1), size, strict=True))
            assert region.score == score


def test_an_expression_belongs_to_the_chunk_it_grew_from(tmp_path: Path) -> None:
    said = {
        (region.phrase, text)
        for sample in converted(tmp_path, COMMITTED).samples()
        for region in sample.regions
        for text in region.more_phrases
    }

    assert ("Rugby players", "Rugby players lift a team-mate") in said
    assert ("a red truck", "a red truck near the pine forest") in said
    assert len(said) == 5


def test_pictures_may_have_another_size_than_the_original(raw: Path, tmp_path: Path) -> None:
    path = raw / "grit/images/000142238.jpg"
    Image.open(path).resize((100, 50)).save(path)

    made = converted(tmp_path, raw)

    assert made.facts["skipped"]["total"] == 0
    assert made.samples()[0].regions[0].box_xyxy_px == pytest.approx((37.6563, 21.42855, 44.6875, 41.452))


def test_pictures_may_lie_in_the_folders_of_img2dataset(raw: Path, tmp_path: Path) -> None:
    before = converted(tmp_path / "flat", raw).samples()
    for path in (raw / "grit/images").glob("*.jpg"):
        (path.parent / path.name[:5]).mkdir(exist_ok=True)
        path.rename(path.parent / path.name[:5] / path.name)

    assert converted(tmp_path / "nested", raw).samples() == before


def test_several_files_and_batches_are_read_in_the_order_of_their_names(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [sample.caption for sample in converted(tmp_path / "one", raw).samples()]
    table = parquet.read_table(raw / FILE)
    (raw / FILE).unlink()
    parquet.write_table(table.slice(0, 3), raw / "grit/grit-20m/coyo_0_snappy.parquet", row_group_size=2)
    parquet.write_table(table.slice(3, 1), raw / "grit/grit-20m/coyo_1_snappy.parquet")
    monkeypatch.setattr(grit, "_BATCH_ROWS", 1)

    assert [sample.caption for sample in converted(tmp_path / "several", raw).samples()] == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda row: row["noun_chunks"].append([0.0, 500.0, 0.1, 0.1, 0.5, 0.5, 0.9]),
            "region: its place is not in the caption",
        ),
        (
            lambda row: row["noun_chunks"].append([5.0, 5.0, 0.1, 0.1, 0.5, 0.5, 0.9]),
            "region: its place is not in the caption",
        ),
        (
            lambda row: row["noun_chunks"].append([0.0, 5.0, 0.5, 0.1, 0.5, 0.5, 0.9]),
            "region: box is empty or outside of the image",
        ),
        (
            lambda row: row["noun_chunks"].append([0.0, 5.0, 1.5, 0.1, 1.7, 0.5, 0.9]),
            "region: box is empty or outside of the image",
        ),
        (
            lambda row: row["noun_chunks"].append([0.0, 5.0, float("nan"), 0.1, 1.7, 0.5, 0.9]),
            "region: does not fit its image or caption",
        ),
        (lambda row: row["noun_chunks"].append([0.0, 5.0]), "region: does not fit its image or caption"),
        (
            lambda row: row["ref_exps"].append([0.0, 5.0, 0.1, 0.1, 0.5, 0.5, 0.9]),
            "expression: it belongs to no noun chunk",
        ),
        (
            lambda row: row["ref_exps"].append([-4.0, 5.0, 0.1, 0.1, 0.5, 0.5, 0.9]),
            "expression: its place is not in the caption",
        ),
        (
            lambda row: row["ref_exps"].append([float("inf"), 5.0, 0.1, 0.1, 0.5, 0.5, 0.9]),
            "expression: does not fit its image or caption",
        ),
    ],
)
def test_a_broken_chunk_or_expression_is_left_out_alone(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit_row(raw, 1, change)

    made = converted(tmp_path, raw)

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"].startswith("grit-20m[1] coyo_0_snappy.parquet ")
    assert (made.facts["counts"]["regions"], made.facts["counts"]["expressions"]) == (16, 5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.update(noun_chunks=[], ref_exps=[]), "no region is left"),
        (lambda row: row.update(noun_chunks=None, ref_exps=None), "no region is left"),
        (lambda row: row.update(key="not-there"), "image is missing"),
        (lambda row: row.update(key="../../grit/images/000142239"), "image name leaves its folder"),
        (lambda row: row.update(key=None), "malformed record"),
        (lambda row: row.update(caption=None, ref_exps=[]), "no region is left"),
    ],
)
def test_a_row_of_which_nothing_can_be_kept_is_skipped(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit_row(raw, 1, change)

    made = converted(tmp_path, raw)

    assert reasons(made)[reason] == 1
    assert made.facts["samples"] == 3


def test_keys_with_dots_name_their_picture_and_a_sample_without_dots(raw: Path, tmp_path: Path) -> None:
    (raw / "grit/images/000142239.jpg").rename(raw / "grit/images/a.b.c.jpg")
    edit_row(raw, 1, lambda row: row.update(key="a.b.c"))

    made = converted(tmp_path, raw)

    assert made.facts["samples"] == 4
    assert made.samples()[1].key == "grit-20m-00000001-a_b_c"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet" * 100])
def test_a_damaged_file_is_named(raw: Path, tmp_path: Path, content: bytes) -> None:
    (raw / FILE).write_bytes(content)

    with pytest.raises(InputError, match=r"coyo_0_snappy\.parquet is no parquet file"):
        converted(tmp_path, raw)


def test_a_file_damaged_in_the_middle_is_named(raw: Path, tmp_path: Path) -> None:
    content = bytearray((raw / FILE).read_bytes())
    content[4:600] = b"\xff" * 596
    (raw / FILE).write_bytes(content)

    with pytest.raises(InputError, match=r"coyo_0_snappy\.parquet is damaged"):
        converted(tmp_path, raw)


def test_a_folder_without_files_says_so(raw: Path, tmp_path: Path) -> None:
    (raw / FILE).unlink()

    with pytest.raises(InputError, match="nothing of grit could be kept"):
        converted(tmp_path, raw)
