"""One side of benchmarks.tracking: `python -m benchmarks.tracking_sides ours|plain|async URI RUN_ID FOLDER`.

For each line on its input, `FIRST STEPS STEP_S` (or `end`), it runs so many steps, logs each, and answers with a line
of JSON: what the calls took and what processor time the process spent beside the steps.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Log = Callable[[int, Mapping[str, float]], None]


def values_of(step: int) -> dict[str, float]:
    """Makes what a training logs of a step: ten numbers that no other step has."""
    chance = random.Random(step)  # noqa: S311 - values, not secrets
    names = ("loss", "grad_norm", "lr", "samples_per_s", "data_wait_s", "data_wait_share", "memory_gb", "next", "seg")
    return {"step_seen": float(step), **{name: chance.random() for name in names}}


def main() -> None:
    """Answers until `end`; what is still to be told is told then, as at the end of a job."""
    side, uri, run_id, folder = sys.argv[1:]
    log, finish = _ours(Path(folder)) if side == "ours" else _mlflow(uri, run_id, synchronous=side == "plain")
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            finish()
            print(json.dumps({"ended": True}), flush=True)
            return
        first, steps, step_s = line.split()
        print(json.dumps(_logged(log, int(first), int(steps), float(step_s))), flush=True)


def _logged(log: Log, first: int, steps: int, step_s: float) -> dict[str, float]:
    """Logs steps that take `step_s` each; returns seconds in the calls and of the processor, a step."""
    in_calls_s, slowest_s, processor_s = 0.0, 0.0, time.process_time()
    for step in range(first, first + steps):
        values = values_of(step)
        began = time.perf_counter()
        try:
            log(step, values)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises would have ended the training
            print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
        took_s = time.perf_counter() - began
        in_calls_s, slowest_s = in_calls_s + took_s, max(slowest_s, took_s)
        time.sleep(max(0.0, step_s - took_s))
    return {
        "call_s": in_calls_s / steps,
        "slowest_s": slowest_s,
        "processor_s": (time.process_time() - processor_s) / steps,
    }


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
