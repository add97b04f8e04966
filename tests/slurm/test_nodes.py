"""Nodes: what is noted of them across runs, which are left out, and what is wrong with the one we are on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.resources import Resources
from slurm import nodes, probes
from slurm.cluster import Checks, Cluster
from slurm.ledger import Ledger
from slurm.nodes import UNFIT, bad_nodes, blame, check, enough_without
from tests.slurm.programs import Programs

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Gives a cluster with a ledger of its own."""
    return Cluster(name="toy", partition="main", ledger=tmp_path / "ledger" / "toy.jsonl")


@pytest.fixture
def eight_nodes(programs: Programs) -> None:
    """Lets sinfo know of eight nodes in the partition main."""
    programs.does(
        "sinfo", 'case "$*" in *partition=main*) for n in 1 2 3 4 5 6 7 8; do echo n$n; done;; *) exit 1;; esac'
    )


def noted(cluster: Cluster) -> list[tuple[str, str, str]]:
    return [(one.node, one.cause, one.run) for one in Ledger(cluster.ledger_path()).incidents()]


def test_what_happened_is_noted_with_its_run(cluster: Cluster) -> None:
    blame(cluster, "n1", "node_failure", "it went away", run="runs/a")
    blame(cluster, "n2", "hang", "in the middle\nof a line", run="runs/b")

    assert noted(cluster) == [("n1", "node_failure", "runs/a"), ("n2", "hang", "runs/b")]


def test_what_is_old_counts_no_more(tmp_path: Path) -> None:
    short = Cluster(name="toy", ledger=tmp_path / "toy.jsonl", ledger_days=1e-9)
    blame(short, "n1", UNFIT, "")

    assert noted(short) == []


def test_clearing_forgets_what_was_and_not_what_comes(cluster: Cluster) -> None:
    for node in ("n1", "n2"):
        blame(cluster, node, UNFIT, "", run="a")
    Ledger(cluster.ledger_path()).clear("n1", "me")
    blame(cluster, "n1", "hang", "", run="b")

    assert noted(cluster) == [("n2", UNFIT, "a"), ("n1", "hang", "b")]


def test_a_torn_line_costs_only_itself(cluster: Cluster) -> None:
    blame(cluster, "n1", UNFIT, "", run="a")
    with cluster.ledger_path().open("ab") as file:
        file.write(b'{"event": "incident", "node": "n2", "cau')
    blame(cluster, "n3", UNFIT, "", run="a")
    with cluster.ledger_path().open("ab") as file:
        file.write(b'[1, 2]\n\xff\xfe\n{"event": "incident", "node": "n4"}\n')
    blame(cluster, "n5", UNFIT, "", run="a")

    assert [node for node, _, _ in noted(cluster)] == ["n1", "n3", "n5"]


def test_writers_at_the_same_time_lose_nothing(cluster: Cluster) -> None:
    code = (
        "import sys; from pathlib import Path; from slurm.cluster import Cluster; from slurm.nodes import blame\n"
        "for number in range(50): blame(Cluster(name='toy', ledger=Path(sys.argv[1])), sys.argv[2], 'hang', 'x' * 400)"
    )
    command = [sys.executable, "-c", code, str(cluster.ledger_path())]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    writers = [subprocess.Popen([*command, f"n{number}"], env=environment) for number in range(4)]

    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(noted(cluster)) == 200


def test_a_ledger_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="ascii")
    nowhere = Cluster(name="toy", ledger=tmp_path / "file" / "toy.jsonl")

    blame(nowhere, "n1", UNFIT, "")

    assert bad_nodes(nowhere) == ()


@pytest.mark.usefixtures("eight_nodes")
def test_an_unfit_node_is_left_out_at_once_another_after_two_runs(cluster: Cluster) -> None:
    blame(cluster, "n1", UNFIT, "its disk is full", run="a")
    for run in ("a", "b"):
        blame(cluster, "n2", "node_failure", "", run=run)
    for _ in range(5):
        blame(cluster, "n3", "node_failure", "", run="a")

    assert bad_nodes(cluster) == ("n1", "n2")


@pytest.mark.usefixtures("eight_nodes")
def test_no_more_than_a_quarter_is_left_out_the_surest_first(cluster: Cluster) -> None:
    for node in ("n5", "n6", "n7"):
        for run in ("a", "b"):
            blame(cluster, node, "hang", "", run=run)
    blame(cluster, "n8", UNFIT, "", run="c")

    assert bad_nodes(cluster) == ("n7", "n8")


@pytest.mark.usefixtures("eight_nodes")
def test_a_job_that_needs_all_the_nodes_there_are_leaves_none_out(cluster: Cluster) -> None:
    assert enough_without(cluster, Resources(nodes=7), ["n3", "elsewhere"])
    assert not enough_without(cluster, Resources(nodes=8), ["n3"])
    assert enough_without(cluster, Resources(nodes=7, gpus_per_node=1), ["n3"])


@pytest.mark.usefixtures("eight_nodes")
def test_a_job_keeps_as_many_nodes_as_it_needs(cluster: Cluster) -> None:
    for node in ("n1", "n2"):
        blame(cluster, node, UNFIT, "", run="a")

    assert bad_nodes(cluster, Resources(nodes=7)) == ("n2",)
    assert bad_nodes(cluster, Resources(nodes=8)) == ()


@pytest.mark.usefixtures("eight_nodes")
def test_a_node_that_slurm_does_not_know_is_not_named_to_it(cluster: Cluster) -> None:
    blame(cluster, "dismantled", UNFIT, "", run="a")

    assert bad_nodes(cluster) == ()


def test_without_an_answer_no_node_is_left_out(cluster: Cluster, programs: Programs) -> None:
    programs.does("sinfo", "echo 'sinfo: error: Invalid partition' >&2; exit 1")
    blame(cluster, "n1", UNFIT, "", run="a")

    assert bad_nodes(cluster) == ()


def test_a_healthy_node_has_no_faults(cluster: Cluster, tmp_path: Path) -> None:
    assert check(cluster, Resources(memory_gb=0.1), tmp_path, keeper_time=time.time()) == []
    assert list((tmp_path / "logs").iterdir()) == []


def test_every_fault_of_a_node_is_named(tmp_path: Path, programs: Programs) -> None:
    programs.does("nvidia-smi", "echo '0, 0'; echo '1, 12'")
    sick = Cluster(name="toy", interface="ib7", checks=Checks(disk_gb=1e9))
    faults = check(sick, Resources(gpus_per_node=4, memory_gb=1e6), tmp_path / "away")

    for words in (
        "2 GPUs answer, 4 are asked for",
        "GPU 1 has 12 memory errors",
        "GB left, needs 1e+09 (checks.disk_gb)",
        f"the run folder {tmp_path / 'away'} is not visible here",
        "there is no network interface ib7",
        "the stage asks for 1e+06",
    ):
        assert any(words in fault for fault in faults), (words, faults)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Unable to determine the device handle: Unknown Error'; exit 15", "Unable to determine"),
        ("sleep 60", "it took more than"),
    ],
)
def test_a_gpu_that_fell_off_its_bus_is_a_fault(
    script: str, words: str, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "NVIDIA_SMI_TIMEOUT_S", 0.5)
    programs.does("nvidia-smi", script)
    (fault,) = check(Cluster(name="toy"), Resources(gpus_per_node=1), tmp_path)

    assert fault.startswith("nvidia-smi does not answer")
    assert words in fault


def test_gpus_are_asked_only_where_the_stage_wants_some(tmp_path: Path, programs: Programs) -> None:
    programs.does("nvidia-smi", "exit 9")

    assert check(Cluster(name="toy"), Resources(), tmp_path) == []
    assert check(Cluster(name="toy", checks=Checks(gpus=False)), Resources(gpus_per_node=8), tmp_path) == []


def test_a_clock_that_is_behind_is_a_fault(cluster: Cluster, tmp_path: Path) -> None:
    (fault,) = check(cluster, Resources(), tmp_path, keeper_time=time.time() + 60)

    assert "behind the first node's" in fault


def test_a_slow_file_server_is_not_a_clock_that_is_wrong() -> None:
    assert probes.clock_off(108.0, before=100.0, after=110.0) == 0
    assert probes.clock_off(108.0, before=100.0, after=101.0) == 7
    assert probes.clock_off(92.0, before=100.0, after=110.0) == -8


def test_what_never_answers_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*_: Any) -> Iterator[str]:
        time.sleep(30)
        yield "never"

    monkeypatch.setattr(nodes, "CHECK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(probes, "disk_faults", dead)
    begun = time.monotonic()
    faults = check(Cluster(name="toy"), Resources(), tmp_path)

    assert faults == ["the disks did not answer for 0.3 s"]
    assert time.monotonic() - begun < 20  # the answer takes thirty


def run_orch(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "orchestrator.cli", "nodes", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=home)


def test_orch_nodes_shows_and_clears(tmp_path: Path) -> None:
    big = Cluster(name="big", ledger=tmp_path / ".orch" / "nodes" / "big.jsonl")
    blame(big, "n1", UNFIT, "[red]its disk is full[/red]", run="runs/a")
    blame(big, "n2", "hang", "", run="runs/a")

    shown = run_orch(tmp_path)
    document = json.loads(run_orch(tmp_path, "--json").stdout)["nodes"]
    unknown = run_orch(tmp_path, "--clear", "n9")
    cleared = run_orch(tmp_path, "--clear", "n1", "--json")

    assert "[red]its disk is full[/red]" in shown.stdout
    assert "leave it out" in shown.stdout
    assert [(entry["node"], entry["left_out"], entry["causes"]) for entry in document] == [
        ("n1", True, {UNFIT: 1}),
        ("n2", False, {"hang": 1}),
    ]
    assert (unknown.returncode, "there are n1, n2" in unknown.stderr) == (2, True)
    assert [entry["node"] for entry in json.loads(cleared.stdout)["nodes"]] == ["n2"]


def test_what_many_settlers_see_at_once_is_noted_once(tmp_path: Path) -> None:
    cluster = Cluster(name="c", ledger=tmp_path / "ledger.jsonl")
    with ThreadPoolExecutor(16) as settlers:
        list(settlers.map(lambda _: blame(cluster, "n1", UNFIT, "cannot begin", run="a", once=True), range(64)))

    assert len(Ledger(cluster.ledger_path()).incidents()) == 1
