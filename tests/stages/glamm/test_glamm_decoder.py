"""Masks: losses against sums by hand, padding cut off, images of different sizes together."""

import math

import pytest
import torch

from stages.glamm.decoder import Comparison, mask_losses, summed_mask_losses
from stages.mask_points import read_points, unsure_points
from stages.mask_sizes import masks_at_image_size
from stages.point_rule import PointRule


def test_the_losses_of_a_mask_are_those_computed_by_hand() -> None:
    logits = torch.tensor([[[2.0, -1.0], [0.5, -3.0]]])
    mask = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])

    bce, dice = mask_losses(logits, mask)

    guess = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5, -3.0)]
    truth = [1, 0, 1, 1]
    terms = [-math.log(p if t else 1 - p) for p, t in zip(guess, truth, strict=True)]
    overlap = 2 * sum(p / 1000 * t for p, t in zip(guess, truth, strict=True))
    total = sum(guess) / 1000 + sum(truth) / 1000
    assert bce.item() == pytest.approx(sum(terms) / 4, rel=1e-5)
    assert dice.item() == pytest.approx(1 - (overlap + 1e-6) / (total + 1e-6), rel=1e-5)


def test_parts_that_were_added_up_count_once() -> None:
    logits = torch.randn(1, 4, 4)
    mask = (torch.rand(1, 4, 4) > 0.5).float()

    for once, twice in zip(mask_losses(logits, mask), mask_losses(logits, mask * 2), strict=True):
        assert once.item() == twice.item()


def test_padding_is_cut_off_before_a_mask_gets_the_size_of_its_image() -> None:
    low = torch.full((1, 8, 8), -5.0)
    low[:, :4] = 5.0  # the upper half: all of a picture that is twice as wide as high

    mask = masks_at_image_size(low, canvas=32, inside=(16, 32), image=(50, 100)) > 0

    assert mask.shape == (1, 50, 100)
    assert mask.float().mean().item() > 0.97


@pytest.mark.parametrize("points", [None, PointRule(count=50)])
def test_images_of_different_sizes_add_up_to_what_each_gives_alone(points: PointRule | None) -> None:
    low, seeds = torch.randn(5, 8, 8), torch.arange(5)
    masks = [
        torch.rand(2, 20, 30) > 0.5,
        torch.rand(1, 32, 32) > 0.5,
        torch.zeros(0, 9, 9),
        torch.rand(2, 20, 30) > 0.5,
    ]
    insides = [(21, 32), (32, 32), (32, 32), (21, 32)]

    bce, dice, count = summed_mask_losses(low, masks, seeds, Comparison(canvas=32, insides=insides, points=points))

    counts = [2, 1, 0, 2]
    alone = [
        summed_mask_losses(own, masks[i : i + 1], own_seeds, Comparison(canvas=32, insides=[insides[i]], points=points))
        for i, (own, own_seeds) in enumerate(zip(low.split(counts), seeds.split(counts), strict=True))
    ]
    assert count == 5
    torch.testing.assert_close(bce, sum(one[0] for one in alone))
    torch.testing.assert_close(dice, sum(one[1] for one in alone))


def test_without_masks_the_losses_are_zero_and_still_hang_on_the_decoder() -> None:
    low = torch.randn(1, 8, 8, requires_grad=True)

    nothing, seeds = [torch.zeros(0, 5, 5)] * 2, torch.zeros(0, dtype=torch.long)
    bce, dice, count = summed_mask_losses(low, nothing, seeds, Comparison(canvas=32, insides=[(5, 5)] * 2))
    (bce + dice).backward()

    assert (bce.item(), dice.item(), count) == (0.0, 0.0, 0)
    assert low.grad is not None
    assert not low.grad.any()


def test_at_points_the_losses_are_those_of_what_is_read_there() -> None:
    low, seeds, rule = torch.randn(2, 8, 8) * 2, torch.tensor([7, 8]), PointRule(count=60)
    masks = torch.rand(2, 20, 30) > 0.5
    extent_xy = (30 / 32, 20 / 32)

    bce, dice, _ = summed_mask_losses(low, [masks], seeds, Comparison(canvas=32, insides=[(20, 30)], points=rule))

    points = unsure_points(low, seeds, rule, extent_xy=extent_xy)
    expected = mask_losses(read_points(low, points, extent_xy=extent_xy), read_points(masks, points))
    torch.testing.assert_close((bce, dice), (expected[0].sum(), expected[1].sum()))


def test_many_points_anywhere_say_what_all_pixels_say() -> None:
    low, seeds = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([1])
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 10:40, 20:50] = True
    everywhere = PointRule(count=40_000, oversample=1.0, importance=0.0)

    at_points = summed_mask_losses(low, [mask], seeds, Comparison(canvas=64, insides=[(64, 64)], points=everywhere))
    at_pixels = summed_mask_losses(low, [mask], seeds, Comparison(canvas=64, insides=[(64, 64)]))

    assert at_points[0].item() == pytest.approx(at_pixels[0].item(), rel=0.02)
    assert at_points[1].item() == pytest.approx(at_pixels[1].item(), rel=0.02)
