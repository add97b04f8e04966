"""Takes secrets out of text that others will read: reports, logs, messages."""

import re
from collections.abc import Mapping

HIDDEN = "(hidden)"
SHORTEST = 8  # a secret of the environment that is shorter would be found in harmless words too

# what a key ends in whose value nobody else may read; `max_new_tokens` and `pad_token` are none
SECRET_NAME = re.compile(
    r"(?:password|passwd|passphrase|secret|credentials?|(?:api|access|private|secret|signing|account)_?key"
    r"|(?:access|auth|api|bearer|refresh|session|security|hf|github|gitlab|slack|wandb)_?token)$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"TOKEN$|SECRET|PASSWORD|PASSWD|(?:API|ACCESS|PRIVATE)_?KEY|CREDENTIAL|WEBHOOK", re.IGNORECASE
)
# each shape; what its group holds stays, the rest is hidden. Repeats are bounded: text from data must not take for ever
_SHAPES = re.compile(
    rf"""
      (?P<user>://)[^/@\s"'<>]*@                                             # https://ada:password@host
    | (?P<query>[?&](?:[\w.-]{{0,60}}(?:sig|token|credential|secret|passw|key)[\w.-]{{0,60}}|se|skoid)=)
      [^&\s"'<>]+                                                            # signed addresses of S3, GCS and Azure
    | (?P<named>{SECRET_NAME.pattern.removesuffix("$")}["']?\s{{0,3}}[:=]\s{{0,3}})
      (?:"[^"\n]*"|'[^'\n]*'|[^\s,;&}}\]]+)                                 # AWS_SECRET_ACCESS_KEY=..., "password": ...
    | (?P<header>\bauthorization["']?\s{{0,3}}[:=]\s{{0,3}}["']?(?:basic|bearer|token)?\s{{0,3}})[^\s"']+
    | (?P<bearer>\bbearer\s{{1,3}})[\w.~+/-]{{16,}}=*
    | (?P<slack>hooks\.slack\.com/\w{{1,20}}/)[\w/-]+
    | \b(?:hf_\w{{16,}}|gh[oprsu]_\w{{20,}}|github_pat_\w{{20,}}|glpat-[\w-]{{16,}}|sk-[\w-]{{20,}}
      |xox[abeoprs]-[\w-]{{8,}}|A[KS]IA[0-9A-Z]{{16}}|dapi[0-9a-f]{{32}}
      |eyJ[\w-]{{8,2000}}\.[\w-]{{8,2000}}\.[\w-]*)                            # tokens: their first letters say whose
    | (?P<pem>-----BEGIN[ ][A-Z ]{{0,20}}PRIVATE[ ]KEY-----)[\s\S]*?
      (?:-----END[ ][A-Z ]{{0,20}}PRIVATE[ ]KEY-----|\Z)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MAYBE = re.compile(r"://|[=:?&]|_\w{8}|-[\w-]{8}|bearer|A[KS]IA|eyJ|dapi", re.IGNORECASE)


def redacted(text: str) -> str:
    """Hides passwords in addresses, signatures of signed ones, tokens, and values that are named like a secret.

    A secret goes by its shape or by the name before it: one that looks like any word and has no name is not found.
    """
    return _SHAPES.sub(_kept, text) if _MAYBE.search(text) else text


def without(text: str, secrets: tuple[str, ...]) -> str:
    """Hides these very secrets wherever they stand."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the secret values of the environment, the longest first: one may hold another."""
    found = {
        value
        for name, value in environment.items()
        if len(value) >= SHORTEST and _SECRET_VARIABLE.search(name) and not value.startswith("/")  # where it lies
    }
    return tuple(sorted(found, key=len, reverse=True))


def _kept(found: re.Match[str]) -> str:
    if found["user"]:
        return found["user"]
    return next((part for part in found.groupdict().values() if part is not None), "") + HIDDEN
