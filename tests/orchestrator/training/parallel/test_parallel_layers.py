"""What a rank does by itself: its own dropout, its share of a loss, and no megatron-core where nobody asks for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from orchestrator.training.parallel.dropout import ShareDropout
from orchestrator.training.parallel.losses import word_losses

pytestmark = pytest.mark.needs("torch")


def _dropped(share: int) -> tuple[torch.Tensor, float]:
    """Returns what is left of ones, and the next random number that all ranks have in common."""
    torch.manual_seed(7)
    left = ShareDropout(0.25, share)(torch.ones(4000))
    return left, float(torch.rand(()))


def test_shares_of_features_are_dropped_apart_and_leave_the_common_random_numbers_alike() -> None:
    (first, next_first), (second, next_second) = _dropped(0), _dropped(1)

    assert next_first == next_second
    assert not torch.equal(first, second)
    assert all(left.unique().tolist() == pytest.approx([0.0, 4 / 3]) for left in (first, second))
    assert all(left.mean().item() == pytest.approx(1.0, abs=0.05) for left in (first, second))


def test_nothing_is_dropped_when_nothing_is_learned() -> None:
    features = torch.ones(10)

    assert torch.equal(ShareDropout(0.9, 0).eval()(features), features)


def test_the_loss_of_whole_logits_is_that_of_torch() -> None:
    logits_TV, targets_T = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 6, 3, 3, 1])

    losses_T = word_losses(logits_TV, targets_T, vocabulary=7)

    assert torch.equal(losses_T, functional.cross_entropy(logits_TV, targets_T, reduction="none"))


def test_megatron_is_not_imported_where_ranks_share_nothing() -> None:
    code = (
        "import sys\nfrom orchestrator.training import loop\nfrom orchestrator.training.engine import make_engine\n"
        "from orchestrator.world import World\nfrom tests.toys import ToyTask, toy_train\n"
        "make_engine(ToyTask(), toy_train(1), trainable=('*',), world=World.alone(), seed=1)\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'megatron'])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[4], check=False
    )

    assert done.stdout.strip() == "[]", done.stderr
