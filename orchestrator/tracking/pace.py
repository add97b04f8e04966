"""How often somebody looks for what is new in a run: so seldom that no training feels it."""

import math
import threading
import time
from collections.abc import Callable

LOOK_EVERY_S = 1.0
LONGEST_PAUSE_S = 30.0
REST = 50.0  # times as long as a look took, the server's share included: on a busy machine it takes from the ranks


def keep_telling(tell: Callable[[], bool], is_over: Callable[[], bool], stop: threading.Event) -> None:
    """Calls `tell`, which says whether it could, until it is over; `stop` wakes it from a pause.

    A pause is in proportion to what the look cost, and long where telling fails. None is more than twice the last one:
    a single slow look, as the first is, silences nobody for long.
    """
    pause_s = LOOK_EVERY_S
    while not is_over():
        begun = time.monotonic()
        told = tell()
        rest_s = REST * (time.monotonic() - begun) if told else math.inf
        pause_s = max(LOOK_EVERY_S, min(rest_s, 2 * pause_s, LONGEST_PAUSE_S))
        until = time.monotonic() + pause_s
        while time.monotonic() < until and not is_over():
            stop.wait(LOOK_EVERY_S)
