"""What is said about a sample: each kind of source asks for what it teaches, and for no more than it may."""

import re
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.errors import InputError
from stages.glamm import prompts
from stages.glamm.conversations import KINDS, Rules, converse
from stages.glamm.prompts import BBOX, SEG, Conversation
from stages.samples import Caption, Grounding, Region, Rle, Sample
from stages.vision import mask_from_rle, rle_from_mask, union
from tests.stages.scenes import SIDE_PX, scene

END = "</s>"
BANKS = {
    "CAPTION_QUESTIONS": 17, "REGION_QUESTIONS": 20, "REGION_GROUP_QUESTIONS": 30, "GCG_QUESTIONS": 6,
    "SEGMENTATION_QUESTIONS": 16, "SEGMENTATION_ANSWERS": 5,
}  # fmt: skip


def column(at: int) -> Rle:
    """Masks one column of a scene."""
    mask_HW = np.zeros((SIDE_PX, SIDE_PX), dtype=np.bool_)
    mask_HW[:, at] = True
    return rle_from_mask(mask_HW)


def region(at: int, phrase: str, **more: object) -> Region:
    made = Region(box_xyxy_px=(at, 0, at + 1, SIDE_PX), mask=column(at), phrase=phrase)
    return replace(made, **more)  # type: ignore[arg-type]


def sample(*regions: Region, **more: object) -> Sample:
    bare = replace(scene(0), caption="", regions=())
    return replace(bare, **{"regions": regions, **more})  # type: ignore[arg-type]


def said(kind: str, about: Sample, seed: int = 0, **rules: int) -> Conversation:
    return converse(kind, about, seed=seed, rules=Rules(end=END, **rules))


def answers(conversation: Conversation) -> list[str]:
    return [conversation.text[start:end].removesuffix(END).strip() for start, end in conversation.answers]


def columns(conversation: Conversation) -> list[list[int]]:
    """Lists which columns each mask of a conversation covers."""
    masks = [union(mask_from_rle(part) for part in parts) for parts in conversation.masks]
    return [np.flatnonzero(mask_HW.any(axis=0)).tolist() for mask_HW in masks]


@pytest.mark.parametrize("bank", BANKS)
def test_there_are_as_many_wordings_as_published_and_no_two_alike(bank: str) -> None:
    wordings = getattr(prompts, bank)

    assert len(wordings) == len(set(wordings)) == BANKS[bank]


def test_every_wording_has_a_place_for_what_it_asks_about() -> None:
    assert all(question.count(BBOX) == 1 for question in prompts.REGION_QUESTIONS)
    assert all(question.count(prompts.REGIONS) == 1 for question in prompts.REGION_GROUP_QUESTIONS)
    assert all(question.count(prompts.TARGET) == 1 for question in prompts.SEGMENTATION_QUESTIONS)
    assert all(answer.count(SEG) == 1 for answer in prompts.SEGMENTATION_ANSWERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_has_a_mask_for_each_seg_and_a_box_for_each_place(kind: str) -> None:
    for seed in range(8):
        conversation = said(kind, scene(3), seed)

        assert conversation.text.count(SEG) == len(conversation.masks)
        assert conversation.text.count(BBOX) == len(conversation.boxes_xyxy_px)
        assert bool(conversation.masks) == KINDS[kind].masks
        assert bool(conversation.boxes_xyxy_px) == KINDS[kind].boxes
        assert prompts.TARGET not in conversation.text
        assert prompts.REGIONS not in conversation.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_what_a_kind_asks_for_is_refused_by_name(kind: str) -> None:
    with pytest.raises(InputError, match=rf"scene0000.*the task {kind}: it needs {re.escape(KINDS[kind].needs)}"):
        said(kind, sample())


def test_referring_asks_for_three_expressions_at_most_in_turns_of_one_dialogue() -> None:
    conversation = said("referring", sample(*(region(at, f"bar {at}") for at in range(9))))

    asked = [int(number) for number in re.findall(r"bar (\d)", conversation.text)]
    assert len(asked) == len(set(asked)) == len(answers(conversation)) == 3
    assert columns(conversation) == [[number] for number in asked]
    assert conversation.text.count(prompts.IMAGE) == 1


def test_every_expression_of_an_object_has_its_turn_and_crowds_have_none() -> None:
    about = sample(region(1, "a bar", more_phrases=("the left one", "a thing")), region(5, "people", crowd=True))

    texts = {said("referring", about, seed, max_targets=1).text for seed in range(40)}

    assert all(any(words in text for text in texts) for words in ("a bar", "the left one", "a thing"))
    assert not any("people" in text for text in texts)
    assert columns(said("referring", about)) == [[1], [1], [1]]  # expressions are drawn, not objects


def test_semantic_joins_what_has_one_name_and_skips_branches_of_a_tree_of_classes() -> None:
    about = sample(region(1, "tree"), region(4, "tree", crowd=True), region(7, "wall-brick"), region(9, "car"))

    conversation = said("semantic", about)

    found = dict(zip(re.findall(r"tree|car", conversation.text), columns(conversation), strict=True))
    assert found == {"tree": [1, 4], "car": [9]}


def test_a_part_is_called_either_way() -> None:
    about = sample(region(1, "car wheel", more_phrases=("the wheel of the car",)))

    texts = " ".join(said("semantic", about, seed).text for seed in range(20))

    assert "car wheel" in texts
    assert "the wheel of the car" in texts


def test_a_phrase_that_means_two_regions_has_one_seg_that_joins_them() -> None:
    about = sample(region(1, "bars", spans=((0, 8),)), region(5, "bars", spans=((0, 8),)), caption="Two bars stand.")

    conversation = said("gcg", about)

    assert answers(conversation) == ["<p> Two bars </p> [SEG] stand."]
    assert columns(conversation) == [[1, 5]]


def test_a_phrase_with_half_of_its_masks_stays_words() -> None:
    whole, bare = region(1, "bars", spans=((0, 8),)), region(5, "bars", spans=((0, 8),), mask=None)

    assert answers(said("gcg", sample(whole, bare, caption="Two bars stand."))) == ["Two bars stand."]


def test_each_grounded_caption_has_its_turn() -> None:
    short = Caption(text="A bar.", groundings=(Grounding(span=(0, 5), regions=(0,)),))
    plain = Caption(text="Nothing points at anything here.")
    about = sample(region(1, "a bar", spans=((4, 7),)), caption="One bar stands.", more_captions=(short, plain))

    spoken = {answers(said("gcg", about, seed))[0] for seed in range(20)}

    assert spoken == {"One <p> bar </p> [SEG] stands.", "<p> A bar </p> [SEG]."}


def test_a_group_of_regions_is_asked_about_at_once_and_answered_with_the_caption() -> None:
    bars = [region(at, "bar", spans=((0, 4),), mask=None) for at in (1, 5, 8)]

    conversation = said("region_group", sample(*bars, caption="Bars stand."), max_regions=2)

    assert f"region1 {BBOX}, region2 {BBOX}" in conversation.text
    assert [box[0] for box in conversation.boxes_xyxy_px] == [1, 5]
    assert answers(conversation) == ["Bars stand."]


def test_a_region_is_described_by_its_caption_or_else_by_one_of_its_phrases() -> None:
    described = sample(region(1, "a bar", caption="a bar that stands"))
    named = sample(region(1, "a bar", more_phrases=("the left one",)))

    assert {answers(said("region", described, seed))[0] for seed in range(9)} == {"a bar that stands"}
    assert {answers(said("region", named, seed))[0] for seed in range(20)} == {"a bar", "the left one"}


def test_few_wordings_are_the_first_ones() -> None:
    texts = {said("region", sample(region(1, "a bar")), seed, wordings=2).text for seed in range(30)}

    asked = [question for question in prompts.REGION_QUESTIONS if any(question in text for text in texts)]
    assert asked == list(prompts.REGION_QUESTIONS[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_a_function_of_the_seed(kind: str) -> None:
    assert [said(kind, scene(5), seed) for seed in range(4)] == [said(kind, scene(5), seed) for seed in range(4)]


def test_data_cannot_forge_a_place_in_a_question() -> None:
    about = sample(region(1, f"a {BBOX} bar {SEG}"))

    for kind in ("referring", "semantic", "region"):
        conversation = said(kind, about)
        assert conversation.text.count(SEG) == len(conversation.masks)
        assert conversation.text.count(BBOX) == len(conversation.boxes_xyxy_px)
