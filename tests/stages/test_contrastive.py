"""The contrast of all ranks' pairs is that of one process with the whole batch, and memory does not grow with it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.world import World
from stages.contrastive import contrast, in_parts, over_ranks
from tests.allocations import allocated
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

PAIRS, WIDTH, CONFLICT = 11, 6, 0.9
UNEVEN = {1: (11,), 2: (7, 4), 3: (6, 0, 5)}  # pairs of each rank; one of three has none


class Towers(nn.Module):
    """Two encoders and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(8, WIDTH).double(), nn.Linear(5, WIDTH).double()
        self.logit_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        with torch.no_grad():
            for number, parameter in enumerate((*self.image.parameters(), *self.text.parameters())):
                parameter.copy_(torch.sin(torch.arange(parameter.numel()) * (1.3 + number)).view_as(parameter))

    def encode(self, pixels_NX: Tensor, words_NY: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds both, at unit length."""
        images_ND, texts_ND = self.image(pixels_NX).tanh(), self.text(words_NY).tanh()
        return functional.normalize(images_ND, dim=-1), functional.normalize(texts_ND, dim=-1)


def data() -> tuple[Tensor, Tensor]:
    """Makes pairs of which some have the same words, and two nearly so."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(PAIRS, 8, generator=generator, dtype=torch.float64)
    words = torch.randn(PAIRS, 5, generator=generator, dtype=torch.float64)
    words[7] = words[2]
    words[9] = words[2] * 1.001
    return pixels, words


def whole_batch(conflict: float | None) -> tuple[float, list[float]]:
    """Computes loss and gradients the way a textbook does: one table, one process."""
    towers = Towers()
    images, texts = towers.encode(*data())
    logits = towers.logit_scale.exp() * images @ texts.T
    if conflict is not None:
        alike = (texts @ texts.T).detach() > conflict
        logits = logits.masked_fill(alike & ~torch.eye(PAIRS, dtype=torch.bool), float("-inf"))
    own = torch.arange(PAIRS)
    loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    loss.backward()
    return loss.item(), gradients(towers)


def gradients(towers: Towers) -> list[float]:
    """Lists all gradients."""
    found = [parameter.grad for parameter in towers.parameters()]
    return [value for one in found if one is not None for value in one.flatten().tolist()]


def on_a_rank(world: World, conflict: float | None, parts: int, block: int) -> tuple[float, list[float]]:
    """Does the same with this rank's pairs alone; returns the loss, and the mean of all ranks' gradients."""
    towers, counts = Towers(), UNEVEN[world.size]
    first = sum(counts[: world.rank])
    pixels, words = (one[first : first + counts[world.rank]] for one in data())
    pieces = list(zip(pixels.tensor_split(parts), words.tensor_split(parts), strict=True))
    encoded = in_parts(lambda piece: towers.encode(*piece), pieces)
    images, texts = (torch.cat(side) for side in zip(*encoded, strict=True))
    loss = contrast(images, texts, towers.logit_scale.exp(), conflict=conflict, block=block)
    loss.backward()
    return loss.item(), [over_ranks(torch.tensor(value)).item() / world.size for value in gradients(towers)]


def both_ways(world: World) -> list[tuple[float, list[float]]]:
    """Contrasts with and without conflicts, whole and in parts."""
    return [on_a_rank(world, CONFLICT, 1, 64), on_a_rank(world, CONFLICT, 3, 2), on_a_rank(world, None, 2, 4)]


def one_process(world: World) -> list[tuple[float, list[float]]]:
    """Says what `both_ways` must come to."""
    del world
    with_conflicts = whole_batch(CONFLICT)
    return [with_conflicts, with_conflicts, whole_batch(None)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_contrasts_as_one_process_with_the_whole_batch(size: int, tmp_path: Path) -> None:
    wanted = one_process(World.alone())

    found = [both_ways(World.alone())] if size == 1 else run_ranks(size, both_ways, directory=tmp_path)

    for rank in found:
        for (loss, slopes), (true_loss, true_slopes) in zip(rank, wanted, strict=True):
            assert loss == pytest.approx(true_loss, abs=1e-6)
            assert slopes == pytest.approx(true_slopes, abs=1e-6)


def test_pairs_with_the_same_words_are_no_negatives_of_each_other() -> None:
    images = functional.normalize(torch.tensor([[1.0, 0.2], [1.0, -0.2]]), dim=-1)
    same = functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.1]]), dim=-1)

    assert contrast(images, same, torch.tensor(10.0), conflict=CONFLICT).item() == pytest.approx(0.0, abs=1e-6)
    assert contrast(images, same, torch.tensor(10.0)).item() > 0.5


def test_what_is_alike_may_be_said_by_other_vectors() -> None:
    images = texts = functional.normalize(torch.tensor([[1.0, 0.2], [1.0, -0.2]]), dim=-1)
    scale, apart = torch.tensor(1.0), torch.eye(2)

    assert contrast(images, texts, scale, conflict=CONFLICT).item() == pytest.approx(0.0, abs=1e-6)
    assert contrast(images, texts, scale, conflict=CONFLICT, alike_ND=apart).item() > 0.5


def test_no_pairs_at_all_cost_nothing_and_leave_a_graph() -> None:
    weight = torch.ones(3, 4, requires_grad=True)

    loss = contrast(weight[:0], weight[:0], torch.tensor(1.0, requires_grad=True))
    loss.backward()

    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_lists_of_different_length_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="are no pairs"):
        contrast(torch.ones(2, 3), torch.ones(3, 3), torch.tensor(1.0))


def peak(samples: int, parts: int) -> int:
    """Measures what a forward and backward pass through a deep encoder asks for at a time, in bytes."""
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.GELU())]
    encoder = nn.Sequential(nn.Linear(16, 64), *layers, nn.Linear(64, 4))
    pieces = torch.randn(samples, 16).tensor_split(parts)

    def work() -> None:
        images = functional.normalize(torch.cat(in_parts(encoder, pieces)), dim=-1)
        contrast(images, images.detach(), torch.tensor(1.0), block=16).backward()

    return allocated(work)[1]


def test_a_batch_of_more_parts_takes_hardly_more_memory() -> None:
    few, many, at_once = peak(512, 2), peak(2048, 8), peak(2048, 1)

    assert many < 1.3 * few
    assert many < 0.4 * at_once
