"""ViP-Bench: questions about boxes of images, answered freely; how a truth of alternatives and parts is read.

Arxiv 2312.00784, section 5. What the published scores are, a language model says of each answer (`vip_grading.py`).
"""

import re
from collections.abc import Sequence

from PIL import Image

from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools
from stages.evaluate.masks import mean
from stages.expressions import BOX
from stages.family import Answers
from stages.samples import Sample

AND, OR = "<AND>", "<OR>"  # of a truth: all of these, any of these; and binds more tightly
_WORD = re.compile(r"[^\W_]+")


def read_question(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads the one question of a sample that says what it tests, and the boxes that it is about, in their order."""
    if len(sample.turns) != 1 or not sample.turns[0].tests:
        return None
    (turn,) = sample.turns
    if turn.question.count(BOX) != len(sample.regions):
        return None
    said = (Said(phrase=region.phrase, box_xyxy_px=region.box_xyxy_px) for region in sample.regions)
    return Answer(caption=turn.answer, said=tuple(said), asked=turn)


def ask_questions(
    model: Answers, images: Sequence[Image.Image], references: Sequence[Answer], _max_new_tokens: int
) -> list[Answer]:
    """Asks each image's question; how long an answer may be is the family's affair."""
    answers = []
    for image, reference in zip(images, references, strict=True):
        asked = "" if reference.asked is None else reference.asked.question
        boxes = [said.box_xyxy_px for said in reference.said if said.box_xyxy_px is not None]
        answers.append(Answer(caption=model.answer(image, asked, boxes).caption, said=()))
    return answers


def score_questions(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Scores what can be scored without a grader: how much of a truth the answer says in its very words."""
    both = zip(answers, references, strict=True)
    return {"worded": mean([share_said(answer.caption, reference.caption) for answer, reference in both])}


def share_said(said: str, truth: str) -> float:
    """Returns which share of a truth's parts stand in a text, word for word, of the alternative that has most."""
    words = _words(said)
    shares = [
        mean([float(_within(_words(part), words)) for part in alternative.split(AND)])
        for alternative in truth.split(OR)
    ]
    return max(shares)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _within(part: Sequence[str], words: Sequence[str]) -> bool:
    length = len(part)
    return length > 0 and any(part == words[start : start + length] for start in range(len(words) - length + 1))


VIP_BENCH = Benchmark(
    reference=read_question,
    ability=Answers,
    ask=ask_questions,
    score=score_questions,
    protocol=(
        "ViP-Bench, bounding boxes: every question is asked of the plain picture, with each <obj> replaced by "
        "`region1 <bbox>` and the box of its shape. The published scores are those that a language model gives the "
        "answers: the stage grade_answers, from this report. Here an answer is right as far as it says the truth word "
        "for word: alternatives are parted by <OR>, what must all be said by <AND>."
    ),
    meanings={"worded": "share of the truth that the answer says word for word; no published score"},
    compat=frozenset(),
)
