"""A pseudo-terminal for tests: starts a program in it, types, resizes, and reads what a person would see."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.waiting import until

SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Terminal:
    """A terminal of some size with one program in it, as its session leader."""

    def __init__(
        self, command: list[str], *, folder: Path, environment: Mapping[str, str], columns: int = 80, lines: int = 24
    ) -> None:
        self.columns, self.lines = columns, lines
        self.sent = ""  # everything the program has written
        self.alternate = False  # the other screen, on which full-screen programs draw
        self.cursor_shown = True
        self._screen: list[list[str]] = []
        self._row = self._column = 0
        self._rest = ""
        self._master, slave = pty.openpty()
        self._slave = os.dup(slave)  # kept open: what is left of the settings is read from it
        self.before = termios.tcgetattr(slave)
        self.resize(columns, lines)
        self.process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call
        )  # fmt: skip
        os.close(slave)
        self._clear()
        threading.Thread(target=self._read, daemon=True).start()

    def text(self) -> str:
        """Returns what is on the screen."""
        return "\n".join("".join(row).rstrip() for row in self._screen)

    def shows(self, words: str, seconds: float = 30.0) -> str:
        """Waits until words are on the screen; returns the whole of it."""
        return until(lambda: words in self.text() and self.text(), seconds, what=lambda: f"{words!r} in\n{self.text()}")

    def type(self, keys: str) -> None:
        """Hits keys; "\\x03" is Ctrl-C."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Gives the window another size."""
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait(self, seconds: float = 30.0) -> int:
        """Waits until the program has ended, and returns its exit code."""
        return self.process.wait(seconds)

    def settings_are_back(self) -> bool:
        """Tells whether the terminal behaves as before: echo, lines, signals."""
        return bool(termios.tcgetattr(self._slave) == self.before)

    def close(self) -> None:
        """Ends what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._slave)

    def _read(self) -> None:
        while True:
            try:
                block = os.read(self._master, 1 << 16)
            except OSError:  # nobody has it open any more
                return
            if not block:
                return
            self._take(block.decode("utf-8", "replace"))

    def _take(self, text: str) -> None:
        self.sent += text
        text, self._rest = self._rest + text, ""
        while text:
            if text[0] != "\x1b":
                self._put(text[0])
                text = text[1:]
            elif match := SEQUENCE.match(text):
                self._obey(match[1], match[2], match[3])
                text = text[match.end() :]
            elif len(text) < 16:
                self._rest, text = text, ""  # its end comes with the next block
            else:
                text = text[1:]

    def _put(self, sign: str) -> None:
        if sign == "\n":
            self._row = min(self._row + 1, self.lines - 1)
        elif sign == "\r":
            self._column = 0
        elif self._column < self.columns:
            self._screen[self._row][self._column] = sign
            self._column += 1

    def _obey(self, private: str, numbers: str, letter: str) -> None:
        if private:
            shown = letter == "h"
            if numbers == "1049":
                self.alternate = shown
                self._clear()
            elif numbers == "25":
                self.cursor_shown = shown
        elif letter == "H":
            row, _, column = numbers.partition(";")
            self._row, self._column = int(row or 1) - 1, int(column or 1) - 1
            if self._row >= len(self._screen):
                self._clear()
        elif letter == "J" and numbers == "2":
            self._clear(home=False)
        elif letter == "J":
            for row in range(self._row, len(self._screen)):
                self._screen[row] = [" "] * self.columns
        elif letter == "K":
            self._screen[self._row][self._column :] = [" "] * (self.columns - self._column)

    def _clear(self, *, home: bool = True) -> None:
        self._screen = [[" "] * self.columns for _ in range(self.lines)]
        if home:
            self._row = self._column = 0
