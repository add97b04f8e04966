"""Mean average precision of described segments: right where a mask fits and its caption does, over a grid of bars.

The grid and its average precision are those of dense captions. Legend: G true segments, P predicted ones.
"""

from collections.abc import Sequence

import numpy as np
from nltk.translate.meteor_score import meteor_score
from numpy.typing import NDArray

from stages.evaluate.answers import Answer
from stages.evaluate.captions import NoSynonyms, each_meteor
from stages.evaluate.dense_captions import IOUS, METEORS, RECALL_POINTS, Found, average_precision, grid_precision

Ious = NDArray[np.float64]  # G x P


def caption_map(
    answers: Sequence[Answer], references: Sequence[Answer], ious: Sequence[Ious], ignored: Sequence[Sequence[int]]
) -> float:
    """Returns the mean AP, strictly: the surest prediction first, each takes the best segment left of its class.

    Crowds are not to be found; predictions in `ignored` count neither way.
    """
    images = [_found(*one) for one in zip(answers, references, ious, ignored, strict=True)]
    return grid_precision(images, compat=False)


def caption_map_compat(answers: Sequence[Answer], references: Sequence[Answer], ious: Sequence[Ious]) -> float:
    """Returns the mean AP as the released script computes it, quirks included.

    Every pair of one class that shares a pixel is a prediction, none of them sorted; crowds count among what is to be
    found; the true caption is the candidate, and each single letter of the predicted one a reference.
    """
    claims = [
        (float(ious_GP[g, p]), _meteor_of_letters(true.phrase, mine.phrase))
        for answer, reference, ious_GP in zip(answers, references, ious, strict=True)
        for g, true in enumerate(reference.said)
        for p, mine in enumerate(answer.said)
        if not true.crowd and true.category == mine.category and ious_GP[g, p] > 0
    ]
    places, words = (np.array([claim[at] for claim in claims]) for at in range(2))
    wanted = sum(len(reference.said) for reference in references)
    precisions = [
        average_precision((places >= least) & (words > above), wanted, points=RECALL_POINTS)
        for least in IOUS
        for above in METEORS
    ]
    return float(np.mean(precisions))


def _found(answer: Answer, reference: Answer, ious_GP: Ious, ignored: Sequence[int]) -> tuple[list[Found], int]:
    wanted = [g for g, true in enumerate(reference.said) if not true.crowd]
    found = []
    for p, mine in enumerate(answer.said):
        if p in ignored:
            continue
        near = [ious_GP[g, p] * (reference.said[g].category == mine.category) for g in wanted]
        words = [
            each_meteor([mine.phrase], [[reference.said[g].phrase]])[0] if overlap >= IOUS[0] else 0.0
            for g, overlap in zip(wanted, near, strict=True)
        ]
        found.append(Found(score=mine.score or 0.0, overlaps=tuple(near), meteors=tuple(words)))
    return found, len(wanted)


def _meteor_of_letters(candidate: str, letters: str) -> float:
    """Scores a text against each letter of another, as a string taken for a list of texts is."""
    said = candidate.split()
    references = [[letter] for letter in sorted(set("".join(letters.split())))]
    return float(meteor_score(references, said, wordnet=NoSynonyms())) if said and references else 0.0
