"""Asks whether MLflow answers and knows us; without mlflow, which is slow to load."""

import base64
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from orchestrator.doctor.findings import Finding, doubtful, fine, unfit
from orchestrator.registration import Tracking
from orchestrator.tracking.addresses import SQLITE, without_password

ABOUT, TIMEOUT_S = "MLflow", 10.0
QUESTION = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"  # what a login is needed for


def tracking_findings() -> Iterator[Finding]:
    """Asks the MLflow of MLFLOW_TRACKING_URI, or looks at the database of the folder we are in."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or str(Tracking().uri)
    if uri.startswith(SQLITE):
        yield _database(Path(uri.removeprefix(SQLITE).partition("?")[0]))
    elif uri.startswith(("http://", "https://")):
        yield _server(uri)
    else:
        yield fine(ABOUT, f"{without_password(uri)}: only MLflow itself can ask there; not looked at")


def _database(path: Path) -> Finding:
    shown = path.absolute()
    if not path.exists():
        if os.access(shown.parent, os.W_OK):
            return fine(ABOUT, f"the first launch makes {shown}")
        return unfit(ABOUT, f"{shown} cannot be made: its folder does not exist, or is not ours to write", _advice())
    try:
        with closing(sqlite3.connect(f"{shown.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return unfit(ABOUT, f"{shown} is no database that can be read: {error}", _advice())
    if not os.access(shown, os.W_OK):
        return unfit(ABOUT, f"{shown} is not ours to write", _advice())
    return fine(ABOUT, f"the database {shown}")


def _advice() -> str:
    return "name another one as `tracking.uri` in the recipe, or null for none"


def _server(uri: str) -> Finding:
    shown = without_password(uri)
    try:
        with urllib.request.urlopen(_request(uri), timeout=TIMEOUT_S):  # noqa: S310 - http, as was looked at above
            return fine(ABOUT, f"{shown} answers")
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return unfit(ABOUT, f"{shown} does not let us in ({error.code})", f"set {names}")
        if error.code == 404:  # it knows no experiment of this name
            return fine(ABOUT, f"{shown} answers")
        reason = f"{error.code} {error.reason}"
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    later = "see to it when it suits: training goes on without it, and `orch sync RUN` tells it later"
    return doubtful(ABOUT, f"{shown} does not answer: {reason}", later)


def _request(uri: str) -> urllib.request.Request:
    """Makes the request as MLflow's own client would: with the login of the address or of the environment."""
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    request = urllib.request.Request(urlunsplit(bare).rstrip("/") + QUESTION)  # noqa: S310
    user = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user or password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    return request
