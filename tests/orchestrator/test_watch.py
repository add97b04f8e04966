"""`orch status --watch` in a real pseudo-terminal, over a real run: seen, resized, left, suspended, in trouble."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.screen import ENTER, LEAVE
from tests.terminal import Terminal
from tests.waiting import until

LONG = {"steps": 4000, "pause_s": 0.02, "save_every": 1000}
Watch = Callable[..., Terminal]


@pytest.fixture
def watch(orch: Any) -> Iterator[Watch]:
    """Gives what opens the view of the toy run, or another command, in a terminal."""
    opened: list[Terminal] = []

    def start(*words: Any, columns: int = 80, lines: int = 24, **environment: str) -> Terminal:
        asked = words or ("status", "toy", "--watch")
        command = [sys.executable, "-m", "orchestrator.cli", *map(str, asked)]
        settings = {**orch._environment, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment}
        terminal = Terminal(command, folder=orch.folder, environment=settings, columns=columns, lines=lines)
        opened.append(terminal)
        return terminal

    yield start
    for terminal in opened:
        terminal.close()


@pytest.fixture
def running(orch: Any) -> Path:
    """Launches a run that goes on for longer than any test."""
    orch("launch", orch.recipe({"first": {"stage": "count", "config": LONG}, "second": {"stage": "count"}}), "--detach")
    orch.pid("first")
    folder: Path = orch.run_folder
    return folder


def given_back(terminal: Terminal) -> bool:
    return terminal.settings_are_back() and terminal.cursor_shown and not terminal.alternate


def test_it_shows_a_live_run_resizes_and_ctrl_c_leaves_it_running(running: Path, watch: Watch, orch: Any) -> None:
    terminal = watch()
    text = terminal.shows("loss")
    until(lambda: terminal.shows("/4000 steps") != text, what="the view to move")
    small = len(terminal.text().splitlines())
    terminal.resize(60, 12)
    until(lambda: len(terminal.text().splitlines()) == 12, what="the smaller view")
    until(lambda: "q or Ctrl-C" in terminal.text().splitlines()[-1], what="its last line")
    resized = terminal.text()
    terminal.type("\x03")

    assert "toy  running  on local" in text
    assert small == 24
    assert "▶ first   running" in resized
    assert max(len(line) for line in resized.splitlines()) <= 60
    assert terminal.wait() == 130
    until(lambda: given_back(terminal), what="the terminal as it was")
    assert "the run goes on" in terminal.sent
    assert "Traceback" not in terminal.sent
    assert orch.status()["state"] == "running"


def test_q_leaves_and_what_was_known_stays_on_the_terminal(running: Path, watch: Watch) -> None:
    terminal = watch()
    terminal.shows("first")
    terminal.type("xyq")

    assert terminal.wait() == 0
    until(lambda: given_back(terminal), what="the terminal as it was")
    assert "toy: running" in terminal.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_it_from_outside_leaves_a_usable_terminal(running: Path, watch: Watch, number: int) -> None:
    terminal = watch()
    terminal.shows("first")
    terminal.process.send_signal(number)

    assert terminal.wait() == 128 + number
    until(lambda: given_back(terminal), what="the terminal as it was")


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(running: Path, watch: Watch) -> None:
    terminal = watch()
    terminal.shows("first")
    terminal.process.send_signal(signal.SIGTSTP)  # without a shell that could let it go on, the kernel does at once
    until(lambda: terminal.sent.count(ENTER) == 2, what="the view again")
    between = terminal.sent[terminal.sent.index(ENTER) + len(ENTER) : terminal.sent.rindex(ENTER)]
    terminal.shows("first")
    terminal.type("q")

    assert LEAVE in between
    assert terminal.wait() == 0


def test_without_colour_nothing_is_coloured(running: Path, watch: Watch) -> None:
    terminal = watch(NO_COLOR="1")
    terminal.shows("running")

    assert not re.search(r"\x1b\[[\d;]*\b[39]\d(;\d+)*m", terminal.sent)


def test_a_dumb_terminal_gets_plain_lines(running: Path, watch: Watch) -> None:
    terminal = watch(TERM="dumb")
    until(lambda: "first: running (attempt 1, process" in terminal.sent, what="a line")
    terminal.type("\x03")

    assert terminal.wait() == 130
    assert "\x1b" not in terminal.sent


def test_a_run_folder_that_vanishes_for_a_while_is_said_and_survived(running: Path, watch: Watch) -> None:
    terminal = watch()
    terminal.shows("/4000 steps")
    aside = running.rename(running.with_name("aside"))
    gone = terminal.shows("no news from the run folder")
    aside.rename(running)
    until(lambda: "no news" not in terminal.text(), what="news")

    assert "launch.json is gone" in gone
    assert "first" in gone
    assert terminal.process.poll() is None


def test_a_pipe_gets_lines_and_a_vanished_folder_ends_them_only_if_it_stays_away(running: Path, orch: Any) -> None:
    process = orch.start("status", "toy", "--watch")
    lines = [process.stdout.readline()]
    aside = running.rename(running.with_name("aside"))
    lines.append(process.stdout.readline())
    aside.rename(running)
    orch("cancel", "toy")
    rest, errors = process.communicate(timeout=60)

    assert lines[0].startswith("first: running (attempt 1, process")
    assert lines[1].startswith("the run folder cannot be read")
    assert "first: cancelled" in rest
    assert (process.returncode, errors) == (0, "")


def test_it_ends_with_the_run_and_leaves_how_it_ended(orch: Any, watch: Watch) -> None:
    orch("launch", orch.recipe({"first": {"stage": "count", "config": {"steps": 40, "pause_s": 0.05}}}), "--detach")
    terminal = watch(columns=100, lines=40)
    terminal.shows("running")

    assert terminal.wait(60) == 0
    until(lambda: given_back(terminal), what="the terminal as it was")
    assert "all 1 stages are done" in terminal.text()
    assert "process-hours" in terminal.text()


def test_a_launch_is_followed_in_the_same_view_and_leaves_its_last_table(orch: Any, watch: Watch) -> None:
    recipe = orch.recipe({"first": {"stage": "count", "config": {"steps": 40, "pause_s": 0.05}}})
    terminal = watch("launch", recipe, columns=100, lines=40)
    seen = terminal.shows("q or Ctrl-C leaves, the run goes on")

    assert "toy" in seen
    assert terminal.wait(60) == 0
    until(lambda: given_back(terminal), what="the terminal as it was")
    assert "40/40 steps" in terminal.text()
    assert "all 1 stages are done" in terminal.text()


def test_who_leaves_the_view_of_a_launch_hears_how_to_come_back(orch: Any, watch: Watch) -> None:
    recipe = orch.recipe({"first": {"stage": "count", "config": LONG}})
    terminal = watch("launch", recipe)
    terminal.shows("q or Ctrl-C leaves, the run goes on")
    terminal.type("q")

    assert terminal.wait() == 130
    assert "orch status" in terminal.sent
    assert "orch cancel" in terminal.sent
    assert orch.status()["state"] == "running"


def test_a_view_and_a_document_at_once_are_refused(running: Path, orch: Any) -> None:
    done = orch("status", "toy", "--watch", "--json", code=2)

    assert "--watch shows a view for people" in done.stdout


def test_goodput_is_a_line_a_stage_on_wish_and_in_the_json(orch: Any) -> None:
    orch("launch", orch.recipe({"first": {"stage": "count"}, "second": {"stage": "greet"}}))
    shown, table = orch.status(), orch("status", "toy", "--goodput").stdout

    assert shown["goodput"]["unit"] == "process"
    assert 0 < shown["goodput"]["useful"] < 1
    assert shown["stages"][0]["attempts"][0]["goodput"]["hours"]["startup"] > 0
    assert shown["stages"][0]["goodput"]["held_hours"] > 0
    assert [line.split()[0] for line in table.splitlines() if "process" in line] == ["first", "second", "all"]
