"""Turns whatever ended a command into a few lines for its user and an exit code."""

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from orchestrator.errors import Fault, OrchError, RecipeError

USER_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG})
BROKEN_PIPE_EXIT = 141  # as a shell reports SIGPIPE
# what the command line itself is refused with; click's, which is beside typer or inside it, by its version
UsageError: Any = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """The commands of `orch`. A reader that has left is told apart from a stage that failed: typer ends both with 1."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(_left()) from None


def exit_code(run: Callable[[], Any], *, as_json: bool) -> int:
    """Runs the command line; whatever goes wrong ends in a message and one of the exit codes of interface.md."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # where a terminal has no arrows, an answer without them is one, too
    try:
        code = run()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has left is no mistake yet
    except Exception as error:  # noqa: BLE001 - the last line of defence: no user ever sees a traceback
        code = exit_code_of(error, as_json=as_json)
        _said("")  # and whatever is still buffered
    return code if isinstance(code, int) else 0


def exit_code_of(error: Exception, *, as_json: bool) -> int:
    """Says what went wrong, on stderr or as JSON on stdout, and returns the exit code of interface.md."""
    if isinstance(error, BrokenPipeError):
        return _left()
    if isinstance(error, UsageError) and not as_json:
        error.show()
        return int(error.exit_code)
    faults, code = _explained(error)
    document = {"valid": False, "faults": [{"key": fault.key, "message": fault.message} for fault in faults]}
    if as_json and _said(json.dumps(document, indent=1) + "\n"):
        return code
    for fault in faults:
        print(f"orch: {fault}", file=sys.stderr)  # noqa: T201 - the answer of the command
    return code


def _said(text: str) -> bool:
    """Prints a text, and tells whether it came out: the disk it should go to may be what the fault is about."""
    try:
        print(text, end="", flush=True)  # noqa: T201 - the answer of the command
    except OSError:
        _drop_output()
        return False
    return True


def _left() -> int:
    """Returns the exit code where whoever read us has left."""
    _drop_output()
    return BROKEN_PIPE_EXIT


def _drop_output() -> None:
    """Sends what is still buffered nowhere: it would raise again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explained(error: Exception) -> tuple[Sequence[Fault], int]:
    if isinstance(error, RecipeError):
        return error.faults, error.exit_code
    if isinstance(error, OrchError):
        return [Fault(key="", message=str(error))], error.exit_code
    if isinstance(error, UsageError):
        return [Fault(key="", message=error.format_message())], int(error.exit_code)
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename else ""
        return [Fault(key="", message=f"{error.strerror}{place}")], 2 if error.errno in USER_ERRNOS else 3
    return [Fault(key="", message=_unexpected(error))], 1


def _unexpected(error: Exception) -> str:
    said = f"a mistake in orch itself: {type(error).__name__}: {error}"
    try:
        handle, path = tempfile.mkstemp(prefix="orch-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
    except OSError as refusal:  # no room, or no folder for it
        return f"{said} (the whole story could not be written down: {refusal.strerror})"
    return f"{said} (the whole story is in {path})"
