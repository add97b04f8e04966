"""The one way in which a test waits for something: until it is so, and no longer than would be wrong on any machine."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S, EVERY_S = 60.0, 0.02
SLACK = 3.0  # for a machine that has much else to do: who asks says what is long on a quiet one


def until(question: Callable[[], T], seconds: float = PATIENCE_S, *, what: str | Callable[[], object] = "") -> T:
    """Asks until the answer is yes, and returns it; fails with `what` was waited for, or what it says of that then."""
    deadline = time.monotonic() + SLACK * seconds
    while not (answer := question()):
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else str(what())
            raise AssertionError(f"waited {SLACK * seconds:.0f} s in vain" + (f" until {told}" if told else ""))
        time.sleep(EVERY_S)
    return answer
