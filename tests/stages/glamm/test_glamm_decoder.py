"""Masks: losses against sums by hand, padding cut off, images of different sizes together."""

import math

import pytest
import torch

from stages.glamm.decoder import mask_losses, masks_at_image_size, summed_mask_losses


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


def test_images_of_different_sizes_add_up_to_what_each_gives_alone() -> None:
    low = torch.randn(5, 8, 8)
    masks = [
        torch.rand(2, 20, 30) > 0.5,
        torch.rand(1, 32, 32) > 0.5,
        torch.zeros(0, 9, 9),
        torch.rand(2, 20, 30) > 0.5,
    ]
    insides = [(21, 32), (32, 32), (32, 32), (21, 32)]

    bce, dice, count = summed_mask_losses(low, masks, insides, canvas=32)

    alone = [
        summed_mask_losses(own, masks[i : i + 1], insides[i : i + 1], canvas=32)
        for i, own in enumerate(low.split([2, 1, 0, 2]))
    ]
    assert count == 5
    torch.testing.assert_close(bce, sum(one[0] for one in alone))
    torch.testing.assert_close(dice, sum(one[1] for one in alone))


def test_without_masks_the_losses_are_zero_and_still_hang_on_the_decoder() -> None:
    low = torch.randn(1, 8, 8, requires_grad=True)

    bce, dice, count = summed_mask_losses(low, [torch.zeros(0, 5, 5)] * 2, [(5, 5)] * 2, canvas=32)
    (bce + dice).backward()

    assert (bce.item(), dice.item(), count) == (0.0, 0.0, 0)
    assert low.grad is not None
    assert not low.grad.any()
