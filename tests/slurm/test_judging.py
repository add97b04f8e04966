"""How an attempt ended whose keeper lived: a file system that all nodes share is no node's fault."""

from pathlib import Path

import pytest

from orchestrator.artifacts import write_json
from orchestrator.causes import BAD_NODE_EXIT
from orchestrator.exits import Exit, write_exit
from orchestrator.state import Attempt, Ending
from slurm.attempt import Finished, Standing
from slurm.judging import ending_of

GONE = "the run folder cannot be written to from here: Stale file handle"
LATE = "the clock is 9.1 s behind the run folder's (checks.clock_s)"
FULL = "/tmp has 0.01 GB left, needs 1 (checks.disk_gb)"
NODES = ("n1", "n2", "n3")


def ending(stage: Path, reports: dict[str, list[str]]) -> Ending:
    folder = stage / "logs" / "attempt_1"
    folder.mkdir(parents=True)
    for node, faults in reports.items():
        write_json(folder / f"node_{node}.json", {"node": node, "faults": faults})
        left = Exit(rank=NODES.index(node), node=node, time=1.0, exit=BAD_NODE_EXIT)
        write_exit(folder, left)
    attempt = Attempt(number=1, launcher="toy", job_id="7", nodes=NODES, started=0.0)
    document = {"resources": {"nodes": 3}, "outputs": {"x": {"path": str(stage / "x"), "kind": "report"}}}
    document |= {"fingerprint": "print"}
    now = Standing(stays=True, requeued=False, preempted=False)
    finished = Finished(code=76, told=False, lines=())
    return ending_of(stage, document, attempt, finished, now, left_s=None, signal_s=0)


@pytest.mark.parametrize("faults", [[GONE], [LATE], ["the run folder did not answer for 30 s"]])
def test_a_fault_of_the_file_system_that_many_nodes_report_blames_none(tmp_path: Path, faults: list[str]) -> None:
    found = ending(tmp_path, {"n1": faults, "n3": faults})

    assert (found.cause, found.node) == ("disk", None)
    assert "so say 2 of 3 nodes at once" in found.detail


@pytest.mark.parametrize("reports", [{"n2": [GONE]}, {"n2": [GONE, FULL], "n3": [GONE]}, {"n2": [FULL], "n3": [FULL]}])
def test_a_fault_of_one_node_or_of_its_own_blames_it(tmp_path: Path, reports: dict[str, list[str]]) -> None:
    found = ending(tmp_path, reports)

    assert (found.cause, found.node) == ("node_failure", "n2")
