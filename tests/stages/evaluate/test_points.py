"""The places of words are scored by the distance of corners and middles, in parts of the image."""

import numpy as np
import pytest

from stages.evaluate.answers import Answer
from stages.evaluate.benchmark import Tools
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.likeness import open_likeness
from stages.evaluate.points import ask_located, read_located, score_located
from stages.family import LocatedCaption, LocatedWord
from stages.samples import Sample, TimedPoint, Utterance
from stages.vision import decode_image
from tests.stages.scenes import png

TOOLS = Tools(captions=open_caption_scorer("plain"), likeness=open_likeness(None))
BOXES = {"Red": (0.0, 0.0, 0.5, 0.5), "bar": (0.25, 0.25, 0.75, 1.0)}  # in units of the image
SIZE = (40, 20)


def narrated() -> Sample:
    points, utterances = [], []
    for number, (word, (x0, y0, x1, y1)) in enumerate(BOXES.items()):
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        points += [
            TimedPoint(word=word, x_unit=x, y_unit=y, time_s=number + 0.2 * at) for at, (x, y) in enumerate(corners)
        ]
        utterances.append(Utterance(text=word, start_s=number, end_s=number + 0.8))
    return Sample(
        key="one", image=png(np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)), width_px=SIZE[0], height_px=SIZE[1],
        caption="Red bar", points=tuple(points), utterances=tuple(utterances),
    )  # fmt: skip


class Teller:
    """Says the true boxes, moved right by a part of the width."""

    def __init__(self, shift: float, *, forget: bool = False) -> None:
        self.shift, self.forget = shift, forget

    def locate_words(self, images: object, *, max_new_tokens: int) -> list[LocatedCaption]:
        raise NotImplementedError

    def locate_told(self, images: object, captions: list[str]) -> list[LocatedCaption]:
        del images
        words = [
            LocatedWord(
                span=(caption.index(word), caption.index(word) + len(word)),
                points_xy_px=((40 * (x0 + self.shift), 20 * y0), (40 * (x1 + self.shift), 20 * y1)),
            )
            for caption in captions
            for word, (x0, y0, x1, y1) in BOXES.items()
        ]
        return [LocatedCaption(caption=captions[0], words=() if self.forget else tuple(words))]


def scores(model: Teller) -> dict[str, float]:
    sample = narrated()
    reference = read_located(sample)
    assert reference is not None
    answers = ask_located(model, [decode_image(sample.image)], [reference], 1)
    kept = [Answer.from_plain(one.to_plain()) for one in answers]
    return score_located(kept, [Answer.from_plain(reference.to_plain())], TOOLS)


def test_the_truth_of_a_word_is_the_box_that_the_mouse_went_around_in_pixels() -> None:
    reference = read_located(narrated())

    assert reference is not None
    assert [said.phrase for said in reference.said] == ["Red", "bar"]
    assert [said.box_xyxy_px for said in reference.said] == [
        pytest.approx((0, 0, 20, 10)),
        pytest.approx((10, 5, 30, 20)),
    ]


def test_true_places_have_no_error() -> None:
    assert scores(Teller(0.0)) == pytest.approx({"word_error": 0, "middle_error": 0, "iou50": 1})


def test_a_shift_by_a_tenth_of_the_width_is_half_of_that_over_x_and_y() -> None:
    found = scores(Teller(0.1))

    assert found["word_error"] == pytest.approx(0.05)
    assert found["middle_error"] == pytest.approx(0.05)
    assert found["iou50"] == 1.0  # both boxes are half as wide as the image: IoU is 4/6


def test_a_corner_is_compared_with_the_nearer_one_of_the_two_true_ones() -> None:
    found = scores(Teller(0.5))

    # each corner is half a width from its own true one, and the first no nearer to the other: 0.5 in x, 0 in y
    assert found["word_error"] == pytest.approx(0.25)
    assert found["iou50"] == 0.0


def test_words_without_any_place_err_by_the_whole_image() -> None:
    assert scores(Teller(0.0, forget=True)) == {"word_error": 1.0, "middle_error": 1.0, "iou50": 0.0}


def test_a_sample_without_a_trace_holds_nothing_to_ask() -> None:
    plain = narrated()

    assert read_located(Sample(key="two", image=plain.image, width_px=40, height_px=20, caption="Red bar")) is None
