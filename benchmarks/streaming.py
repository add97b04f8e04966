"""Streaming, ours and webdataset's on the same tars, interleaved: raw reading, resuming, damage.

python -m benchmarks.streaming --json          # about two minutes
python -m benchmarks.streaming --json --quick  # under a minute
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from orchestrator.artifacts import Shards
from orchestrator.data.index import build_index
from orchestrator.data.reader import ShardReader
from orchestrator.data.stream import Drawn, SampleStream
from orchestrator.data.writer import ShardWriter

GLOBAL_BATCH = 64
Claim = dict[str, Any]


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON as described in the interface")
    parser.add_argument("--quick", action="store_true", help="a small version of the same")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
    samples, repeats = (6_000, 3) if options.quick else (20_000, 7)
    with tempfile.TemporaryDirectory() as folder:
        shards = _write(Path(folder) / "shards", samples)
        claims = [*_reading(shards, samples, repeats), _resuming(shards, samples, repeats), *_damage(Path(folder))]
    if options.json:
        print(json.dumps({"machine": _machine(), "versions": _versions(), "claims": claims}, indent=1))
        return
    for claim in claims:
        answer = {True: "holds", False: "does not hold", None: "not measured"}[claim["holds"]]
        print(f"{claim['claim']}: {claim['ours']:.5g} against {claim['peer']:.5g} {claim['unit']}: {answer}")


def _reading(shards: Path, samples: int, repeats: int) -> list[Claim]:
    """Reads every sample once, without decoding."""
    tars = sorted(shards.glob("*.tar"))

    def in_order() -> None:
        for tar in tars:
            reader = ShardReader(tar)
            for number in range(len(reader.index)):
                reader.read(number)
            reader.close()

    def shuffled() -> None:
        steps = samples // GLOBAL_BATCH
        for _ in _stream(shards).batches(_as_drawn, start_step=0, steps=steps):
            pass

    def peer() -> None:
        for _ in _webdataset(tars):
            pass

    found = _interleaved({"in order": in_order, "fully shuffled": shuffled, "peer": peer}, repeats)
    rates = {name: [samples / seconds for seconds in times] for name, times in found.items()}
    note = "one process, warm page cache, jpg of 15 to 35 kB and a short json; ours checks a crc32 of every member"
    return [
        _claim(f"raw reading, {name}", rates[name], rates["peer"], "samples/s", bar=10.0, note=note)
        for name in ("in order", "fully shuffled")
    ]


def _resuming(shards: Path, samples: int, repeats: int) -> Claim:
    """Waits for the first batch at nine tenths of an epoch."""
    tars, step = sorted(shards.glob("*.tar")), samples * 9 // 10 // GLOBAL_BATCH

    def ours() -> None:
        next(_stream(shards).batches(_as_drawn, start_step=step, steps=1))

    def peer() -> None:
        next(islice(_webdataset(tars), step * GLOBAL_BATCH + GLOBAL_BATCH - 1, None))

    ours()  # torch is imported here, and not at the clock's expense
    found = _interleaved({"ours": ours, "peer": peer}, repeats)
    note = f"first batch of {GLOBAL_BATCH} at step {step}, the stream opened anew; webdataset reads what was before"
    claim = _claim("resume at 90 % of an epoch", found["ours"], found["peer"], "s", bar=0.01, note=note)
    return claim | {"holds": claim["ratio"] <= claim["bar"]}


def _damage(folder: Path) -> list[Claim]:
    """Cuts a tar inside a sample, puts another behind it that begins with the same key, and counts what arrives."""
    tars = []
    for name, first in (("cut", 0), ("next", 5)):
        with ShardWriter(folder / name) as writer:
            for number in range(first, first + 10):
                text = f"{name} {number}".encode()
                writer.write(f"{number:04d}", {"jpg": text * 1000, "json": text})
        tars.append(folder / name / "shard-000000.tar")
    with tarfile.open(tars[0]) as tar:
        end = tar.getmember("0005.json").offset
    os.truncate(tars[0], end)

    index = build_index(tars[0])  # as for a tar of strangers: without the index that was written beside it
    ours = [ShardReader(tars[0]).read(number) for number in range(len(index))]
    ours += [ShardReader(tars[1]).read(number) for number in range(10)]
    theirs = [
        (sample["__key__"], {name: sample[name] for name in ("jpg", "json") if name in sample})
        for sample in webdataset.WebDataset(
            [str(tar) for tar in tars], shardshuffle=False, handler=webdataset.ignore_and_continue
        )
    ]
    wrong, whole = [_wrong(found) for found in (ours, theirs)], [len(ours), len(theirs)]
    note = "a tar cut inside its sixth of ten samples, then a whole one that begins with that sample's key"
    kept = [count - bad for count, bad in zip(whole, wrong, strict=True)]
    return [
        _claim("wrong samples from a cut tar", [wrong[0]], [wrong[1]], "samples", bar=0.0, note=note)
        | {"holds": wrong[0] == 0},
        _claim("whole samples kept of 15", [kept[0]], [kept[1]], "samples", bar=15.0, note=note)
        | {"holds": kept[0] == 15},
    ]


def _wrong(found: Sequence[tuple[str, dict[str, bytes]]]) -> int:
    """Counts samples that are half of one, or two in one."""
    return sum("jpg" not in members or members["jpg"] != members.get("json", b"") * 1000 for _, members in found)


def _write(directory: Path, samples: int) -> Path:
    noise = np.random.default_rng(0)
    content = noise.bytes(35_000)
    with ShardWriter(directory) as writer:
        for number in range(samples):
            text = json.dumps({"caption": "a red square on a green ground", "number": number}).encode()
            writer.write(f"{number:08d}", {"jpg": content[: noise.integers(15_000, 35_000)], "json": text})
        facts = writer.close()
    Shards(directory).commit("benchmark", facts=facts, sha256=writer.sha256)
    return directory


def _stream(shards: Path) -> SampleStream:
    return SampleStream(
        {"a": shards},
        weights={},
        seed=0,
        global_batch=GLOBAL_BATCH,
        micro_batch=GLOBAL_BATCH,
        world_rank=0,
        world_size=1,
    )


def _as_drawn(drawn: Sequence[Drawn]) -> Sequence[Drawn]:
    return drawn


def _webdataset(tars: Sequence[Path]) -> Any:
    return iter(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False))


def _interleaved(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Runs each in turn, again and again, and returns the seconds of each."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
    return found


def _claim(name: str, ours: Sequence[float], peer: Sequence[float], unit: str, *, bar: float, note: str) -> Claim:
    mine, theirs = statistics.median(ours), statistics.median(peer)
    ratio = mine / theirs if theirs else None
    spread = {
        who: (max(values) - min(values)) / statistics.median(values) if any(values) else 0.0
        for who, values in (("ours", ours), ("peer", peer))
    }
    return {
        "claim": name,
        "ours": mine,
        "peer": theirs,
        "peer_name": "webdataset",
        "unit": unit,
        "ratio": ratio,
        "spread": spread,
        "bar": bar,
        "holds": ratio is not None and ratio >= bar,
        "note": note,
    }


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "system": platform.platform(), "processor": platform.machine()}


def _versions() -> dict[str, str]:
    names = ("numpy", "torch", "webdataset")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


if __name__ == "__main__":
    main()
