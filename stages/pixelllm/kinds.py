"""The kinds of sources that teach a PixelLLM, by the names that recipes use. Imports no torch."""

from collections.abc import Collection

CAPTION = "caption"  # words about the whole image
TRACE = "trace"  # words, and where in the image each of them is
REFER = "refer"  # an expression, and the box that it means; its words are not learnt
SEGMENT = "segment"  # the same, and the pixels that it means
REGION = "region"  # words about a box
DENSE = "dense"  # words about boxes, and proposals that find these boxes
KINDS = (CAPTION, TRACE, REFER, SEGMENT, REGION, DENSE)

_TEACHERS = {"masks": SEGMENT, "detector": DENSE}  # parts that a model may have beside the others


def idle_parts(kinds: Collection[str]) -> frozenset[str]:
    """Returns the parts of a model that sources of these kinds teach nothing: no batch of theirs needs to run them."""
    return frozenset(part for part, teacher in _TEACHERS.items() if teacher not in kinds)
