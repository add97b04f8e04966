"""Whose turn it is: sources take turns in exact proportion to their weights, found in closed form.

The sources are the leaves of a Huffman tree of their weights. A node that has had `n` turns has given
`round(n * p)` of them to its left child, whose share of the node's weight is `p`, and the others to its right child.
So turns before a step are counted by one rounding a level, and who has the turn at a step is whose count grows.

A rounding adds at most 1/2 and a level passes on `p` times the error from above. In a Huffman tree the shares of two
neighbouring levels multiply to at most 1/2, so that after any number of steps every source is less than 2 turns away
from its exact share, 1/2 a turn for two sources; `Schedule.error_bound` gives the bound for the weights at hand.
"""

import heapq
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple


class _Split(NamedTuple):
    left: "_Split | str"
    right: "_Split | str"
    above: int  # the left child's share is above / below
    below: int


class Schedule:
    """Turns of sources in proportion to their weights."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Takes weights that are finite and not negative, at least one above 0; their order does not matter."""
        # through str: 0.1 is meant to be a tenth, not the binary number next to it
        exact = {name: Fraction(str(weight)) for name, weight in sorted(weights.items()) if weight > 0}
        heap: list[tuple[Fraction, int, _Split | str]] = [(w, i, name) for i, (name, w) in enumerate(exact.items())]
        heapq.heapify(heap)
        number = len(heap)
        while len(heap) > 1:
            (right_weight, _, right), (left_weight, _, left) = heapq.heappop(heap), heapq.heappop(heap)
            share = left_weight / (left_weight + right_weight)
            split = _Split(left, right, share.numerator, share.denominator)
            heapq.heappush(heap, (left_weight + right_weight, number, split))
            number += 1
        self._root = heap[0][2]

    def turn(self, step: int) -> tuple[str, int]:
        """Returns who has the turn at a step, and how many turns it had before."""
        node, turns = self._root, step
        while isinstance(node, _Split):
            left = _rounded(turns, node)
            if _rounded(turns + 1, node) > left:
                node, turns = node.left, left
            else:
                node, turns = node.right, turns - left
        return node, turns

    def counts(self, step: int) -> dict[str, int]:
        """Counts the turns of every source before a step."""
        found: dict[str, int] = {}
        todo = [(self._root, step)]
        while todo:
            node, turns = todo.pop()
            if isinstance(node, _Split):
                left = _rounded(turns, node)
                todo += [(node.left, left), (node.right, turns - left)]
            else:
                found[node] = turns
        return found

    def error_bound(self) -> dict[str, float]:
        """Returns how many turns each source can be away from its exact share, at any step."""
        found: dict[str, float] = {}
        todo: list[tuple[_Split | str, float]] = [(self._root, 0.0)]
        while todo:
            node, error = todo.pop()
            if isinstance(node, _Split):
                share = node.above / node.below
                todo += [(node.left, share * error + 0.5), (node.right, (1 - share) * error + 0.5)]
            else:
                found[node] = error
        return found


def _rounded(turns: int, node: _Split) -> int:
    return (2 * turns * node.above + node.below) // (2 * node.below)
