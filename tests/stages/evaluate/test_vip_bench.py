"""ViP-Bench's questions: asked with the boxes they speak of, answered freely, and a first score without a grader."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from stages.evaluate.answers import Answer, panel_of
from stages.evaluate.asking import Asked
from stages.evaluate.items import Place
from stages.evaluate.vip_bench import ask_questions, read_question, share_said
from stages.family import GroundedCaption
from stages.samples import Region, Sample, Turn
from stages.vision import decode_image
from tests.stages.scenes import scene

ASKED = Turn(
    question="Is region2 <bbox> left of region1 <bbox>?", answer="yes<OR>it is", worded="Is B left of A?",
    tests=("rel", "rec"),
)  # fmt: skip


def asked(turn: Turn = ASKED) -> Sample:
    boxes = ((1.0, 2.0, 9.0, 9.0), (3.0, 4.0, 8.0, 8.0))
    regions = tuple(Region(box_xyxy_px=box, mask=None, phrase=f"obj{2 - n}") for n, box in enumerate(boxes))
    return replace(scene(3), regions=regions, turns=(turn,), caption="")


class Talker:
    """Says what it was asked, and of how many boxes."""

    def answer(
        self, image: Image.Image, prompt: str, boxes_xyxy_px: Sequence[Sequence[float]], *, before: Sequence[Turn] = ()
    ) -> GroundedCaption:
        del image, before
        return GroundedCaption(caption=f"{prompt} {[box[0] for box in boxes_xyxy_px]}", phrases=())


def test_a_question_is_asked_with_its_boxes_in_order() -> None:
    reference = read_question(asked())
    assert reference is not None

    (told,) = ask_questions(Talker(), [decode_image(asked().image)], [reference], 9)

    assert told.caption == f"{ASKED.question} [1.0, 3.0]"
    assert (reference.caption, reference.asked) == ("yes<OR>it is", ASKED)


def test_a_sample_that_tests_nothing_or_lacks_a_box_is_no_question() -> None:
    assert read_question(scene(3)) is None
    assert read_question(asked(replace(ASKED, tests=()))) is None
    assert read_question(asked(replace(ASKED, question="What is <bbox>?"))) is None


def test_a_question_survives_the_shards_and_the_predictions() -> None:
    sample = Sample.from_members("k", asked().to_members())
    reference = read_question(sample)
    assert reference is not None
    kept = Asked(
        benchmark="vip_bench", place=Place(source="a", number=0), key="k", reference=reference,
        answers={"trained": Answer(caption="Yes.", said=())},
    )  # fmt: skip

    assert sample.turns == (ASKED,)
    assert Asked.from_plain(kept.to_plain()).reference.asked == ASKED
    assert panel_of("Ground truth", reference).notes == (f"Q: {ASKED.question}",)


@pytest.mark.parametrize(
    ("said", "truth", "share"),
    [
        ("It is A CAT.", "cat", 1.0),
        ("a category", "cat", 0.0),
        ("x = -1", "-1<AND>-5", 0.5),
        ("a puppy", "dog<OR>puppy", 1.0),
        ("red", "red<AND>blue<OR>green", 0.5),
        ("green", "red<AND>blue<OR>green", 1.0),
        ("the old dog", "old<AND>the old dog", 1.0),
        ("", "cat", 0.0),
        ("anything", "", 0.0),
    ],
)
def test_a_truth_is_said_as_far_as_its_words_stand_there(said: str, truth: str, share: float) -> None:
    assert share_said(said, truth) == share
