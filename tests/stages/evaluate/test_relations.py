"""Spatial words: what is read of them, and what they make of boxes, against cases worked by hand."""

import numpy as np
import pytest

from stages.evaluate.relations import Entity, chances_of, entity_of

# from left to right: a small cup, a large dog, a small cup above it, a large dog that holds a small ball
BOXES = [(0.0, 70.0, 10.0, 80.0), (20.0, 40.0, 50.0, 80.0), (30.0, 0.0, 40.0, 10.0), (60.0, 30.0, 90.0, 90.0)]
BALL = (70.0, 40.0, 75.0, 45.0)


def alone(text: str) -> np.ndarray:
    """Knows cups from dogs, and nothing else."""
    fits = np.array([("cup" in text, "dog" in text)[one % 2] for one in range(4)], dtype=np.float64)
    return fits / fits.sum() if fits.any() else np.full(4, 0.25)


def meant(expression: str) -> int:
    entity = entity_of(expression)
    assert entity is not None
    chances_N = chances_of(entity, alone, BOXES)
    assert chances_N.sum() == pytest.approx(1.0)
    return int(chances_N.argmax())


@pytest.mark.parametrize(
    ("expression", "box"),
    [
        ("the left cup", 0),
        ("cup on the right", 2),
        ("the cup on the right side of the picture", 2),
        ("rightmost dog", 3),
        ("the dog to the left of a dog", 1),
        ("cup above the dog", 2),
        ("the cup in front of the cup", 0),
        ("the dog on the right hand", 3),
        ("the biggest dog", 3),
        ("a dog smaller than the dog", 1),
        ("the dog to the right of the top cup", 3),
        ("the thing to the left of the left dog", 0),
    ],
)
def test_spatial_words_single_out_a_box(expression: str, box: int) -> None:
    assert meant(expression) == box


@pytest.mark.parametrize(
    "expression", ["a white cup", "the dog that sleeps", "left", "", "the right of the picture", "?!"]
)
def test_what_has_no_place_or_nothing_else_is_left_to_the_whole_expression(expression: str) -> None:
    assert entity_of(expression) is None


def test_an_expression_is_read_as_things_in_relations() -> None:
    entity = entity_of("The small cup to the left of the brown dog under a tree")

    assert entity is not None
    assert entity.texts() == ["the small cup", "brown dog", "tree"]
    assert [len(entity.relations), len(entity.superlatives)] == [1, 0]


def test_how_much_lies_inside_counts() -> None:
    boxes = [BOXES[0], BOXES[3], BALL]
    entity = entity_of("the ball inside the dog")
    assert entity is not None

    chances_N = chances_of(entity, lambda text: np.eye(3)[1] if "dog" in text else np.full(3, 1 / 3), boxes)

    assert chances_N.tolist() == pytest.approx([0.0, 0.5, 0.5])  # a dog lies in itself, as in the release


def test_a_relation_that_no_box_fulfils_changes_nothing() -> None:
    entity = entity_of("the cup left of the cup")
    assert isinstance(entity, Entity)

    assert chances_of(entity, lambda _: np.array([1.0, 0.0]), BOXES[:2]).tolist() == [1.0, 0.0]
