"""Tells people and programs what became of a run: by webhook, mail, command. What goes wrong there stops no work."""

import getpass
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from orchestrator.messages import json_body, mail_of, slack_body
from orchestrator.records import record
from orchestrator.redaction import hide
from orchestrator.retry import policy_of
from orchestrator.state import read_launch, read_plain_stage, read_state

Event = Literal["started", "failed", "done", "needs_human", "alert"]

TRY_S = 5.0  # for the other side to answer
TRIES, BETWEEN_TRIES_S = 3, 1.0
PATIENCE_S = 20.0  # of whoever ends right after telling
SENTENCES: Mapping[Event, str] = {
    "started": "has begun",
    "failed": "has failed",
    "done": "is done",
    "needs_human": "needs somebody to look at it",
    "alert": "raises an alert",
}
ADDRESS = re.compile(r"[A-Za-z0-9][\w.+-]*(?:@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)?", re.ASCII)
SENDMAIL_PLACES = ("/usr/sbin", "/usr/lib")  # beside PATH, which seldom names them

log = logging.getLogger(__name__)


@record
class Notify:
    """Whom to tell about a run, without the run waiting for it. Never part of a fingerprint."""

    webhook_env: str | None = None  # the name of the environment variable that holds the address, never the address
    webhook_format: Literal["orch", "slack"] = (
        "orch"  # all that is known, as JSON; or a text as Slack's webhooks take it
    )
    email: tuple[str, ...] = ()  # addresses, or users of this site, that its `sendmail` writes to
    command: tuple[str, ...] = ()  # gets the message as JSON on its standard input; no shell
    events: tuple[Event, ...] = ("failed", "done", "needs_human", "alert")

    def __post_init__(self) -> None:
        """Refuses an address where the name of a variable belongs: a run folder holds no secrets."""
        if self.webhook_env is not None and not self.webhook_env.isidentifier():
            raise ValueError("webhook_env must be the name of an environment variable, not an address")
        for address in self.email:
            if not ADDRESS.fullmatch(address):
                raise ValueError(f"email must be addresses like ada@example.org or users of this site, not {address!r}")


class Telling:
    """Messages on their way."""

    def __init__(self, threads: Sequence[threading.Thread]) -> None:
        """Keeps what sends them."""
        self._threads = threads

    def wait(self, patience_s: float = PATIENCE_S) -> bool:
        """Waits until all have arrived or were given up; False if the patience ended first."""
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


def tell(
    run: Path, event: Event, *, stage: str = "", cause: str = "", detail: str = "", others: Sequence[Notify] = (),
    facts: Mapping[str, Any] | None = None,
) -> Telling:  # fmt: skip
    """Tells everybody who wants to hear of such an event: whom the recipe names (launch.json), and `others`.

    `facts` join the message: the rule, value and threshold of an alert. Returns at once and never raises. A process
    that is about to end calls `wait` on what it gets.
    """
    try:
        message = _message(run, event, stage=stage, cause=cause, detail=hide(detail)) | dict(facts or {})
        listeners = [listener for listener in dict.fromkeys([_of_recipe(run), *others]) if event in listener.events]
        sends = [
            threading.Thread(target=send, args=(listener, message), daemon=True)  # a name server may never answer
            for listener in listeners
            for send in (_post, _mail, _run)
        ]
        for thread in sends:
            thread.start()
    except Exception:  # telling is a courtesy: the work does not end for want of it
        log.exception("nobody could be told that %s %s", run, SENTENCES[event])
        return Telling([])
    return Telling(sends)


def tell_failure(run: Path, stage: str, others: Sequence[Notify] = ()) -> Telling:
    """Tells that a stage has ended for good without being done; nothing if somebody cancelled it, for he knows.

    It needs a human where no attempt can help before something is changed (a cause of `retry.never`), and has failed
    where another attempt could have helped, and did not. Who is preempted for ever needs one too: to ask the site why.
    """
    try:
        attempt = read_state(run / stage).attempts[-1]
        cause = attempt.cause or "unknown"
        in_vain = {"preempted", *policy_of(read_plain_stage(run / stage)).never}
        event: Event = "needs_human" if cause in in_vain else "failed"
    except Exception:  # the same: a courtesy
        log.exception("nobody could be told how %s of %s ended", stage, run)
        return Telling([])
    if cause == "cancelled":
        return Telling([])
    return tell(run, event, stage=stage, cause=cause, detail=attempt.detail, others=others)


def _of_recipe(run: Path) -> Notify:
    launch = read_launch(run)
    written: dict[str, Any] = {} if launch is None else dict(launch.notify)
    lists: dict[str, Any] = {name: tuple(written[name]) for name in ("email", "command", "events") if name in written}
    return Notify(**(written | lists))


def _message(run: Path, event: Event, *, stage: str, cause: str, detail: str) -> dict[str, Any]:
    launch = read_launch(run)
    what = f"{run.name}/{stage}" if stage else run.name
    why = ": ".join(filter(None, [cause, detail]))
    return {
        "text": f"{what} {SENTENCES[event]}" + (f" ({why})" if why else ""),  # what Slack and its like show
        "event": event,
        "run": str(run.resolve()),
        "recipe": run.name if launch is None else launch.recipe,
        "launcher": None if launch is None else launch.launcher,
        "stage": stage or None,
        "cause": cause or None,
        "detail": detail or None,
        "host": socket.gethostname(),
        "user": _user(),
        "time": time.time(),
    }


def _post(listener: Notify, message: Mapping[str, Any]) -> None:
    if listener.webhook_env is None:
        return
    # the address is a secret: the name of its variable is all that is ever written
    address, name = os.environ.get(listener.webhook_env, ""), listener.webhook_env
    if not address.startswith(("http://", "https://")):
        log.warning("the webhook was not told: %s holds no http address", name)
        return
    body = slack_body(message) if listener.webhook_format == "slack" else json_body(message)
    for left in reversed(range(TRIES)):
        trouble, again = _posted(address, body)
        if not trouble:
            return
        log.warning("the webhook of %s did not take the message: %s", name, trouble)
        if not again:
            return
        time.sleep(BETWEEN_TRIES_S if left else 0.0)


def _posted(address: str, body: bytes) -> tuple[str, bool]:
    """Posts once; returns what went wrong ("" = nothing), and whether another try may help."""
    import http.client
    import urllib.error
    import urllib.request

    try:
        request = urllib.request.Request(  # noqa: S310 - only http and https come here
            address, data=body, headers={"Content-Type": "application/json", "User-Agent": "orch"}
        )
        with urllib.request.urlopen(request, timeout=TRY_S):  # noqa: S310 - the same
            return "", False
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answers {error.code}", error.code >= 500 or error.code == 429
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return f"it cannot be reached ({type(reason).__name__})", True
    except (ValueError, OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}", False  # not its words: they may hold the address


def _mail(listener: Notify, message: Mapping[str, Any]) -> None:
    if not listener.email:
        return
    program = shutil.which("sendmail", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SENDMAIL_PLACES]))
    if program is None:
        log.warning("no mail was sent: there is no sendmail in PATH, %s", ", ".join(SENDMAIL_PLACES))
        return
    # -t: the header says to whom; -i: a line with a dot alone is no end
    _feed((program, "-t", "-i"), mail_of(message, listener.email))


def _run(listener: Notify, message: Mapping[str, Any]) -> None:
    if listener.command:
        _feed(listener.command, json_body(message))


def _feed(command: Sequence[str], words: bytes) -> None:
    """Starts a program with words on its standard input; one that takes too long is killed."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        log.warning("the command %s could not be started: %s", command[0], error)
        return
    try:
        process.communicate(words, timeout=TRY_S * TRIES)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        log.warning("the command %s ended with exit code %s", command[0], process.returncode)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
