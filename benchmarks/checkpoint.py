"""Measures checkpoints: how long training stands still for one, what loading on other ranks takes, what kills leave.

python -m benchmarks.checkpoint                 # a table, about fifteen minutes
python -m benchmarks.checkpoint --json --quick  # about two minutes

Two gloo ranks train the same transformer under the same DeepSpeed ZeRO-3 for every contender; its embedding is frozen.
All contenders stay in their processes and take turns on the same disk. Kills come at random instants.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from benchmarks import claims
from benchmarks.checkpoint_kills import killed
from benchmarks.checkpoint_ranks import RANKS, Shape, rank_main
from benchmarks.claims import Claim

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

STALL_BAR, BEST_BAR, LOAD_TIME_BAR, LOAD_MEMORY_BAR = 1 / 10, 1 / 2, 1 / 3, 1 / 2
STOCK = "engine.save_checkpoint"
ASYNC = {
    "dcp": "DCP async_save",
    "dcp_kept": "DCP async_save, stager kept",
    "decoupled": "DeepSpeed decoupled, python",
    "decoupled_fast": "DeepSpeed decoupled, fast",
}
PEERS = {"stock": STOCK, **ASYNC}
UNIVERSAL = "ds_to_universal + load"


class _Size(NamedTuple):
    shape: Shape
    rounds: int
    loads: int
    kills: int


_FULL = _Size(Shape(width=512, depth=10, words=16_384), rounds=7, loads=3, kills=200)
_QUICK = _Size(Shape(width=256, depth=4, words=8_192), rounds=3, loads=2, kills=20)


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = claims.command_line(__doc__)
    parser.add_argument("--kills", type=int, help="how often to kill; 0 = not at all")
    options = parser.parse_args()
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", TOKENIZERS_PARALLELISM="false")
    kills = size.kills if options.kills is None else options.kills
    with tempfile.TemporaryDirectory(prefix="orch-checkpoint-", ignore_cleanup_errors=True) as folder:
        found = _saves(Path(folder), size) + _loads(Path(folder), size)
        if kills:
            found.append(_kills(Path(folder) / "killed", kills))
    claims.show(found, machine, claims.versions(), as_json=options.json)


class Ranks:
    """The ranks of a contender: processes that do what they are told, all of them the same."""

    def __init__(self, name: str, folder: Path, shape: Shape, ranks: int) -> None:
        """Starts them."""
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=rank_main, args=(theirs, name, folder, shape, rank, ranks))
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def ask(self, verb: str, *arguments: Any) -> list[dict[str, Any]]:
        """Has every rank do something, and returns what they report; raises RuntimeError with a rank's own error."""
        for pipe in self._pipes:
            pipe.send((verb, *arguments))
        reports = []
        for rank, pipe in enumerate(self._pipes):
            try:
                fine, report = pipe.recv()
            except EOFError:
                fine, report = False, "it died"
            if not fine:
                raise RuntimeError(f"{self.name}: rank {rank}: {report}")
            reports.append(report)
        return reports

    def __enter__(self) -> Self:
        """Has them."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends them."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(20)
            process.kill()


def _saves(folder: Path, size: _Size) -> list[Claim]:
    """Lets every contender save in turns; who cannot run here says why."""
    there: dict[str, Ranks] = {}
    cannot: dict[str, str] = {}
    visits: dict[str, list[dict[str, Any]]] = {}
    try:
        for name in ("ours", "stock", *ASYNC):
            there[name] = Ranks(name, folder / name, size.shape, RANKS)
            try:
                there[name].ask("visit")  # the first round warms up
                visits[name] = []
            except RuntimeError as error:
                cannot[name] = str(error).splitlines()[-1]
                _say(f"{name} cannot run here: {cannot[name]}")
                there.pop(name).__exit__()
        for turn in range(size.rounds):
            names = list(there) if turn % 2 else list(reversed(there))
            for name in names:
                visits[name].append(_slowest(there[name].ask("visit")))
                _say(f"round {turn + 1}: {name}: {visits[name][-1]}")
        for name in ("ours", "stock"):
            there[name].ask("keep")
    finally:
        for ranks in there.values():
            ranks.__exit__()
    return _save_claims(visits, cannot)


def _slowest(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: max(report[key] for report in reports) for key in reports[0]}


def _save_claims(visits: Mapping[str, Sequence[Mapping[str, float]]], cannot: Mapping[str, str]) -> list[Claim]:
    stalls = {name: [visit["stall_s"] for visit in found] for name, found in visits.items()}
    added = {name: [visit["added_s"] for visit in found] for name, found in visits.items()}
    others = [name for name in ASYNC if name in stalls]
    best = min(others, key=lambda name: statistics.median(stalls[name]), default="stock")
    what = f"{visits['ours'][0]['bytes'] / 1e6:.0f} MB a checkpoint after the first; slower of two ranks"
    found = [
        claims.claim(
            "training stands still for a save", stalls["ours"], stalls["stock"], "s", peer_name=STOCK, bar=STALL_BAR,
            direction="at most", note=what,
        ),
        claims.claim(
            "training stands still for a save", stalls["ours"], stalls[best], "s", peer_name=PEERS[best], bar=BEST_BAR,
            direction="at most", note="the best of those that run here",
        ),
    ]  # fmt: skip
    for name, peer in ASYNC.items():
        if name in cannot:
            found.append(claims.cannot("the same", stalls["ours"], "s", peer_name=peer, bar=None, why=cannot[name]))
        elif name != best:
            found.append(claims.claim("the same", stalls["ours"], stalls[name], "s", peer_name=peer, bar=None))
    note = "wall time of the steps until it is on the disk, less that of as many steps without; ours syncs to disk"
    peers = {"stock": STOCK, best: PEERS[best]}
    return found + [
        claims.claim(
            "a save costs training in all", added["ours"], added[name], "s", peer_name=peer, bar=None, note=note
        )
        for name, peer in peers.items()
    ]


def _loads(folder: Path, size: _Size) -> list[Claim]:
    """Loads what the two ranks saved on one rank, in turns."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for turn in range(size.loads):
        with Ranks("ours", folder / "ours", size.shape, 1) as ranks:
            ours += ranks.ask("load")
        with Ranks("convert", folder / "stock", size.shape, 1) as ranks:
            converted = ranks.ask("convert")[0]
        with Ranks("universal", folder / "stock", size.shape, 1) as ranks:
            theirs.append(_both(converted, ranks.ask("load")[0]))
        _say(f"load {turn + 1}: ours {ours[-1]}, universal {theirs[-1]}")
    how = f"saved on {RANKS} ranks, loaded on 1"
    return [
        claims.claim(
            "loading on another number of ranks", [one["seconds"] for one in ours], [one["seconds"] for one in theirs],
            "s", peer_name=UNIVERSAL, bar=LOAD_TIME_BAR, direction="at most", note=how,
        ),
        claims.claim(
            "memory it takes at its peak", [one["peak_mb"] for one in ours], [one["peak_mb"] for one in theirs], "MB",
            peer_name=UNIVERSAL, bar=LOAD_MEMORY_BAR, direction="at most",
            note="of the process, more than before it began",
        ),
        *(
            claims.claim(
                f"{kind} weights that are then as they were saved", [one[key] for one in ours],
                [one[key] for one in theirs], "share", peer_name=UNIVERSAL, bar=None,
                note="into a model with other first weights",
            )
            for kind, key in (("frozen", "frozen"), ("learning", "learning"))
        ),
    ]  # fmt: skip


def _both(converted: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **loaded,
        "seconds": converted["seconds"] + loaded["seconds"],
        "peak_mb": max(converted["peak_mb"], loaded["peak_mb"]),
    }


def _kills(folder: Path, kills: int) -> Claim:
    loadable, step = killed(folder, kills)
    note = f"kill -9 at {kills} random instants of saving, then resumed: all checksums read; now at step {step}"
    return claims.claim("checkpoints that load, whatever the instant of a kill", [loadable / kills], None, "share",
                         peer_name=None, bar=1.0, note=note)  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
