"""From queries to segments that do not overlap: the release's panoptic inference.

Legend: Q queries, H W pixels of the picture itself.
"""

from collections.abc import Sequence

from torch import Tensor

from orchestrator.records import record


@record
class Found:
    """A segment: the query that speaks for it, its class and its pixels."""

    query: int
    category: int  # the place among the model's categories
    score: float
    mask_HW: Tensor  # bool


def find_segments(
    scores_Q: Tensor, categories_Q: Tensor, masks_QHW: Tensor, things: Sequence[bool], *, least_overlap: float
) -> list[Found]:
    """Gives every pixel to the query with the highest score times mask (0 to 1), and keeps what is left of the masks.

    A query that keeps less than `least_overlap` of its own pixels is dropped. Stuff of one class becomes one segment,
    spoken for by its first query.
    """
    if not len(scores_Q):
        return []
    owner_HW = (scores_Q[:, None, None] * masks_QHW).argmax(dim=0)
    found: list[Found] = []
    of_stuff: dict[int, int] = {}  # category -> its place in `found`
    for query, (score, category) in enumerate(zip(scores_Q.tolist(), categories_Q.tolist(), strict=True)):
        mine_HW, own_HW = owner_HW == query, masks_QHW[query] >= 0.5
        mask_HW = mine_HW & own_HW
        if not mask_HW.any() or mine_HW.sum() / own_HW.sum() < least_overlap:
            continue
        if category in of_stuff:
            before = found[of_stuff[category]]
            found[of_stuff[category]] = Found(
                query=before.query, category=category, score=before.score, mask_HW=before.mask_HW | mask_HW
            )
            continue
        if not things[category]:
            of_stuff[category] = len(found)
        found.append(Found(query=query, category=category, score=score, mask_HW=mask_HW))
    return found
