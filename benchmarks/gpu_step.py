"""Measures a step of a dense language model on one GPU: speed, what `fit` costs, saves, and the way back after a kill.

python -m benchmarks.gpu_step          # on a GPU a billion parameters in bf16, minutes; without one the same, tiny
python -m benchmarks.gpu_step --json

Bars are for one H100; a CPU has none, and the notes say that it is one. The run that is killed (-9, after its first
save) and started again is the real one: `orchestrator.worker`, samples from tars, and every later loss must be that of
a run that nobody disturbed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import claims
from benchmarks.claims import Claim
from benchmarks.gpu_step_stage import CPU, GPU, WORDS, Size
from benchmarks.overhead import PREPARE, REPOSITORY
from orchestrator.artifacts import Shards
from orchestrator.data.writer import ShardWriter

STAGE, SAMPLES = "words", 512
TOKENS_BAR, OVERHEAD_BAR, STALL_BAR_S, STALL_SHARE_BAR, RESTART_BAR_S = 48_000, 1.01, 0.5, 0.01, 60.0
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bf16, as the data sheets say
PATIENCE_S = 1200.0


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    options = claims.command_line(__doc__).parse_args()
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    size, machine = GPU if gpu else CPU, claims.machine() | {"gpu": gpu}
    with tempfile.TemporaryDirectory(prefix="orch-gpu-step-", ignore_cleanup_errors=True) as folder:
        found = [*_turns(Path(folder), size, gpu), *_runs(Path(folder), size, gpu)]
    where = gpu or "NO GPU HERE: a tiny model on a CPU, whose figures say only that this benchmark works"
    noted = [one | {"note": "; ".join(filter(None, [where, one["note"]]))} for one in found]
    claims.show(noted, machine, claims.versions(), as_json=options.json)


def _turns(folder: Path, size: Size, gpu: str | None) -> list[Claim]:
    """Steps by `fit` and by hand, in turns in one process."""
    claims.say("steps by fit and by hand, in turns ...")
    place = folder / "turns"
    place.mkdir()
    _wait(_start(["-m", "benchmarks.gpu_step_ranks", str(place), "GPU" if gpu else "CPU"], place, on_gpu=bool(gpu)))
    times = json.loads((place / "times.json").read_text(encoding="utf-8"))
    tokens = size.rows * (size.length - 1)
    speeds = [tokens / took_s for took_s in times["fit_s"]]
    peak = next((peak for name, peak in PEAK_TFLOPS.items() if name in (gpu or "")), None)
    found = [
        claims.claim(
            "words a second", speeds, [tokens / took_s for took_s in times["hand_s"]], "1/s",
            peer_name="DeepSpeed by hand", bar=None, note=f"bar on an H100: {TOKENS_BAR:,}",
        ),
        claims.claim(
            "time of a step", times["fit_s"], times["hand_s"], "s", peer_name="DeepSpeed by hand",
            bar=OVERHEAD_BAR if gpu else None, direction="at most",
        ),
    ]  # fmt: skip
    if peak is not None:
        shares = [speed * size.operations / (peak * 1e12) for speed in speeds]
        found.append(claims.claim("share of the peak (MFU)", shares, None, "", peer_name=None, bar=None))
    return found


def _runs(folder: Path, size: Size, gpu: str | None) -> list[Claim]:
    """A run that nobody disturbs, and one that is killed after its first save and started again."""
    words = _words(folder / "shards", size)
    claims.say("a run that saves ...")
    whole = _prepared(folder / "whole", words, size, on_gpu=bool(gpu))
    _wait(_worker(whole, on_gpu=bool(gpu)))
    stalls = [event["stall_s"] for event in _events(whole, "saved")]
    times = [event["time"] for event in _events(whole, "loss")]
    share = sum(stalls) / (times[-1] - times[0])
    claims.say("a run that is killed and goes on ...")
    killed = _prepared(folder / "killed", words, size, on_gpu=bool(gpu))
    took_s, same = _restart(killed, whole, size, on_gpu=bool(gpu))
    saves = f"{len(stalls)} saves, one every {size.save_every} steps"
    return [
        claims.claim(
            "training stands still for a save", stalls, None, "s", peer_name=None, bar=STALL_BAR_S if gpu else None,
            direction="at most", note=saves,
        ),
        claims.claim(
            "share of the time that saves take", [share], None, "", peer_name=None,
            bar=STALL_SHARE_BAR if gpu else None, direction="at most", note=saves,
        ),
        claims.claim(
            "from the start of the process to the first step after a kill", [took_s], None, "s", peer_name=None,
            bar=RESTART_BAR_S if gpu else None, direction="at most",
            note=f"losses of the {same} steps after it are those of the run that nobody disturbed",
        ),
    ]  # fmt: skip


def _restart(run: Path, whole: Path, size: Size, *, on_gpu: bool) -> tuple[float, int]:
    """Kills a run after its first save, starts it again; returns seconds to its first step, and the steps compared."""
    process = _worker(run, on_gpu=on_gpu)
    deadline = time.monotonic() + PATIENCE_S
    while not any(event["step"] > size.save_every for event in _events(run, "loss")) or not _events(run, "saved"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise subprocess.SubprocessError(f"the run ended, or saved nothing: see {run.parent / 'log'}")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(_events(run, "loss"))
    began = time.time()
    _wait(_worker(run, on_gpu=on_gpu))
    again = _events(run, "loss")[before:]
    truth = {event["step"]: event["value"] for event in _events(whole, "loss")}
    strange = [event["step"] for event in again if event["value"] != truth[event["step"]]]
    if strange or not again:
        raise AssertionError(f"steps {strange} have other losses than the run that nobody disturbed")
    return again[0]["time"] - began, len(again)


def _words(directory: Path, size: Size) -> Path:
    chance = np.random.default_rng(7)
    with ShardWriter(directory) as writer:
        for number in range(SAMPLES):
            ids = chance.integers(0, size.words, size.length, dtype=np.int32)
            writer.write(f"{number:06d}", {WORDS: ids.astype("<i4").tobytes()})
        facts = writer.close()
    Shards(directory).commit("0" * 64, facts=facts, sha256=writer.sha256)
    return directory


def _prepared(place: Path, words: Path, size: Size, *, on_gpu: bool) -> Path:
    """Plans and prepares a run of one stage, off the clock."""
    place.mkdir()
    train = {
        "steps": 3 * size.save_every + 10, "global_batch": size.rows, "workers": 1, "optim": {"lr": 1e-4},
        "save": {"every_steps": size.save_every}, "engine": {"zero_stage": 1, "precision": size.precision},
    }  # fmt: skip
    resources = {"gpus_per_node": 1} if on_gpu else {"tasks_per_node": 1}
    stage = {
        "stage": "dense_words", "inputs": {"shards": {"words": str(words)}},
        "config": {"on_gpu": on_gpu, "train": train}, "resources": resources,
    }  # fmt: skip
    recipe = {"name": "step", "seed": 1, "tracking": {"uri": None}, "stages": {STAGE: stage}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(place / "recipe.yaml"), str(REPOSITORY)], cwd=place, text=True,
        env=_environment(on_gpu=on_gpu), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise subprocess.SubprocessError(done.stderr)
    return Path(done.stdout.strip().splitlines()[-1])


def _worker(run: Path, *, on_gpu: bool) -> "subprocess.Popen[bytes]":
    return _start(["-P", "-m", "orchestrator.worker", str(run), STAGE], run.parent, on_gpu=on_gpu)


def _start(arguments: list[str], place: Path, *, on_gpu: bool) -> "subprocess.Popen[bytes]":
    more = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    meeting = {"ORCH_RENDEZVOUS": f"file://{place / f'meeting_{time.monotonic_ns()}'}"}
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments], env={**_environment(on_gpu=on_gpu), **more, **meeting}, stdout=log, stderr=log
        )


def _wait(process: "subprocess.Popen[bytes]") -> None:
    if code := process.wait(PATIENCE_S):
        raise subprocess.SubprocessError(f"{process.args!r} ended with {code}")


def _environment(*, on_gpu: bool) -> dict[str, str]:
    own = {"PYTHONPATH": str(REPOSITORY), "ORCH_CATALOG": "benchmarks.gpu_step_stage", "TORCHDYNAMO_DISABLE": "1"}
    return {**os.environ, **own, **({} if on_gpu else {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})}


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in _lines(run / STAGE / "journal.jsonl") if event["event"] == kind]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the whole lines of a journal that may still grow."""
    if path.is_file():
        yield from (json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line)


if __name__ == "__main__":
    main()
