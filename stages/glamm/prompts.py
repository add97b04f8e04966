"""Conversation template, question wordings and special tokens; pure text, no torch."""

import random
from collections.abc import Sequence

from orchestrator.records import record
from stages.glamm.config import SPECIAL_TOKENS
from stages.samples import Region, Turn

IM_START, IM_END, BBOX, POINT, SEG, PHRASE_START, PHRASE_END = SPECIAL_TOKENS
IMAGE = f"{IM_START}{IM_END}"  # the image tokens go between the two
SYSTEM = "A user talks with an assistant that sees a picture and answers what is asked."
LEAD_IN = f"Here is the picture: {IMAGE}\n"

CAPTION_QUESTIONS = (
    "Describe the picture in short.",
    "What does the picture show?",
    "Say in one sentence what is to be seen.",
)
REGION_QUESTIONS = (
    f"What is in the region {BBOX}?",
    f"Describe the region {BBOX}.",
    f"Say what the region {BBOX} shows.",
)
POINTED_REGION_QUESTIONS = (
    f"What is in the region {BBOX}, and which pixels is it?",
    f"Describe the region {BBOX} and mark it.",
)
GCG_QUESTIONS = (
    "Describe the picture and mark every thing you name.",
    "What does the picture show? Mark each phrase.",
    "Give a caption whose phrases point at their pixels.",
)


@record
class Conversation:
    """The text of one sample, with what its special tokens stand for."""

    text: str
    answers: tuple[tuple[int, int], ...]  # [start, end) code points where the assistant speaks, each up to its end mark
    boxes_xyxy_px: tuple[tuple[float, float, float, float], ...] = ()  # one per <bbox>, in order
    mask_regions: tuple[Region, ...] = ()  # one per [SEG], in order


def make_conversation(
    turns: Sequence[Turn],
    *,
    end: str,
    boxes_xyxy_px: Sequence[tuple[float, float, float, float]] = (),
    mask_regions: Sequence[Region] = (),
) -> Conversation:
    """Writes turns in the "v1" manner: system, then `USER: ... ASSISTANT: ...` with an end mark after each answer."""
    text, answers = SYSTEM, []
    for index, turn in enumerate(turns):
        lead = LEAD_IN if index == 0 else ""
        text += f" USER: {lead}{turn.question} ASSISTANT:"
        start = len(text)
        text += f" {turn.answer}{end}"
        answers.append((start, len(text)))
    return Conversation(
        text=text, answers=tuple(answers), boxes_xyxy_px=tuple(boxes_xyxy_px), mask_regions=tuple(mask_regions)
    )


def make_prompt(question: str) -> str:
    """Writes the same up to the point where the assistant begins to speak."""
    return f"{SYSTEM} USER: {LEAD_IN}{question} ASSISTANT:"


def clean(text: str, *, keep: str = "") -> str:
    """Takes special tokens, but for one, out of text that comes from data or users, so that nobody can forge one."""
    for token in (*SPECIAL_TOKENS, "<s>", "</s>", "<unk>"):
        if token != keep:
            text = text.replace(token, " ")
    return " ".join(text.split())


def weave(caption: str, regions: Sequence[Region]) -> tuple[str, list[Region]]:
    """Wraps each phrase as `<p> phrase </p> [SEG]`; returns the text and the regions in the order of their [SEG].

    Of overlapping spans the earlier one (of equal start, the longer one) is kept.
    """
    spans = sorted(
        ((start, end, index) for index, region in enumerate(regions) for start, end in region.spans[:1]),
        key=lambda span: (span[0], -span[1]),
    )
    text, used, at = "", [], 0
    for start, end, index in spans:
        if start < at or not caption[start:end].strip():
            continue
        text += f"{clean(caption[at:start])} {PHRASE_START} {clean(caption[start:end])} {PHRASE_END} {SEG} "
        used.append(regions[index])
        at = end
    text += clean(caption[at:])
    return tidy(text), used


def tidy(text: str) -> str:
    """Closes the gaps that joining pieces left: one space between words, none before a full stop or comma."""
    text = " ".join(text.split())
    for mark in ".,;:!?":
        text = text.replace(f" {mark}", mark)
    return text


def choose(wordings: Sequence[str], chance: random.Random) -> str:
    """Picks one wording."""
    return wordings[chance.randrange(len(wordings))]
