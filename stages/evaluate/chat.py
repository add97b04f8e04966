"""Asks a language model behind an OpenAI-compatible endpoint, patiently, and tells nobody the key.

What may pass (no answer in time, 408, 409, 429, 5xx, an answer that is no chat completion) is asked again, later each
time and never before the endpoint says so; whoever asks at the same time waits along. What will not pass (a wrong key,
an unknown model, a used-up account, a redirect) ends the work at once.
"""

import email.utils
import http.client
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPMessage
from typing import IO, Any

from orchestrator.errors import InputError, StageFailed, SurroundingsError
from orchestrator.records import record
from orchestrator.redaction import hide, without
from stages.evaluate.vip_stage import GraderConfig

PASSING = frozenset({408, 409, 425, 429})  # and every 5xx
SPENT = "insufficient_quota"  # what a 429 says that no waiting helps against
MOST_BYTES = 1 << 20  # of an answer
SHOWN = 300  # characters of what an endpoint says

log = logging.getLogger(__name__)


@record
class Reply:
    """What a model said, and what it is paid for."""

    text: str
    model: str
    tokens_in: int
    tokens_out: int


class Left(Exception):
    """The work has ended elsewhere; this request is not made."""


class _Passing(Exception):
    """This try failed; another one may not. `after_s` is how long the endpoint wants to be left alone."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key is for one address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Leaves the answer as it is: an HTTPError."""


class ChatEndpoint:
    """Puts questions to a model; any number of threads may ask at once."""

    def __init__(self, config: GraderConfig, key: str, *, over: threading.Event) -> None:
        """Takes the key, which stays here. Once `over` is set, whoever asks or waits gets Left."""
        self._config, self._key, self._over = config, key, over
        self._address = f"{config.url.rstrip('/')}/chat/completions"
        self._opener = urllib.request.build_opener(_Unmoved)
        self._free_at, self._lock = 0.0, threading.Lock()  # nobody asks before this moment of time.monotonic
        self.requests = 0  # made, failed ones too

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """Returns the reply to a request; raises InputError, StageFailed or SurroundingsError where there is none."""
        content, last = json.dumps(body, ensure_ascii=False).encode(), ""
        for number in range(self._config.tries):
            self._wait_until_free()
            try:
                return self._asked(content)
            except _Passing as trouble:
                last = str(trouble)
                log.warning("the grader: %s; try %d of %d", last, number + 1, self._config.tries)
                if trouble.after_s > self._config.longest_wait_s:
                    last += f" and wants to be left alone for {trouble.after_s:.0f} s (grader.longest_wait_s is less)"
                    break
                chance = random.random()  # noqa: S311 - it spreads load
                self._hold(waiting_s(number, trouble.after_s, self._config, chance))
        raise SurroundingsError(f"the grader at {self._config.url} could not be asked, at last: {last}")

    def _asked(self, content: bytes) -> Reply:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}", "User-Agent": "orch"}
        request = urllib.request.Request(self._address, data=content, headers=headers)  # noqa: S310 - http or https
        with self._lock:
            self.requests += 1
        try:
            with self._opener.open(request, timeout=self._config.timeout_s) as answer:
                return self._reply(_read(answer, self._config.timeout_s))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except urllib.error.URLError as error:
            raise _Passing(f"it cannot be reached ({type(error.reason).__name__})") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"it broke off ({type(error).__name__})") from None

    def _reply(self, content: bytes) -> Reply:
        try:
            plain = json.loads(content)
            text, usage = plain["choices"][0]["message"]["content"], plain.get("usage") or {}
            return Reply(
                text=self._screened("" if text is None else str(text)),
                model=self._screened(str(plain.get("model", ""))),
                tokens_in=int(usage.get("prompt_tokens", 0)),
                tokens_out=int(usage.get("completion_tokens", 0)),
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Passing("what it answers is no chat completion") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """Returns what an answer with a status of failure means."""
        config, code = self._config, error.code
        said = self._said(error)
        if code in PASSING and SPENT in said:
            return SurroundingsError(f"the account of the grader at {config.url} is used up (429): {said}")
        if code in PASSING or code >= 500:
            return _Passing(f"it answers {code}", after_s(error.headers.get("Retry-After"), time.time()))
        if code in {401, 403}:
            named = f"key_file: {config.key_file}" if config.key_env is None else f"key_env: {config.key_env}"
            return InputError(f"config.grader.{named} is not a key that {config.url} takes ({code}): {said}")
        if code == 404:
            return InputError(f"config.grader: {config.url} does not know this address or {config.model!r}: {said}")
        if 300 <= code < 400:
            return InputError(f"config.grader.url: {config.url} sends elsewhere ({code}); give the address itself")
        return StageFailed(f"the grader at {config.url} refuses what it is asked ({code}): {said}")

    def _said(self, error: urllib.error.HTTPError) -> str:
        try:
            content = _read(error, self._config.timeout_s)
        except (OSError, http.client.HTTPException, _Passing):
            content = b""
        return " ".join(self._screened(content.decode("utf-8", "replace")).split())[:SHOWN]

    def _screened(self, text: str) -> str:
        """Hides the key, which endpoints like to repeat, and whatever else looks like one."""
        return hide(without(text, (self._key,)))

    def _hold(self, seconds: float) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)

    def _wait_until_free(self) -> None:
        while (left_s := self._free_at - time.monotonic()) > 0 and not self._over.wait(left_s):
            pass
        if self._over.is_set():
            raise Left


def waiting_s(number: int, after_s: float, config: GraderConfig, chance: float) -> float:
    """Returns how long to wait after failed try `number`, from 0: doubled each time, half of it by chance (0 to 1).

    Never less than the endpoint asks for (`after_s`).
    """
    usual_s = min(config.longest_wait_s, config.first_wait_s * 2.0**number)
    return max(after_s, usual_s * (0.5 + 0.5 * chance))


def after_s(header: str | None, now_s: float) -> float:
    """Reads Retry-After, seconds or a date, as seconds from now; 0 where it says nothing."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        then_s: float = email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return 0.0
    return max(0.0, then_s - now_s)


def _read(answer: Any, limit_s: float) -> bytes:
    """Reads an answer of bounded size; one that comes in drops must end within its time, too."""
    parts, size, deadline = list[bytes](), 0, time.monotonic() + limit_s
    while part := answer.read1(1 << 16):
        size += len(part)
        if size > MOST_BYTES or time.monotonic() > deadline:
            raise _Passing("its answer does not end")
        parts.append(part)
    return b"".join(parts)


def read_key(config: GraderConfig, environment: Mapping[str, str]) -> str:
    """Reads the key where the config says; InputError names the place, and never what stands there."""
    if config.key_file is None:
        key, place = environment.get(config.key_env or "", ""), f"key_env: the environment variable {config.key_env}"
    else:
        place = f"key_file: {config.key_file}"
        try:
            key = config.key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"config.grader.{place} cannot be read ({type(error).__name__})") from None
    key = key.strip()
    if not key:
        raise InputError(f"config.grader.{place} is empty or not set where the stage runs")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(f"config.grader.{place} holds blanks or characters that no key has")
    return key
