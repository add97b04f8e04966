"""The parts of a Pix2Cap: how pictures are laid, who speaks for a segment, losses, panoptic inference."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from orchestrator.errors import InputError
from stages.pix2cap.collate import Collator, Placement
from stages.pix2cap.config import AugmentConfig, CaptionerConfig, LossConfig, Pix2CapConfig, SegmenterConfig
from stages.pix2cap.losses import NOTHING, SegmentLoss, caption_loss
from stages.pix2cap.matching import best_queries
from stages.pix2cap.model import Seen
from stages.pix2cap.panoptic import find_segments
from tests.stages.pix2cap_models import CATEGORIES, LOSSES, TEXTS, bare, batch_of, sample, tiny_blueprint, vocabulary

pytestmark = pytest.mark.needs("torch")
WORDS = vocabulary()
COLLATOR = Collator(tiny_blueprint(WORDS), WORDS)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_a_batch_holds_masks_classes_and_captions_in_the_square() -> None:
    batch = batch_of(WORDS, [sample(), bare(sample(1)), sample(2, size=(32, 40))])

    assert batch.pixels_BCHW.shape == (3, 3, 64, 64)
    assert [tuple(masks.shape) for masks in batch.masks] == [(3, 64, 64), (0, 64, 64), (3, 64, 64)]
    assert [classes.tolist() for classes in batch.classes] == [[0, 1, 2], [], [0, 1, 2]]
    assert batch.image_S.tolist() == [0, 0, 0, 2, 2, 2]
    assert batch.mask_S.tolist() == [0, 1, 2, 0, 1, 2]
    said = [WORDS.decode(ids[wanted].tolist()) for ids, wanted in zip(batch.ids_SL, batch.wanted_SL, strict=True)]
    assert said == [*TEXTS, *TEXTS]
    assert batch.masks[0].sum(0).max() == 1  # nobody's pixel is another's
    assert not batch.masks[0][:, 51:].any()  # 40 x 32 px become 64 x 51: below is no picture
    assert not batch.masks[2][:, :, 51:].any()


def test_a_mirrored_picture_has_mirrored_masks() -> None:
    example = COLLATOR.example(sample(size=(32, 32)))
    straight, mirrored = (
        COLLATOR.batch([example], [Placement(width_px=64, height_px=64, flipped=flipped)]) for flipped in (False, True)
    )

    assert torch.equal(mirrored.masks[0], straight.masks[0].flip(-1))
    assert torch.equal(mirrored.pixels_BCHW, straight.pixels_BCHW.flip(-1))


def test_what_is_cut_off_leaves_no_segment_and_no_caption() -> None:
    example = COLLATOR.example(sample(size=(32, 32)))

    left = COLLATOR.batch([example], [Placement(width_px=128, height_px=128)])

    assert left.classes[0].tolist() == [0, 2]  # the post lies at the right
    assert left.mask_S.tolist() == [0, 1]


def test_how_a_picture_is_laid_follows_from_the_seed_and_keeps_to_the_rules() -> None:
    image, rules = COLLATOR.example(sample(size=(64, 32))).image, AugmentConfig(scale=(0.5, 2.0), flip=0.5)
    drawn = [COLLATOR.drawn(image, rules, seed) for seed in range(60)]

    assert drawn[3] == COLLATOR.drawn(image, rules, 3)
    assert {one.flipped for one in drawn} == {True, False}
    assert all(32 <= one.width_px <= 128 and abs(one.height_px * 2 - one.width_px) <= 2 for one in drawn)
    assert all(0 <= one.left_px <= max(0, one.width_px - 64) for one in drawn)
    assert all(0 <= one.top_px <= max(0, one.height_px - 64) for one in drawn)
    assert any(one.left_px for one in drawn)


def test_a_long_caption_loses_its_last_words_and_keeps_its_end() -> None:
    ids = COLLATOR.ids(TEXTS[0] * 9)

    assert len(ids) == 16
    assert (ids[0], ids[-1]) == (WORDS.start_id, WORDS.end_id)


def test_an_unknown_category_is_refused_by_name() -> None:
    strange = sample()
    object.__setattr__(strange.regions[0], "phrase", "zebra")

    with pytest.raises(InputError, match="no category 'zebra'"):
        COLLATOR.example(strange)


# ------------------------------------------------------------------------------------------------------------ matching


def test_a_segment_is_spoken_for_by_the_query_that_overlaps_it_best() -> None:
    batch = batch_of(WORDS, [sample(size=(32, 32)), bare(sample(1)), sample(2, size=(32, 32))])
    quarter = [masks[:, 1::4, 1::4].float() for masks in batch.masks]
    logits_BQhw = torch.full((3, 5, 16, 16), -1.0)
    order = {0: (4, 0, 2), 2: (1, 3, 0)}  # image -> the query of each of its masks
    for image, queries in order.items():
        for mask, query in enumerate(queries):
            logits_BQhw[image, query] = quarter[image][mask] * 2 - 1

    found = best_queries([logits_BQhw, logits_BQhw.flip(1)], batch)

    assert found.tolist() == [[4, 0, 2, 1, 3, 0], [0, 4, 2, 3, 1, 4]]


# -------------------------------------------------------------------------------------------------------------- losses


def test_the_caption_loss_is_the_divergence_from_smoothed_words() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([3, 0, NOTHING, 6])
    smooth = torch.full((4, 7), 0.1 / 6)
    for row in (0, 1, 3):
        smooth[row, targets[row]] = 0.9
    kept = targets != NOTHING
    expected = functional.kl_div(logits.log_softmax(-1)[kept], smooth[kept], reduction="none").sum(-1).mean()

    assert caption_loss(logits, targets, smoothing=0.1).item() == pytest.approx(expected.item(), abs=1e-6)
    plain = functional.cross_entropy(logits, targets, ignore_index=NOTHING)
    assert caption_loss(logits, targets, smoothing=0.0).item() == pytest.approx(plain.item(), abs=1e-6)


def test_captions_that_are_not_there_weigh_nothing_but_keep_the_graph() -> None:
    logits = torch.randn(1, 7, requires_grad=True)

    loss = caption_loss(logits, torch.tensor([NOTHING]), smoothing=0.1)
    loss.backward()

    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def seen(logits: torch.Tensor, classes: torch.Tensor) -> Seen:
    return Seen(
        states_KBQD=torch.zeros(1, 1, 1, 1),
        class_logits_KBQC=classes,
        mask_logits=tuple(logits),
        image_BD=torch.zeros(1),
    )


def test_the_segment_loss_is_low_where_predictions_are_right_and_whoever_made_them() -> None:
    batch = batch_of(WORDS, [sample(size=(32, 32))])
    right = batch.masks[0][None].float() * 40 - 20  # 1 x 3 x 64 x 64
    labels = torch.full((2, 1, 3, 4), -9.0)
    for query, label in enumerate(batch.classes[0].tolist()):
        labels[:, :, query, label] = 9.0
    criterion = SegmentLoss(replace(LOSSES, importance=0.0), 3)  # the least certain points lie on edges
    torch.manual_seed(0)

    total, terms = criterion(seen(torch.stack([right, right]), labels), batch)
    turned, _ = criterion(seen(torch.stack([right, right]).roll(1, 2), labels.roll(1, 2)), batch)
    renamed, _ = criterion(seen(torch.stack([right, right]), labels.roll(1, dims=-1)), batch)
    inverted, _ = criterion(seen(torch.stack([-right, -right]), labels), batch)

    assert total.item() < 3
    assert turned.item() < 3
    assert renamed.item() > 10 + total.item()
    assert inverted.item() > 10 + total.item()
    assert terms.keys() == {"classes", "masks", "dice"}


def test_pictures_without_segments_still_teach_that_nothing_is_there() -> None:
    batch = batch_of(WORDS, [bare(sample()), bare(sample(1))])
    masks = torch.zeros(2, 2, 5, 8, 8, requires_grad=True)
    labels = torch.zeros(2, 2, 5, 4, requires_grad=True)

    total, terms = SegmentLoss(LOSSES, 3)(seen(masks, labels), batch)
    total.backward()

    assert terms["masks"].item() == terms["dice"].item() == 0
    assert total.item() == pytest.approx(2 * LOSSES.classes * math.log(4))
    assert masks.grad is not None
    assert not masks.grad.any()


# ----------------------------------------------------------------------------------------------------------- inference


def block(top: int, bottom: int, value: float = 0.9) -> torch.Tensor:
    mask_HW = torch.full((10, 10), 0.05)
    mask_HW[top : bottom + 1] = value
    return mask_HW


THINGS = [category.thing for category in CATEGORIES]


def test_each_pixel_goes_to_the_surest_query() -> None:
    masks = torch.stack([block(0, 5), block(4, 9)])

    found = find_segments(torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), masks, THINGS, least_overlap=0.6)

    assert [(one.query, one.category) for one in found] == [(0, 0), (1, 1)]
    assert [one.mask_HW.any(1).nonzero()[:, 0].tolist() for one in found] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_a_segment_that_keeps_too_little_of_itself_is_dropped() -> None:
    masks = torch.stack([block(0, 5), block(4, 9)])

    found = find_segments(torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), masks, THINGS, least_overlap=0.8)

    assert [one.query for one in found] == [0]


def test_stuff_of_one_class_becomes_one_segment_and_things_do_not() -> None:
    masks = torch.stack([block(0, 1), block(3, 4), block(6, 7)])
    scores = torch.tensor([0.7, 0.9, 0.8])

    stuff = find_segments(scores, torch.tensor([2, 2, 0]), masks, THINGS, least_overlap=0.5)
    things = find_segments(scores, torch.tensor([0, 0, 0]), masks, THINGS, least_overlap=0.5)

    assert [(one.query, one.category, round(one.score, 3)) for one in stuff] == [(0, 2, 0.7), (2, 0, 0.8)]
    assert stuff[0].mask_HW.any(1).nonzero()[:, 0].tolist() == [0, 1, 3, 4]
    assert [one.query for one in things] == [0, 1, 2]


def test_segments_never_overlap_and_noise_is_no_trouble() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(6, 12, 9, generator=generator)
    found = find_segments(
        torch.rand(6, generator=generator), torch.randint(0, 3, (6,), generator=generator), masks, THINGS,
        least_overlap=0.0,
    )  # fmt: skip

    assert found
    assert torch.stack([one.mask_HW for one in found]).sum(0).max() == 1
    assert find_segments(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 3, 3), THINGS, least_overlap=0.5) == []


# -------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegmenterConfig(width=40), "width must be a multiple of 32"),
        (lambda: SegmenterConfig(predictions=1), "predictions must be 2 or more"),
        (lambda: CaptionerConfig(hidden_size=30, heads=4), "hidden_size must be a multiple of heads"),
        (lambda: CaptionerConfig(max_tokens=2), "max_tokens must be 3 or more"),
        (lambda: Pix2CapConfig(image_px=50), "image_px must be a multiple of 32"),
        (lambda: Pix2CapConfig(least_score=1.0), "least_score must lie in"),
        (lambda: LossConfig(smoothing=1.0), "smoothing lies in"),
        (lambda: AugmentConfig(scale=(2.0, 1.0)), "scale must be two numbers"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=message):
        make()


def test_the_defaults_are_the_published_sizes() -> None:
    config, losses = Pix2CapConfig(), LossConfig()

    segmenter, captioner = config.segmenter, config.captioner
    assert (segmenter.width, segmenter.predictions, segmenter.heads, segmenter.queries) == (512, 10, 8, 200)
    assert (segmenter.decoder_mlp_size, segmenter.encoder_layers) == (2048, 6)
    assert (captioner.hidden_size, captioner.layers, captioner.heads, captioner.max_tokens) == (768, 6, 12, 40)
    assert (config.image_px, config.least_score, config.least_overlap) == (1024, 0.8, 0.8)
    assert (losses.classes, losses.masks, losses.dice, losses.captions) == (2.0, 5.0, 5.0, 0.1)
    assert (losses.no_object, losses.points, losses.caption_predictions) == (0.1, 12_544, 9)


def test_masks_are_read_at_the_pixels_of_the_picture() -> None:
    example = COLLATOR.example(sample(size=(40, 32)))

    assert np.unique(example.owner_HW).tolist() == [1, 2, 3]
