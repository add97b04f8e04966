"""What many records together say of an attempt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.causes import BAD_NODE_EXIT, Cause, cause_in_log
from orchestrator.exits import Exit, made_exit, read_exit, write_exit
from orchestrator.heartbeat import Pulse
from orchestrator.verdict import Outside, verdict

NODES = ["n1", "n1", "n2", "n2"]
GLOO = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1234"


def said(folder: Path, rank: int, cause: Cause, message: str = "so it is", time: float = 10.0, **more: Any) -> None:
    plain = {"class": "Error", "message": message, "cause": cause, "exit_code": 1, "time": time, **more}
    (folder / f"rank_{rank}.error.json").write_text(json.dumps(plain), encoding="utf-8")


def ended(folder: Path, rank: int, **more: Any) -> Exit:
    values = {"rank": rank, "node": NODES[rank], "time": 10.0, "exit": 1, "step": 7, "phase": "forward", **more}
    found = Exit(**values)
    write_exit(folder, found)
    return found


def killed(folder: Path, rank: int, **more: Any) -> Exit:
    return ended(folder, rank, **{"exit": None, "signal": "SIGKILL", **more})


def hung(folder: Path, rank: int, **more: Any) -> Exit:
    return killed(folder, rank, hang="has made no step for 63 s (its median is 0.4 s)", **more)


def test_without_any_fault_the_attempt_is_done(tmp_path: Path) -> None:
    assert verdict(tmp_path, size=4).state == "done"


def test_the_rank_with_an_error_of_its_own_is_to_blame_not_its_peers_who_ended_first(tmp_path: Path) -> None:
    for rank in (0, 1, 3):
        said(tmp_path, rank, "communication", GLOO, time=9.0)
    said(tmp_path, 2, "code_error", "the toy is broken", time=11.0, step=7, phase="forward", node="n2")
    ending = verdict(tmp_path, size=4, nodes=NODES)

    assert (ending.cause, ending.rank, ending.node) == ("code_error", 2, "n2")
    assert ending.detail == "rank 2 (n2): Error: the toy is broken"
    assert ending.evidence[0] == "rank 2 (n2) ended at step 7 (forward) with Error: the toy is broken -> code_error"
    assert len(ending.evidence) == 4


def test_a_rank_that_was_told_to_leave_is_never_the_cause(tmp_path: Path) -> None:
    killed(tmp_path, 0, told_to_leave=True, time=5.0)
    said(tmp_path, 1, "diverged", "nan", time=9.0)

    assert (verdict(tmp_path, size=2).cause, verdict(tmp_path, size=2).rank) == ("diverged", 1)


def test_a_rank_that_was_told_to_leave_before_it_could_listen_has_left_as_it_was_told(tmp_path: Path) -> None:
    ended(tmp_path, 0, exit=None, signal="SIGTERM", told_to_leave=True, step=0, phase="starting")

    assert verdict(tmp_path, size=1).cause == "preempted"
    assert "had not begun" in verdict(tmp_path, size=1).detail


def test_a_rank_that_dies_of_a_signal_nobody_admits_to_is_unknown(tmp_path: Path) -> None:
    ended(tmp_path, 0, exit=None, signal="SIGTERM", told_to_leave=False, step=0, phase="starting")

    assert verdict(tmp_path, size=1).cause == "unknown"


def test_a_rank_killed_from_outside_is_unknown_with_its_evidence(tmp_path: Path) -> None:
    killed(tmp_path, 2)
    said(tmp_path, 0, "communication", GLOO, time=9.0)
    ending = verdict(tmp_path, size=4, nodes=NODES)

    assert (ending.cause, ending.rank, ending.node) == ("unknown", 2, "n2")
    assert "SIGKILL" in ending.detail
    assert "rank 2 (n2) ended by SIGKILL at step 7 (forward), without a record" in ending.evidence


def test_a_rank_killed_while_the_kernel_was_short_of_memory_ran_out_of_it(tmp_path: Path) -> None:
    killed(tmp_path, 0, oom_kills=1)

    assert verdict(tmp_path, size=1).cause == "out_of_memory"


def test_the_hung_rank_is_the_one_that_waits_for_nobody(tmp_path: Path) -> None:
    for rank in (0, 2, 3):
        hung(tmp_path, rank, waits_in="all_gather", stands="stages/a.py:3 in forward", phase="forward")
    hung(tmp_path, 1, stands="stages/glamm/collate.py:41 in decode", phase="data")
    ending = verdict(tmp_path, size=4, nodes=NODES)

    assert (ending.cause, ending.rank, ending.node) == ("hang", 1, "n1")
    assert ending.detail == (
        "rank 1 (n1) has made no step for 63 s (its median is 0.4 s): it stands in stages/glamm/collate.py:41 in "
        "decode; 3 ranks wait for it in all_gather"
    )
    assert "rank_1.stacks.txt" in " ".join(ending.evidence)


def test_a_stopped_rank_is_the_one_that_hangs_wherever_it_stands(tmp_path: Path) -> None:
    hung(tmp_path, 0, stands="stages/a.py:9 in odd")
    hung(tmp_path, 1, waits_in="all_reduce", halted="it is stopped (SIGSTOP)")

    assert verdict(tmp_path, size=2).rank == 1
    assert "it is stopped" in verdict(tmp_path, size=2).detail


def test_on_gpus_the_rank_that_stands_apart_hangs(tmp_path: Path) -> None:
    for rank in (0, 1, 3):
        hung(tmp_path, rank, stands="orchestrator/training/loop.py:99 in _learn")
    hung(tmp_path, 2, stands="stages/glamm/model.py:12 in forward")

    assert verdict(tmp_path, size=4, nodes=NODES).rank == 2


def test_if_all_wait_the_one_that_is_least_far_is_named(tmp_path: Path) -> None:
    hung(tmp_path, 0, waits_in="all_reduce", step=8)
    hung(tmp_path, 1, waits_in="barrier", step=7)
    ending = verdict(tmp_path, size=2)

    assert ending.rank == 1
    assert "like every rank it waits for others, in barrier" in ending.detail


def test_an_error_tells_more_than_the_peers_that_hang_for_it(tmp_path: Path) -> None:
    hung(tmp_path, 0, waits_in="all_reduce", time=5.0)
    said(tmp_path, 1, "code_error", time=70.0)

    assert verdict(tmp_path, size=2).cause == "code_error"


@pytest.mark.parametrize("cause", ["node_failure", "preempted", "timeout", "cancelled", "out_of_memory"])
def test_what_the_cluster_did_explains_lost_peers_and_killed_ranks(tmp_path: Path, cause: Cause) -> None:
    said(tmp_path, 0, "communication", GLOO)
    killed(tmp_path, 1)
    hung(tmp_path, 3, waits_in="all_reduce")
    outside = Outside(cause=cause, detail="Slurm did it", evidence=("Slurm says so",), node="n2")
    ending = verdict(tmp_path, size=4, outside=outside, nodes=NODES)

    assert (ending.cause, ending.detail, ending.node) == (cause, "Slurm did it", "n2")
    assert "Slurm says so" in ending.evidence


def test_a_rank_that_knows_better_than_the_cluster_is_believed(tmp_path: Path) -> None:
    said(tmp_path, 0, "diverged", "nan")
    outside = Outside(cause="cancelled", detail="srun ended the step")

    assert verdict(tmp_path, size=2, outside=outside).cause == "diverged"


def test_ranks_that_saved_and_left_were_preempted(tmp_path: Path) -> None:
    for rank in range(2):
        said(tmp_path, rank, "preempted", "everything is saved")
    ended(tmp_path, 1, exit=75, told_to_leave=True)  # it was quicker than the signal to the other

    assert verdict(tmp_path, size=2).cause == "preempted"


def test_ranks_that_saved_and_left_without_being_asked_are_not_preempted_for_ever(tmp_path: Path) -> None:
    for rank in range(2):
        said(tmp_path, rank, "preempted", "everything is saved")
        ended(tmp_path, rank, exit=75)
    ending = verdict(tmp_path, size=2)

    assert (ending.cause, ending.rank) == ("unknown", 0)
    assert "neither orch nor the cluster" in ending.detail
    assert verdict(tmp_path, size=2, outside=Outside(cause=None, detail="", asked=True)).cause == "preempted"


def test_a_node_of_which_no_rank_left_a_word_has_failed(tmp_path: Path) -> None:
    for rank in (0, 1):
        said(tmp_path, rank, "communication", GLOO)
    ending = verdict(tmp_path, size=4, nodes=NODES)

    assert (ending.cause, ending.node, ending.rank) == ("node_failure", "n2", None)
    assert "rank 2, 3 on n2 left no record at all" in ending.evidence


def test_a_node_that_is_not_fit_for_work_is_named_with_its_faults(tmp_path: Path) -> None:
    (tmp_path / "node_n2.json").write_text(json.dumps({"faults": ["its clock is 40 s off"]}), encoding="utf-8")
    ended(tmp_path, 2, exit=BAD_NODE_EXIT)
    ending = verdict(tmp_path, size=4, nodes=NODES)

    assert (ending.cause, ending.node) == ("node_failure", "n2")
    assert "clock is 40 s off" in ending.detail


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "node_failure"),
        ("[ 1.2] NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.", "node_failure"),
        ("[E ProcessGroupNCCL.cpp:563] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(...)", "hang"),
        ("n1:12:34 [0] NCCL WARN NET/IB : Got completion from peer with error", "communication"),
        ("ncclRemoteError: A call failed possibly due to a network error", "communication"),
    ],
)
def test_what_only_a_log_says_is_heard(tmp_path: Path, line: str, cause: Cause) -> None:
    ended(tmp_path, 2, exit=None, signal="SIGABRT")
    (tmp_path / "rank_2.log").write_text(f"step 3\n{line}\nterminate called\n", encoding="utf-8")
    ending = verdict(tmp_path, size=4, nodes=NODES)

    assert (ending.cause, ending.rank, ending.node) == (cause, 2, "n2")
    assert line in " ".join(ending.evidence)


def test_broken_hardware_in_the_log_of_one_rank_explains_the_lost_peers_of_all(tmp_path: Path) -> None:
    for rank in range(4):
        said(tmp_path, rank, "communication", GLOO, time=10.0 - rank)
    (tmp_path / "rank_1.log").write_text("Xid (PCI:0000:01:00): 94, Contained ECC error\n", encoding="utf-8")

    assert (verdict(tmp_path, size=4, nodes=NODES).cause, verdict(tmp_path, size=4, nodes=NODES).node) == (
        "node_failure", "n1",
    )  # fmt: skip


def test_an_ordinary_log_says_nothing() -> None:
    assert cause_in_log(["step 3 of 10: loss 2.1", "Traceback (most recent call last):", "ValueError: width"]) is None


def test_thousands_of_ranks_that_fall_together_make_a_short_story(tmp_path: Path) -> None:
    exits = {rank: Exit(rank=rank, node="n1", time=10.0, signal="SIGKILL") for rank in range(2000)}
    ending = verdict(tmp_path, size=2000, exits=exits)

    assert ending.evidence[-1] == "1994 more of 2000 ranks: 1994 x unknown"
    assert len(ending.evidence) == 7


def test_an_exit_says_how_a_process_ended_and_where_it_was() -> None:
    pulse = Pulse(pid=1, steps=3, step=12, phase="backward", since_ns=0, step_s=0.1)
    by_signal = made_exit(-9, pulse, rank=3, node="n1", ended=1.0, told_to_leave=False, oom_kills=0)
    by_code = made_exit(75, pulse, rank=3, node="n1", ended=1.0, told_to_leave=True, oom_kills=0)

    assert (by_signal.signal, by_signal.exit, by_signal.step, by_signal.phase) == ("SIGKILL", None, 12, "backward")
    assert (by_code.signal, by_code.exit, by_code.told_to_leave) == (None, 75, True)
    assert made_exit(-40, pulse, rank=0, node="", ended=0.0, told_to_leave=False, oom_kills=0).signal == "signal 40"


def test_a_torn_record_holds_nothing_and_a_whole_one_comes_back(tmp_path: Path) -> None:
    exit_ = killed(tmp_path, 1)
    (tmp_path / "rank_0.exit.json").write_text('{"rank": 0', encoding="ascii")

    assert read_exit(tmp_path, 0) is None
    assert read_exit(tmp_path, 1) == exit_ == replace(exit_)
