"""Boxes become tokens: levels, boxes that mean what they say."""

import pytest
import torch

from orchestrator.errors import InputError
from stages.glamm.config import RegionConfig
from stages.glamm.region import RegionEncoder

CONFIG = RegionConfig(
    layers=(1, 2), upsample=(2, 1), channels=8, rounds=2, groups=2, roi_size=3, sampling=2, position_size=8
)


def test_a_region_is_told_by_its_own_image_alone() -> None:
    encoder = encoder_of(CONFIG)
    levels = [torch.randn(2, 16, 5) for _ in range(2)]
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])

    together = encoder(levels, boxes, torch.tensor([0, 0, 1]))
    alone = encoder([level[1:] for level in levels], boxes[2:], torch.tensor([0]))

    assert together.shape == (3, 12)
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[2])


def test_the_published_weights_scale_moves_regions_but_not_positions() -> None:
    encoder, published = encoder_of(CONFIG), encoder_of(CONFIG, roi_scale=224 / 336)
    levels = [torch.randn(1, 16, 5) for _ in range(2)]
    box, image = torch.tensor([[0.0, 0.0, 0.9, 0.9]]), torch.tensor([0])

    whole, shrunk = encoder(levels, box, image), published(levels, box, image)

    assert not torch.allclose(whole, shrunk)


def test_levels_and_factors_must_pair() -> None:
    with pytest.raises(InputError, match="upsample"):
        RegionConfig(layers=(1, 2), upsample=(2, 1, 1))


def encoder_of(config: RegionConfig, *, roi_scale: float = 1.0) -> RegionEncoder:
    torch.manual_seed(5)
    return RegionEncoder(config, vision_size=5, language_size=12, roi_scale=roi_scale)
