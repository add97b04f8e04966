"""Made data sets: byte for byte from the seed, and the converters give back exactly the scenes' truth."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.artifacts import Raw
from stages.samples import Region
from stages.shapes.scenes import Scene, draw_scene
from stages.shapes.stage import MakeShapes
from stages.shapes.words import grounded_caption, segment_description, short_caption, thing_phrase
from stages.vision import box_of_mask, decode_image, mask_from_rle
from tests.stages.conversion import convert, make_shapes

SEED, TRAIN, VAL, SIDE_PX = 17, 12, 5, 96
LLAVA, VISUAL_GENOME, GRANDF, PIX2CAP, HELD_OUT = range(5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    directory = tmp_path_factory.mktemp("shapes")
    return make_shapes(directory, seed=SEED, train_scenes=TRAIN, val_scenes=VAL, image_px=SIDE_PX, max_objects=3)


def truth(stream: int, *, seed: int = SEED) -> list[Scene]:
    count = VAL if stream == HELD_OUT else TRAIN
    rngs = [np.random.default_rng([seed, stream, number]) for number in range(count)]
    return [draw_scene(rng, image_px=SIDE_PX, max_objects=3) for rng in rngs]


def assert_is_mask(region: Region, scene: Scene, owner: int) -> None:
    assert region.mask is not None
    assert (mask_from_rle(region.mask) == scene.mask(owner)).all()
    assert region.box_xyxy_px == box_of_mask(scene.mask(owner))


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(made: Raw, tmp_path: Path) -> None:
    config = {"train_scenes": TRAIN, "val_scenes": VAL, "image_px": SIDE_PX}
    again = make_shapes(tmp_path / "again", seed=SEED, **config)
    other = make_shapes(tmp_path / "other", seed=SEED + 1, **config)

    assert tree(again.path) == tree(made.path)
    assert tree(other.path).keys() == tree(made.path).keys()
    assert tree(other.path) != tree(made.path)


def test_no_two_pictures_of_different_sets_are_the_same(made: Raw) -> None:
    training = [
        path.read_bytes() for path in made.path.rglob("*.jpg") if "val" not in str(path) and "_2" not in str(path)
    ]
    held_out = {path.read_bytes() for path in (made.path / "coco" / "val2017").iterdir()}

    assert len(training) == len(set(training)) == 4 * TRAIN
    assert len(held_out) == VAL
    assert not held_out & set(training)


def test_grounded_captions_and_masks_are_the_truth(made: Raw, tmp_path: Path) -> None:
    samples = convert(tmp_path, None, raw=made, source="grand_f", subset="GranDf_HA_GCG_train").samples()

    for sample, scene in zip(samples, truth(GRANDF), strict=True):
        said = grounded_caption(scene)
        assert sample.caption == said.text
        assert [region.spans for region in sample.regions] == [(span,) for span in said.spans]
        for owner, region in zip([*range(len(scene.things)), -1], sample.regions, strict=True):
            assert_is_mask(region, scene, owner)


def test_the_held_out_benchmark_is_the_truth(made: Raw, tmp_path: Path) -> None:
    samples = convert(tmp_path, None, raw=made, source="grand_f", split="val").samples()

    for sample, scene in zip(samples, truth(HELD_OUT), strict=True):
        assert sample.caption == grounded_caption(scene).text
        assert [region.spans for region in sample.regions] == [(span,) for span in grounded_caption(scene).spans]
        for owner, region in zip([*range(len(scene.things)), -1], sample.regions, strict=True):
            assert_is_mask(region, scene, owner)


@pytest.mark.parametrize(("split", "stream"), [("train", PIX2CAP), ("val", HELD_OUT)])
def test_segments_are_the_truth(made: Raw, tmp_path: Path, split: str, stream: int) -> None:
    samples = convert(tmp_path, None, raw=made, source="pix2cap_coco", split=split).samples()

    for sample, scene in zip(samples, truth(stream), strict=True):
        assert [region.phrase for region in sample.regions] == [*(thing.shape for thing in scene.things), "ground"]
        for owner, region in zip([*range(len(scene.things)), -1], sample.regions, strict=True):
            assert region.caption == segment_description(scene, owner)
            assert_is_mask(region, scene, owner)


@pytest.mark.parametrize(("split", "stream"), [("train", VISUAL_GENOME), ("test", HELD_OUT)])
def test_regions_are_the_truth(made: Raw, tmp_path: Path, split: str, stream: int) -> None:
    samples = convert(tmp_path, None, raw=made, source="visual_genome", split=split).samples()

    for sample, scene in zip(samples, truth(stream), strict=True):
        things = [(thing_phrase(thing), box_of_mask(scene.mask(at))) for at, thing in enumerate(scene.things)]
        assert [(region.phrase, region.box_xyxy_px) for region in sample.regions] == things


def test_pairs_are_the_truth_and_pictures_are_close_to_what_was_drawn(made: Raw, tmp_path: Path) -> None:
    samples = convert(tmp_path, None, raw=made, source="llava").samples()

    for sample, scene in zip(samples, truth(LLAVA), strict=True):
        pixels = np.asarray(decode_image(sample.image), dtype=np.int16)
        assert sample.caption == sample.turns[0].answer == short_caption(scene)
        assert np.abs(pixels - scene.pixels_HW3).mean() < 6  # what JPEG costs


def test_dialogues_are_about_the_pictures_of_the_segments(made: Raw, tmp_path: Path) -> None:
    samples = convert(tmp_path, None, raw=made, source="llava", subset="llava_instruct_150k").samples()

    answers = [sample.turns[0].answer for sample in samples]

    assert answers == [("One.", "Two.", "Three.")[len(scene.things) - 1] for scene in truth(PIX2CAP)]


@pytest.mark.parametrize(
    ("source", "split", "subset"),
    [
        ("llava", "train", None), ("llava", "train", "llava_instruct_150k"), ("visual_genome", "train", None),
        ("visual_genome", "test", None), ("grand_f", "train", "GranDf_HA_GCG_train"), ("grand_f", "val", None),
        ("pix2cap_coco", "train", None), ("pix2cap_coco", "val", None),
    ],
)  # fmt: skip
def test_nothing_of_a_made_set_is_skipped(
    made: Raw, tmp_path: Path, source: str, split: str, subset: str | None
) -> None:
    facts = convert(tmp_path, None, raw=made, source=source, split=split, subset=subset).facts

    assert facts["skipped"]["total"] == 0
    assert facts["repaired"] == {}
    assert facts["samples"] == (TRAIN if split == "train" else VAL)


def test_scenes_of_a_killed_attempt_are_gone(tmp_path: Path) -> None:
    make_shapes(tmp_path, train_scenes=6, val_scenes=3, image_px=64)
    raw = make_shapes(tmp_path, train_scenes=2, val_scenes=1, image_px=64)

    assert len(list(raw.path.rglob("*.jpg"))) == 4 * 2 + 3


def test_numbers_that_make_no_scenes_are_faults(tmp_path: Path) -> None:
    config = MakeShapes.Config(train_scenes=0, val_scenes=-1, image_px=5000, max_objects=9)

    faults = MakeShapes(config, MakeShapes.Inputs(), MakeShapes.Outputs(raw=Raw(tmp_path))).faults()

    assert sorted(faults) == ["config.image_px", "config.max_objects", "config.train_scenes", "config.val_scenes"]
    assert faults["config.max_objects"] == "must be 1 to 4, not 9"
