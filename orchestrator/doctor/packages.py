"""Which Python and which packages are here, beside what orch needs and what is tested together."""

import platform
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from orchestrator.doctor.findings import Finding, doubtful, fine, unfit

PROJECT, PINS = "pyproject.toml", "constraints.txt"
INSTALL = f"pip install --constraint {PINS} --editable '.[train]'"
SHOWN = 6  # packages, in a sentence


def package_findings(root: Path, *, stages_run_here: bool) -> Iterator[Finding]:
    """Compares Python and packages with the project file of the code, and with the versions that are tested together.

    A machine that only plans and submits may lack the packages that stages need.
    """
    try:
        project = tomllib.loads((root / PROJECT).read_text(encoding="utf-8"))["project"]
    except FileNotFoundError:
        yield doubtful("packages", f"{root / PROJECT} is not there to say what is needed", "work in a clone of orch")
        return
    yield _python(str(project["requires-python"]))
    yield from _missing(project, stages_run_here=stages_run_here)
    yield from _untested(root / PINS)


def git_findings(root: Path) -> Iterator[Finding]:
    """Looks for git, which says from which commit the code of a run comes."""
    if shutil.which("git") is None:
        yield doubtful("git", "is not in PATH: runs will not know from which commit their code comes", "install git")
    elif not (root / ".git").exists():
        message = f"{root} is not under git: runs will not know from which commit their code comes"
        yield doubtful("git", message, "work in a clone of orch")


def _python(wanted: str) -> Finding:
    here = platform.python_version()
    if SpecifierSet(wanted).contains(here, prereleases=True):
        return fine("Python", here)
    return unfit("Python", f"is {here}, needs {wanted}", "make a virtual environment with another Python")


def _missing(project: Mapping[str, Any], *, stages_run_here: bool) -> Iterator[Finding]:
    plans, stages = project["dependencies"], project["optional-dependencies"]["train"]
    groups: tuple[tuple[str, Sequence[str], bool], ...] = (
        ("packages to plan with", plans, True), ("packages of stages", stages, stages_run_here),
    )  # fmt: skip
    for about, lines, needed in groups:
        wrong = [words for line in lines if (words := _wrong(Requirement(line)))]
        if not wrong:
            yield fine(about, f"{len(lines)} are here")
        elif needed:
            yield unfit(about, _few(wrong), INSTALL)
        else:
            yield doubtful(about, f"{_few(wrong)}; jobs need them in their own Python", INSTALL)


def _wrong(wanted: Requirement) -> str:
    here = _version(wanted.name)
    if here is None:
        return f"{wanted.name} is missing"
    return "" if wanted.specifier.contains(here, prereleases=True) else f"{wanted} is needed, {here} is here"


def _untested(pins: Path) -> Iterator[Finding]:
    """Names the packages that are here in another version than the one that is tested."""
    if not pins.is_file():
        return
    lines = [line.partition("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines()]
    pinned = dict(line.split("==", 1) for line in lines if "==" in line)
    here = {name: found for name in pinned if (found := _version(name)) is not None}
    # 2.13.0+cpu is 2.13.0, built for somebody
    other = [name for name, found in here.items() if Version(found).public != Version(pinned[name]).public]
    if other:
        told = _few([f"{name} {here[name]} (tested with {pinned[name]})" for name in other])
        yield doubtful("versions", told, INSTALL)
    else:
        yield fine("versions", f"{len(here)} packages are as tested ({pins.name})")


def _version(name: str) -> str | None:
    try:
        return metadata.version(canonicalize_name(name))
    except metadata.PackageNotFoundError:
        return None


def _few(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
