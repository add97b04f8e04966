"""Children: one piece of work each, errors and deaths told by name, none left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.children import Children, Tell
from orchestrator.errors import DamagedSample, SurroundingsError

ROOT = Path(__file__).parents[2]


def gone(pid: int) -> bool:
    """Tells whether a process has ended; one that nobody has waited for yet has."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.01)


def all_told(children: Children) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = []
    while len(children):
        told += children.listen(5.0)
    return told


def test_what_a_child_tells_arrives_in_order_under_its_name() -> None:
    children = Children(2)
    words = [list(range(number * 100)) for number in range(30)]

    def talk(tell: Tell) -> None:
        for word in words:
            tell(word)

    children.start("a", talk)
    children.start("b", lambda tell: tell("once"))

    told = all_told(children)
    assert [word for name, word in told if name == "a"] == words
    assert [word for name, word in told if name == "b"] == ["once"]


def test_a_child_works_on_what_its_parent_has_and_changes_nothing_of_it() -> None:
    children, held = Children(1), ["read by the parent"]

    def work(tell: Tell) -> None:
        held.append("by the child")
        tell((held, os.getpid(), gc.get_freeze_count() > 0))

    children.start("a", work)

    ((_, (seen, pid, frozen)),) = all_told(children)
    assert seen == ["read by the parent", "by the child"]
    assert held == ["read by the parent"]
    assert pid != os.getpid()
    assert frozen


def test_there_are_never_more_than_allowed() -> None:
    children = Children(2)
    children.start("a", lambda tell: tell(1))
    assert not children.busy()
    children.start("b", lambda tell: tell(2))
    assert children.busy()

    all_told(children)

    assert (len(children), children.busy()) == (0, False)


def test_an_error_that_orch_explains_arrives_as_it_is() -> None:
    children = Children(1)

    def fail(_: Tell) -> None:
        raise DamagedSample("a.tar", "key", "cut")

    children.start("a", fail)

    with pytest.raises(DamagedSample) as caught:
        all_told(children)

    assert (caught.value.tar, caught.value.key, caught.value.reason) == ("a.tar", "key", "cut")


def test_an_error_that_nobody_expected_brings_its_traceback() -> None:
    children = Children(1)

    def fail(_: Tell) -> None:
        _named_in_the_traceback()

    children.start("a", fail)

    with pytest.raises(ZeroDivisionError) as caught:
        all_told(children)

    assert "_named_in_the_traceback" in "".join(caught.value.__notes__)


def _named_in_the_traceback() -> None:
    raise ZeroDivisionError


def test_an_error_that_cannot_travel_is_told_as_text() -> None:
    children = Children(1)

    class LocalError(Exception):
        pass

    def fail(_: Tell) -> None:
        raise LocalError("what it said")

    children.start("a", fail)

    with pytest.raises(RuntimeError, match="LocalError: what it said"):
        all_told(children)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGALRM])  # nohup would keep SIGHUP away
def test_a_child_that_is_killed_is_named_with_its_signal(number: signal.Signals) -> None:
    children = Children(1)
    children.start("tar 17", lambda _: os.kill(os.getpid(), number))

    with pytest.raises(SurroundingsError, match=rf"tar 17: .*{number.name}"):
        all_told(children)


def test_a_child_is_deaf_to_the_signals_that_its_parent_answers() -> None:
    children = Children(1)

    def work(tell: Tell) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        tell("still here")

    children.start("a", work)

    assert all_told(children) == [("a", "still here")]


def test_all_are_gone_when_they_are_killed() -> None:
    children = Children(2)

    def sleep(tell: Tell) -> None:
        tell(os.getpid())
        time.sleep(60)

    children.start("a", sleep)
    children.start("b", sleep)
    pids: list[int] = []
    while len(pids) < 2:
        pids += [pid for _, pid in children.listen(5.0)]

    children.kill()

    assert [gone(pid) for pid in pids] == [True, True]
    assert len(children) == 0


PARENT = """
import os, time
from orchestrator.children import Children
def sleep(tell):
    print(os.getpid(), flush=True)
    time.sleep(60)
children = Children(1)
children.start("a", sleep)
children.listen(60)
"""


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())

        parent.send_signal(signal.SIGKILL)

        parent.wait()
        wait_until_gone(child)
