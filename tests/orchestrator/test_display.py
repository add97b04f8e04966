"""What is printed for people to type."""

import sys
from pathlib import Path

import pytest

from orchestrator.display import typable


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes an environment with an `orch` that the shell does not find, and stands beside it."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "orch").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return programs


def test_a_program_that_the_shell_does_not_find_is_named_by_where_it_lies(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typable("orch") == ".venv/bin/orch"
    monkeypatch.chdir("/")
    assert typable("orch") == f"{tmp_path.relative_to('/')}/.venv/bin/orch"
    monkeypatch.chdir(beside)
    assert typable("wandb") == "wandb"  # nor is it there


def test_a_program_that_the_shell_finds_goes_by_its_name(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(beside))

    assert typable("orch") == "orch"
