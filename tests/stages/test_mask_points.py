"""Points of masks: drawn by seeds alone, chosen where a guess is least sure, read as an enlarged mask would be."""

import pytest
import torch
from torch.nn import functional
from transformers.models.mask2former.modeling_mask2former import sample_point

from stages.mask_points import even_points, read_points, unsure_points
from stages.point_rule import PointRule

SEEDS = torch.tensor([0, 1, 2**62 + 5, 2**32])


def test_points_follow_from_the_seed_of_their_mask_and_their_own_number() -> None:
    together = even_points(SEEDS, 50)

    for seed, points_K2 in zip(SEEDS, together, strict=True):
        assert torch.equal(even_points(seed[None], 50)[0], points_K2)
    assert torch.equal(even_points(SEEDS, 20, skip=30), together[:, 30:])
    assert len({tuple(points_K2.flatten().tolist()) for points_K2 in together}) == len(SEEDS)


def test_points_lie_everywhere_alike() -> None:
    points_NK2 = even_points(torch.arange(4), 16_000)

    cells = (points_NK2 * 4).long()
    counts = torch.stack([torch.bincount(own[:, 0] * 4 + own[:, 1], minlength=16) for own in cells])
    assert 0 <= points_NK2.min() <= points_NK2.max() < 1
    assert (counts - 1000).abs().max() < 5 * 1000**0.5  # five standard deviations


def test_a_point_reads_what_an_enlarged_mask_has_there() -> None:
    maps_NHW = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    wide_NHW = functional.interpolate(maps_NHW[None], size=(20, 28), mode="bilinear", align_corners=False)[0]
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(28), indexing="ij")
    centres_K2 = torch.stack([(columns.flatten() + 0.5) / 28, (rows.flatten() + 0.5) / 20], dim=-1)

    read_NK = read_points(maps_NHW, centres_K2.expand(2, -1, -1))

    torch.testing.assert_close(read_NK, wide_NHW.flatten(1), rtol=1e-5, atol=1e-5)


def test_away_from_the_border_points_read_as_those_of_mask2former() -> None:
    maps_NHW = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(2))
    points_NK2 = even_points(SEEDS, 200) * 0.8 + 0.1

    theirs_NK = sample_point(maps_NHW[:, None], points_NK2, align_corners=False)[:, 0]

    torch.testing.assert_close(read_points(maps_NHW, points_NK2), theirs_NK)


def test_an_image_that_takes_a_part_of_the_map_is_read_in_that_part() -> None:
    maps_NHW = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    points_NK2 = even_points(SEEDS, 100)

    read_NK = read_points(maps_NHW, points_NK2, extent_xy=(1.0, 0.5))

    torch.testing.assert_close(read_NK, read_points(maps_NHW, points_NK2 * torch.tensor([1.0, 0.5])))


def test_the_least_sure_of_many_points_are_chosen_and_the_rest_lies_anywhere() -> None:
    logits_NHW = torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(4)) * 3
    rule = PointRule(count=40, oversample=3.0, importance=0.75)

    points_NK2 = unsure_points(logits_NHW, SEEDS, rule, extent_xy=(1.0, 0.7))

    candidates_NK2 = even_points(SEEDS, 120)
    for number, points_K2 in enumerate(points_NK2):
        own = slice(number, number + 1)
        doubts = read_points(logits_NHW[own], candidates_NK2[own], extent_xy=(1.0, 0.7))[0].abs()
        sorted_by_doubt = sorted(zip(doubts.tolist(), candidates_NK2[number].tolist(), strict=True))
        assert sorted(points_K2[:30].tolist()) == sorted(point for _, point in sorted_by_doubt[:30])
    assert torch.equal(points_NK2[:, 30:], even_points(SEEDS, 10, skip=120))


def test_without_importance_all_points_are_drawn_evenly() -> None:
    rule = PointRule(count=25, importance=0.0)

    assert torch.equal(unsure_points(torch.zeros(4, 3, 3), SEEDS, rule), even_points(SEEDS, 25, skip=75))


def test_what_is_read_has_a_gradient_and_where_has_none() -> None:
    logits_NHW = torch.randn(4, 6, 6, requires_grad=True)

    points_NK2 = unsure_points(logits_NHW, SEEDS, PointRule(count=10))
    read_points(logits_NHW, points_NK2).sum().backward()

    assert not points_NK2.requires_grad
    assert logits_NHW.grad is not None
    assert logits_NHW.grad.sum().item() == pytest.approx(40, rel=1e-4)  # bilinear shares of a point add up to one


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be 1 or more, not 0"),
        ({"oversample": 0.5}, "oversample must be 1 or more, not 0.5"),
        ({"importance": 1.5}, r"importance must lie in \[0, 1\], not 1.5"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointRule(**wrong)  # type: ignore[arg-type]  # one of them at a time
