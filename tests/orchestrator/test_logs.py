"""Logs of a stage: all ranks as one, through every attempt, and what to read where no rank ever started."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import write_json
from orchestrator.errors import InputError
from orchestrator.follow import Wanted, log_lines
from orchestrator.launcher import Waiting
from orchestrator.local import LocalLauncher
from orchestrator.logs import log_to_blame
from orchestrator.state import (
    Ending,
    Launch,
    StageState,
    close_attempt,
    open_attempt,
    read_launch,
    read_state,
    write_launch,
    write_state,
)
from orchestrator.status import Observer, read_stage
from tests.waiting import until

QUEUED = Waiting(job_id="12", reason="other jobs are before it (Priority)", estimated_start=None, state="PENDING")


class Queue(LocalLauncher):
    """A launcher that says what a test lets it say, and closes nothing."""

    def __init__(self) -> None:
        self.waiting: dict[str, Waiting] = {}
        self.asked = 0

    def settle(self, directory: Path) -> Mapping[str, Waiting]:  # noqa: ARG002 - as the protocol has it
        self.asked += 1
        return self.waiting


class Scene:
    """A run of one stage, written as its keeper would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stage = directory / "train"
        self.queue = Queue()
        self.notices: list[str] = []
        self.stage.mkdir(parents=True)
        output = {"model": {"kind": "report", "path": str(self.stage / "model")}}
        stage = {"name": "train", "stage": "count", "fingerprint": "f" * 64, "outputs": output, "steps": 10}
        write_json(self.stage / "stage.json", stage)
        entry = {"name": "train", "action": "run", "reason": ""}
        write_launch(
            directory, Launch(recipe="toy", launcher="far", host="here", user="me", started=1.0, stages=(entry,))
        )

    def begin(self, **logs: str) -> int:
        attempt = open_attempt(self.stage, launcher="far", job_id="12", nodes=("n1", "n2"))
        for rank, text in logs.items():
            self.write(attempt.number, rank, text)
        return attempt.number

    def write(self, attempt: int, rank: str, text: str) -> None:
        folder = self.stage / "logs" / f"attempt_{attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{rank}.log").open("a", encoding="utf-8") as file:
            file.write(text)

    def end(self, cause: Any = None, decision: str = "") -> None:
        close_attempt(self.stage, Ending(state="failed" if cause else "done", cause=cause), decision=decision)

    def wait_again(self) -> None:
        write_state(self.stage, StageState(state="queued", attempts=read_state(self.stage).attempts))
        self.queue.waiting = {"train": QUEUED}

    def over(self) -> None:
        launch = read_launch(self.directory)
        assert launch is not None
        write_launch(self.directory, replace(launch, ended=time.time()))

    def observer(self) -> Observer:
        return Observer(self.directory, lambda _: self.queue, ask_every_s=0)

    def lines(self, **wanted: Any) -> list[str]:
        return list(log_lines(self.observer(), Wanted(stage="train", **wanted), self.notices.append))

    def follow(self, **wanted: Any) -> tuple[list[str], threading.Thread]:
        lines: list[str] = []

        def gather() -> None:
            for line in log_lines(self.observer(), Wanted(stage="train", follow=True, **wanted), self.notices.append):
                lines.append(line)  # noqa: PERF402 - as they come

        thread = threading.Thread(target=gather, daemon=True)
        thread.start()
        return lines, thread


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr("orchestrator.follow.TICK_S", 0.05)
    return Scene(tmp_path / "runs" / "toy")


def test_all_ranks_are_read_as_one_in_the_order_of_their_time(scene: Scene) -> None:
    scene.begin(
        rank_0="2026-11-21 10:00:01,000 a\n  more of a\n2026-11-21 10:00:04,000 d\n",
        rank_1="2026-11-21 10:00:02,000 b\n2026-11-21 10:00:03,000 c without an end",
    )
    scene.end()

    assert scene.lines() == [
        "[rank 0] 2026-11-21 10:00:01,000 a\n",
        "[rank 0]   more of a\n",
        "[rank 1] 2026-11-21 10:00:02,000 b\n",
        "[rank 1] 2026-11-21 10:00:03,000 c without an end\n",
        "[rank 0] 2026-11-21 10:00:04,000 d\n",
    ]
    assert scene.notices[0].startswith("attempt 1 (job 12 on n1, n2): ")


def test_one_rank_is_read_as_it_is(scene: Scene) -> None:
    scene.begin(rank_0="zero\n", rank_1="one\n")
    scene.end()

    assert scene.lines(rank=1) == ["one\n"]
    with pytest.raises(InputError, match="attempt 1 of train has no rank 7; it has 0, 1"):
        scene.lines(rank=7)
    with pytest.raises(InputError, match="train has no attempt 2; it has 1"):
        scene.lines(attempt=2)


def test_following_goes_on_through_a_requeue(scene: Scene) -> None:
    first = scene.begin(rank_0="begun\n", rank_1="")
    lines, thread = scene.follow()
    until(lambda: lines == ["[rank 0] begun\n"])
    scene.write(first, "rank_1", "half")
    before = scene.queue.asked
    until(lambda: scene.queue.asked > before + 2)  # it has looked, all the way through
    assert not any("half" in line for line in lines)
    scene.write(first, "rank_1", " a line\n")
    until(lambda: "[rank 1] half a line\n" in lines)
    scene.write(first, "rank_0", "saved, leaves")
    scene.end("preempted", "again: it costs nothing")
    scene.wait_again()
    until(lambda: any("Priority" in notice for notice in scene.notices))
    scene.queue.waiting = {}
    second = scene.begin(rank_0="goes on\n")
    until(lambda: "goes on\n" in lines)
    scene.write(second, "rank_1", "here I am\n")
    until(lambda: "[rank 1] here I am\n" in lines)
    scene.write(second, "rank_0", "the last words")
    scene.end()
    thread.join(10)

    assert not thread.is_alive()
    assert "[rank 0] saved, leaves\n" in lines
    assert lines[-1] == "[rank 0] the last words\n"
    assert [notice.partition(":")[0] for notice in scene.notices] == [
        "attempt 1 (job 12 on n1, n2)",
        "attempt 1 has ended (preempted); train is queued",
        "attempt 2 (job 12 on n1, n2)",
    ]


def test_following_one_attempt_ends_with_it(scene: Scene) -> None:
    scene.begin(rank_0="begun\n")
    scene.end("preempted", "again: it costs nothing")
    scene.wait_again()

    assert scene.lines(attempt=1, follow=True) == ["begun\n"]


def test_a_stage_in_the_queue_says_what_it_waits_for(scene: Scene) -> None:
    scene.queue.waiting = {"train": QUEUED}

    assert scene.lines() == []
    assert scene.notices == ["train is queued: job 12: other jobs are before it (Priority)"]


def test_following_a_stage_in_the_queue_waits_for_it(scene: Scene) -> None:
    scene.queue.waiting = {"train": QUEUED}
    lines, thread = scene.follow(rank=0)
    until(lambda: len(scene.notices) == 1)
    scene.queue.waiting = {"train": replace(QUEUED, reason="it waits for free nodes (Resources)")}
    until(lambda: len(scene.notices) == 2)
    scene.queue.waiting = {}
    scene.begin(rank_0="begun\n", rank_1="not me\n")
    scene.end()
    thread.join(10)

    assert lines == ["begun\n"]
    assert "Resources" in scene.notices[1]


def test_following_ends_when_the_run_does(scene: Scene) -> None:
    scene.queue.waiting = {"train": QUEUED}
    _, thread = scene.follow()
    until(lambda: len(scene.notices) == 1)
    scene.begin(rank_0="begun\n")
    scene.over()
    thread.join(10)

    assert not thread.is_alive()


def test_what_was_never_started_has_no_log(scene: Scene) -> None:
    scene.over()

    for follow in (False, True):
        with pytest.raises(InputError, match="has not been started, so it has no log"):
            scene.lines(follow=follow)


def test_where_no_rank_started_the_job_itself_says_why(scene: Scene) -> None:
    number = scene.begin()
    scene.write(number, "keeper", "srun could not start anything\n")
    (scene.stage / "slurm").mkdir()
    (scene.stage / "slurm" / "12_0_log.err").write_text("slurmstepd: error: no space\n", encoding="utf-8")
    (scene.stage / "slurm" / "11_0_log.err").write_text("of another job\n", encoding="utf-8")
    scene.end("unknown")

    assert scene.lines() == [
        "[keeper.log] srun could not start anything\n",
        "[12_0_log.err] slurmstepd: error: no space\n",
    ]
    assert log_to_blame(scene.directory, read_stage(scene.directory, "train")) == (
        scene.stage / "logs" / "attempt_1" / "keeper.log"
    )


def test_bytes_that_are_no_text_are_shown_all_the_same(scene: Scene) -> None:
    number = scene.begin(rank_0="")
    (scene.stage / "logs" / f"attempt_{number}" / "rank_0.log").write_bytes(b"a\xff\xfeb\n\x00\n")
    scene.end()

    assert scene.lines() == ["a��b\n", "\x00\n"]


def test_thousands_of_ranks_can_be_read(scene: Scene) -> None:
    number = scene.begin()
    for rank in range(3000):
        scene.write(number, f"rank_{rank}", f"2026-11-21 10:00:00,{rank:04} hello\n")
    scene.end()

    lines = scene.lines()

    assert len(lines) == 3000
    assert lines[-1].startswith("[rank 2999]")
