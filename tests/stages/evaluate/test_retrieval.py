"""Retrieval and recognition, against cases worked by hand."""

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from PIL import Image

from stages.evaluate.answers import Answer, Said
from stages.evaluate.retrieval import (
    IMAGE_RETRIEVAL,
    REGION_RECOGNITION,
    REGION_RETRIEVAL,
    class_mean,
    distinct,
    ranks_of,
    recall,
)
from tests.stages.scenes import scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.evaluate.benchmark import Tools

NO_TOOLS = cast("Tools", None)  # nothing here scores text


def at(*degrees: float) -> np.ndarray:
    """Returns unit vectors of a plane."""
    return np.array([(math.cos(math.radians(one)), math.sin(math.radians(one))) for one in degrees], dtype=np.float32)


def answered(texts: "Sequence[str]", seen: "Sequence[float]", read: "Sequence[float]") -> tuple[Answer, Answer]:
    """Makes a reference and an answer of one image: texts, and where regions and texts lie."""
    said = [
        Said(phrase="?", seen_as=tuple(at(one)[0].tolist()), read_as=tuple(at(other)[0].tolist()))
        for one, other in zip(seen, read, strict=True)
    ]
    return Answer(caption="", said=tuple(Said(phrase=text) for text in texts)), Answer(caption="", said=tuple(said))


def test_the_best_of_several_right_answers_counts() -> None:
    ranks = ranks_of(at(0), ["cup"], at(10, 20, 30, 5), ["dog", "cup", "cup", "cat"])

    assert ranks.tolist() == [3]  # cat, dog, cup


def test_an_embedding_that_tells_nothing_apart_finds_nothing() -> None:
    ranks = ranks_of(at(0, 0), ["cup", "dog"], at(7, 7, 7), ["cup", "dog", "cat"])

    assert ranks.tolist() == [3, 3]


def test_what_has_no_right_answer_comes_last() -> None:
    assert ranks_of(at(0), ["cow"], at(1, 2), ["cup", "dog"]).tolist() == [3]


def test_recall_counts_the_queries_that_find_theirs_in_time() -> None:
    ranks = np.array([1, 10, 11, 40])

    assert recall(ranks, 10) == 0.5
    assert recall(ranks, 1) == 0.25
    assert recall(ranks[:0], 1) == 0.0


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    ranks = np.array([1, 1, 1, 2])

    assert class_mean(ranks, ["cup", "cup", "cup", "dog"], 1) == 0.5


def test_each_text_is_a_candidate_once() -> None:
    texts, vectors = distinct(["cup", "dog", "cup"], at(1, 2, 3))

    assert texts == ["cup", "dog"]
    assert vectors.tolist() == at(1, 2).tolist()


def test_regions_find_their_texts_and_texts_find_any_region_of_theirs() -> None:
    """Two images: a cup and a dog, a cup again and a cat. The second cup looks like a dog."""
    first, second = answered(["a cup", "a dog"], [0, 90], [0, 90]), answered(["A  cup", "a cat"], [80, 180], [0, 180])

    scores = REGION_RETRIEVAL.score([first[1], second[1]], [first[0], second[0]], NO_TOOLS)

    assert scores["region_to_text1"] == 0.75
    assert scores["text_to_region1"] == 1.0
    assert scores["region_to_text10"] == scores["text_to_region10"] == 1.0


def test_recognition_is_the_mean_over_classes() -> None:
    first, second = answered(["cup", "dog"], [0, 90], [0, 90]), answered(["cup", "cat"], [80, 180], [0, 180])

    scores = REGION_RECOGNITION.score([first[1], second[1]], [first[0], second[0]], NO_TOOLS)

    assert scores["class_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert scores["accuracy"] == 0.75
    assert scores["class_accuracy5"] == 1.0


def test_an_image_is_right_with_any_of_its_captions() -> None:
    """The first image lies at 0 with captions at 5 and 100; the second at 90 with one at 95."""
    first, second = answered(["a", "b"], [0, 0], [5, 100]), answered(["c"], [90], [95])

    scores = IMAGE_RETRIEVAL.score([first[1], second[1]], [first[0], second[0]], NO_TOOLS)

    assert scores["image_to_text1"] == 1.0
    assert scores["text_to_image1"] == pytest.approx(2 / 3)


class Painter:
    """Embeds what it sees by its mean colour, and texts by the colour that they name."""

    colours = ("red", "green", "blue")

    def embed_images(self, images: "Sequence[Image.Image]", masks_HW: "Sequence[object]") -> np.ndarray:
        del masks_HW
        return np.stack([self._unit(np.asarray(image).reshape(-1, 3).mean(0)) for image in images])

    def embed_regions(
        self, images: "Sequence[Image.Image]", boxes: "Sequence[Sequence[tuple[float, ...]]]", masks: object
    ) -> list[np.ndarray]:
        del masks
        return [
            np.concatenate([self.embed_images([image.crop(box)], [None]) for box in some])  # type: ignore[arg-type]  # floats
            for image, some in zip(images, boxes, strict=True)
        ]

    def embed_texts(self, texts: "Sequence[str]") -> np.ndarray:
        return np.stack([self._unit(np.array([float(one in text) for one in self.colours]) + 0.01) for text in texts])

    @staticmethod
    def _unit(vector: np.ndarray) -> np.ndarray:
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_a_model_that_sees_colours_finds_bars_by_their_colour() -> None:
    samples = [scene(number) for number in (0, 1, 4, 5)]
    references = [reference for sample in samples if (reference := REGION_RETRIEVAL.reference(sample, 0)) is not None]
    images = [Image.new("RGB", (40, 40)) for _ in samples]
    for image, sample in zip(images, samples, strict=True):
        for region in sample.regions:
            colour = next((one for one in Painter.colours if one in region.phrase), "grey")
            image.paste(colour, tuple(int(edge) for edge in region.box_xyxy_px))  # type: ignore[arg-type]  # four of them

    answers = REGION_RETRIEVAL.ask(Painter(), images, references, 0)

    assert len(references) == 4
    assert answers[0].said[0].phrase == references[0].said[0].phrase
    assert REGION_RETRIEVAL.score(answers, references, NO_TOOLS)["text_to_region1"] == 1.0
