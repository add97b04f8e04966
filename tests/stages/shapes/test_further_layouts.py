"""Made GranD, RefCOCO and ADE20K: the converters give back exactly the scenes' truth."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.artifacts import Raw
from stages.samples import Region
from stages.shapes.scenes import Scene, draw_scene
from stages.shapes.stage import MakeShapes
from stages.shapes.words import grounded_caption, segment_description, short_caption, short_phrase, thing_phrase
from stages.vision import box_of_mask, mask_from_rle
from tests.stages.conversion import convert, make_shapes

SEED, TRAIN, SIDE_PX = 17, 9, 64
GRAND, REFCOCO, ADE20K, NARRATIVES = range(5, 9)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    also = ["grand", "refcoco", "ade20k", "narratives"]
    directory = tmp_path_factory.mktemp("further")
    return make_shapes(directory, seed=SEED, train_scenes=TRAIN, val_scenes=1, image_px=SIDE_PX, also=also)


def truth(stream: int) -> list[Scene]:
    rngs = [np.random.default_rng([SEED, stream, number]) for number in range(TRAIN)]
    return [draw_scene(rng, image_px=SIDE_PX, max_objects=3) for rng in rngs]


def is_mask(region: Region, scene: Scene, owner: int) -> bool:
    return region.mask is not None and bool((mask_from_rle(region.mask) == scene.mask(owner)).all())


def test_grand_has_objects_with_attributes_and_two_captions_that_point_at_them(made: Raw, tmp_path: Path) -> None:
    result = convert(tmp_path, None, raw=made, source="grand")

    assert (result.facts["skipped"]["total"], result.facts["repaired"]) == (0, {})
    for sample, scene in zip(result.samples(), truth(GRAND), strict=True):
        owners = [*range(len(scene.things)), -1]
        said, (short,) = grounded_caption(scene), sample.more_captions
        assert (sample.caption, short.text) == (said.text, short_caption(scene))
        assert [region.spans for region in sample.regions] == [(span,) for span in said.spans]
        assert [one.regions for one in short.groundings] == [(place,) for place in range(len(scene.things))]
        assert [region.caption for region in sample.regions] == [segment_description(scene, one) for one in owners]
        assert all(is_mask(region, scene, owner) for region, owner in zip(sample.regions, owners, strict=True))


@pytest.mark.parametrize(("split", "there"), [("train", [*range(7), 8]), ("val", [7])])
def test_refcoco_has_two_expressions_for_each_thing(made: Raw, tmp_path: Path, split: str, there: list[int]) -> None:
    samples = convert(tmp_path, None, raw=made, source="refcoco", split=split).samples()

    scenes = truth(REFCOCO)
    for sample, scene in zip(samples, [scenes[number] for number in there], strict=True):
        said = [(region.phrase, *region.more_phrases) for region in sample.regions]
        assert said == [(short_phrase(thing), thing_phrase(thing)) for thing in scene.things]
        assert all(is_mask(region, scene, owner) for owner, region in enumerate(sample.regions))


def test_ade20k_has_one_region_for_each_sort_of_shape(made: Raw, tmp_path: Path) -> None:
    samples = convert(tmp_path, None, raw=made, source="ade20k").samples()

    for sample, scene in zip(samples, truth(ADE20K), strict=True):
        of_shape: dict[str, np.ndarray] = {}
        for owner, thing in enumerate(scene.things):
            of_shape[thing.shape] = of_shape.get(thing.shape, False) | scene.mask(owner)
        masks = {region.phrase: mask_from_rle(region.mask) for region in sample.regions if region.mask is not None}
        assert masks.keys() == of_shape.keys()
        assert all((masks[name] == mask_HW).all() for name, mask_HW in of_shape.items())


def test_narratives_point_along_the_box_of_each_thing_while_its_words_are_said(made: Raw, tmp_path: Path) -> None:
    samples = convert(
        tmp_path, None, raw=made, source="localized_narratives", split="val", subset="flickr30k_val"
    ).samples()

    (scene,) = [truth(NARRATIVES)[number] for number in (7,)]
    (sample,) = samples
    said = grounded_caption(scene)
    assert sample.caption == said.text
    assert " ".join(one.text for one in sample.utterances) == said.text
    for owner, (start, end) in enumerate(said.spans[:-1]):
        before = len(said.text[:start].split())
        times = (
            sample.utterances[before].start_s,
            sample.utterances[before + len(said.text[start:end].split()) - 1].end_s,
        )
        points = [point for point in sample.points if times[0] <= point.time_s <= times[1]]
        box = box_of_mask(scene.mask(owner))
        assert box is not None
        assert [min(point.x_unit for point in points) * SIDE_PX, max(point.y_unit for point in points) * SIDE_PX] == (
            pytest.approx([box[0], box[3]])
        )


def test_a_layout_that_nobody_knows_is_a_fault(tmp_path: Path) -> None:
    stage = MakeShapes(MakeShapes.Config(also=["grnad"]), MakeShapes.Inputs(), MakeShapes.Outputs(raw=Raw(tmp_path)))

    assert stage.faults() == {"config.also": "unknown: grnad; allowed: grand, refcoco, ade20k, narratives"}
