"""Where MLflow lives: absolute, and fit to be written down."""

import os
import re
from pathlib import Path

from orchestrator.redaction import USERINFO, redacted

SQLITE = "sqlite:///"


def absolute_uri(uri: str, base: Path) -> str:
    """Makes the path of a `sqlite:///` URI absolute, so that launch, supervisor and sync mean one file."""
    if not uri.startswith(SQLITE) or uri == SQLITE:
        return uri
    path, mark, options = uri.removeprefix(SQLITE).partition("?")
    return f"{SQLITE}{(base / path).resolve()}{mark}{options}"


def without_password(text: str) -> str:
    """Removes user and password from every URL of a text, and hides what else of it is secret (`?password=...`)."""
    return redacted(USERINFO.sub("://", text))


def with_password(uri: str) -> str:
    """Returns MLFLOW_TRACKING_URI where it is the same address with a password, which no file of ours holds."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if given and without_password(given) == without_password(uri) else uri


def artifact_root(uri: str, base: Path) -> Path | None:
    """Returns the folder for pictures and reports beside a database; None where a server keeps them."""
    if uri.startswith(SQLITE):
        return Path(uri.removeprefix(SQLITE).partition("?")[0]).parent / "mlartifacts"
    if re.match(r"(postgresql|mysql|mssql)(\+\w+)?://", uri):
        return base / "mlartifacts"
    return None
