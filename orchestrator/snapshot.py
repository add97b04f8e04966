"""The code of a run: a copy of the working tree as it was launched, with its commit and what was changed since."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from orchestrator.artifacts import write_json
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.imports import digest, parse
from orchestrator.records import record

CODE = "code"
COMMIT = "COMMIT"
DIFF = "changes.diff"
COPIED = ("orchestrator", "stages", "slurm", "recipes", "pyproject.toml")
SPARE_BYTES = 1 << 20  # what a launch writes beside the code


@record
class Commit:
    """Where the code of a run comes from."""

    commit: str | None  # None outside of git
    dirty: bool  # something that is copied differs from the commit
    diff: str  # of what git knows; new files are in the copy only


def read_commit(code_root: Path) -> Commit:
    """Asks git about the working tree; code outside of git has no commit."""
    tracked = _git(code_root, "ls-files", "--error-unmatch", "orchestrator/__init__.py")
    head = _git(code_root, "rev-parse", "HEAD")
    if tracked is None or head is None:
        return Commit(commit=None, dirty=False, diff="")
    status = _git(code_root, "status", "--porcelain", "--untracked-files=all", "--", *COPIED)
    diff = _git(code_root, "diff", "--binary", "--no-ext-diff", "HEAD", "--", *COPIED)
    return Commit(commit=head.strip(), dirty=bool(status), diff=diff or "")


def refuse_dirty(code_root: Path) -> None:
    """Raises InputError unless the code is exactly what a commit says."""
    found = read_commit(code_root)
    if found.commit is None:
        raise InputError(f"--require-clean: {code_root} is not under git, so there is no commit to name")
    if found.dirty:
        changed = _git(code_root, "status", "--porcelain", "--untracked-files=all", "--", *COPIED) or ""
        listed = ", ".join(line[3:] for line in changed.splitlines()[:10])
        raise InputError(f"--require-clean: the code differs from commit {found.commit[:12]}: {listed}")


def write_snapshot(run_dir: Path, code_root: Path, planned: Mapping[str, str]) -> None:
    """Replaces the run's `code/` by a copy of the working tree.

    `planned` is module -> digest as planned; SurroundingsError if the copy is not that code, because it was edited in
    between: the run would compute something else than its fingerprints say.
    """
    for left in run_dir.glob(f".{CODE}.*"):  # of a launch that was killed
        shutil.rmtree(left, ignore_errors=True)
    draft = run_dir / f".{CODE}.{os.getpid()}.draft"
    try:
        _copy(code_root, draft)
        _compare(draft, code_root, planned)
        found = read_commit(code_root)
        if found.diff:
            (draft / DIFF).write_text(found.diff, encoding="utf-8", errors="surrogateescape")
        diff = DIFF if found.diff else None
        write_json(draft / COMMIT, {"commit": found.commit, "dirty": found.dirty, "diff": diff})
        _swap(draft, run_dir / CODE)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(code_root: Path, draft: Path) -> None:
    draft.mkdir()
    for name in COPIED:
        source = code_root / name
        if source.is_file():
            shutil.copy2(source, draft / name)
        for folder, folders, files in os.walk(source):
            folders[:] = [inner for inner in folders if not _is_skipped(inner)]
            target = draft / Path(folder).relative_to(code_root)
            target.mkdir()
            for file in files:  # one by one, so that a full disk is told as such
                path = Path(folder, file)
                if not _is_skipped(file) and path.is_file():
                    shutil.copy2(path, target / file)


def _is_skipped(name: str) -> bool:
    return name == "__pycache__" or name.endswith(".pyc") or name.startswith(".")


def _compare(draft: Path, code_root: Path, planned: Mapping[str, str]) -> None:
    for module, expected in planned.items():
        place = draft.joinpath(*module.partition(":")[0].split("."))
        path = next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)
        if path is not None and digest(parse(path, module)) != expected:
            where = code_root / path.relative_to(draft)
            raise SurroundingsError(f"{where} was edited while the launch was being prepared; launch again")


def _swap(draft: Path, place: Path) -> None:
    """Puts a folder in the place of another; killed in between, the next launch finds no code and writes it again."""
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        place.rename(old)
    draft.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _git(code_root: Path, *arguments: str) -> str | None:
    """Runs git without changing anything; None where it does not answer."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(code_root), *arguments],  # noqa: S607 - whichever git the user has
            capture_output=True,
            check=False,
            env=environment,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None
