"""`orch status --watch`: a view of a run that one leaves open, and the same as plain lines where nothing can be drawn.

Threads read: the run folder every second, whoever keeps the queue every half a minute, the hours now and then; the main
thread draws. So a file system or a Slurm that hangs stops no key and no Ctrl-C, and is said on the screen.
"""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from orchestrator.errors import OrchError, SurroundingsError
from orchestrator.follow import TICK_S, Lines, over
from orchestrator.glance import Glance, Picture
from orchestrator.goodput import Books, Spending
from orchestrator.launcher import Place
from orchestrator.screen import Screen
from orchestrator.state import read_launch
from orchestrator.status import ASK_EVERY_S, Answer, Observer, asked
from orchestrator.watchview import Trouble, frame

LOOK_EVERY_S, DRAW_EVERY_S = 1.0, 0.5
SPENT_EVERY_S = 20.0  # the first time it may take seconds: nobody waits for it
ASK_QUEUE_EVERY_S = 30.0  # one squeue for all stages; everybody asks the same controller
MOST_PAUSE_S = 5.0
LATE_S = 10.0  # without news from the run folder: then that is news
SETTLING_S = 5.0  # a run may be over a moment before its last stage says so
GONE_S = 60.0  # after which plain lines end: nobody sits before them

T = TypeVar("T")


class Background(Generic[T]):
    """Asks the same question again and again in a thread of its own, and keeps the last answer."""

    def __init__(self, ask: Callable[[T | None], T], every_s: float) -> None:
        """Starts at once; `ask` is told the answer before. The thread ends with the process."""
        self._ask, self._every_s = ask, every_s
        self.answer: T | None = None
        self.trouble = ""  # why the last question was not answered
        self.heard = time.monotonic()  # when it was last
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.answer, self.trouble, self.heard = self._ask(self.answer), "", time.monotonic()
            except Exception as error:  # noqa: BLE001 - a file that is gone, cut or being replaced now; the view stays
                self.trouble = str(error) or type(error).__name__
            took_s = time.monotonic() - began
            wanted_s = self._every_s if self.answer is not None else min(1.0, self._every_s)
            time.sleep(
                max(wanted_s, min(MOST_PAUSE_S, 10 * took_s))
            )  # where all is slow, a tenth of the time is enough


def watch(directory: Path, place: Place, console: Console) -> dict[str, Any] | None:
    """Shows a run until nobody works on it any more, and returns its last status; None if somebody left before.

    Where nothing can be drawn (a pipe, a dumb terminal) it prints a line whenever something has changed.
    """
    if not drawable(console):
        return in_lines(Observer(directory, place, ask_every_s=_pace(directory)), console)
    glance, books = Glance(directory), Books(directory)
    answers = Background[Answer](lambda before: asked(directory, place, before or Answer()), _pace(directory))
    spent = Background[Spending](lambda _: books.read(now=time.time()), SPENT_EVERY_S)
    pictures = Background[Picture](lambda _: glance.look(answers.answer or Answer(), spent.answer), LOOK_EVERY_S)
    with Screen(console) as screen:
        drawn: tuple[object, ...] = ()
        ended = math.inf
        while True:
            width, height = screen.size
            picture, late_s = pictures.answer, time.monotonic() - pictures.heard
            trouble = Trouble(text=pictures.trouble, since_s=late_s) if pictures.trouble or late_s > LATE_S else None
            if drawn != (drawn := (id(picture), width, height, int(time.time()))):  # once a second, or when resized
                screen.draw(frame(picture, width, height, trouble=trouble, ascii_only=_ascii_only(console)))
            if picture is not None and trouble is None and over(picture.status):
                ended = min(ended, time.monotonic())
                if picture.status["state"] != "running" or time.monotonic() - ended > SETTLING_S:
                    return dict(picture.status)
            if "q" in screen.wait(DRAW_EVERY_S).lower():
                return None


def drawable(console: Console) -> bool:
    """Tells whether a view can be drawn: there is a terminal, and it can place what it shows."""
    return console.is_terminal and not console.is_dumb_terminal


def in_lines(run: Observer, console: Console) -> dict[str, Any]:
    """Prints what is new, line by line, until nobody works on the run any more; returns its last status.

    A run folder that is away for a moment is waited for. Raises SurroundingsError if it stays away.
    """
    lines, missed, heard = Lines(), "", time.monotonic()
    while True:
        try:
            if read_launch(run.directory) is None:
                raise SurroundingsError(f"{run.directory} is gone")
            shown = run.look()
        except (OrchError, OSError, ValueError, KeyError, TypeError) as error:
            if time.monotonic() - heard > GONE_S:
                raise SurroundingsError(f"{error}; it has been away for {GONE_S:.0f} s") from error
            if not missed:
                console.print(f"the run folder cannot be read: {error}", markup=False, soft_wrap=True)
            missed = str(error)
        else:
            heard, missed = time.monotonic(), ""
            for line in lines.news(shown):
                console.print(line, markup=False, soft_wrap=True)
            if over(shown):
                return shown
        time.sleep(TICK_S)


def _pace(directory: Path) -> float:
    """Returns how often to ask: this machine costs nothing, a cluster's controller has other things to do."""
    launch = read_launch(directory)
    return ASK_EVERY_S if launch is None or launch.launcher == "local" else ASK_QUEUE_EVERY_S


def _ascii_only(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")
