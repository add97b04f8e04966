"""Pix2Cap's losses worked out by hand, on masks of one value each: all points see the same, wherever they are."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.world import World
from stages.pix2cap.batches import Pix2CapBatch
from stages.pix2cap.config import LossConfig
from stages.pix2cap.losses import SegmentLoss
from stages.pix2cap.model import Seen
from stages.pix2cap.task import pix2cap_loss
from tests.ranks import run_ranks
from tests.stages.pix2cap_models import TEXTS, batch_of, sample, vocabulary

pytestmark = pytest.mark.needs("torch")
SIDE, POINTS = 1024, 2000  # points within half a pixel of the border read zeros in: one in 500
NEAR = 0.03  # for that, and some more
LOSSES = LossConfig(points=POINTS, importance=0.0)
CLASSES = 2


@pytest.fixture(autouse=True)
def _points_are_the_same_each_time() -> None:
    torch.manual_seed(0)


def batch_with(*images: dict[int, float]) -> Pix2CapBatch:
    """Makes images of segments: class -> 1.0 where the mask is everywhere, 0.0 where it is nowhere. No captions."""
    none = torch.zeros(0, 2, dtype=torch.long)
    return Pix2CapBatch(
        pixels_BCHW=torch.zeros(len(images), 3, SIDE, SIDE),
        masks=[torch.stack([torch.full((SIDE, SIDE), value > 0) for value in one.values()]) for one in images],
        classes=[torch.tensor(list(one)) for one in images],
        ids_SL=none, wanted_SL=none.bool(), image_S=none[:, 0], mask_S=none[:, 0],
    )  # fmt: skip


def seen(masks_KBQ: list[list[list[float]]], classes_KBQC: Tensor) -> Seen:
    """Makes predictions whose masks have one logit each."""
    logits = torch.tensor(masks_KBQ)[..., None, None].expand(-1, -1, -1, SIDE, SIDE)
    return Seen(
        states_KBQD=torch.zeros(1, 1, 1, 1), class_logits_KBQC=classes_KBQC, mask_logits=tuple(logits),
        image_BD=torch.zeros(1, 1),
    )  # fmt: skip


def flat(shape: tuple[int, ...]) -> Tensor:
    """Makes class logits that say nothing."""
    return torch.zeros(*shape, CLASSES + 1)


def cross_entropy(logit: float, target: float) -> float:
    return math.log1p(math.exp(logit)) - target * logit


def dice(logit: float, target: float) -> float:
    share = 1 / (1 + math.exp(-logit))
    return 1 - (2 * share * target * POINTS + 1) / ((share + target) * POINTS + 1)


def test_one_prediction_is_the_weighted_sum_of_its_parts() -> None:
    labels = torch.tensor([[[[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]]])  # the first query says class 0, the second nothing
    classes = -(math.log(math.exp(3) / (math.exp(3) + 2)) + 0.1 * math.log(math.exp(2) / (math.exp(2) + 2))) / 1.1

    total, terms = SegmentLoss(LOSSES, CLASSES)(seen([[[1.5, -4.0]]], labels), batch_with({0: 1.0}))

    assert terms["classes"].item() == pytest.approx(classes, rel=1e-5)
    assert terms["masks"].item() == pytest.approx(cross_entropy(1.5, 1), rel=NEAR)
    assert terms["dice"].item() == pytest.approx(dice(1.5, 1), rel=NEAR)
    parts = 2 * classes + 5 * cross_entropy(1.5, 1) + 5 * dice(1.5, 1)
    assert total.item() == pytest.approx(parts, rel=NEAR)


def test_every_prediction_counts_alike_and_the_last_one_is_told() -> None:
    logits = [0.5, 1.0, 2.0]

    total, terms = SegmentLoss(LOSSES, CLASSES)(
        seen([[[one]] for one in logits], flat((3, 1, 1))), batch_with({1: 1.0})
    )

    sums = [2 * math.log(3) + 5 * cross_entropy(one, 1) + 5 * dice(one, 1) for one in logits]
    assert total.item() == pytest.approx(sum(sums), rel=NEAR)
    assert terms["masks"].item() == pytest.approx(cross_entropy(2.0, 1), rel=NEAR)


def matched(classes_Q: list[list[float]], masks_Q: list[float], batch: Pix2CapBatch, weights: LossConfig) -> list[int]:
    """Returns the query that each segment is matched with: the one whose class learns its class."""
    labels = torch.tensor(classes_Q)[None, None].requires_grad_()
    total, _ = SegmentLoss(weights, CLASSES)(seen([[masks_Q]], labels), batch)
    (slopes,) = torch.autograd.grad(total, labels)  # of what a query should say the slope is negative
    return [int(slopes[0, 0, :, one].argmin()) for one in batch.classes[0].tolist()]


def test_who_is_matched_is_best_for_all_not_for_the_first() -> None:
    both = batch_with({0: 1.0, 1: 1.0})
    # both segments are everywhere; the first query is surer of either, but by far more of class 1
    sure = [[2.0, 6.0, 0.0], [1.0, -6.0, 0.0]]

    assert matched(sure, [3.0, 3.0], both, LOSSES) == [1, 0]
    assert matched([[2.0, 1.9, 0.0], [-6.0, 1.0, 0.0]], [3.0, 3.0], both, LOSSES) == [0, 1]


def test_class_and_mask_weigh_in_matching_as_in_the_loss() -> None:
    # the first query has the class, the second the mask; costs: 2 x 0.9 of class against 5 of both mask parts
    one, classes, masks = batch_with({0: 1.0}), [[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]], [-2.0, 2.0]

    assert matched(classes, masks, one, LOSSES) == [1]
    assert matched(classes, masks, one, replace(LOSSES, masks=0.1, dice=0.1)) == [0]


def test_three_quarters_of_the_points_lie_where_a_mask_is_least_sure() -> None:
    logits = torch.full((1, 1, 1, SIDE, SIDE), 20.0)
    logits[..., SIDE // 2 :] = 0.01  # the right half is undecided, and all of it belongs to the segment
    image = seen([[[0.0]]], flat((1, 1, 1)))
    image.mask_logits = tuple(logits)

    def found(importance: float) -> float:
        rule = replace(LOSSES, points=4000, importance=importance)
        return SegmentLoss(rule, CLASSES)(image, batch_with({0: 1.0}))[1]["masks"].item()

    assert found(0.0) == pytest.approx(0.5 * math.log(2), rel=0.1)
    assert found(0.75) == pytest.approx((0.75 + 0.25 * 0.5) * math.log(2), rel=0.1)
    assert found(1.0) == pytest.approx(math.log(2), rel=0.05)


def mask_terms(world: World) -> float:
    """Returns what the masks of this rank's image add to the loss: two segments on the first rank, one elsewhere."""
    torch.manual_seed(0)
    batch = batch_with({0: 1.0, 1: 1.0}) if world.rank == 0 else batch_with({0: 1.0})
    logits = [[[1.0, 1.0]]] if world.rank == 0 else [[[3.0, 3.0]]]
    return SegmentLoss(LOSSES, CLASSES)(seen(logits, flat((1, 1, 2))), batch)[1]["masks"].item()


@pytest.mark.long
def test_a_mask_weighs_the_same_on_whichever_rank_it_is(tmp_path: Path) -> None:
    first, second = run_ranks(2, mask_terms, directory=tmp_path)

    # every engine takes the mean over ranks: that must be the mean over all three masks
    expected = (2 * cross_entropy(1.0, 1) + cross_entropy(3.0, 1)) / 3
    assert (first + second) / 2 == pytest.approx(expected, rel=NEAR)
    assert first == pytest.approx(2 * cross_entropy(1.0, 1) / 1.5, rel=NEAR)


class Telling(torch.nn.Module):
    """Predicts the same of everything: `words` captions' logits are even."""

    def __init__(self, predictions: int, words: int, vocabulary_size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._sizes = predictions, words, vocabulary_size

    def forward(self, _batch: Pix2CapBatch) -> tuple[Seen, Tensor, Tensor]:
        predictions, words, size = self._sizes
        image = seen([[[20.0]]] * predictions, torch.tensor([20.0, 0.0, 0.0]).expand(predictions, 1, 1, 3))
        return image, torch.zeros(words, size) + self.weight, torch.zeros(words, dtype=torch.long)


@pytest.mark.parametrize(("asked", "counted"), [(1, 1), (2, 2), (9, 3)])
def test_captions_count_once_for_each_supervised_prediction(asked: int, counted: int) -> None:
    weights = replace(LOSSES, masks=0.0, dice=0.0, captions=0.1, caption_predictions=asked, smoothing=0.0)

    losses = pix2cap_loss(Telling(3, 5, 7), batch_with({0: 1.0}), weights, SegmentLoss(weights, CLASSES))

    assert losses.terms["captions"].item() == pytest.approx(math.log(7), rel=1e-5)
    assert losses.total.item() == pytest.approx(0.1 * counted * math.log(7), rel=1e-4)


def test_crowds_are_nobodys_and_nobodys_pixels_are_in_no_mask() -> None:
    plain = sample(size=(32, 32))
    crowd = replace(plain.regions[1], crowd=True)
    words = vocabulary()

    without = batch_of(words, [replace(plain, regions=(plain.regions[0], crowd))])

    assert [len(one) for one in without.masks] == [1]
    assert without.classes[0].tolist() == [0]
    assert words.decode(without.ids_SL[0][without.wanted_SL[0]].tolist()) == TEXTS[0]
    assert 0 < without.masks[0].sum() < without.masks[0].numel() / 2  # the rest is neither's, and no mask's
