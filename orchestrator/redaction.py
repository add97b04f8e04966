"""Takes secrets out of what others will read: journals, logs, states, MLflow, reports, messages."""

import functools
import io
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

HIDDEN = "(hidden)"
SHORTEST = 8  # a secret of the environment that is shorter would be found in harmless words too
SURE = 16  # one of this length stands nowhere by chance
MOST_NAMES = 4096  # remembered: the names of a journal come again line after line

# what a key ends in whose value nobody else may read; `max_new_tokens` and `pad_token` are none
SECRET_NAME = re.compile(
    r"(?:password|passwd|passphrase|secret|credentials?|(?:api|access|private|secret|signing|account)_?key"
    r"|(?:access|auth|api|bearer|refresh|session|security|hf|github|gitlab|slack|wandb)_?token)$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"TOKEN$|SECRET|PASSWORD|PASSWD|(?:API|ACCESS|PRIVATE)_?KEY|CREDENTIAL|WEBHOOK", re.IGNORECASE
)
# who logs in, in an address: a user, and after a colon the password, up to the last @: passwords hold some, too
USERINFO = re.compile(r"://([^/?#\s:@]*)(?::([^/?#\s]*))?@")
# of signed addresses of S3, GCS and Azure, and of others that log in so: what stands before the value
_SIGNED = re.compile(
    r"[?&](?:[\w.-]{0,60}(?:sig|token|credential|secret|passw|key)[\w.-]{0,60}|se|skoid)=", re.IGNORECASE
)
# each shape; what its group holds stays, the rest is hidden. Repeats are bounded: text from data must not take for ever
_SHAPES = re.compile(
    rf"""
      (?P<user>://)[^/?#\s"'<>]*@                                            # https://ada:password@host
    | (?P<query>{_SIGNED.pattern})[^&\s"'<>]+
    | (?P<named>{SECRET_NAME.pattern.removesuffix("$")}["']?\s{{0,3}}[:=]\s{{0,3}})
      (?:"[^"\n]*"|'[^'\n]*'|[^\s,;&}}\]]+)                                 # AWS_SECRET_ACCESS_KEY=..., "password": ...
    | (?P<header>\bauthorization["']?\s{{0,3}}[:=]\s{{0,3}}["']?(?:basic|bearer|token)?\s{{0,3}})[^\s"']+
    | (?P<bearer>\bbearer\s{{1,3}})[\w.~+/-]{{16,}}=*
    | (?P<slack>hooks\.slack\.com/\w{{1,20}}/)[\w/-]+
    | \b(?:hf_[a-z0-9]{{18,}}|gh[oprsu]_\w{{20,}}|github_pat_\w{{20,}}|glpat-[\w-]{{16,}}
      |sk-(?=[\w-]{{0,60}}\d)[\w-]{{20,}}|xox[abeoprs]-[\w-]{{8,}}|(?-i:A[KS]IA[0-9A-Z]{{16}})|dapi[0-9a-f]{{32}}
      |eyJ[\w-]{{8,2000}}\.[\w-]{{8,2000}}\.[\w-]*)                            # tokens: their first letters say whose
    | (?P<pem>-----BEGIN[ ][A-Z ]{{0,20}}PRIVATE[ ]KEY-----)[\s\S]*?
      (?:-----END[ ][A-Z ]{{0,20}}PRIVATE[ ]KEY-----|\Z)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MAYBE = re.compile(r"://|[=:?&]|_\w{8}|-[\w-]{8}|bearer|A[KS]IA|eyJ|dapi", re.IGNORECASE)


class Screen:
    """Hides secrets: those of an environment wherever they stand, all others by their shape or the name before them."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Looks up the secrets of the environment once."""
        self._environment = environment
        self._secrets = secrets_of(environment)
        self._name = functools.lru_cache(MOST_NAMES)(self._screened_name)

    def text(self, text: str) -> str:
        """Returns a text without secrets."""
        return without(redacted(text), self._secrets)

    def plain(self, value: Any, name: str = "") -> Any:
        """Returns plain data (mappings, lists, texts, numbers) without secrets; `name` is what the value is called."""
        if value is None or isinstance(value, float):  # first: most of a journal are numbers, and these hold no secret
            return value
        if isinstance(value, Mapping):
            return {self._name(str(inner))[0]: self.plain(item, str(inner)) for inner, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item, name) for item in value]
        if isinstance(value, bool):
            return value
        if name and self._name(name)[1]:
            return HIDDEN
        return self.text(value) if isinstance(value, str) else value

    def why_secret(self, text: str, name: str) -> str:
        """Says why a text that somebody wrote down under a name should not lie in a file; empty where it may.

        A user without a password in an address is no secret.
        """
        if SECRET_NAME.search(name) and text:
            return "is named like a secret"
        bare = USERINFO.sub(lambda found: "://" if found[2] is None else found[0], text)
        if bare != redacted(bare):
            return "holds a password, a token or a signed address"
        for secret in self._secrets:
            if secret == text or (len(secret) >= SURE and secret in text):
                variable = next((name for name, value in self._environment.items() if secret in value), "that is gone")
                return f"holds the secret of the environment variable {variable}"
        return ""

    def _screened_name(self, name: str) -> tuple[str, bool]:
        """Returns a name without secrets, and whether it is the name of one."""
        return self.text(name), SECRET_NAME.search(name) is not None


def hide(text: str) -> str:
    """Hides every secret in a text, also those of this process's environment."""
    return Screen().text(text) if text else text


def screen_output() -> None:
    """Hides secrets in what this process prints from now on: prints, logging, warnings, tracebacks.

    What a library writes in C, or a child process of another program, goes by without us.
    """
    screen = Screen()
    sys.stdout, sys.stderr = _Screened(sys.stdout, screen), _Screened(sys.stderr, screen)


class _Screened(io.TextIOWrapper):
    """A stream of text that hides secrets; each `write` by itself, so that nothing waits for the end of a line."""

    def __init__(self, stream: TextIO, screen: Screen) -> None:
        super().__init__(stream.buffer, encoding=stream.encoding, errors="backslashreplace", write_through=True)
        self._screen = screen

    def write(self, text: str) -> int:
        """Writes a text without its secrets."""
        super().write(self._screen.text(text))
        self.flush()
        return len(text)

    def close(self) -> None:
        """Leaves the stream beneath open: it is not ours."""
        if not self.buffer.closed:
            self.flush()


def redacted(text: str) -> str:
    """Hides passwords in addresses, signatures of signed ones, tokens, and values that are named like a secret.

    A secret goes by its shape or by the name before it: one that looks like any word and has no name is not found.
    """
    return _SHAPES.sub(_kept, text) if _MAYBE.search(text) else text


def login_in_address(text: str) -> bool:
    """Tells whether an address in a text holds a password, a token or a signature; a user alone is none."""
    return any(found[2] for found in USERINFO.finditer(text)) or _SIGNED.search(text) is not None


def without(text: str, secrets: tuple[str, ...]) -> str:
    """Hides these very secrets wherever they stand."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the secret values of the environment, the longest first: one may hold another.

    Those are the values of variables that are named like a secret, and the passwords in addresses.
    """
    named = (value for name, value in environment.items() if _SECRET_VARIABLE.search(name))
    in_addresses = (found[2] or "" for value in environment.values() for found in USERINFO.finditer(value))
    # a value that begins with a slash says where the secret lies
    known = {value for value in (*named, *in_addresses) if len(value) >= SHORTEST and not value.startswith("/")}
    return tuple(sorted(known, key=len, reverse=True))


def _kept(found: re.Match[str]) -> str:
    if found["user"]:
        return found["user"]
    return next((part for part in found.groupdict().values() if part is not None), "") + HIDDEN
