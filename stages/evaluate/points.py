"""Where words are: captions told to a model, the place of each of their words against the trace of a person's mouse."""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stages.boxes import box_ious
from stages.evaluate.answers import Answer, Said
from stages.evaluate.benchmark import Benchmark, Tools, expect
from stages.family import LocatesWords
from stages.samples import Sample
from stages.traces import aligned, boxes_of
from stages.vision import Box

_WORD = re.compile(r"\S+")
_MATCH_IOU = 0.5


def read_located(sample: Sample, _seed: int = 0) -> Answer | None:
    """Reads the words of a caption, each with the box that the mouse went through while something was said there."""
    words = list(_WORD.finditer(sample.caption))
    boxes = aligned(len(words), boxes_of(sample.points, sample.utterances))
    size = sample.width_px, sample.height_px
    said = [
        Said(
            phrase=word.group(),
            span=word.span(),
            box_xyxy_px=(x0 * size[0], y0 * size[1], x1 * size[0], y1 * size[1]),
        )
        for word, (x0, y0, x1, y1) in zip(words, boxes, strict=bool(boxes))
        if any((x0, y0, x1, y1))  # all zeros stand for no place
    ]
    return Answer(caption=sample.caption, said=tuple(said), size_px=size) if said else None


def ask_located(
    model: LocatesWords, images: Sequence[Image.Image], references: Sequence[Answer], _max_new_tokens: int
) -> list[Answer]:
    """Tells the model the captions, and asks for the place of each word that has one."""
    told = model.locate_told(images, [reference.caption for reference in references])
    expect(len(images), len(told), "located captions for images")
    answers = []
    for image, reference, found in zip(images, references, told, strict=True):
        count = len(_WORD.findall(reference.caption))
        places = aligned(count, [_box(word.points_xy_px) for word in found.words])
        number = {word.start(): at for at, word in enumerate(_WORD.finditer(reference.caption))}
        said = tuple(
            Said(phrase=one.phrase, span=one.span, box_xyxy_px=places[number[one.span[0]]])
            for one in reference.said
            if one.span is not None and places
        )
        answers.append(Answer(caption=reference.caption, said=said, size_px=image.size))
    return answers


def score_located(answers: Sequence[Answer], references: Sequence[Answer], _tools: Tools) -> dict[str, float]:
    """Averages over words, then over images; a model that places no word errs by the whole image."""
    images = [_of_image(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    corner, middle, found = (float(np.mean([image[at] for image in images])) for at in range(3))
    return {"word_error": corner, "middle_error": middle, "iou50": found}


def _of_image(answer: Answer, reference: Answer) -> tuple[float, float, float]:
    if len(answer.said) != len(reference.said) or reference.size_px is None:
        return 1.0, 1.0, 0.0
    scale = np.tile(reference.size_px, 2).astype(np.float64)
    mine_W4, true_W4 = (
        np.array([said.box_xyxy_px for said in one.said], dtype=np.float64) / scale for one in (answer, reference)
    )
    mine_W22, true_W22 = mine_W4.reshape(-1, 2, 2), true_W4.reshape(-1, 2, 2)
    # each of the two predicted points to the nearer one of the two true ones
    apart_W22 = np.abs(mine_W22[:, :, None] - true_W22[:, None]).mean(axis=-1).min(axis=-1)
    middles_W = np.abs(mine_W22.mean(axis=1) - true_W22.mean(axis=1)).mean(axis=-1)
    ious_W = np.array([box_ious([mine], [true])[0, 0] for mine, true in zip(mine_W4, true_W4, strict=True)])
    return float(apart_W22.mean()), float(middles_W.mean()), float((ious_W >= _MATCH_IOU).mean())


def _box(points_xy_px: Sequence[tuple[float, float]]) -> Box:
    xs, ys = zip(*points_xy_px, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


WORD_LOCATIONS = Benchmark(
    reference=read_located,
    ability=LocatesWords,
    ask=ask_located,
    score=score_located,
    protocol=(
        "Word grounding on Localized Narratives: the model is told the caption and says where each word is. The truth "
        "of a word is the box of the mouse's trace during the utterance that stands as far along as the word does, as "
        "PixelLLM's release aligns them; it goes by tokens of its own vocabulary, here it is by words, so that models "
        "with different tokens compare. Lengths are parts of the image's width and height."
    ),
    meanings={
        "word_error": "distance (mean over x and y) of a predicted corner to the nearer true corner; lower is better",
        "middle_error": "distance (mean over x and y) of the middles of the boxes; lower is better",
        "iou50": "words whose box has an IoU of at least 0.5 with the true one",
    },
    compat=frozenset(),
)
