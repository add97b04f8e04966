"""Replies of every ability: what is told as JSON and in lines, what is drawn, and what a model that cannot says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import stages
from orchestrator.artifacts import Export
from orchestrator.errors import InputError
from stages.family import (
    IN_WORDS,
    DescribedBox,
    DescribedSegment,
    Embeds,
    Grounds,
    LocatedCaption,
    LocatedWord,
    Model,
    load_family,
)
from stages.predict import Asked, answer_lines, predict
from stages.replies import found, ranked, referred, unasked
from stages.vision import Box

PICTURE = Image.new("RGB", (60, 40), "white")
BOX = (10.0, 10.0, 30.0, 30.0)


class Finder:
    """Finds the same thing in every image, and says so with boxes and words."""

    def refer_boxes(self, images: Sequence[Image.Image], expressions: Sequence[Sequence[str]]) -> list[list[Box]]:
        del images
        return [[BOX for _ in texts] for texts in expressions]

    def locate_words(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[LocatedCaption]:
        del max_new_tokens
        words = (LocatedWord(span=(2, 5), points_xy_px=((10.0, 10.0), (30.0, 30.0))),)
        return [LocatedCaption(caption="a cup", words=words) for _ in images]

    def locate_told(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[LocatedCaption]:
        del images
        return [LocatedCaption(caption=caption, words=()) for caption in captions]

    def describe_densely(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[list[DescribedBox]]:
        del max_new_tokens
        return [[DescribedBox(box_xyxy_px=BOX, score=0.75, caption="a cup")] for _ in images]


class Painter:
    """Paints the left half."""

    def segment(self, images: Sequence[Image.Image], *, max_new_tokens: int) -> list[tuple[DescribedSegment, ...]]:
        del max_new_tokens
        made: list[tuple[DescribedSegment, ...]] = []
        for image in images:
            mask_HW = np.zeros((image.height, image.width), dtype=np.bool_)
            mask_HW[:, : image.width // 2] = True
            segment = DescribedSegment(
                mask_HW=mask_HW, category="wall", category_id=7, is_thing=False, score=0.9, caption="a white wall"
            )
            made.append((segment,))
        return made


class Weigher:
    """Sees "white" in images and "cup" in regions."""

    def embed_images(
        self, images: Sequence[Image.Image], masks_HW: Sequence[NDArray[np.bool_] | None]
    ) -> NDArray[np.float32]:
        del masks_HW
        return np.array([[1.0, 0.0] for _ in images], dtype=np.float32)

    def embed_regions(
        self,
        images: Sequence[Image.Image],
        boxes_xyxy_px: Sequence[Sequence[Sequence[float]]],
        masks_HW: Sequence[Sequence[NDArray[np.bool_] | None]],
    ) -> list[NDArray[np.float32]]:
        del images, masks_HW
        return [np.array([[0.0, 1.0] for _ in boxes], dtype=np.float32) for boxes in boxes_xyxy_px]

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([["white" in text, "cup" in text] for text in texts], dtype=np.float32)


class Cutter(Weigher):
    """Sees a cup wherever a mask shows less than half of the image."""

    def embed_masked(self, image: Image.Image, masks_HW: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
        del image
        return np.array([[0.0, 1.0] if mask_HW.mean() < 0.5 else [1.0, 0.0] for mask_HW in masks_HW], dtype=np.float32)


class Rememberer:
    """A family whose exports name one of the models above."""

    def load_export(self, directory: Path) -> Model:
        models: dict[str, type[Model]] = {"Finder": Finder, "Painter": Painter, "Weigher": Weigher, "Cutter": Cutter}
        return models[(directory / "who").read_text()]()


@pytest.fixture(autouse=True)
def _remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(stages.FAMILIES, dict)
    monkeypatch.setitem(stages.FAMILIES, "rememberer", "tests.stages.test_replies:Rememberer")


def ask(folder: Path, model: type[Model], asked: Asked) -> tuple[list[str], Image.Image]:
    """Asks through an export; returns the lines and the picture, and sees that JSON can hold the answer."""
    PICTURE.save(folder / "photo.png")
    (folder / "export").mkdir()
    (folder / "export" / "who").write_text(model.__name__)
    Export(folder / "export").commit("c" * 64, facts={"family": "rememberer"})
    answer = predict(folder / "export", folder / "photo.png", asked, folder / "drawn.png")
    assert json.loads(json.dumps(answer)) == answer
    with Image.open(folder / "drawn.png") as drawn:
        drawn.load()
        return list(answer_lines(answer))[:-1], drawn


def colours(picture: Image.Image) -> int:
    return len(picture.convert("RGB").getcolors(1 << 20) or ())


def test_words_are_drawn_where_they_are(tmp_path: Path) -> None:
    lines, drawn = ask(tmp_path, Finder, Asked())

    assert lines == ["a cup", "  cup: [[10.0, 10.0], [30.0, 30.0]]"]
    assert colours(drawn) > 3


def test_an_expression_has_a_box_where_a_model_gives_no_masks(tmp_path: Path) -> None:
    lines, _ = ask(tmp_path, Finder, Asked(refer=("the cup",)))

    assert lines == ["the cup: [10.0, 10.0, 30.0, 30.0]"]


def test_everything_is_found_with_its_score(tmp_path: Path) -> None:
    lines, _ = ask(tmp_path, Finder, Asked(dense=True))

    assert lines == ["0.75 [10.0, 10.0, 30.0, 30.0]: a cup"]


def test_segments_tell_category_share_and_caption(tmp_path: Path) -> None:
    lines, _ = ask(tmp_path, Painter, Asked())

    assert lines == ["wall, 50.0%: a white wall"]


@pytest.mark.parametrize(
    ("boxes", "lines"),
    [
        ((), ["the image:", "  1.000  white", "  0.000  a cup"]),
        ((BOX,), ["[10.0, 10.0, 30.0, 30.0]:", "  1.000  a cup", "  0.000  white"]),
    ],
)
def test_texts_are_ranked_for_the_image_or_a_box(tmp_path: Path, boxes: tuple[Box, ...], lines: list[str]) -> None:
    assert ask(tmp_path, Weigher, Asked(texts=("a cup", "white"), boxes=boxes))[0] == lines


def mask_file(path: Path, columns: slice) -> Path:
    mask_HW = np.zeros((40, 60), dtype=np.uint8)
    mask_HW[10:30, columns] = 255
    Image.fromarray(mask_HW).save(path)
    return path


def test_texts_are_ranked_for_boxes_and_then_for_what_masks_show(tmp_path: Path) -> None:
    small, large = mask_file(tmp_path / "small.png", slice(5, 15)), mask_file(tmp_path / "large.png", slice(0, 60))

    lines, drawn = ask(tmp_path, Cutter, Asked(texts=("a cup", "white"), boxes=(BOX,), masks=(small, large)))

    assert lines == [
        "[10.0, 10.0, 30.0, 30.0]:", "  1.000  a cup", "  0.000  white",
        "the mask in [5.0, 10.0, 15.0, 30.0], 8.3% of the image:", "  1.000  a cup", "  0.000  white",
        "the mask in [0.0, 10.0, 60.0, 30.0], 50.0% of the image:", "  1.000  white", "  0.000  a cup",
    ]  # fmt: skip
    assert colours(drawn) > 3


def test_a_model_that_reads_no_masks_says_so_and_which_box_could_be_asked_about(tmp_path: Path) -> None:
    mask = mask_file(tmp_path / "mask.png", slice(5, 15))

    with pytest.raises(
        InputError, match=r"cannot give how well texts fit what a mask shows.* --box 5,10,15,30 instead"
    ):
        ask(tmp_path, Weigher, Asked(texts=("a cup",), masks=(mask,)))


def test_a_mask_of_another_image_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    PICTURE.crop((0, 0, 20, 20)).save(tmp_path / "mask.png")
    PICTURE.save(tmp_path / "photo.png")

    with pytest.raises(InputError, match=r"--mask .*mask.png has 20 x 20 pixels, the image 60 x 40"):
        predict(tmp_path / "no_export", tmp_path / "photo.png", Asked(texts=("a",), masks=(tmp_path / "mask.png",)))


def test_a_model_that_cannot_says_what_it_can() -> None:
    with pytest.raises(InputError, match="cannot give how well texts fit a region; it can give a box for an"):
        ranked(Finder(), PICTURE, ["a"], [])
    with pytest.raises(InputError, match="cannot give masks for an expression; it can give panoptic"):
        referred(Painter(), PICTURE, ["a"])
    with pytest.raises(InputError, match="cannot give boxes of everything, described; it can give how well texts"):
        found(Weigher(), PICTURE)
    with pytest.raises(InputError, match="say with --text what the image"):
        unasked(Weigher(), PICTURE)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dense": True, "refer": ("a",)}, "--dense goes alone"),
        ({"texts": ("a",), "prompts": ("b",)}, "--text goes alone or with --box"),
        ({"texts": (" ",)}, "--text is empty"),
        ({"masks": (Path("a.png"),)}, "--mask needs --text"),
    ],
)
def test_questions_that_do_not_go_together_are_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Asked(**asked)  # type: ignore[arg-type]  # each of its type


def test_every_family_can_do_what_planning_believes() -> None:
    known = {ability.__name__: ability for ability in IN_WORDS}
    for family, abilities in stages.ABILITIES.items():
        models = models_of(family)
        able = {name for name, ability in known.items() if any(can(model, ability) for model in models)}
        assert able == set(abilities), family
    assert {Embeds, Grounds} < set(IN_WORDS)


def models_of(family: str) -> list[type]:
    """Returns the class of a family's models, as it declares it, and those of them that can do more."""
    cls = type(load_family(family))
    found = get_type_hints(getattr(cls, "answering", None) or cls.load)["return"]
    assert isinstance(found, type)
    return [found, *found.__subclasses__()]


def can(model: type, ability: type) -> bool:
    return all(hasattr(model, name) for name in vars(ability) if not name.startswith("_"))
