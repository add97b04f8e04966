"""RefCOCO, RefCOCO+ and RefCOCOg: expressions belong to the right object of the right split."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import InputError
from stages.convert.pickles import read_pickle
from stages.vision import box_of_mask, mask_from_rle
from tests.stages.conversion import COMMITTED, convert
from tests.stages.raw_edits import edit, reasons, skipped

REFS, INSTANCES = "refcoco/refs(unc).p", "refcoco/instances.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


def edit_refs(raw: Path, change: Callable[[Any], Any], *, protocol: int = 2) -> None:
    references = read_pickle(raw / REFS)
    change(references)
    (raw / REFS).write_bytes(pickle.dumps(references, protocol=protocol))


@pytest.mark.parametrize("source", ["refcoco", "refcoco+", "refcocog"])
def test_expressions_mean_the_objects_that_the_references_name(source: str, tmp_path: Path) -> None:
    (path,) = (COMMITTED / source).glob("refs*.p")
    objects = {one["id"]: one for one in json.loads((COMMITTED / source / "instances.json").read_text())["annotations"]}
    expected = {}
    for reference in read_pickle(path):
        x, y, width, height = objects[reference["ann_id"]]["bbox"]
        texts = tuple(sentence["sent"] for sentence in reference["sentences"])
        expected[texts] = (reference["split"], (x, y, x + width, y + height))

    found = {
        (region.phrase, *region.more_phrases): (split, region.box_xyxy_px)
        for split in {split for split, _ in expected.values()}
        for sample in convert(tmp_path / split, COMMITTED, source=source, split=split).samples()
        for region in sample.regions
    }

    assert found == expected


def test_masks_lie_in_their_boxes(tmp_path: Path) -> None:
    for sample in convert(tmp_path, COMMITTED, source="refcocog").samples():
        for region in sample.regions:
            assert region.mask is not None
            around = box_of_mask(mask_from_rle(region.mask))
            assert around is not None
            assert np.allclose(around, region.box_xyxy_px, atol=1)  # boxes are of the polygons, not of whole pixels


def test_the_protocol_of_the_pickle_does_not_matter(raw: Path, tmp_path: Path) -> None:
    before = convert(tmp_path / "0", raw, source="refcoco").samples()
    edit_refs(raw, lambda _: None, protocol=4)

    assert convert(tmp_path / "4", raw, source="refcoco").samples() == before


def test_a_malicious_pickle_ends_the_conversion_and_runs_nothing(raw: Path, tmp_path: Path) -> None:
    (raw / REFS).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "proof").encode() + b"'\ntR.")

    with pytest.raises(InputError, match=r"refs\(unc\)\.p is no pickle of plain data: it holds the instruction GLOBAL"):
        convert(tmp_path, raw, source="refcoco")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("references", [{}, "text", None, [7], [{"split": "train"}], [{"image_id": [1]}]])
def test_a_pickle_of_something_else_ends_the_conversion(raw: Path, tmp_path: Path, references: Any) -> None:
    (raw / REFS).write_bytes(pickle.dumps(references))

    with pytest.raises(InputError, match=r"refs\(unc\)\.p"):
        convert(tmp_path, raw, source="refcoco")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.update(ann_id=1), "region: object is not in instances.json"),
        (lambda one: one.update(ann_id=45918016), "region: object is not in instances.json"),  # of the other image
        (lambda one: one.update(ann_id=[1]), "region: object is not in instances.json"),
        (lambda one: one.update(ann_id=None), "region: object is not in instances.json"),
        (lambda one: one["sentences"][0].update(sent=["a", "list"]), "region: malformed record"),
        (lambda one: one.update(sentences=[]), "region: an expression is empty"),
        (lambda one: one["sentences"][0].update(sent=" "), "region: an expression is empty"),
        (lambda one: one.pop("sentences"), "region: malformed record"),
    ],
)
def test_a_broken_reference_is_left_out_alone(
    raw: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    def break_one_of_two(references: Any) -> None:
        references.append(
            references[0] | {"ref_id": 99, "sentences": [dict(one) for one in references[0]["sentences"]]}
        )
        change(references[-1])

    edit_refs(raw, break_one_of_two)

    made = convert(tmp_path, raw, source="refcoco")

    assert reasons(made) == {reason: 1}
    assert skipped(made)[0]["record"].endswith("142238 ref 99")
    assert made.facts["counts"]["regions"] == 3


def test_images_that_instances_json_does_not_have_are_skipped(raw: Path, tmp_path: Path) -> None:
    edit(raw / INSTANCES, lambda plain: plain["images"].pop(0))

    assert reasons(convert(tmp_path, raw, source="refcoco")) == {"image is not in instances.json": 1}


def test_texts_with_accents_survive_pickles_of_python_2(raw: Path, tmp_path: Path) -> None:
    content = (raw / REFS).read_bytes().replace(b"S'player on far left in blue'", b"S'caf\\xc3\\xa9 on far left'")
    (raw / REFS).write_bytes(content)

    phrases = {region.phrase for one in convert(tmp_path, raw, source="refcoco").samples() for region in one.regions}

    assert "café on far left" in phrases
