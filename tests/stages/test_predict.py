"""Prediction from an export: what is answered, what is drawn, and what is refused."""

from pathlib import Path

import pytest
from PIL import Image

import stages
from orchestrator.artifacts import Checkpoint, Export
from orchestrator.errors import InputError
from stages.predict import parse_box, predict
from tests.stages.oracle import OracleFamily, write_oracle
from tests.stages.scenes import scene

SCENE = scene(1)


@pytest.fixture(autouse=True)
def _oracles_are_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(stages.FAMILIES, dict)
    monkeypatch.setitem(stages.FAMILIES, "oracle", "tests.stages.oracle:OracleFamily")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "scene.png").write_bytes(SCENE.image)
    return tmp_path / "scene.png"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    checkpoint: Checkpoint = write_oracle(tmp_path / "model", [SCENE])
    (tmp_path / "export").mkdir()
    OracleFamily().export(checkpoint.path, tmp_path / "export", card="# card")
    Export(tmp_path / "export").commit("c" * 64, facts={"family": "oracle"})
    return tmp_path / "export"


def test_without_a_prompt_it_grounds_a_caption_and_draws_it(export: Path, image: Path, tmp_path: Path) -> None:
    answer = predict(export, image, output=tmp_path / "drawn.png")

    assert answer["caption"] == SCENE.caption
    assert [phrase["phrase"] for phrase in answer["phrases"]] == ["A green bar", "a blue bar"]
    assert answer["phrases"][0]["share_of_image"] == pytest.approx(10 * 30 / 40**2)
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width > 300
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["drawn.png", "scene.png"]


def test_boxes_alone_are_described(export: Path, image: Path, tmp_path: Path) -> None:
    answer = predict(export, image, boxes=[(24, 5, 34, 35), (0, 0, 1, 1)], output=tmp_path / "drawn.png")

    assert [region["caption"] for region in answer["regions"]] == ["the blue bar", "something"]


def test_a_prompt_is_answered_with_its_boxes(export: Path, image: Path) -> None:
    answer = predict(export, image, "What is <bbox>?", [(4, 5, 14, 35)])

    assert answer["caption"] == "What is <bbox>? the green bar"


def test_a_box_is_read_from_four_numbers() -> None:
    assert parse_box("1,2.5,3,4") == (1, 2.5, 3, 4)
    for text in ("1,2,3", "a,b,c,d", ""):
        with pytest.raises(InputError, match="four numbers x0,y0,x1,y1"):
            parse_box(text)


@pytest.mark.parametrize("box", [(0, 0, 41, 10), (5, 5, 5, 9), (9, 0, 3, 3), (-1, 0, 3, 3), (float("nan"), 0, 3, 3)])
def test_a_box_outside_the_image_is_refused_with_its_size(
    export: Path, image: Path, box: tuple[float, float, float, float]
) -> None:
    with pytest.raises(InputError, match="inside the image of 40 x 40 pixels"):
        predict(export, image, boxes=[box])


def test_prompt_and_boxes_must_fit(export: Path, image: Path) -> None:
    with pytest.raises(InputError, match="has 1 <bbox>, but 0 --box are given"):
        predict(export, image, "What is <bbox>?")
    with pytest.raises(InputError, match="--prompt is empty"):
        predict(export, image, "  ")


def test_a_bad_image_is_named(export: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes(SCENE.image[:80])

    for name in ("text.png", "half.png", "missing.png", "."):
        with pytest.raises(InputError, match=f"{tmp_path}"):
            predict(export, tmp_path / name)
    assert image.is_file()


def test_what_is_no_export_is_refused(export: Path, image: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        predict(image, image)
    with pytest.raises(InputError, match="is not an export: there is a checkpoint in it"):
        predict(tmp_path / "model", image)
    (export / "truth.json").unlink()
    with pytest.raises(InputError, match=r"is damaged: .*truth.json is missing"):
        predict(export, image)


def test_the_output_must_be_a_png_in_a_folder_that_exists(export: Path, image: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.png"):
        predict(export, image, output=tmp_path / "drawn.jpg")
    with pytest.raises(InputError, match="there is no folder"):
        predict(export, image, output=tmp_path / "none" / "drawn.png")
