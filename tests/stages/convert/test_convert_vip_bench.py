"""ViP-Bench: a question a sample, its objects as boxes, what it tests, and how it is worded for drawn places."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.errors import InputError
from stages.samples import Turn
from tests.stages.conversion import convert
from tests.stages.raw_edits import reasons

SOURCE = "vip_bench"


def question(text: str, source: str, *tests: str, answer: str = "0.75<OR>x=0.75") -> dict[str, Any]:
    image = {"image": "drawn.png", "image_source": source}
    return {**image, "question": text, "answer": answer, "capability": list(tests)}


def shape(label: str, kind: str, *points: list[float]) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": list(points)}


def written(root: Path, questions: dict[str, Any], shapes: list[dict[str, Any]]) -> Path:
    """Writes the layout, with one picture for all questions."""
    folder = root / "vip_bench"
    (folder / "source_image/sub").mkdir(parents=True)
    (folder / "bbox").mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, format="PNG")
    (folder / "source_image/sub/a.png").write_bytes(buffer.getvalue())
    marked = {"shapes": shapes, "imagePath": "a.png", "imageWidth": 40, "imageHeight": 30}
    (folder / "source_image/sub/a.json").write_text(json.dumps(marked), encoding="utf-8")
    (folder / "vip-bench-meta-data.json").write_text(json.dumps(questions), encoding="utf-8")
    lines = [{"question_id": n, "image": "drawn.png", "text": f"Within the red box, {n}?"} for n in range(2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "bbox/questions.jsonl").write_text(text, encoding="utf-8")
    return root


SHAPES = [
    shape("obj1", "rectangle", [30.0, 20.0], [10.0, 5.0]),
    shape("obj2", "polygon", [1.0, 1.0], [6.0, 2.0], [3.0, 9.0]),
    shape("obj1", "rectangle", [0.0, 0.0], [1.0, 1.0]),
]


def test_objects_of_a_question_become_boxes_in_its_order(tmp_path: Path) -> None:
    questions = {
        "v1_0": question("Is <obj2> left of <obj1>, seen from <obj2>?", "sub/a.png", "rel", "ocr"),
        "v1_1": question("What is <obj>?", "sub/a.png", "rec"),
    }
    root = written(tmp_path / "raw", questions, [*SHAPES, shape("obj", "rectangle", [0, 0], [40, 30])])

    first, second = convert(tmp_path, root, source=SOURCE, split="test").samples()

    (turn,) = first.turns
    assert turn == Turn(
        question="Is region2 <bbox> left of region1 <bbox>, seen from region2 <bbox>?", answer="0.75<OR>x=0.75",
        worded="Within the red box, 0?", tests=("ocr", "rel"),
    )  # fmt: skip
    assert [region.box_xyxy_px for region in first.regions] == [(1, 1, 6, 9), (10, 5, 30, 20), (1, 1, 6, 9)]
    assert (second.turns[0].question, second.regions[0].box_xyxy_px) == ("What is region1 <bbox>?", (0, 0, 40, 30))


def test_a_question_that_nobody_worded_is_kept_and_counted(tmp_path: Path) -> None:
    root = written(tmp_path / "raw", {"v1_7": question("What is it?", "sub/a.png", "rec")}, SHAPES)

    found = convert(tmp_path, root, source=SOURCE, split="test")

    assert found.samples()[0].turns[0].worded == ""
    assert sum(found.facts["repaired"].values()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.update(question="What is <obj9>?"), "no shape is labelled as the question says"),
        (lambda one: one.update(question="What is <bbox>?"), "question holds <bbox> itself"),
        (lambda one: one.update(answer=" "), "answer is empty"),
        (lambda one: one.update(image_source="sub/none.png"), "file is missing"),
        (lambda one: one.update(image_source="../a.png"), "file name leaves its folder"),
        (lambda one: one.pop("capability"), "malformed record"),
        (lambda one: one.update(question="What is <obj3>?"), "shape is neither a rectangle nor a polygon"),
        (lambda one: one.update(question="What is <obj4>?"), "box is empty or outside of the image"),
    ],
)
def test_a_broken_question_is_named_and_left_out(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    broken = question("What is <obj1>?", "sub/a.png", "rec")
    change(broken)
    more = [shape("obj3", "circle", [1, 1], [2, 2]), shape("obj4", "rectangle", [50, 50], [60, 60])]
    questions = {"v1_0": broken, "v1_1": question("And <obj1>?", "sub/a.png", "rec")}
    root = written(tmp_path / "raw", questions, [*SHAPES, *more])

    found = convert(tmp_path, root, source=SOURCE, split="test")

    assert len(found.samples()) == 1
    assert reasons(found) == {reason: 1}


def test_a_file_of_wordings_that_is_none_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path / "raw", {"v1_0": question("What?", "sub/a.png", "rec")}, SHAPES)
    (root / "vip_bench/bbox/questions.jsonl").write_text('{"text": "no id"}\n', encoding="utf-8")

    with pytest.raises(InputError, match=r"questions\.jsonl:1 is no question"):
        convert(tmp_path, root, source=SOURCE, split="test")
