"""Prediction from an export: what is answered, what is drawn, and what is refused."""

import io
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stages
from orchestrator.artifacts import Checkpoint, Export
from orchestrator.errors import InputError
from stages.predict import Asked, answer_lines, parse_box, predict
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
    asked = Asked(boxes=((24, 5, 34, 35), (0, 0, 1, 1)))
    answer = predict(export, image, asked, output=tmp_path / "drawn.png")

    assert [region["caption"] for region in answer["regions"]] == ["the blue bar", "something"]


def test_a_prompt_is_answered_with_its_boxes(export: Path, image: Path) -> None:
    answer = predict(export, image, Asked(prompts=("What is <bbox>?",), boxes=((4, 5, 14, 35),)))

    assert answer["caption"] == "What is <bbox>? the green bar"


def test_each_prompt_of_a_conversation_hears_what_was_said_before(export: Path, image: Path, tmp_path: Path) -> None:
    asked = Asked(prompts=("Hi.", "What is <bbox>?", "And <bbox>?"), boxes=((4, 5, 14, 35), (24, 5, 34, 35)))

    answer = predict(export, image, asked, output=tmp_path / "drawn.png")

    first = "Hi."
    second = f"Hi. {first} What is <bbox>? the green bar"
    assert [turn["caption"] for turn in answer["turns"]] == [
        first,
        second,
        f"Hi. {first} What is <bbox>? {second} And <bbox>? the green bar; the blue bar",
    ]
    assert (answer["prompt"], answer["caption"]) == ("And <bbox>?", answer["turns"][-1]["caption"])
    assert list(answer_lines(answer))[:2] == ["> Hi.", first]


def test_expressions_are_pointed_at_and_drawn(export: Path, image: Path, tmp_path: Path) -> None:
    answer = predict(export, image, Asked(refer=("the green bar", "the moon")), output=tmp_path / "drawn.png")

    bar, moon = answer["referred"]
    assert (bar["expression"], [mask["share_of_image"] for mask in bar["masks"]]) == ("the green bar", [0.1875])
    assert (moon["masks"], moon["text"]) == ([], "It is 0 times there.")
    assert list(answer_lines(answer))[:2] == ["the green bar: 18.8% of the image", "the moon: pointed at nothing"]
    assert (tmp_path / "drawn.png").is_file()


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
        predict(export, image, Asked(boxes=(box,)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": ("What is <bbox>?",)}, "has 1 <bbox>, but 0 --box are given"),
        ({"prompts": ("What?",), "boxes": ((0, 0, 1, 1),)}, "has 0 <bbox>, but 1 --box are given"),
        ({"prompts": ("  ",)}, "--prompt is empty"),
        ({"refer": ("",)}, "--refer is empty"),
        ({"refer": ("it",), "prompts": ("What?",)}, "--refer goes alone"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Asked(**wrong)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_of_20000_by_20000_pixels_is_refused_before_it_is_decoded(
    export: Path, tmp_path: Path, kind: str
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, kind)
    data, huge = bytearray(picture.getvalue()), (20_000).to_bytes(2, "big")
    if kind == "PNG":  # width and height as the header has them, and its checksum
        data[16:24] = 2 * (20_000).to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    else:
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = huge + huge
    (tmp_path / "huge").write_bytes(data)

    with pytest.raises(InputError, match=r"huge: the image (is too large|claims 20000)"):
        predict(export, tmp_path / "huge")


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
    Export(export).commit("c" * 64, facts={"family": "oracle", "form": "adapter"})
    with pytest.raises(InputError, match="is an adapter alone"):
        predict(export, image)
    (export / "truth.json").unlink()
    with pytest.raises(InputError, match=r"is damaged: .*truth.json is missing"):
        predict(export, image)


def test_the_output_must_be_a_png_in_a_folder_that_exists(export: Path, image: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.png"):
        predict(export, image, output=tmp_path / "drawn.jpg")
    with pytest.raises(InputError, match="there is no folder"):
        predict(export, image, output=tmp_path / "none" / "drawn.png")
