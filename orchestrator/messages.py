"""How what is told of a run reads: as JSON for programs, as Slack shows it, as a mail."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

SUBJECT_LENGTH, TEXT_LENGTH = 150, 3000
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def in_one_line(text: str) -> str:
    """Replaces line breaks and control characters by spaces: a terminal or a header takes them for commands."""
    return CONTROL.sub(" ", text).strip()


def json_body(message: Mapping[str, Any]) -> bytes:
    """Writes a message for programs; numbers that JSON does not know (NaN) become null."""
    plain = {name: None if isinstance(it, float) and not math.isfinite(it) else it for name, it in message.items()}
    return json.dumps(plain).encode()


def slack_body(message: Mapping[str, Any]) -> bytes:
    """Writes a message as incoming webhooks of Slack, Mattermost and their like take it: one text.

    `&`, `<` and `>` are the only signs with a meaning that could call people (`<!channel>`) or hide a link; see
    https://api.slack.com/reference/surfaces/formatting#escaping
    """
    lines = [message["text"], *(f"{name}: {value}" for name, value in _facts(message))]
    text = "\n".join(in_one_line(line) for line in lines)[:TEXT_LENGTH]
    return json.dumps({"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}).encode()


def mail_of(message: Mapping[str, Any], addresses: Sequence[str]) -> bytes:
    """Writes a message for `sendmail -t`: who gets it stands in its header.

    What a run says of itself may hold anything; a header takes one line of it, and `EmailMessage` refuses a second.
    """
    from email.message import EmailMessage  # with all that reads mail: keepers of jobs begin without

    mail = EmailMessage()
    subject = in_one_line(f"[orch] {message['text']}")
    mail["To"] = ", ".join(addresses)
    mail["Subject"] = subject if len(subject) <= SUBJECT_LENGTH else subject[: SUBJECT_LENGTH - 1] + "…"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday answer comes back
    lines = [message["text"], "", *(f"{name}: {value}" for name, value in _facts(message))]
    mail.set_content("\n".join(in_one_line(line) for line in lines) + "\n")
    return mail.as_bytes()


def _facts(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = ("run", "stage", "rule", "value", "threshold", "host", "user")
    return [(name, message[name]) for name in names if message.get(name) is not None]
