"""Turns whatever ended a command into a few lines for its user and an exit code."""

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from orchestrator.errors import Fault, OrchError, RecipeError

USER_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG})
BROKEN_PIPE_EXIT = 141  # as a shell reports SIGPIPE


def exit_code_of(error: Exception, *, as_json: bool) -> int:
    """Says what went wrong, on stderr or as JSON on stdout, and returns the exit code of interface.md."""
    if isinstance(error, BrokenPipeError):
        # whoever read us has left; what is still buffered must not raise again when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT
    faults, code = _explained(error)
    if as_json:
        document = {"valid": False, "faults": [{"key": fault.key, "message": fault.message} for fault in faults]}
        print(json.dumps(document, indent=1))  # noqa: T201 - the answer of the command
    else:
        for fault in faults:
            print(f"orch: {fault}", file=sys.stderr)  # noqa: T201 - the answer of the command
    return code


def _explained(error: Exception) -> tuple[Sequence[Fault], int]:
    if isinstance(error, RecipeError):
        return error.faults, error.exit_code
    if isinstance(error, OrchError):
        return [Fault(key="", message=str(error))], error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename else ""
        return [Fault(key="", message=f"{error.strerror}{place}")], 2 if error.errno in USER_ERRNOS else 3
    return [Fault(key="", message=_unexpected(error))], 1


def _unexpected(error: Exception) -> str:
    handle, path = tempfile.mkstemp(prefix="orch-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return f"a mistake in orch itself: {type(error).__name__}: {error} (the whole story is in {path})"
