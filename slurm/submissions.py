"""What was handed to Slurm for a stage, written down before it is: so that no job is lost and none runs twice.

`STAGE/slurm/submission.json` holds the one submission that counts. Its token is in the name of the job and in what the
job carries; a job runs only if the file still names its token (`claim`). So it does not matter how a launch died, or
whether an sbatch that was given up reached Slurm after all: whoever comes later writes a new token, and every job of an
older one finds itself a duplicate and leaves without touching anything.
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.artifacts import read_replaced, write_json
from orchestrator.errors import SurroundingsError
from orchestrator.records import record

FOLDER = "slurm"
SUBMISSION = "submission.json"
HISTORY = "submissions.jsonl"
LOCK = "lock"
REFUSED = "refused"  # in the history: Slurm has said that there is no job of this submission
FULL_S = 30.0
PATIENCE_S = 30.0  # whoever holds the lock writes two small files
POLL_S = 0.02


@record
class Submission:
    """One job that was asked for."""

    token: str
    name: str  # of the job
    launch: float  # when the launch began that wanted it: an older submission does not count
    state: Literal["intent", "submitted", "claimed"] = "intent"
    job_id: str | None = None  # null until Slurm has said it
    after: tuple[str, ...] = ()  # the stages it waits for
    after_ids: tuple[str, ...] = ()  # their jobs, as Slurm was told
    time: float = 0.0
    exclude: tuple[str, ...] = ()
    signal_s: int = 0
    hours: float | None = None
    begun: int = 0  # how often a keeper has claimed it: whoever saw an older number is late


class Replaced(SurroundingsError):
    """Another keeper has the stage now."""


def new_token() -> str:
    """Returns eight characters that no other submission has."""
    return secrets.token_hex(4)


def folder_of(stage: Path) -> Path:
    """Returns where a stage's folder keeps what belongs to Slurm."""
    return stage / FOLDER


def make_folder(stage: Path) -> Path:
    """Makes that folder for this user's eyes only: Slurm's logs repeat whatever a job prints."""
    folder = folder_of(stage)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def locked(stage: Path) -> Iterator[None]:
    """Holds a stage's folder for the moment in which its state or its submission is written."""
    path = folder_of(stage) / LOCK
    try:
        if not path.parent.is_dir():
            make_folder(stage)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _hold(file, path)
        _look_anew(stage, path.parent)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def kept(stage: Path, token: str, begun: int) -> Iterator[None]:
    """Holds a stage's folder like `locked`, for the keeper whose claim of this token was that one, and for no other."""
    with locked(stage):
        found = read_submission(stage)
        if found is not None and (found.token, found.begun) != (token, begun):
            raise Replaced(f"{stage} has another keeper now: this one was taken for lost, or Slurm began its job again")
        yield


def read_submission(stage: Path) -> Submission | None:
    """Reads the submission that counts; None if there is none."""
    try:
        plain = json.loads(read_replaced(folder_of(stage) / SUBMISSION))
        lists = {name: tuple(plain[name]) for name in ("after", "after_ids", "exclude")}
        return Submission(**{**plain, **lists})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SurroundingsError(f"{folder_of(stage) / SUBMISSION} cannot be read: {error}") from error


def intend(stage: Path, submission: Submission, *, instead_of: Submission | None) -> bool:
    """Writes down what is about to be asked for; from here on, no job of an older submission may begin.

    `instead_of` is what the caller found here and took for lost or ended. False if that is no longer what is here:
    somebody else asked again, or its job began after all.
    """
    with locked(stage):
        if read_submission(stage) != instead_of:
            return False
        _write(stage, replace(submission, state="intent", time=time.time()))
        return True


def note_id(stage: Path, token: str, job_id: str) -> None:
    """Writes down the id that Slurm gave, unless the job itself was faster or the submission no longer counts."""
    with locked(stage):
        found = read_submission(stage)
        if found is not None and found.token == token and found.state == "intent":
            _write(stage, replace(found, state="submitted", job_id=job_id))


def note_dependency(stage: Path, token: str, after_ids: tuple[str, ...]) -> None:
    """Writes down that a waiting job now waits for other jobs."""
    with locked(stage):
        found = read_submission(stage)
        if found is not None and found.token == token:
            _write(stage, replace(found, after_ids=after_ids))


def claim(stage: Path, token: str, job_id: str) -> int:
    """Lets a job begin, or begin again, on a stage; returns how often it has. 0 makes it a duplicate: it must leave."""
    with locked(stage):
        found = read_submission(stage)
        if found is None or found.token != token or found.job_id not in {None, job_id}:
            return 0
        _write(stage, replace(found, state="claimed", job_id=job_id, begun=found.begun + 1))
        return found.begun + 1


def withdraw(stage: Path, seen: Submission, *, event: str = "withdrawn") -> bool:
    """Takes a submission back: no job of it may begin from now on. False if it is no longer what the caller saw."""
    with locked(stage):
        if read_submission(stage) != seen:
            return False
        _remember(stage, event, seen)
        (folder_of(stage) / SUBMISSION).unlink()
        return True


def put(path: Path, plain: Mapping[str, Any]) -> None:
    """Writes by rename what may be lost with the power, for it says nothing that cannot be found out again."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    draft.replace(path)


def strays(stage: Path, launch: float, current: Submission | None) -> list[str]:
    """Returns the names of this launch's submissions that no longer count; jobs of them may exist all the same."""
    lines = [line for line in _history(stage) if line["launch"] == launch]
    settled = {line["name"] for line in lines if line["event"] == REFUSED}
    return [name for name in dict.fromkeys(line["name"] for line in lines)
            if name not in settled and (current is None or name != current.name)]  # fmt: skip


def refused_lately(stage: Path) -> bool:
    """Tells whether Slurm had no room for a stage a moment ago: it need not be asked with every look."""
    *_, last = [{}, *_history(stage)]
    return last.get("event") == REFUSED and time.time() < float(last["at"]) + FULL_S


def count(stage: Path, launch: float) -> int:
    """Counts how many jobs Slurm has taken for a stage in a launch."""
    return sum(line["event"] == "submitted" and line["launch"] == launch for line in _history(stage))


def _history(stage: Path) -> Iterator[dict[str, Any]]:
    path = folder_of(stage) / HISTORY
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a full disk or a killed process leaves half a line
            yield json.loads(line)


def _hold(file: int, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                message = f"{path} has been held by another process for {PATIENCE_S:.0f} s; is one of its hosts stuck?"
                raise SurroundingsError(message) from None
            time.sleep(POLL_S)
        except OSError as error:
            raise SurroundingsError(f"{path} cannot be locked: {error.strerror}") from error
        else:
            return


def _look_anew(*folders: Path) -> None:
    """Lets a network file system ask its server what these folders hold: to open one is what makes it ask.

    Else a file that another host has just replaced by rename is read as it was, for up to a minute (acdirmax): a job
    would take its own submission for somebody else's.
    """
    for folder in folders:
        with contextlib.suppress(OSError):  # whoever reads next says what is wrong
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _write(stage: Path, submission: Submission) -> None:
    """Writes the submission by rename.

    An intent is written through to the disk before Slurm hears of it. What follows need not be: whoever finds the
    intent asks Slurm by name; if a crash takes back a rename, the job is a duplicate, and the stage is asked for again.
    """
    path = folder_of(stage) / SUBMISSION
    if submission.state == "intent":
        write_json(path, asdict(submission))
    else:
        put(path, asdict(submission))
    _remember(stage, submission.state, submission)


def _remember(stage: Path, event: str, submission: Submission) -> None:
    line = json.dumps({"event": event, "at": time.time(), "host": os.uname().nodename, **asdict(submission)})
    with (folder_of(stage) / HISTORY).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
