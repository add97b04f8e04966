"""LongGRIT-like lines: one region, described at length."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.vision import mask_from_coco, mask_from_rle
from tests.stages.conversion import COMMITTED, convert
from tests.stages.raw_edits import edit_line, reasons, skipped

FILE = "longgrit/longgrit.jsonl"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


def test_every_line_is_a_sample_with_its_region(tmp_path: Path) -> None:
    samples = convert(tmp_path, COMMITTED, source="longgrit").samples()

    for sample, line in zip(samples, (COMMITTED / FILE).read_text().splitlines(), strict=True):
        plain = json.loads(line)
        (region,) = sample.regions
        assert region.caption == plain["caption"]
        assert region.box_xyxy_px == tuple(plain["bbox"])
        assert region.mask is not None
        assert (mask_from_rle(region.mask) == mask_from_coco(plain["mask"])).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.update(image="../grit/images/000142238.jpg"), "image name leaves its folder"),
        (lambda plain: plain.update(image="x" * 5000), "image is missing"),
        (lambda plain: plain.update(image="images/nothing.jpg"), "image is missing"),
        (lambda plain: plain.update(width=7), "image has another size than its record"),
        (lambda plain: plain.update(bbox=[700, 500, 800, 600]), "box is empty or outside of the image"),
        (lambda plain: plain.update(bbox=[1, 2, float("nan"), 4]), "does not fit its image or caption"),
        (lambda plain: plain.update(mask=None), "does not fit its image or caption"),
        (lambda plain: plain.update(mask={"size": [427, 640], "counts": [427 * 640]}), "mask is empty"),
        (
            lambda plain: plain.update(mask={"size": [640, 427], "counts": [0, 427 * 640]}),
            "mask has another size than its image",
        ),
        (lambda plain: plain.update(caption=""), "caption is empty"),
        (lambda plain: plain.update(caption=["a"]), "malformed record"),
        (lambda plain: plain.pop("id"), "malformed record"),
    ],
)
def test_a_broken_line_is_named_and_left_out(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    edit_line(raw / FILE, 0, change)

    made = convert(tmp_path, raw, source="longgrit")

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"] == "longgrit[0]"
    assert made.facts["samples"] == 5


@pytest.mark.parametrize(("given", "expected"), [("a.b/c:d é", "c_d_"), ("../../etc", "etc"), (7, "7"), ("", "")])
def test_ids_of_any_kind_make_keys_that_fit_a_tar(raw: Path, tmp_path: Path, given: object, expected: str) -> None:
    edit_line(raw / FILE, 0, lambda plain: plain.update(id=given))

    assert convert(tmp_path, raw, source="longgrit").samples()[0].key == f"longgrit-00000000-{expected}"
