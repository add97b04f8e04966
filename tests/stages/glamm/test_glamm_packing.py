"""Conversations that share a sequence teach what each would teach alone; masks may be compared at a smaller size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.data.rules import OrderRules, PackRule
from orchestrator.data.stream import Drawn
from orchestrator.training.config import OptimConfig, TrainConfig
from stages.glamm.batches import GlammBatch
from stages.glamm.collate import Collator, Example
from stages.glamm.decoder import mask_losses
from stages.glamm.foresight import BatchShape, packed
from stages.glamm.model import Glamm
from stages.glamm.prompts import PHRASE_END, PHRASE_START, SEG, make_conversation
from stages.glamm.sitting import GlammSitting
from stages.glamm.stages import GcgTuning
from stages.glamm.task import GlammTask, Start, Weights
from stages.point_rule import PointRule
from stages.samples import Turn
from tests.stages.glamm_models import half, picture, talkative, tiny_blueprint, vocabulary
from tests.stages.scenes import scene

WORDS = vocabulary()
BLUEPRINT = tiny_blueprint(WORDS)
KINDS = {"captions": "caption", "boxes": "region", "grounded": "gcg", "segments": "region_mask"}
TRAIN = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1e-3))
TASK = GlammTask(BLUEPRINT, WORDS, KINDS, start=Start(), weights=Weights(), max_regions=4)


def drawn(*places: int) -> list[Drawn]:
    """Draws a sample for each of these places, of all kinds in turn."""
    kinds = list(KINDS)
    samples = [(kinds[number % len(kinds)], scene(number), place) for number, place in enumerate(places)]
    return [
        Drawn(source=kind, key=one.key, members=one.to_members(), seed=5, place=place) for kind, one, place in samples
    ]


def learnt(model: Glamm, batch: GlammBatch) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = TASK.loss(model, batch).total
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_pack_teaches_what_its_conversations_teach_alone() -> None:
    model = talkative(Glamm(BLUEPRINT), WORDS, 1)
    together, apart = TASK.collate(drawn(0, 0, 0, 1, 2, 2, 2)), TASK.collate(drawn(0, 1, 2, 3, 4, 5, 6))
    unaware = replace(together, position_BL=None)  # every conversation hears those before it

    (loss, gradients), (expected, theirs) = learnt(model, together), learnt(model, apart)

    assert (len(together.ids_BL), len(apart.ids_BL)) == (3, 7)
    assert apart.position_BL is None
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert learnt(model, unaware)[0] != pytest.approx(expected, rel=1e-3)


@torch.inference_mode()
def test_packs_may_be_read_as_one_long_sequence_for_kernels_that_know_its_ends() -> None:
    model = talkative(Glamm(BLUEPRINT), WORDS, 1)
    batch = TASK.collate(drawn(0, 0, 1, 2, 2))
    embeds_BLD = model.embed(batch)

    rows_BLD = model.attend(embeds_BLD, batch.position_BL, as_one=False)
    one_BLD = model.attend(embeds_BLD, batch.position_BL, as_one=True)

    there_BL = batch.attention_BL
    torch.testing.assert_close(one_BLD[there_BL], rows_BLD[there_BL], rtol=1e-4, atol=1e-5)


def test_a_stage_packs_where_the_recipe_says_so() -> None:
    config = GcgTuning.Config(train=replace(TRAIN, order=OrderRules(pack=PackRule(budget=200))))
    inputs = GcgTuning.Inputs(model=Checkpoint(Path("model")), shards={"grounded": Shards(Path("a"))})

    assert GcgTuning(config, inputs, GcgTuning.Outputs(model=Checkpoint(Path("out")))).faults() == {}


def test_the_planner_of_memory_sees_as_many_conversations_as_a_pack_may_have() -> None:
    alone = BatchShape(tokens=120, predicted=60, boxes=3, masks=2, image_px=(40, 40))
    shape = packed(alone, BLUEPRINT, PackRule(budget=180))

    sitting = GlammSitting(BLUEPRINT, shape, words=False)
    losses = sitting.loss(talkative(Glamm(BLUEPRINT), WORDS, 1), sitting.batch(2))

    assert (shape.images, shape.tokens) == (3, 180)  # of 16 image tokens and a few words each
    assert len(sitting.batch(2).clip_pixels_BCHW) == 6
    assert torch.isfinite(losses.total)


def _pointed(*answers: int) -> list[Example]:
    """Makes examples of 40 x 20 pixels with so many [SEG]; the first mask is the left half, the next the right."""
    examples = []
    for number, count in enumerate(answers):
        answer = " ".join(f"{PHRASE_START} a bar {PHRASE_END} {SEG}" for _ in range(count)) or "Nothing."
        image = picture(number, (40, 20))
        masks = tuple(half(image, left=place % 2 == 0) for place in range(count))
        conversation = make_conversation([Turn(question="?", answer=answer)], end=WORDS.end)
        examples.append(Example(image=image, conversation=conversation, masks=masks))
    return examples


def test_only_images_with_masks_are_read_by_the_grounding_encoder() -> None:
    batch = Collator(BLUEPRINT, WORDS).batch(_pointed(0, 2, 0, 1))
    none = Collator(BLUEPRINT, WORDS).batch(_pointed(0, 0))

    assert len(batch.sam_pixels_PCHW) == 2
    assert batch.seg_image_N.tolist() == [0, 0, 1]
    assert batch.seg_sequence_N.tolist() == [1, 1, 3]
    assert (len(none.sam_pixels_PCHW), len(none.seg_place_N)) == (1, 0)  # one, so that every batch runs it


def test_masks_are_averaged_to_a_smaller_size_and_compared_with_what_the_decoder_gives() -> None:
    weights = Weights(text=0.0, bce=1.0, dice=3.0, mask_side_px=8)
    task = GlammTask(BLUEPRINT, WORDS, {}, start=Start(), weights=weights, max_regions=4)
    model = talkative(Glamm(BLUEPRINT), WORDS, 1)
    batch = task.collator.batch(_pointed(1, 2))

    loss = task.loss(model, batch).total

    assert batch.masks[0].tolist() == [[[1.0] * 4 + [0.0] * 4] * 4]  # 40 x 20 pixels at a longest side of 8
    low_NHW = model.point(model.read(batch), batch)  # 32 x 32, of which the upper half is the image
    small = torch.nn.functional.interpolate(low_NHW[None], size=(8, 8), mode="bilinear", align_corners=False)[0, :, :4]
    bce_N, dice_N = mask_losses(small, torch.cat(batch.masks))
    torch.testing.assert_close(loss, bce_N.mean() + 3 * dice_N.mean())


def test_a_mask_on_an_edge_counts_by_its_share_of_the_pixel() -> None:
    example = _pointed(1)[0]
    third = replace(example, masks=(half(picture(1, (40, 20)), left=True) & False,))
    third.masks[0][:, :15] = True

    batch = Collator(BLUEPRINT, WORDS, mask_side_px=4).batch([third])

    assert batch.masks[0][0, 0].tolist() == [1.0, 0.5, 0.0, 0.0]


def test_masks_may_be_compared_at_points_that_follow_from_the_seed_of_the_sample_alone() -> None:
    weights = Weights(text=0.0, mask_points=PointRule(count=60))
    task = GlammTask(BLUEPRINT, WORDS, KINDS, start=Start(), weights=weights, max_regions=4)
    model = talkative(Glamm(BLUEPRINT), WORDS, 1)
    draws = [one._replace(source="grounded") for one in drawn(0, 0, 1)]

    def lost(*chosen: Drawn) -> dict[str, Tensor]:
        return dict(task.loss(model, task.collate(chosen)).terms)

    together, alone = lost(*draws), [lost(one) for one in draws]
    other = lost(draws[0]._replace(seed=6))

    for name in ("bce", "dice"):  # of two masks each
        torch.testing.assert_close(together[name], sum(one[name] for one in alone) / 3)
    assert other["bce"] != alone[0]["bce"]


def test_more_points_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_points\.count: 12544 points.*mask_side_px: 64.*4096 pixels"):
        GcgTuning.Config(train=TRAIN, mask_side_px=64, mask_points=PointRule())


def test_masks_of_no_size_are_refused() -> None:
    with pytest.raises(ValueError, match="mask_side_px must be above 0, not 0"):
        GcgTuning.Config(train=TRAIN, mask_side_px=0)
