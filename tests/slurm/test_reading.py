"""A chain of a thousand stages is looked at every few seconds: what cannot change is read once."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.status import Answer, read_status
from tests.slurm.toyslurm import ToySlurm, settle, submit, toy_run

STAGES = {f"stage{number}": [f"stage{number - 1}"] if number else [] for number in range(50)}
_LISTENING: list[Counter[str]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _LISTENING and isinstance(arguments[0], str | Path):
        _LISTENING[-1][Path(arguments[0]).name] += 1


sys.addaudithook(_hear)


@contextmanager
def opened() -> Iterator[Counter[str]]:
    """Counts the files that this process opens, by name."""
    _LISTENING.append(Counter())
    try:
        yield _LISTENING[-1]
    finally:
        _LISTENING.pop()


def long_chain(tmp_path: Path, *, done: int) -> ToySlurm:
    toy_run(tmp_path / "toy", STAGES)
    slurm = ToySlurm(tmp_path / "toy")
    submit(slurm.run, slurm)
    for number in range(1, done + 1):
        slurm.begin(str(number))
        slurm.finish(str(number))
    return slurm


def test_of_a_stage_that_is_done_only_its_state_is_read(tmp_path: Path) -> None:
    slurm = long_chain(tmp_path, done=48)
    settle(slurm.run, slurm)

    with opened() as files:
        settle(slurm.run, slurm)

    assert files["stage.json"] == 0
    assert files["submission.json"] < 10
    assert files["submissions.jsonl"] == 2  # of those that are not done
    assert files["state.json"] < 50 + 10


def test_whoever_watches_reads_what_was_planned_once(tmp_path: Path) -> None:
    slurm = long_chain(tmp_path, done=3)
    read_status(slurm.run)

    with opened() as files:
        shown = read_status(slurm.run, Answer())

    assert len(shown["stages"]) == 50
    assert files["stage.json"] == 0
