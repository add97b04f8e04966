"""The sides of benchmarks.tracking, each a process that logs the steps of a training.

Called as `python -m benchmarks.tracking_sides ours|plain|async URI RUN_ID FOLDER`. For each line on its input, which is
`FIRST STEPS STEP_S` or `end`, it runs so many steps, logs each, and answers with a line of JSON: what calls and steps
took and what processor time the process spent. Of `tracked`, which logs as ours does, and `untracked`, which logs
nothing, a step is work instead of sleep: always the same, a quarter of a second.
"""

import hashlib
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
NUMBER, STEP_S, START_S = "step_seen", 0.05, 120.0
WORK_BYTES, WORK_TIMES = 1 << 20, 400  # what the work of a step reads: about 0.25 s, a short step of a training
Log = Callable[[int, Mapping[str, float]], None]


class Side:
    """A process that logs steps when it is asked to."""

    def __init__(self, name: str, uri: str, run_id: str, folder: Path, first: int) -> None:
        """Starts it, while there is a server; its steps count from `first`."""
        self.name, self.run_id, self.asked = name, run_id, 0
        self._first = first
        self._command = [sys.executable, "-m", "benchmarks.tracking_sides", name, uri, run_id, str(folder)]
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None
        self._start()

    def log(self, steps: int, limit_s: float) -> dict[str, float]:
        """Logs steps and returns its figures; blocked for longer than the limit it is killed, and costs that."""
        self.begin(steps)
        return self.result(steps, limit_s)

    def begin(self, steps: int) -> None:
        """Has it begin to log so many steps; a killed one does nothing."""
        first, self.asked = self._first + self.asked, self.asked + steps * (self._process is not None)
        if self._process is not None:
            self._say(f"{first} {steps} {STEP_S}")

    def result(self, steps: int, limit_s: float) -> dict[str, float]:
        """Waits for the figures of these steps."""
        found = None if self._process is None else self._answer(steps * STEP_S + limit_s)
        if found is None:
            self.kill()
        return found or {"call_s": limit_s, "slowest_s": limit_s, "step_s": limit_s, "processor_s": 0.0}

    def end(self, grace_s: float) -> None:
        """Ends as a job does that is told to: with a grace, then by kill -9."""
        if self._process is not None:
            self._say("end")
            self._answer(grace_s)
            self.kill()

    def kill(self) -> None:
        """Ends it now."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            )  # fmt: skip
        if self._answer(START_S) is None:
            raise subprocess.SubprocessError(f"{self.name} did not start: {self._log.read_text()[-1000:]}")

    def _say(self, words: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError(f"{self.name} is not started")
        print(words, file=self._process.stdin, flush=True)

    def _answer(self, limit_s: float) -> dict[str, float] | None:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError(f"{self.name} is not started")
        if not select.select([self._process.stdout], [], [], limit_s)[0]:
            return None
        line = self._process.stdout.readline()
        found: dict[str, float] | None = json.loads(line) if line else None
        return found


def values_of(step: int) -> dict[str, float]:
    """Makes what a training logs of a step: ten numbers that no other step has."""
    chance = random.Random(step)  # noqa: S311 - values, not secrets
    names = ("loss", "grad_norm", "lr", "samples_per_s", "data_wait_s", "data_wait_share", "memory_gb", "next", "seg")
    return {NUMBER: float(step), **{name: chance.random() for name in names}}


def main() -> None:
    """Answers until `end`; what is still to be told is told then, as at the end of a job."""
    side, uri, run_id, folder = sys.argv[1:]
    if side in {"ours", "tracked"}:
        log, finish = _ours(Path(folder))
    elif side == "untracked":
        log, finish = _nothing, lambda: None
    else:
        log, finish = _mlflow(uri, run_id, synchronous=side == "plain")
    take = _work if side in {"tracked", "untracked"} else time.sleep
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            finish()
            print(json.dumps({"ended": True}), flush=True)
            return
        first, steps, step_s = line.split()
        print(json.dumps(_logged(log, take, int(first), int(steps), float(step_s))), flush=True)


def _logged(log: Log, take: Callable[[float], None], first: int, steps: int, step_s: float) -> dict[str, float]:
    """Logs steps that take `step_s` each; returns seconds in the calls, in all and of the processor, a step."""
    in_calls_s, slowest_s, processor_s, started = 0.0, 0.0, time.process_time(), time.perf_counter()
    for step in range(first, first + steps):
        values = values_of(step)
        began = time.perf_counter()
        try:
            log(step, values)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises would have ended the training
            print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
        took_s = time.perf_counter() - began
        in_calls_s, slowest_s = in_calls_s + took_s, max(slowest_s, took_s)
        take(max(0.0, step_s - took_s))
    return {
        "call_s": in_calls_s / steps,
        "slowest_s": slowest_s,
        "step_s": (time.perf_counter() - started) / steps,
        "processor_s": (time.process_time() - processor_s) / steps,
    }


def _work(_rest_s: float) -> None:
    """Does the work of a step, which is always the same."""
    data = bytes(WORK_BYTES)
    for _ in range(WORK_TIMES):
        hashlib.sha256(data).digest()


def _nothing(_step: int, _values: Mapping[str, float]) -> None:
    """Logs nothing."""


def _ours(folder: Path) -> tuple[Log, Callable[[], None]]:
    from orchestrator.journal import Journal

    journal = Journal(folder)
    return journal.metrics, journal.close


def _mlflow(uri: str, run_id: str, *, synchronous: bool) -> tuple[Log, Callable[[], None]]:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.start_run(run_id=run_id)  # to name the run in each call would ask the server for it each time

    def log(step: int, values: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(values), step=step, synchronous=synchronous)

    return log, (lambda: None) if synchronous else mlflow.flush_async_logging


if __name__ == "__main__":
    main()
