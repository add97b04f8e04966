"""How the report writes what it was given: safe, without secrets, in units people read."""

import datetime as dt
import os
import re
from html import escape

from orchestrator.redaction import redacted, secrets_of, without

# control characters have no place in a page; U+202A.. and U+2066.. turn the words around them
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def safe(value: object) -> str:
    """Writes anything so that it is text in the page and nothing else, in bodies and quoted attributes alike.

    Everything that comes from a run passes here: captions, names, causes, settings, paths.
    """
    return escape(plain(value))


def plain(value: object) -> str:
    """Writes anything without secrets and without characters that no page may hold; not yet escaped."""
    return redacted(_UNSEEN.sub("\ufffd", str(value)))


def brief(value: object, longest: int) -> str:
    """Writes the same, cut to a number of characters, the last one an ellipsis."""
    text = plain(value)  # first: half a secret looks like none
    return escape(text if len(text) <= longest else text[: longest - 1] + "…")


def screened(page: str) -> str:
    """Hides the secrets of the environment in a page, also as `safe` writes them; others it has hidden."""
    secrets = secrets_of(os.environ)
    return without(page, (*secrets, *map(safe, secrets)))


def shown(value: float) -> str:
    """Writes a number for a label: four digits that matter, no trailing zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def moment(seconds: float) -> str:
    """Writes a point in time, in UTC."""
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """Writes a length of time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(share: float) -> str:
    """Writes a share for people."""
    return f"{100 * share:.1f} %"
