"""Measures what a logged step costs a training: by orch's journal and forwarder, and by MLflow itself, sync and async.

python -m benchmarks.tracking                 # a table, about eight minutes
python -m benchmarks.tracking --json --quick  # about four

Steps log ten numbers each to a real `mlflow server` on SQLite. First a step is work of a quarter of a second, on two
ranks, with tracking on and off by turns. Then a step is 50 ms of sleep, and the sides take turns, each in a process of
its own. The server is healthy first; then something else has its address that accepts and never answers; then nobody
has it and connections are refused. Each time the jobs end, with a grace of 5 s before a kill. At last the server comes
back, and what each side was asked to log is counted there.
"""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import claims
from benchmarks.claims import Claim
from benchmarks.tracking_sides import NUMBER, STEP_S, Side
from orchestrator.artifacts import write_json
from orchestrator.run import Run
from orchestrator.state import Ending, Launch, close_attempt, open_attempt, write_launch
from orchestrator.tracking.ledger import read_ledger
from slurm.drill.server import TrackingServer

REPOSITORY = Path(__file__).parents[1]
SIDES = {"ours": "orch", "plain": "mlflow.log_metrics", "async": "mlflow.log_metrics(synchronous=False)"}
STAGE, WORKING, SHARE_BAR, GRACE_S = "train", "work", 0.01, 5.0
DELIVERY_S = 120.0
DEAD = ("silent server", "dead server")


class _Size(NamedTuple):
    rounds: int
    steps: int  # a round and side
    dead_rounds: int
    limit_s: float  # how long a call may block before its process is killed
    pairs: int  # of blocks with tracking on and off
    block: int  # steps of each: as long as a pause of the forwarder


_FULL, _QUICK = _Size(9, 40, 3, 20.0, 12, 40), _Size(3, 20, 1, 5.0, 4, 20)
Times = dict[str, list[dict[str, float]]]  # side -> a round's figures, a step


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    options = claims.command_line(__doc__).parse_args()
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    with tempfile.TemporaryDirectory(prefix="orch-tracking-", ignore_cleanup_errors=True) as folder:
        found = _measured(Path(folder), size)
    claims.show(
        found, machine, claims.versions() | {"mlflow": importlib.metadata.version("mlflow")}, as_json=options.json
    )


def _measured(folder: Path, size: _Size) -> list[Claim]:
    server = TrackingServer(folder)
    run = _make_run(folder / "run", server.uri)
    sides: list[list[Side]] = []
    server.start()
    try:
        with Run(run).lock("benchmark"):
            forwarder = _start_forwarder(run)
            try:
                found = _on_and_off(run, forwarder.pid, size)
                _start_sides(server.uri, run, sides)
                found += _all_cells(server, sides, run / STAGE, forwarder.pid, size)
                for stage in (STAGE, WORKING):
                    close_attempt(run / stage, Ending(state="done"))
                server.start()
                write_launch(run, replace(_launch(server.uri), ended=time.time()))
                forwarder.wait(DELIVERY_S)
            finally:
                forwarder.kill()
                forwarder.wait()
        _sync(run)
        return [*found, *claims.told("what arrived", _arrived(server.uri, run, sides))]
    finally:
        for side in chain.from_iterable(sides):
            side.kill()
        server.kill()


def _on_and_off(run: Path, forwarder: int, size: _Size) -> list[Claim]:
    """Compares steps of two ranks, of which the first logs or not, while the forwarder tells what it logged.

    Where nothing is logged the forwarder is stopped, and its pauses run on: it has rather more to tell afterwards.
    """
    sides = [Side(name, "", "", run / WORKING, 0) for name in ("tracked", "untracked", "untracked")]
    tracked, untracked, other = sides
    times: dict[str, list[float]] = defaultdict(list)
    try:
        for turn in range(size.pairs + 1):
            for first in (tracked, untracked) if turn % 2 else (untracked, tracked):
                os.kill(forwarder, signal.SIGCONT if first is tracked else signal.SIGSTOP)
                for side in (first, other):
                    side.begin(size.block)
                told = [side.result(size.block, size.limit_s + size.block) for side in (first, other)]
                if turn:
                    times[first.name].append(max(one["step_s"] for one in told))
    finally:
        os.kill(forwarder, signal.SIGCONT)
        for side in sides:
            side.kill()
    name = "healthy server: a step of two ranks, tracking on"
    found = claims.claim(
        name, times["tracked"], times["untracked"], "s", peer_name="tracking off", bar=1 + SHARE_BAR,
        direction="at most",
    )  # fmt: skip
    return claims.told("tracking on and off", [found])


def _all_cells(
    server: TrackingServer, sides: list[list[Side]], stage: Path, forwarder: int, size: _Size
) -> list[Claim]:
    healthy, *dead = sides
    healthy[0].log(size.steps, size.limit_s)
    while NUMBER not in read_ledger(stage).get("last_steps", {}):  # it has loaded MLflow by then, once
        time.sleep(1)
    began_s = _processor_s(forwarder)
    times = _turns(healthy, size.rounds, size.steps, size)
    background_s = (_processor_s(forwarder) - began_s) / ((size.rounds + 1) * size.steps)
    found = claims.told("healthy server", _step_claims("healthy server", times, size))
    found += _processor_claims(times, background_s)
    _end_all(healthy)
    server.kill()
    for cell, those in zip(DEAD, dead, strict=True):
        with _occupied(server.port) if cell == "silent server" else nullcontext():
            times = _turns(those, size.dead_rounds, size.steps, size, plain_steps=1)
            _end_all(those)
        found += claims.told(cell, _step_claims(cell, times, size))
    return found


def _end_all(sides: list[Side]) -> None:
    for side in sides:
        side.end(GRACE_S)


def _turns(sides: list[Side], rounds: int, steps: int, size: _Size, *, plain_steps: int | None = None) -> Times:
    """Has the sides log in turns; the first round warms up where the server is healthy, and counts where none is."""
    times: Times = defaultdict(list)
    for turn in range(rounds + (plain_steps is None)):
        for side in sides if turn % 2 else sides[::-1]:
            told = side.log(plain_steps or steps if side.name == "plain" else steps, size.limit_s)
            if turn or plain_steps is not None:
                times[side.name].append(told)
    return times


def _step_claims(cell: str, times: Times, size: _Size) -> list[Claim]:
    ours = [one["call_s"] for one in times["ours"]]
    slowest_ms = 1000 * max(one["slowest_s"] for one in times["ours"])
    name = f"{cell}: a logged step"
    found = [
        claims.claim(
            name, [one / STEP_S for one in ours], None, "of a 50 ms step", peer_name=None, bar=SHARE_BAR,
            direction="at most", note=f"slowest call {slowest_ms:.2g} ms",
        )
    ]  # fmt: skip
    for side in ("plain", "async"):
        peer = [one["call_s"] for one in times[side]]
        blocked = max(peer) >= size.limit_s
        note = f"theirs is more: it was killed after {size.limit_s:.0f} s in its call" if blocked else ""
        found.append(claims.claim(name, ours, peer, "s", peer_name=SIDES[side], bar=None, note=note))
    return found


def _processor_claims(times: Times, background_s: float) -> list[Claim]:
    name, note = (
        "healthy server: processor time of a logged step",
        "ours with all the forwarder does, at lower priority",
    )
    ours = [one["processor_s"] + background_s for one in times["ours"]]
    return [
        claims.claim(
            name, ours, [one["processor_s"] for one in times[side]], "s", peer_name=SIDES[side], bar=None, note=note
        )
        for side in ("plain", "async")
    ]


def _arrived(uri: str, run: Path, sides: list[list[Side]]) -> list[Claim]:
    from mlflow import MlflowClient

    lost, asked, doubled = dict[str, int](), dict[str, int](), 0
    for same in zip(*sides, strict=True):  # the processes of one side, which told one run
        name = same[0].name
        run_id = same[0].run_id or read_ledger(run / STAGE)["mlflow_run_id"]
        steps = [point.step for point in MlflowClient(tracking_uri=uri).get_metric_history(run_id, NUMBER)]
        asked[name] = sum(side.asked for side in same)
        lost[name] = asked[name] - len(set(steps))
        if name == "ours":
            doubled = len(steps) - len(set(steps))
    what, ours = "steps lost when a job ends while its server is away", [lost["ours"]]
    return [
        claims.claim(
            what, ours, None, "steps", peer_name=None, bar=0, direction="at most", note=f"of {asked['ours']}"
        ),
        claims.claim(
            "steps that arrived twice", [doubled], None, "steps", peer_name=None, bar=0, direction="at most"
        ),
        *(
            claims.claim(
                what, ours, [lost[name]], "steps", peer_name=SIDES[name], bar=None, note=f"of {asked[name]} of theirs"
            )
            for name in ("plain", "async")
        ),
    ]  # fmt: skip


def _start_sides(uri: str, run: Path, sides: list[list[Side]]) -> None:
    """Starts three processes a cell: later there is no server to begin with."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("peers")
    plain, queued = (client.create_run(experiment).info.run_id for _ in range(2))
    for cell in range(1 + len(DEAD)):
        sides.append([])
        for name, run_id, folder in (("ours", "", STAGE), ("plain", plain, "logs"), ("async", queued, "logs")):
            sides[-1].append(Side(name, uri, run_id, run / folder, cell * 10**5))


def _make_run(run: Path, uri: str) -> Path:
    """Makes a run folder as launch and supervisor leave it while a training goes on."""
    (run / "logs").mkdir(parents=True)
    for stage in (STAGE, WORKING):
        (run / stage).mkdir()
        document: Mapping[str, Any] = {
            "name": stage, "stage": "train", "target": "benchmarks", "config": {}, "inputs": {}, "outputs": {},
            "after": [], "seed": 1, "fingerprint": "f", "identity": {}, "resources": {"nodes": 1}, "steps": 10**6,
        }  # fmt: skip
        write_json(run / stage / "stage.json", document)
        open_attempt(run / stage, launcher="local", job_id="1", nodes=("here",))
    write_launch(run, _launch(uri))
    return run


def _launch(uri: str) -> Launch:
    stages = tuple({"name": name, "action": "run", "reason": "has not run yet"} for name in (STAGE, WORKING))
    return Launch(
        recipe="tracking", launcher="local", host="here", user="benchmark", started=time.time(), stages=stages,
        tracking={"uri": uri, "experiment": None},
    )  # fmt: skip


def _start_forwarder(run: Path) -> "subprocess.Popen[bytes]":
    with (run / "logs" / "tracking.log").open("ab") as log:
        forwarder = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.tracking", str(run), "--follow"], stdout=log, stderr=log,
            cwd=REPOSITORY,
        )  # fmt: skip
    os.setpriority(os.PRIO_PROCESS, forwarder.pid, 10)  # as the supervisor does
    return forwarder


def _sync(run: Path) -> None:
    subprocess.run([sys.executable, "-m", "orchestrator.tracking", str(run)], check=True, cwd=REPOSITORY, timeout=300)


def _processor_s(pid: int) -> float:
    """Returns the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _occupied(port: int) -> Iterator[None]:
    """Holds a port: connections are accepted, by the kernel, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", port), backlog=1000):
        yield


if __name__ == "__main__":
    main()
