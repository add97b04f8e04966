"""One's own data: what the page says holds, what is wrong is left out by name and never taken by half."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.samples import Caption, Region, TimedPoint, Turn
from stages.vision import mask_from_rle, rle_from_mask
from tests.stages.conversion import REPOSITORY, Converted, stage_for
from tests.stages.own_data import HEIGHT_PX, WIDTH_PX, convert_lines, draw_pictures

PAGE = REPOSITORY / "stages/convert/OWN_DATA.md"
FILE = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


# ---------------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which somebody has followed the page to the letter, and what each command said."""
    place, said = tmp_path_factory.mktemp("stranger"), []
    text = PAGE.read_text(encoding="utf-8")
    for name, content in FILE.findall(text):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(content, encoding="utf-8")
    programs = {"orch": [sys.executable, "-m", "orchestrator.cli"], "python": [sys.executable]}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for line in next(block for language, block in BLOCK.findall(text) if language == "sh").splitlines():
        program, *arguments = shlex.split(line)
        done = subprocess.run(
            [*programs[program], *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    return place, said


def test_the_example_of_the_page_works_to_its_end(followed: tuple[Path, list[str]]) -> None:
    place, said = followed
    samples = Converted(directory=place / "runs/mine/photos/shards", facts={}).samples()

    assert [sample.caption for sample in samples] == [
        "A golden sun in a dark sky.", "The moon at night.", "A red house on a meadow."
    ]  # fmt: skip
    assert [[region.phrase for region in sample.regions] for sample in samples] == [
        ["golden sun", "dark sky"], ["the moon"], ["a red house"]
    ]  # fmt: skip
    assert samples[2].regions[0].box_xyxy_px == (60, 40, 121, 111)
    assert len(said) == 5
    with Image.open(place / "mine/peek.png") as drawn:
        assert min(drawn.size) > 100


def test_every_line_that_the_page_shows_converts(followed: tuple[Path, list[str]], tmp_path: Path) -> None:
    place, _ = followed
    blocks = [block for language, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if language == "jsonl"]
    lines = "".join(blocks).splitlines()
    shown = [json.loads(line) for line in lines]
    for name in (place / "mine/photos").iterdir():
        (tmp_path / "mine/photos").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine/photos" / name.name).write_bytes(name.read_bytes())

    made = convert_lines(tmp_path, lines)

    assert made.facts["skipped"] == {"total": 0, "reasons": {}}
    assert made.facts["samples"] == len(shown) == 7
    masks = [mask_from_rle(region.mask) for sample in made.samples() for region in sample.regions if region.mask]
    assert [int(mask.sum()) for mask in masks][-2:] == [1200, 1200]


def test_the_page_names_every_key_of_the_schema() -> None:
    from stages.convert.jsonl import _LINE, _OF_LINE, _OF_REGION

    keys = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(keys) == sorted([*_LINE, *_OF_LINE, *_OF_REGION])


# ------------------------------------------------------------------------------------------------------ what is kept


def region(tmp_path: Path, caption: str = "", **plain: Any) -> Region:
    (sample,) = convert_lines(tmp_path, [{"image": "a.jpg", "caption": caption, "regions": [plain]}]).samples()
    return sample.regions[0]


@pytest.mark.parametrize(
    ("key", "box"),
    [
        ("box_xyxy_px", [16, 12, 48, 36]),
        ("box_xywh_px", [16, 12, 32, 24]),
        ("box_xyxy_unit", [0.25, 0.25, 0.75, 0.75]),
    ],
)
def test_the_three_ways_of_a_box_are_the_same_box(tmp_path: Path, key: str, box: list[float]) -> None:
    assert region(tmp_path, **{key: box}).box_xyxy_px == (16, 12, 48, 36)


def test_the_four_ways_of_a_mask_are_the_same_mask(tmp_path: Path) -> None:
    mask_HW = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.bool_)
    mask_HW[12:36, 16:48] = True
    rle = rle_from_mask(mask_HW)
    runs = [16 * 48 + 12, *[24, 24] * 31, 24, 16 * 48 + 12]
    draw_pictures(tmp_path / "mine")
    Image.fromarray(mask_HW.astype(np.uint8) * 7).save(tmp_path / "mine/mask.png")
    size = [HEIGHT_PX, WIDTH_PX]
    ways = [
        "mask.png", {"size": size, "counts": rle.counts}, {"size": size, "counts": runs},
        [[16, 12, 48, 12, 48, 36, 16, 36]],
    ]  # fmt: skip

    made = convert_lines(tmp_path, [{"image": "a.jpg", "regions": [{"mask": way} for way in ways]}])

    (sample,) = made.samples()
    assert [found.mask for found in sample.regions] == [rle] * 4
    assert {found.box_xyxy_px for found in sample.regions} == {(16, 12, 48, 36)}


def test_all_that_a_line_can_say_arrives(tmp_path: Path) -> None:
    line = {
        "image": "b.png", "caption": "Ein Mädchen 🐎 und ein Hund", "captions": ["zwei", "drei"],
        "regions": [{
            "box_xyxy_px": [1, 2, 3, 4], "phrase": "ein Hund", "more_phrases": ["Tier"], "caption": "Er bellt.",
            "spans": [[18, 26]], "score": 0.5, "source": "me", "crowd": True,
        }],
        "points": [{"word": "Hund", "x_unit": 0.5, "y_unit": 1, "time_s": 2}],
        "turns": [{"question": "Wer?", "answer": "Er."}],
    }  # fmt: skip

    (sample,) = convert_lines(tmp_path, [line]).samples()

    assert sample.more_captions == (Caption(text="zwei"), Caption(text="drei"))
    assert sample.regions == (
        Region(
            box_xyxy_px=(1, 2, 3, 4), mask=None, phrase="ein Hund", more_phrases=("Tier",), caption="Er bellt.",
            spans=((18, 26),), score=0.5, source="me", crowd=True,
        ),
    )  # fmt: skip
    assert sample.caption[18:26] == "ein Hund"
    assert sample.points == (TimedPoint(word="Hund", x_unit=0.5, y_unit=1, time_s=2),)
    assert sample.turns == (Turn(question="Wer?", answer="Er."),)
    assert sample.key == "data-00000001-b"


def test_text_to_find_is_the_phrase_and_gets_its_place(tmp_path: Path) -> None:
    found = region(tmp_path, caption="Two dogs and a cat.", box_xyxy_px=[0, 0, 9, 9], find="a CAT")

    assert (found.phrase, found.spans, found.source) == ("a CAT", ((13, 18),), "data")


def test_text_that_is_not_in_the_caption_keeps_its_region_and_is_counted(tmp_path: Path) -> None:
    plain = {"box_xyxy_px": [0, 0, 9, 9], "find": "a horse"}

    made = convert_lines(tmp_path, [{"image": "a.jpg", "caption": "A cat.", "regions": [plain]}])

    assert made.samples()[0].regions[0].spans == ()
    assert made.facts["repaired"] == {
        "text to find is not in the caption, or taken: region kept without its place": 1
    }  # fmt: skip


def test_images_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "mine/elsewhere/deep")

    made = convert_lines(tmp_path, [{"image": "deep/a.jpg"}], images="elsewhere")

    assert made.facts["samples"] == 1


def test_lines_are_numbered_as_an_editor_does_and_empty_ones_are_none(tmp_path: Path) -> None:
    made = convert_lines(tmp_path, ['\ufeff{"image": "a.jpg"}\r', "", "   ", '{"image": "gone.jpg"}'])

    assert made.facts["records"] == 2
    assert notes(made) == [("data.jsonl:4", "image is missing")]


# -------------------------------------------------------------------------------------------------- what is left out


def notes(made: Converted) -> list[tuple[str, str]]:
    lines = (made.directory / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    return [(note["record"], note["reason"]) for note in map(json.loads, lines)]


NOT_JSON, NOT_SCHEMA = "line is not JSON", "line does not follow the schema"
BOX = {"box_xyxy_px": [1, 1, 5, 5]}


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("{", NOT_JSON, "Expecting property name"),
        ("null", NOT_SCHEMA, "NoneType given"),
        ("[]", NOT_SCHEMA, "list given"),
        ('{"image": "a.jpg", "image": "b.png"}', NOT_JSON, "'image' is there twice"),
        ('{"image": "a.jpg", "points": [{"word": "a", "x_unit": NaN, "y_unit": 0, "time_s": 0}]}', NOT_JSON, "NaN"),
        ('{"image": "a.jpg", "points": [{"word": "a", "x_unit": 1e999, "y_unit": 0, "time_s": 0}]}', NOT_SCHEMA, ""),
        ("[" * 100_000, NOT_JSON, "recursion"),
        ('{"image": ' + "9" * 5000 + "}", NOT_JSON, "digit"),
        (b'{"image": "\xff.jpg"}', NOT_JSON, "utf-8"),
        ("{}", NOT_SCHEMA, "image missing"),
        ({"image": 7}, NOT_SCHEMA, "the line.image: 7 is of the wrong type"),
        ({"image": "a.jpg", "captoin": "x"}, NOT_SCHEMA, "unknown key captoin; did you mean 'caption'?"),
        ({"image": "a.jpg", "captions": [7]}, NOT_SCHEMA, "captions[0]: 7 is not a text"),
        ({"image": "a.jpg", "caption": "\ud800"}, NOT_SCHEMA, "half a character"),
        ({"image": "a.jpg", "turns": [{"question": "x"}]}, NOT_SCHEMA, "turns[0]: answer missing"),
        ({"image": "a.jpg", "regions": [{"frase": "x", **BOX}]}, NOT_SCHEMA, "regions[0]: unknown key frase"),
        ({"image": "a.jpg", "regions": [BOX, {"phrase": "x"}]}, NOT_SCHEMA, "regions[1]: needs a mask or one of"),
        ({"image": "a.jpg", "regions": [{**BOX, "box_xywh_px": [1, 1, 2, 2]}]}, NOT_SCHEMA, "at most one of them"),
        ({"image": "a.jpg", "regions": [{**BOX, "find": "a", "spans": [[0, 1]]}]}, NOT_SCHEMA, "find and spans"),
        ({"image": "a.jpg", "regions": [{**BOX, "spans": [[0, 1]]}]}, NOT_SCHEMA, "is not inside the caption"),
        ({"image": "a.jpg", "caption": "xyz", "regions": [{**BOX, "spans": [[0, 1.5]]}]}, NOT_SCHEMA, "whole"),
        ({"image": "a.jpg", "regions": [{"box_xyxy_px": [1, 1, 5]}]}, NOT_SCHEMA, "4 numbers are needed"),
        ({"image": "a.jpg", "regions": [{"box_xyxy_px": [5, 5, 1, 1]}]}, "box is empty or outside of the image", ""),
        ({"image": "a.jpg", "regions": [{"mask": [[1, 1, 2, 2]]}]}, NOT_SCHEMA, "regions[0].mask: a polygon needs"),
        ({"image": "a.jpg", "regions": [{"mask": {"size": [48, 64]}}]}, NOT_SCHEMA, "counts missing"),
        ({"image": "a.jpg", "regions": [{"mask": {"size": [48, 64], "counts": [7]}}]}, NOT_SCHEMA, "do not add up"),
        ({"image": "a.jpg", "regions": [{"mask": {"size": [2, 2], "counts": [0, 4]}}]}, NOT_SCHEMA, "2 x 2 px"),
        ({"image": "a.jpg", "regions": [{"mask": {"size": [48, 64], "counts": [3072]}}]}, NOT_SCHEMA, "no pixel"),
        ({"image": "a.jpg", "regions": [{"mask": {"size": "x", "counts": [1]}}]}, NOT_SCHEMA, "wrong type"),
        ({"image": "a.jpg", "regions": [{"mask": {"size": [48, 64], "counts": [None]}}]}, NOT_SCHEMA, "mask"),
        ({"image": "a.jpg", "regions": [{"mask": "gone.png"}]}, "mask is missing", "gone.png"),
        ({"image": "a.jpg", "regions": [{"mask": "../secret.png"}]}, "mask name leaves its folder", "secret"),
        ({"image": "../secret.png"}, "image name leaves its folder", "secret"),
        ({"image": "/etc/passwd"}, "image name leaves its folder", "passwd"),
        ({"image": "x" * 5000 + ".jpg"}, "image is missing", "xxx"),
        ({"image": "data.jsonl"}, "image is damaged", "neither a JPEG nor a PNG"),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong_is_left_out_by_its_number_and_its_reason(
    tmp_path: Path, line: dict[str, Any] | str | bytes, reason: str, detail: str
) -> None:
    draw_pictures(tmp_path)
    (tmp_path / "b.png").rename(tmp_path / "secret.png")

    made = convert_lines(tmp_path, [{"image": "a.jpg"}, line, {"image": "c.jpg"}])

    assert [sample.key for sample in made.samples()] == ["data-00000001-a", "data-00000003-c"]
    assert notes(made) == [("data.jsonl:2", reason)]
    assert detail in (made.directory / "skipped.jsonl").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------- before the start


@pytest.mark.parametrize(
    ("config", "key", "message"),
    [
        ({"source": "jsonl"}, "config.file", "needs the name of its file below the root"),
        ({"source": "jsonl", "file": "gone.jsonl"}, "config.root", "mine/gone.jsonl"),
        ({"source": "jsonl", "file": "/etc/passwd"}, "config.file", "must be a name below the root"),
        ({"source": "jsonl", "file": "../x.jsonl"}, "config.file", "must be a name below the root"),
        ({"source": "jsonl", "file": "data.jsonl", "images": "gone"}, "config.root", "mine/gone"),
        ({"source": "jsonl", "file": "data.jsonl", "subset": "x"}, "config.subset", "has no subsets"),
        ({"source": "llava", "file": "data.jsonl"}, "config.file", "source llava has files of its own"),
        ({"source": "jsonl", "file": "data.jsonl", "processes": 0}, "config.processes", "must be 1 or more, not 0"),
    ],
)
def test_what_keeps_it_from_starting_is_told_by_the_plan(
    tmp_path: Path, config: dict[str, Any], key: str, message: str
) -> None:
    draw_pictures(tmp_path / "mine")
    (tmp_path / "mine/data.jsonl").write_text('{"image": "a.jpg"}\n')

    faults = stage_for(tmp_path, tmp_path / "mine", **config).faults()

    assert message in faults[key]


def test_any_split_can_be_named(tmp_path: Path) -> None:
    assert convert_lines(tmp_path, [{"image": "a.jpg"}], split="held_out").facts["split"] == "held_out"
