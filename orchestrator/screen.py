"""A terminal that is drawn upon and given back as it was: whoever leaves, however he leaves, finds his own lines."""

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Mapping, Sequence
from io import StringIO
from types import FrameType
from typing import Any, Literal, NoReturn, Self

from rich.console import Console
from rich.text import Text

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"  # another screen, no cursor, no wrapping
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
COLORS: Mapping[str | None, Literal["standard", "256", "truecolor"] | None] = {
    None: None, "standard": "standard", "256": "256", "truecolor": "truecolor", "windows": None,
}  # fmt: skip
LEAVING = (signal.SIGTERM, signal.SIGHUP)


class Screen:
    """The terminal of a console, for as long as the `with` block lasts; in the main thread only."""

    def __init__(self, console: Console) -> None:
        """Takes nothing yet."""
        self._console = console
        self._input = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._settings: list[Any] | None = None
        self._drawn: list[str] = []
        self._size: tuple[int, int] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Takes the terminal."""
        for number in LEAVING:
            self._handlers[number] = signal.signal(number, self._leave)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives it back."""
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def size(self) -> tuple[int, int]:
        """Returns columns and lines as they are now, whatever COLUMNS and LINES say."""
        try:
            columns, lines = os.get_terminal_size(self._console.file.fileno())
        except OSError:
            columns = lines = 0
        return columns or 80, lines or 24

    def draw(self, lines: Sequence[Text]) -> None:
        """Draws lines from the top; only those that have changed are sent."""
        width, height = self.size
        parts = []
        if self._size != (width, height):
            self._drawn, self._size = [], (width, height)
            parts.append("\x1b[2J")
        drawn = self._painted(lines[:height], width)
        before = self._drawn + [""] * (len(drawn) - len(self._drawn))
        parts += [f"\x1b[{at + 1};1H{new}\x1b[0m\x1b[K" for at, new in enumerate(drawn) if new != before[at]]
        if len(drawn) < len(before):
            parts.append(f"\x1b[{len(drawn) + 1};1H\x1b[J")
        self._drawn = drawn
        self._write("".join(parts))

    def wait(self, seconds: float) -> str:
        """Waits for keys and returns them; empty if none was hit, or there is no keyboard."""
        if self._input is None:
            select.select([], [], [], seconds)
            return ""
        ready, _, _ = select.select([self._input], [], [], seconds)
        if not ready:
            return ""
        typed = os.read(self._input, 64)
        if not typed:  # the keyboard is gone; asking it again would keep a core busy
            self._input = None
        return typed.decode("ascii", "replace")

    def _painted(self, lines: Sequence[Text], width: int) -> list[str]:
        page = StringIO()
        painter = Console(
            file=page, force_terminal=True, width=width, height=len(lines) + 1, legacy_windows=False, highlight=False,
            color_system=COLORS[self._console.color_system], no_color=self._console.no_color,
        )  # fmt: skip
        for line in lines:
            painter.print(line, end="\n", overflow="ignore", no_wrap=True, crop=False)
        return page.getvalue().split("\n")[:-1]

    def _take(self) -> None:
        if self._input is not None:
            self._settings = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)  # keys come at once and unseen; Ctrl-C and Ctrl-Z stay signals
        self._drawn, self._size = [], None
        self._write(ENTER)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # a terminal that was closed wants nothing back
            if self._input is not None and self._settings is not None:
                termios.tcsetattr(self._input, termios.TCSANOW, self._settings)
            self._write(LEAVE)

    def _write(self, text: str) -> None:
        left = text.encode(self._console.encoding, "replace")
        while left:  # not through the console's file: a signal may come in the middle of it, and its answer writes too
            left = left[os.write(self._console.file.fileno(), left) :]

    def _leave(self, number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its own screen; `fg` brings ours back."""
        self._give_back()
        ours = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, ours)
        self._take()
