"""Conversation template, question wordings and special tokens; pure text, no torch."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from orchestrator.records import record
from stages.glamm.config import SPECIAL_TOKENS
from stages.samples import Rle, Turn

IM_START, IM_END, BBOX, POINT, SEG, PHRASE_START, PHRASE_END = SPECIAL_TOKENS
IMAGE = f"{IM_START}{IM_END}"  # the image tokens go between the two
_LLAMA_3_TOKEN = re.compile(r"<\|\w+\|>")  # <|eot_id|> and its like
SYSTEM = "A user talks with an assistant that sees a picture and answers what is asked."
LEAD_IN = f"Here is the picture: {IMAGE}\n"

TARGET, REGIONS = "{target}", "{regions}"  # what a wording is filled in with

# As many wordings as GLaMM's release has of each sort. The first ones are what `wordings` in a recipe keeps, and the
# very first is what evaluation and prediction ask.
CAPTION_QUESTIONS = (
    "Describe the picture in short.",
    "What does the picture show?",
    "Say in one sentence what is to be seen.",
    "Give a caption for this picture.",
    "What is going on here?",
    "Sum up what you see.",
    "Write a short description of the scene.",
    "What can be seen in this picture?",
    "Tell me briefly what is in the picture.",
    "How would you caption this?",
    "Put the content of the picture into words.",
    "What is the picture about?",
    "Describe what is happening in the picture.",
    "Please summarise the picture.",
    "In a few words, what is shown?",
    "Which scene does the picture show?",
    "Explain the picture in one sentence.",
)
REGION_QUESTIONS = (
    f"What is in the region {BBOX}?",
    f"Describe the region {BBOX}.",
    f"Say what the region {BBOX} shows.",
    f"What can you tell me about the region {BBOX}?",
    f"Give a short description of the region {BBOX}.",
    f"What is to be seen in {BBOX}?",
    f"Please describe {BBOX}.",
    f"What lies within {BBOX}?",
    f"Caption the region {BBOX}.",
    f"Which thing is in {BBOX}?",
    f"What do you see in the region {BBOX}?",
    f"Put the region {BBOX} into words.",
    f"How would you describe what is in {BBOX}?",
    f"Tell me what the area {BBOX} contains.",
    f"What is shown in the area {BBOX}?",
    f"Sum up the content of the region {BBOX}.",
    f"Describe what is inside {BBOX}.",
    f"I want to know what is in {BBOX}.",
    f"What does the box {BBOX} hold?",
    f"In a few words, what is {BBOX}?",
)
REGION_GROUP_QUESTIONS = (
    f"Describe the picture by these regions: {REGIONS}.",
    f"What do the regions {REGIONS} show together?",
    f"Say in one sentence what is to be seen in {REGIONS}.",
    f"Give a caption that names {REGIONS}.",
    f"How do {REGIONS} belong together?",
    f"What is going on between {REGIONS}?",
    f"Sum up what {REGIONS} show.",
    f"Write one sentence about {REGIONS}.",
    f"Which scene do {REGIONS} make up?",
    f"Tell me what happens in {REGIONS}.",
    f"Put {REGIONS} into one sentence.",
    f"Please describe {REGIONS} together.",
    f"What can be said about {REGIONS}?",
    f"Explain the scene with {REGIONS}.",
    f"In one sentence, what are {REGIONS}?",
    f"Caption the picture; name {REGIONS}.",
    f"What connects {REGIONS}?",
    f"Describe the things in {REGIONS} and what they do.",
    f"Here are some regions: {REGIONS}. What do they show?",
    f"Look at {REGIONS} and describe the scene.",
    f"Which story do {REGIONS} tell?",
    f"What do you see in {REGIONS}, taken together?",
    f"Give a short account of {REGIONS}.",
    f"How would you describe the areas {REGIONS}?",
    f"Speak about {REGIONS} in one sentence.",
    f"Summarise the regions {REGIONS}.",
    f"What is there in {REGIONS}, and how does it relate?",
    f"Describe the picture; mention {REGIONS}.",
    f"I point at {REGIONS}. What is happening?",
    f"What is common to {REGIONS}?",
)
POINTED_REGION_QUESTIONS = (
    f"What is in the region {BBOX}, and which pixels is it?",
    f"Describe the region {BBOX} and mark it.",
)
GCG_QUESTIONS = (
    "Describe the picture and mark every thing you name.",
    "What does the picture show? Mark each phrase.",
    "Give a caption whose phrases point at their pixels.",
    "Say what is to be seen, with a mask for each thing.",
    "Describe the scene and segment what you speak of.",
    "Caption the picture; every thing named needs its mask.",
)
SEGMENTATION_QUESTIONS = (
    f"Which pixels are {TARGET}?",
    f"Segment {TARGET} in this picture.",
    f"Mark {TARGET}.",
    f"Where is {TARGET}? Answer with a mask.",
    f"Please segment {TARGET}.",
    f"Give me the mask of {TARGET}.",
    f"Show which part of the picture is {TARGET}.",
    f"Can you mark {TARGET} in the picture?",
    f"Point at {TARGET} with a mask.",
    f"Find {TARGET} and segment it.",
    f"What is {TARGET} here? Return its pixels.",
    f"Cut {TARGET} out of the picture.",
    f"I need the pixels of {TARGET}.",
    f"Outline {TARGET}.",
    f"Could you segment {TARGET} for me?",
    f"Highlight {TARGET} in this picture.",
)
SEGMENTATION_ANSWERS = (
    f"It is {SEG}.",
    f"These pixels: {SEG}.",
    f"Here: {SEG}.",
    f"The mask is {SEG}.",
    f"Marked as {SEG}.",
)

Span = tuple[int, int]  # [start, end) code points
Meaning = TypeVar("Meaning")
Wording = TypeVar("Wording")


@record
class Conversation:
    """The text of one sample, with what its special tokens stand for."""

    text: str
    answers: tuple[Span, ...]  # where the assistant speaks, each up to its end mark
    boxes_xyxy_px: tuple[tuple[float, float, float, float], ...] = ()  # one per <bbox>, in order
    masks: tuple[tuple[Rle, ...], ...] = ()  # one per [SEG], in order: the parts that it joins


def make_conversation(
    turns: Sequence[Turn],
    *,
    end: str,
    boxes_xyxy_px: Sequence[tuple[float, float, float, float]] = (),
    masks: Sequence[tuple[Rle, ...]] = (),
) -> Conversation:
    """Writes turns in the "v1" manner: system, then `USER: ... ASSISTANT: ...` with an end mark after each answer."""
    text, answers = SYSTEM, []
    for index, turn in enumerate(turns):
        lead = LEAD_IN if index == 0 else ""
        text += f" USER: {lead}{turn.question} ASSISTANT:"
        start = len(text)
        text += f" {turn.answer}{end}"
        answers.append((start, len(text)))
    return Conversation(text=text, answers=tuple(answers), boxes_xyxy_px=tuple(boxes_xyxy_px), masks=tuple(masks))


def make_prompt(question: str, *, before: Sequence[Turn] = (), end: str = "") -> str:
    """Writes the same up to the point where the assistant begins to speak, after the turns that came before."""
    lead = "" if before else LEAD_IN
    return f"{make_conversation(before, end=end).text} USER: {lead}{question} ASSISTANT:"


def clean(text: str, *, keep: str = "") -> str:
    """Takes special tokens, but for one, out of text that comes from data or users, so that nobody can forge one."""
    for token in (*SPECIAL_TOKENS, "<s>", "</s>", "<unk>"):
        if token != keep:
            text = text.replace(token, " ")
    text = _LLAMA_3_TOKEN.sub(" ", text)
    return " ".join(text.split())


def weave(caption: str, phrases: Mapping[Span, Meaning]) -> tuple[str, list[Meaning]]:
    """Wraps each phrase as `<p> phrase </p> [SEG]`; returns the text and what is meant, in the order of the [SEG].

    Of overlapping spans the earlier one (of equal start, the longer one) is kept.
    """
    text, used, at = "", [], 0
    for start, end in sorted(phrases, key=lambda span: (span[0], -span[1])):
        if start < at or not caption[start:end].strip():
            continue
        text += f"{clean(caption[at:start])} {PHRASE_START} {clean(caption[start:end])} {PHRASE_END} {SEG} "
        used.append(phrases[start, end])
        at = end
    text += clean(caption[at:])
    return tidy(text), used


def tidy(text: str) -> str:
    """Closes the gaps that joining pieces left: one space between words, none before a full stop or comma."""
    text = " ".join(text.split())
    for mark in ".,;:!?":
        text = text.replace(f" {mark}", mark)
    return text


def choose(wordings: Sequence[Wording], chance: random.Random) -> Wording:
    """Picks one wording."""
    return wordings[chance.randrange(len(wordings))]
