"""Matrices that are stored as blocks of columns, read into a piece that wants other blocks, or rows.

Tensor parallelism cuts some matrices by columns. Flat, such a cut would be one short run a row; so the checkpoint keeps
block after block instead, each of them flat, and a rank's share stays one run. Whoever wants another number of blocks
(1: the plain matrix) reads rows of every block that overlaps with his, and puts them side by side.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from orchestrator.training.elastic import Piece


def read_blocks(
    pieces: Iterable["Piece"], stored_blocks: Mapping[str, int], read: Callable[[Sequence["Piece"]], None]
) -> None:
    """Fills pieces of tensors that are stored in so many blocks, by name; `read` fills those that are laid out so.

    A piece must lie in one block of its own layout. Where that is another than the stored one, the rows that it touches
    are held twice more for as long as it takes.
    """
    wanted = list(pieces)
    read([piece for piece in wanted if piece.blocks == stored_blocks[piece.name]])
    for piece in wanted:
        if piece.blocks != stored_blocks[piece.name]:
            _read_across(piece, stored_blocks[piece.name], read)


def _read_across(piece: "Piece", stored_blocks: int, read: Callable[[Sequence["Piece"]], None]) -> None:
    if piece.local.numel() == 0:
        return
    rows, columns = prod(piece.shape[:-1]), piece.shape[-1]
    width, stored_width = columns // piece.blocks, columns // stored_blocks
    block, begin = divmod(piece.start, rows * width)
    first_row, last_row = begin // width, (begin + piece.local.numel() - 1) // width
    height, left = last_row - first_row + 1, block * width
    wanted = torch.empty(height, width, dtype=piece.local.dtype)
    for number in range(left // stored_width, (left + width - 1) // stored_width + 1):
        found = torch.empty(height * stored_width, dtype=piece.local.dtype)
        start = (number * rows + first_row) * stored_width
        read([replace(piece, start=start, local=found, blocks=stored_blocks)])
        low, high = max(left, number * stored_width), min(left + width, (number + 1) * stored_width)
        theirs = found.view(height, stored_width)[:, low - number * stored_width : high - number * stored_width]
        wanted[:, low - left : high - left] = theirs
    offset = begin - first_row * width
    piece.local.copy_(wanted.view(-1)[offset : offset + piece.local.numel()])
