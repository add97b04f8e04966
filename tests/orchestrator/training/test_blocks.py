"""Matrices stored in blocks of columns, read by whoever wants other blocks or rows."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.training import elastic, writing
from orchestrator.training.elastic import Piece
from orchestrator.training.weights import StoredWeights
from orchestrator.world import World

pytestmark = pytest.mark.needs("torch")

ROWS, COLUMNS = 5, 12
MATRIX = torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS)


def _laid_out(blocks: int) -> Tensor:
    """Writes down the matrix block after block."""
    return torch.cat([block.reshape(-1) for block in MATRIX.chunk(blocks, dim=1)])


def _write(directory: Path, blocks: int) -> None:
    piece = Piece("matrix", (ROWS, COLUMNS), 0, _laid_out(blocks), blocks=blocks)
    writing.write(directory / elastic.WEIGHTS, [piece], World.alone())


@pytest.mark.parametrize("stored", [1, 2, 3, 4])
@pytest.mark.parametrize("wanted", [1, 2, 3, 6])
def test_any_run_of_any_block_is_read_whatever_blocks_are_stored(tmp_path: Path, stored: int, wanted: int) -> None:
    _write(tmp_path, stored)
    expected, length = _laid_out(wanted), ROWS * COLUMNS // wanted
    cuts = sorted({0, 1, 3, length // 2, length - 1, length})
    runs = [(block * length + a, block * length + b) for block in range(wanted) for a, b in pairwise(cuts)]

    found = torch.full((ROWS * COLUMNS,), -1.0)
    for start, end in runs:
        piece = Piece("matrix", (ROWS, COLUMNS), start, found[start:end], blocks=wanted)
        elastic.read(tmp_path / elastic.WEIGHTS, [piece])

    assert torch.equal(expected, found)


def test_a_reader_of_whole_tensors_need_not_know_of_blocks(tmp_path: Path) -> None:
    _write(tmp_path, 4)

    assert torch.equal(MATRIX, StoredWeights(tmp_path).read("matrix"))


def test_a_piece_of_nothing_asks_for_nothing(tmp_path: Path) -> None:
    _write(tmp_path, 2)
    nothing = Piece("matrix", (ROWS, COLUMNS), ROWS * COLUMNS, torch.empty(0))

    elastic.read(tmp_path / elastic.WEIGHTS, [nothing, replace(nothing, blocks=3)])
