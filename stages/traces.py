"""Localized Narratives: a box for each utterance out of the mouse's trace, and for each token out of those.

As PixelLLM's release builds its records: an utterance's box spans 16 places of the trace, at equal steps of its time,
and tokens take boxes by how far along the caption they stand. Words are never compared: what was spoken and the caption
differ.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.samples import TimedPoint, Utterance

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1 in units of the image, within 0..1
STEPS = 16  # places of the trace that an utterance is read at
LEAST_POINTS = 2  # of a narrative that is used


def boxes_of(points: Sequence[TimedPoint], utterances: Sequence[Utterance]) -> list[Corners]:
    """Reads the box of every utterance off the trace; those without words, or whose middle is not inside, are skipped.

    Times outside of the trace go on along its first or last stretch. Boxes are cut to the image.
    """
    if len(points) < LEAST_POINTS:
        return []
    ordered = sorted(points, key=lambda point: point.time_s)
    times_P = np.array([point.time_s for point in ordered])
    places_P2 = np.array([(point.x_unit, point.y_unit) for point in ordered])
    found = []
    for said in utterances:
        read_K2 = _along(times_P, places_P2, np.linspace(said.start_s, said.end_s, STEPS))
        if said.text.strip() and bool((read_K2.mean(axis=0) > 0).all()):
            low, high = (edge.clip(0, 1) for edge in (read_K2.min(axis=0), read_K2.max(axis=0)))
            found.append((float(low[0]), float(low[1]), float(high[0]), float(high[1])))
    return found


def aligned(count: int, boxes: Sequence[Corners]) -> list[Corners]:
    """Gives each of `count` tokens or words the box whose share of the way is nearest to its own."""
    if not boxes:
        return []
    ways = (np.arange(len(boxes)) + 1) / len(boxes)
    return [boxes[int(np.abs(ways - (number + 1) / count).argmin())] for number in range(count)]


def _along(
    times_P: NDArray[np.float64], places_P2: NDArray[np.float64], at_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolates linearly between neighbours in time, and beyond the ends along the stretch there."""
    after_K = np.searchsorted(times_P, at_K, side="left").clip(1, len(times_P) - 1)
    span_K = times_P[after_K] - times_P[after_K - 1]
    share_K = np.divide(at_K - times_P[after_K - 1], span_K, out=np.zeros_like(at_K), where=span_K > 0)
    before_K2 = places_P2[after_K - 1]
    read_K2: NDArray[np.float64] = before_K2 + share_K[:, None] * (places_P2[after_K] - before_K2)
    return read_K2
