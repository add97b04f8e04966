"""Measures what `orch status --watch` costs whoever leaves it open: processor time a look, at a run of 1,000 stages.

python -m benchmarks.watching                 # a table, about a minute
python -m benchmarks.watching --json --quick  # seconds

One stage runs and journals 20 steps between two looks. Ours reads what has changed and lays out a frame of 80 x 24; the
peer is what `--watch` did before, and what a loop around `orch status` would: it reads the status of all stages and
lays out the whole table. Both in one process, in turns. The view looks once a second: seconds a look are a share of a
core.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks import claims
from benchmarks.claims import Claim
from orchestrator.artifacts import Report, write_json
from orchestrator.display import status_table
from orchestrator.glance import Glance
from orchestrator.goodput import spending
from orchestrator.journal import Journal, read_events
from orchestrator.state import Attempt, Launch, StageState, write_launch, write_state
from orchestrator.status import Answer, read_status
from orchestrator.watchview import frame

RATIO_BAR, SHARE_BAR, ADDING_UP_BAR = 0.2, 0.03, 2.0
WIDTH, HEIGHT, STEPS_A_LOOK = 80, 24, 20


class _Size(NamedTuple):
    stages: int
    steps: int  # of the running stage before it is watched
    rounds: int


_FULL, _QUICK = _Size(stages=1000, steps=1_000_000, rounds=20), _Size(stages=200, steps=20_000, rounds=5)


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    options = claims.command_line(__doc__).parse_args()
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    with tempfile.TemporaryDirectory(prefix="orch-watching-") as folder:
        run = Path(folder) / "run"
        _make_run(run, size)
        found = _measured(run, size)
    claims.show(found, machine, claims.versions(), as_json=options.json)


def _measured(run: Path, size: _Size) -> list[Claim]:
    glance, ours_s, peer_s, step = Glance(run), [], [], size.steps
    first_s = _cost_s(lambda: _look(glance))
    for _ in range(size.rounds):
        step = _train(run, step)
        ours_s.append(_cost_s(lambda: _look(glance)))
        peer_s.append(_cost_s(lambda: _table(run)))
    claims.say(f"{size.rounds} rounds")
    adding_s = _cost_s(lambda: spending(run))
    parsing_s = _cost_s(lambda: deque(read_events(run / "running"), maxlen=0))
    note = f"{size.stages} stages; the first look took {first_s:.2g} s"
    return [
        claims.claim("processor time of a look", ours_s, peer_s, "s", peer_name="reading all", bar=RATIO_BAR,
                     direction="at most", note=note),
        claims.claim("share of a core at a look a second", ours_s, None, "", peer_name=None, bar=SHARE_BAR,
                     direction="at most", note=f"{size.stages} stages"),
        claims.claim("adding up a journal from its beginning", [adding_s], [parsing_s], "s",
                     peer_name="json of each line", bar=ADDING_UP_BAR, direction="at most", note=f"{size.steps} steps"),
    ]  # fmt: skip


def _look(glance: Glance) -> None:
    page = Console(file=StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT)
    for line in frame(glance.look(Answer(time=time.time())), WIDTH, HEIGHT):
        page.print(line, overflow="ignore", no_wrap=True, crop=False)


def _table(run: Path) -> None:
    Console(file=StringIO(), force_terminal=True, width=WIDTH).print(
        status_table(read_status(run, Answer(time=time.time())))
    )


def _cost_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _make_run(run: Path, size: _Size) -> None:
    """Makes a run that is in its middle: half of its stages are done, one runs, the others wait."""
    names = [f"stage_{at:04}" for at in range(size.stages)]
    for at, name in enumerate(names):
        folder = run / name
        folder.mkdir(parents=True)
        output = {"model": {"kind": "report", "path": str(folder / "model")}}
        document = {"name": name, "stage": "toy", "fingerprint": "f", "outputs": output, "steps": size.steps * 2}
        write_json(folder / "stage.json", document | {"after": names[at - 1 : at], "resources": {"nodes": 1}})
        ended = Attempt(number=1, launcher="local", job_id="1", nodes=("n",), started=1.0, ended=2.0, state="done")
        if at < size.stages // 2:
            (folder / "model").mkdir()
            (folder / "model" / "metrics.json").write_text("{}", encoding="ascii")
            Report(folder / "model").commit("f")
            write_state(folder, StageState(state="done", attempts=(ended,)))
    running = run / names[size.stages // 2]
    attempt = Attempt(number=1, launcher="local", job_id="1", nodes=("n",), started=time.time(), from_step=0)
    write_state(running, StageState(state="running", attempts=(attempt,)))
    stages = tuple({"name": name, "action": "run", "reason": "has not run yet"} for name in names)
    write_launch(run, Launch(recipe="r", launcher="local", host="h", user="u", started=time.time(), stages=stages))
    (run / "running").symlink_to(running)
    _train(run, 0, size.steps)
    claims.say(f"a run of {size.stages} stages, one of them at step {size.steps}")


def _train(run: Path, step: int, steps: int = STEPS_A_LOOK) -> int:
    """Journals steps as a training does, a log line every tenth; returns the last."""
    journal = Journal(run / "running")
    for at in range(step + 1, step + steps + 1):
        journal.append("loss", step=at, value=1.0 / at, data_wait_s=0.001)
        if at % 10 == 0:
            values = {"loss": 1.0 / at, "samples_per_s": 100.0, "data_wait_share": 0.01, "grad_norm": 1.0, "lr": 1e-4}
            journal.metrics(at, values | {"data_wait_s": 0.001, "bad_samples": 0.0, "bad_fraction": 0.0})
    journal.close()
    count = {"done": step + steps, "total": None, "unit": "step", "rate_per_s": 20.0, "eta_s": None}
    write_json(
        run / "running" / "progress.json", count | {"time": time.time() + 1, "values": {"loss": 0.1}, "notes": []}
    )
    return step + steps


if __name__ == "__main__":
    main()
