"""Child processes that each do one piece of work and never outlive the process that began them."""

import gc
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

from orchestrator.causes import cause_of_exit, kernel_oom_kills
from orchestrator.errors import OrchError, SurroundingsError
from orchestrator.lifeline import die_with
from orchestrator.records import record

_NOT_FOR_CHILDREN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # the parent answers, and kills its children

Tell = Callable[[Any], None]  # says something plain to the parent


class Children:
    """Forked processes, one for each piece of work, at most so many at a time.

    Forked and not spawned: the work may need gigabytes that the parent has read, which a fork shares and a spawned
    process would read again; it may be any closure; and modules imported before cost nothing.
    """

    def __init__(self, most: int) -> None:
        """Starts nothing yet."""
        self._most = most
        self._children: dict[str, _Child] = {}
        self._oom_kills_before = kernel_oom_kills()
        self._context = multiprocessing.get_context("fork")

    def __len__(self) -> int:
        """Counts those at work."""
        return len(self._children)

    def busy(self) -> bool:
        """Tells whether another one would be too many."""
        return len(self) >= self._most

    def start(self, name: str, work: Callable[[Tell], None]) -> None:
        """Begins a piece of work; `name` says in errors what it was ("tar 17")."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(sender, os.getpid(), work), daemon=True)
        try:
            process.start()
        except OSError as error:  # no memory, or too many processes
            receiver.close()
            raise SurroundingsError(f"{name}: no process can be started for it: {error.strerror}") from error
        finally:
            sender.close()
        self._children[name] = _Child(process=process, pipe=receiver)

    def listen(self, timeout_s: float) -> list[tuple[str, Any]]:
        """Returns what the children have told since, by name; waits for it if none has. A child's error is raised."""
        pipes = [child.pipe for child in self._children.values()]
        ready = wait(pipes, timeout=timeout_s) if pipes else []
        heard: list[tuple[str, Any]] = []
        for name, child in list(self._children.items()):
            if child.pipe in ready:
                heard += [(name, word) for word in self._heard(name, child)]
        return heard

    def kill(self) -> None:
        """Ends all of them at once."""
        for child in self._children.values():
            child.process.kill()
        for child in self._children.values():
            child.process.join()
            child.pipe.close()
        self._children.clear()

    def _heard(self, name: str, child: "_Child") -> list[Any]:
        heard: list[Any] = []
        try:
            while child.pipe.poll():
                word = child.pipe.recv()
                if isinstance(word, _Done):
                    self._leave(name, child, word)
                    return heard
                heard.append(word)
        except EOFError:
            child.process.join()
            oom_kills = kernel_oom_kills() - self._oom_kills_before
            _, what = cause_of_exit(child.process.exitcode or 0, oom_kills=oom_kills)
            raise SurroundingsError(f"{name}: its process ended before its work was done: {what}") from None
        return heard

    def _leave(self, name: str, child: "_Child", word: "_Done") -> None:
        child.process.join()
        child.pipe.close()
        del self._children[name]
        if word.error is not None:
            raise word.error


@record
class _Child:
    process: ForkProcess
    pipe: "Connection[Any, Any]"


@record
class _Done:
    error: BaseException | None


def _work(pipe: "Connection[Any, Any]", parent: int, work: Callable[[Tell], None]) -> None:
    die_with(parent)
    for number in _NOT_FOR_CHILDREN:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # or the first collection touches, and so copies, all that is shared with the parent
    error: BaseException | None = None
    try:
        work(pipe.send)
    except BaseException as raised:  # noqa: BLE001 - whatever it was, the parent raises it
        error = _portable(raised)
    pipe.send(_Done(error=error))


def _portable(error: BaseException) -> BaseException:
    """Prepares an error for the way to the parent, where its traceback does not go."""
    if not isinstance(error, OrchError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, made in this line
    except Exception:  # noqa: BLE001 - whatever an exception's own class does to stay here
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
