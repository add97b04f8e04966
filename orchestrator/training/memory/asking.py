"""Asks a child process for the anatomy of models, once: answers are kept by the digest of all that decides them."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.training.memory.anatomy import Anatomy

PROGRAM = "orchestrator.training.memory.measure"
LIBRARIES = ("torch", "transformers", "peft")
PATIENCE_S = 300.0
CACHE = "XDG_CACHE_HOME"  # names the folder of caches; ~/.cache by default
MOST_TEXT = 400


def key_of(request: Mapping[str, Any], code: Mapping[str, str]) -> str:
    """Returns the digest of a request, of the code that would be run for it, and of the libraries below it."""
    text = json.dumps([request, sorted(code.items()), _surroundings()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def anatomies(requests: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Anatomy], str]:
    """Answers requests by key, from the cache or by one child process; also says why the others have no answer."""
    answers = {key: kept for key in requests if (kept := _read(key)) is not None}
    missing = {key: request for key, request in requests.items() if key not in answers}
    problem = ""
    if missing:
        told, problem = _ask(list(missing.values()))
        for key, answer in zip(missing, told, strict=False):
            answers[key] = answer
            if "error" not in answer:  # another time, or another machine, may do better
                _write(key, answer)
    found = {key: Anatomy.from_plain(answer["anatomy"]) for key, answer in answers.items() if "anatomy" in answer}
    reasons = (answer[word] for answer in answers.values() for word in ("refused", "error") if word in answer)
    return found, problem or next(reasons, "")


def _ask(requests: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Starts the process that measures; a login node may have no torch, and then says so."""
    from rich.console import Console

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    here = str(Path(__file__).parents[3])  # found by the child as it was found by us
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, *sys.path, os.environ.get("PYTHONPATH")]))
    models = f"{len(requests)} models" if len(requests) > 1 else "a model"
    telling = Console(stderr=True).status(f"finding out what {models} will need, once: this takes some seconds ...")
    try:
        with telling:  # on a terminal, where somebody waits
            done = subprocess.run(
                [sys.executable, "-P", "-m", PROGRAM], input=json.dumps(list(requests)), env=environment, text=True,
                capture_output=True, check=False, timeout=PATIENCE_S,
            )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"the process that measures them did not answer: {error}"[:MOST_TEXT]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(answers) < len(requests):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return answers, f"the process that measures them ended early: {last}"[:MOST_TEXT]
    return answers, ""


@cache
def _surroundings() -> tuple[str, ...]:
    """Names the versions below, and the digest of the code that measures."""
    versions = [f"{name} {_version(name)}" for name in LIBRARIES]
    texts = [(Path(__file__).parent / f"{name}.py").read_bytes() for name in ("anatomy", "measure", "tape")]
    return (*versions, hashlib.sha256(b"".join(texts)).hexdigest())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _read(key: str) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = json.loads(_place(key).read_text(encoding="utf-8"))
        if "refused" not in answer:
            Anatomy.from_plain(answer["anatomy"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or of another making
        return None
    return answer


def _write(key: str, plain: Mapping[str, Any]) -> None:
    """Keeps an answer; where nobody may write, the next plan asks again."""
    place = _place(key)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, plain)
    except OSError:
        return


def _place(key: str) -> Path:
    folder = os.environ.get(CACHE)
    try:
        return Path(folder or "~/.cache").expanduser() / "orch" / "memory" / f"{key}.json"
    except RuntimeError:  # a user without a home
        return Path("/nonexistent") / key
