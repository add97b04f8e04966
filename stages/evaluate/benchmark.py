"""What a benchmark is: a question to a model, how the truth is read from samples, and how the answers are scored."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from orchestrator.errors import StageFailed
from orchestrator.records import record
from stages.evaluate.answers import Answer
from stages.evaluate.caption_scorers import CaptionScorer
from stages.evaluate.likeness import Likeness
from stages.samples import Sample
from stages.vision import Mask

Sought = Literal["regions", "images"]


@record
class Tools:
    """What scores text: chosen once for all benchmarks of an evaluation, and named in its report."""

    captions: CaptionScorer
    likeness: Likeness


@record
class Benchmark:
    """One question to a model, put to every image that can answer it."""

    reference: Callable[[Sample, int], Answer | None]  # of a sample and a seed; None: it holds nothing to ask about
    ability: type[Any]  # a protocol of stages/family.py: what a model must be able to do
    ask: Callable[[Any, Sequence[Image.Image], Sequence[Answer], int], list[Answer]]  # of a model with that ability
    score: Callable[[Sequence[Answer], Sequence[Answer], Tools], dict[str, float]]  # answers, references
    protocol: str  # what a reader of the scores must know
    meanings: Mapping[str, str]  # score -> what it is
    compat: frozenset[str]  # the scores that are computed as the released scripts compute them; the others are strict
    worded: frozenset[str] = frozenset()  # the scores that depend on Tools.captions
    likened: frozenset[str] = frozenset()  # the scores that depend on Tools.likeness
    sought: Sought | None = None  # of retrieval: what texts look for; it is drawn as grids of what was found first


def expect(wanted: int, given: int, what: str) -> None:
    """Refuses an answer that is not one for each question."""
    if wanted != given:
        raise StageFailed(f"the model gave {given} {what}, asked were {wanted}")


def expect_size(image: Image.Image, mask_HW: Mask, phrase: str) -> None:
    """Refuses a mask of another size than its image."""
    if mask_HW.shape != (image.height, image.width):
        shape = " x ".join(str(side) for side in mask_HW.shape)
        raise StageFailed(
            f"the mask of {phrase!r} has {shape} pixels (height x width), its image {image.height} x {image.width}"
        )
