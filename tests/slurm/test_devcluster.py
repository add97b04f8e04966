"""A dev cluster is a real Slurm, suffers what real ones suffer, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import InputError, SurroundingsError
from slurm.cluster import read_cluster
from slurm.devcluster import DevCluster, database, hosts, surroundings
from tests.waiting import until

WAIT_S = 60.0


def test_hosts_find_each_other_by_name_and_have_an_interface_of_their_own(devcluster: DevCluster) -> None:
    first, second, _ = devcluster.hosts

    assert devcluster.in_host(first, ["hostname"]).stdout.strip() == first
    assert devcluster.layout.address(second) in devcluster.in_host(first, ["getent", "hosts", second]).stdout
    assert devcluster.in_host(first, ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]
    assert second not in Path("/etc/hosts").read_text()


def test_its_cluster_file_is_one_that_a_launch_can_read(devcluster: DevCluster) -> None:
    cluster = read_cluster(str(devcluster.cluster_file()))

    assert (cluster.name, cluster.max_nodes) == (devcluster.layout.name, 3)
    assert (cluster.partition, cluster.cpu_partition, cluster.interface) == ("main", "cpu", "eth0")


def test_one_command_runs_on_every_host(devcluster: DevCluster) -> None:
    said = devcluster.run(["srun", "-N3", "hostname"])

    assert sorted(said.stdout.split()) == sorted(devcluster.hosts), said.stderr


def test_a_job_can_submit_a_job_and_accounting_knows_both(devcluster: DevCluster, tmp_path: Path) -> None:
    first = _submit(devcluster, tmp_path, "sbatch --parsable -o /dev/null --wrap squeue")
    until(lambda: _accounted(devcluster, first) == ["COMPLETED"], what=lambda: _accounted(devcluster, first))
    second = (tmp_path / f"{first}.out").read_text().split()[0]

    until(lambda: _accounted(devcluster, second) == ["COMPLETED"], what=lambda: _accounted(devcluster, second))


@pytest.mark.slow
def test_an_urgent_job_preempts_and_the_preempted_one_runs_again_under_its_number(
    devcluster: DevCluster, tmp_path: Path
) -> None:
    script = "trap 'echo asked' USR2; echo begun; for i in $(seq 600); do sleep 0.1; done"
    job = _submit(devcluster, tmp_path, script, "--exclusive", "-N3", "--requeue", "--signal=B:USR2@60")
    until(lambda: _written(tmp_path, job) == ["begun"], what=devcluster.status)

    _submit(devcluster, tmp_path, "true", "--exclusive", "-N3", "-p", "urgent")

    try:
        until(lambda: _written(tmp_path, job).count("begun") == 2)
        assert _written(tmp_path, job).index("asked") == 1
        assert _accounted(devcluster, job)[0] == "PREEMPTED"
    finally:
        _end(devcluster, job)


@pytest.mark.slow
def test_a_killed_host_dies_whole_and_its_job_runs_again_when_it_is_back(
    devcluster: DevCluster, tmp_path: Path
) -> None:
    job = _submit(devcluster, tmp_path, "echo begun; srun sleep 600", "-N3", "--requeue")
    lost = devcluster.hosts[1]
    until(lambda: _programs(devcluster, lost).count("sleep") == 2)  # a host's own, and the job's
    alive = devcluster.pids(lost)

    devcluster.kill_host(lost)

    try:
        assert not any(hosts.runs(process) for process in alive)
        assert devcluster.pids(lost) == []
        until(
            lambda: _accounted(devcluster, job)[:1] == ["NODE_FAIL"],
            what=lambda: (_accounted(devcluster, job), devcluster.status()),
        )
        devcluster.start_host(lost)
        until(lambda: _written(tmp_path, job).count("begun") == 2)
    finally:
        devcluster.start_host(lost)
        _end(devcluster, job)


def test_a_killed_host_says_no_goodbye(devcluster: DevCluster) -> None:
    lost = devcluster.hosts[1]
    with socket.create_server((devcluster.layout.login, 0)) as server:
        calls = f"import socket, time; s = socket.create_connection({server.getsockname()!r}); time.sleep(600)"
        devcluster.in_host(lost, ["setsid", "--fork", sys.executable, "-c", calls], capture_output=False)
        with server.accept()[0] as line:
            line.sendall(b"never read")  # whoever dies with this unread would reset the connection
            line.settimeout(1)

            devcluster.kill_host(lost)

            try:
                with pytest.raises(TimeoutError):
                    line.recv(1)
            finally:
                devcluster.start_host(lost)
                devcluster.wait_idle(WAIT_S)


def test_a_host_that_is_started_again_keeps_its_network_card(devcluster: DevCluster) -> None:
    """Else the others talk to the old one for as long as they remember it, up to half a minute."""
    host, cards = devcluster.hosts[1], ["cat", "/sys/class/net/eth0/address"]
    before = devcluster.in_host(host, cards).stdout

    devcluster.kill_host(host)
    devcluster.start_host(host)

    assert devcluster.in_host(host, cards).stdout == before != ""
    devcluster.wait_idle(WAIT_S)


def test_a_restarted_controller_knows_its_jobs(devcluster: DevCluster, tmp_path: Path) -> None:
    saved = devcluster.layout.path("state", "job_state")
    job = _submit(devcluster, tmp_path, "sleep 600")
    submitted = time.time()
    until(lambda: saved.exists() and saved.stat().st_mtime > submitted)  # slurmctld saves within seconds

    devcluster.stop_controller()
    away = devcluster.run(["squeue"])
    devcluster.start_controller()

    assert away.returncode != 0
    assert job in devcluster.run(["squeue", "-h", "-o", "%i"]).stdout.split()
    devcluster.run(["scancel", job])


def test_without_accounting_jobs_still_run_and_are_accounted_later(devcluster: DevCluster, tmp_path: Path) -> None:
    devcluster.stop_accounting()
    try:
        away = devcluster.run(["sacct"])
        job = _submit(devcluster, tmp_path, "true")
        until(lambda: job not in devcluster.run(["squeue", "-h", "-t", "R,PD,CG", "-o", "%i"]).stdout.split())
    finally:
        devcluster.start_accounting()

    assert away.returncode != 0
    until(lambda: _accounted(devcluster, job) == ["COMPLETED"])


def test_the_status_tells_who_is_dead(devcluster: DevCluster) -> None:
    devcluster.stop_accounting()
    daemons = devcluster.status()["daemons"]
    devcluster.start_accounting()

    assert daemons == {"slurmctld": True, "slurmdbd": False, "mariadbd": True, "munged": True}


def test_two_clusters_share_nothing_and_one_that_goes_leaves_nothing(devcluster: DevCluster, place: Path) -> None:
    other = DevCluster.up(place, name=_own_name("b"), nodes=2)
    try:
        assert sorted(other.run(["srun", "-N2", "hostname"]).stdout.split()) == sorted(other.hosts)
    finally:
        other.down()

    assert _traces(place) == []
    assert devcluster.run(["srun", "-N3", "true"]).returncode == 0


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.5, 1.2])
def test_what_a_killed_up_leaves_is_taken_down_by_its_folder(
    devcluster: DevCluster, place: Path, after_s: float
) -> None:
    call = f"DevCluster.up(Path({str(place)!r}), name={_own_name('k')!r})"
    script = f"from pathlib import Path; from slurm.devcluster import DevCluster; {call}"
    with subprocess.Popen([sys.executable, "-c", script]) as maker:
        until((place / "devcluster.json").exists)
        time.sleep(after_s)
        maker.send_signal(signal.SIGKILL)

    DevCluster.remains(place, "k").down()

    assert _traces(place) == []


def test_a_bridge_whose_maker_was_killed_before_it_had_a_number_goes_with_the_next_up(
    devcluster: DevCluster, place: Path
) -> None:
    with subprocess.Popen(["true"]) as maker:
        left = f"{hosts.DRAFT}{maker.pid}"
    subprocess.run(["ip", "link", "add", left, "type", "bridge"], check=True)

    DevCluster.up(place, name=_own_name("d"), nodes=1).down()

    assert not Path("/sys/class/net", left).exists()


def test_an_up_that_fails_names_the_daemon_with_its_last_words_and_leaves_nothing(
    devcluster: DevCluster, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where the prepared database is kept: this one is empty
    (database.kept_at() / "mysql").mkdir(parents=True)

    with pytest.raises(SurroundingsError, match=r"(?s)mariadbd of \w+-ctl ended\n.*\[ERROR\]") as complaint:
        DevCluster.up(place, name=_own_name("f"))

    assert "Fatal error" in str(complaint.value)
    assert _traces(place) == []


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"nodes": 0}, "nodes: 0 is not between 1 and 32"),
        ({"name": "a b"}, "name: 'a b' cannot name hosts"),
        ({"requeue_delay_s": 1}, "no less than 5 s"),
    ],
)
def test_an_impossible_wish_is_refused_before_anything_starts(
    devcluster: DevCluster, place: Path, wish: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        DevCluster.up(place, **wish)  # type: ignore[arg-type]  # wrong on purpose

    assert _traces(place) == []


def test_a_name_or_a_folder_that_is_taken_is_refused(devcluster: DevCluster, place: Path) -> None:
    with pytest.raises(InputError, match="is up in"):
        DevCluster.up(place, name=devcluster.layout.name)
    with pytest.raises(InputError, match="holds a dev cluster already"):
        DevCluster.up(devcluster.layout.folder, name=_own_name("x"))


def test_what_is_missing_is_named_together_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(surroundings, "PLACES", "/nowhere")

    with pytest.raises(SurroundingsError) as complaint:
        surroundings.require()

    assert "needs root" in str(complaint.value)
    assert "apt-get install -y --no-install-recommends iproute2 mariadb-server munge" in str(complaint.value)
    assert "--install" in str(complaint.value)


def test_the_list_of_packages_is_what_the_programs_come_from() -> None:
    listed = Path(surroundings.__file__).parents[1].joinpath("packages.txt").read_text().split()

    assert sorted(set(surroundings.PROGRAMS.values())) == listed


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yields a folder with a short path for a cluster, and ends what a failing test left in it."""
    folder = tmp_path_factory.mktemp("c") / "c"
    yield folder
    DevCluster.remains(folder, "c").down()


def _own_name(letter: str) -> str:
    return f"{letter}{os.getpid()}"


def _submit(cluster: DevCluster, folder: Path, script: str, *options: str) -> str:
    file = folder / "job.sh"
    file.write_text(f"#!/bin/bash\n{script}\n")
    output = ["-o", str(folder / "%j.out"), "--open-mode=append"]
    made = cluster.run(["sbatch", "--parsable", *output, *options, str(file)])
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def _end(cluster: DevCluster, job: str) -> None:
    cluster.run(["scancel", job])
    cluster.wait_idle(WAIT_S)


def _written(folder: Path, job: str) -> list[str]:
    file = folder / f"{job}.out"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if line in ("begun", "asked")]


def _accounted(cluster: DevCluster, job: str) -> list[str]:
    return cluster.run(["sacct", "-D", "-nPX", "-j", job, "-o", "State"]).stdout.split()


def _programs(cluster: DevCluster, host: str) -> list[str]:
    return [hosts.name_of(process) for process in cluster.pids(host)]


def _traces(folder: Path) -> list[str]:
    """Lists all that still speaks of a cluster's folder: files, networks, processes, mounts."""
    found = [str(folder)] if folder.exists() and any(folder.iterdir()) else []
    found += [bridge for bridge, (_, owner) in hosts.bridges().items() if owner == folder]
    for process in Path("/proc").iterdir():
        for kind in ("cmdline", "environ", "mountinfo"):
            try:
                text = (process / kind).read_bytes()
            except OSError:
                continue
            if process.name.isdigit() and str(folder).encode() in text:
                found.append(f"{process.name} {kind}")
    return found
