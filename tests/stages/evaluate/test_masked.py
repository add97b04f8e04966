"""What masks show is scored: long texts, classes in crops and whole images, expressions among proposals."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.evaluate.benchmark import Tools
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.likeness import open_likeness
from stages.evaluate.masked import read_classes, read_first_caption, read_long_texts
from stages.evaluate.proposals import read_expressions
from stages.evaluate.questions import QUESTIONS
from stages.samples import Sample
from stages.vision import Mask, decode_image
from tests.stages.scenes import COLOURS, scene

TOOLS = Tools(captions=open_caption_scorer("plain"), likeness=open_likeness(None))
SCENES = [scene(number) for number in (1, 6)]  # green and blue; blue and red
Vectors = NDArray[np.float32]


class Colours:
    """Sees the mean colour under a mask, and reads colours in texts: right wherever the mask is."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def embed_images(self, images: Sequence[Image.Image], masks_HW: Sequence[Mask | None]) -> Vectors:
        self.sizes += [image.size for image in images]
        return np.array([self._seen(image, mask) for image, mask in zip(images, masks_HW, strict=True)], np.float32)

    def embed_whole_images(self, images: Sequence[Image.Image]) -> Vectors:
        return -self.embed_images(images, [None] * len(images))

    def embed_regions(
        self,
        images: Sequence[Image.Image],
        boxes_xyxy_px: Sequence[Sequence[Sequence[float]]],
        masks_HW: Sequence[Sequence[Mask | None]],
    ) -> list[Vectors]:
        del boxes_xyxy_px
        return [self.embed_images([image] * len(m), m) for image, m in zip(images, masks_HW, strict=True)]

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        found = [np.array([name in text for name in COLOURS], dtype=np.float32) for text in texts]
        return np.array([one / max(1.0, float(np.linalg.norm(one))) for one in found], np.float32)

    def _seen(self, image: Image.Image, mask_HW: Mask | None) -> Vectors:
        pixels = np.asarray(image, dtype=np.float32)
        shown = pixels.reshape(-1, 3) if mask_HW is None else pixels[mask_HW]
        counts = [(np.abs(shown - np.array(rgb)).max(axis=1) < 40).mean() for rgb in COLOURS.values()]
        return np.array(counts, dtype=np.float32) / max(1e-6, float(np.linalg.norm(counts)))


def scores(name: str, samples: Sequence[Sample], model: Colours | None = None) -> dict[str, float]:
    benchmark = BENCHMARKS[name]
    references = [found for one in samples if (found := benchmark.reference(one, 0)) is not None]
    images = [decode_image(one.image) for one in samples]
    answers = benchmark.ask(model or Colours(), images, references, 8)
    assert [len(one.said) for one in answers] == [len(one.said) for one in references]
    return benchmark.score(answers, references, TOOLS)


def named(sample: Sample) -> Sample:
    """Gives objects the name of their colour as their class."""
    names = (region.phrase.split()[1] for region in sample.regions)
    regions = zip(sample.regions, names, strict=True)
    return replace(
        sample, regions=tuple(replace(region, phrase=name, caption="", spans=()) for region, name in regions)
    )


def test_regions_find_their_long_texts_through_their_masks() -> None:
    found = scores("masked_retrieval", SCENES)

    assert found["region_to_text1"] == 1.0
    assert found["text_to_region1"] == 1.0


def test_regions_without_masks_of_their_own_are_told_apart_by_chance_only() -> None:
    blind = [replace(one, regions=tuple(replace(r, mask=None) for r in one.regions)) for one in SCENES]

    assert scores("masked_retrieval", blind)["region_to_text1"] <= 0.5


def test_masked_objects_are_named_in_crops_and_in_whole_images() -> None:
    samples = [named(one) for one in SCENES]
    crops, whole = Colours(), Colours()

    assert scores("masked_recognition_crops", samples, crops)["class_accuracy"] == 1.0
    assert scores("masked_recognition_whole", samples, whole)["class_accuracy"] == 1.0
    assert set(crops.sizes) == {(45, 45)}  # one and a half times thirty
    assert set(whole.sizes) == {(40, 40)}


def test_an_object_is_shown_under_the_name_that_it_was_given_and_not_the_true_one() -> None:
    samples = [named(one) for one in SCENES]
    swapped = [replace(samples[0], regions=tuple(replace(one, phrase="red") for one in samples[0].regions)), samples[1]]
    benchmark = BENCHMARKS["masked_recognition_whole"]
    references = [read_classes(one) for one in swapped]

    answers = benchmark.ask(Colours(), [decode_image(one.image) for one in swapped], references, 8)  # type: ignore[arg-type]

    # green fits neither name, and the first of them is given; blue fits its own
    assert [[said.phrase for said in answer.said] for answer in answers] == [["red", "blue"], ["blue", "red"]]


def test_long_texts_are_retrieved_both_ways_and_compat_asks_otherwise() -> None:
    model = Colours()

    assert scores("long_texts", SCENES, model)["image_to_text1"] == 1.0
    assert scores("long_texts_compat", SCENES, model)["image_to_text1"] == 0.0


@pytest.mark.parametrize("name", ["refer_proposals", "refer_proposals_parsed", "refer_proposals_reclip"])
def test_expressions_choose_among_the_regions_of_their_image(name: str) -> None:
    assert scores(name, SCENES) == {"precision50": 1.0, "mean_iou": 1.0}


def test_spatial_words_tell_equal_things_apart_where_they_are_resolved() -> None:
    """Two red bars, which a model that sees colours cannot tell apart: it takes the first."""
    twins = replace(
        SCENES[0],
        regions=tuple(
            replace(region, phrase="", caption=text, spans=())
            for region, text in zip(SCENES[0].regions, ("the left bar", "the bar on the right"), strict=True)
        ),
    )

    assert scores("refer_proposals", [twins])["precision50"] == 0.5
    assert scores("refer_proposals_parsed", [twins])["precision50"] == 1.0
    assert scores("refer_proposals_reclip", [twins])["precision50"] == 1.0


def test_samples_that_hold_nothing_to_ask_about_are_left_out() -> None:
    first, second = SCENES[0].regions
    alone = replace(SCENES[0], regions=(first,))
    mute = replace(SCENES[0], caption="", regions=(replace(second, mask=None, phrase="", caption="", spans=()),))

    assert read_expressions(alone) is None
    assert read_first_caption(mute) is None
    assert read_classes(mute) is None
    assert read_long_texts(mute) is None


@pytest.mark.parametrize(
    "name", ["masked_retrieval", "masked_recognition_crops", "long_texts", "refer_proposals_reclip"]
)
def test_planning_knows_the_scores(name: str) -> None:
    benchmark, question = BENCHMARKS[name], QUESTIONS[name]

    assert tuple(benchmark.meanings) == question.scores
    assert benchmark.ability.__name__ == question.ability
