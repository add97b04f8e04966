"""Referring by boxes: right above an IoU of one half, averaged over expressions."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from stages.boxes import box_ious
from stages.evaluate.benchmark import Tools
from stages.evaluate.boxes import ask_boxes, read_boxed, score_boxes
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.likeness import open_likeness
from stages.vision import Box
from tests.stages.scenes import scene

TOOLS = Tools(captions=open_caption_scorer("plain"), likeness=open_likeness(None))


class Pointer:
    """Points at both bars of a scene, as wide as it is told."""

    def __init__(self, width_px: float) -> None:
        self.width_px = width_px

    def refer_boxes(self, images: Sequence[Image.Image], expressions: Sequence[Sequence[str]]) -> list[list[Box]]:
        assert expressions == [["the red bar", "the green bar"]]
        return [[(left, 5, left + self.width_px, 35) for left in (4, 24)] for _ in images]


def test_ious_of_boxes_in_a_table() -> None:
    table = box_ious([(0, 0, 2, 2), (0, 0, 0, 2)], [(0, 0, 2, 2), (1, 0, 3, 2), (5, 5, 6, 6)])

    np.testing.assert_allclose(table, [[1, 1 / 3, 0], [0, 0, 0]])


@pytest.mark.parametrize(("width_px", "precision", "iou"), [(10, 1.0, 1.0), (20, 0.0, 0.5), (19, 1.0, 10 / 19)])
def test_a_box_is_right_above_one_half(width_px: float, precision: float, iou: float) -> None:
    reference = read_boxed(scene(0))
    assert reference is not None

    answers = ask_boxes(Pointer(width_px), [Image.new("RGB", (40, 40))], [reference], 1)

    found = score_boxes(answers, [reference], TOOLS)
    assert found == {"precision50": precision, "mean_iou": pytest.approx(iou)}
