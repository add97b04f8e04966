"""Measures reading shards, ours and the peers' on the same samples, interleaved.

python -m benchmarks.streaming                 # a table, about fifteen minutes
python -m benchmarks.streaming --json --quick  # about a minute, once the peers are installed
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import claims
from benchmarks.claims import Claim
from benchmarks.streaming import damage, reading, resuming, scale
from benchmarks.streaming.rivals import OURS, PEERS, Cannot, Rival, environment_of_peers, versions_of_peers
from benchmarks.streaming.tars import write_set

CELLS = "abcde"


class _Size(NamedTuple):
    samples: int
    decoded: int
    repeats: int
    sets: tuple[int, ...]


_FULL = _Size(samples=20_000, decoded=5_000, repeats=5, sets=(10**4, 10**5, 10**6, 10**7))
_QUICK = _Size(samples=5_000, decoded=1_280, repeats=2, sets=(10**4, 10**6))


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = claims.command_line(__doc__)
    parser.add_argument(
        "--cells", default=CELLS, help="some of a (raw), b (decoded), c (resume), d (damage), e (scale)"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {', '.join(PEERS)}, or none")
    options = parser.parse_args()
    names = [name for name in options.peers.split(",") if name != "none"]
    if unknown := [name for name in names if name not in PEERS] + [cell for cell in options.cells if cell not in CELLS]:
        parser.error(f"unknown: {', '.join(unknown)}; allowed: {', '.join(PEERS)}, none; cells {CELLS}")
    size, machine = _QUICK if options.quick else _FULL, claims.machine()
    python = environment_of_peers() if names and set(options.cells) & set("abc") else None
    with tempfile.TemporaryDirectory() as folder:
        found = list(_measured(Path(folder), python, names, options.cells, size))
    versions = claims.versions() | (versions_of_peers(python, names) if options.json and python else {})
    claims.show(found, machine, versions, as_json=options.json)


def _measured(folder: Path, python: Path | None, names: Sequence[str], cells: str, size: _Size) -> Iterator[Claim]:
    shards = write_set(folder / "shards", size.samples)
    decoded = (
        write_set(folder / "decoded", size.decoded, samples_per_shard=size.decoded // 8) if "b" in cells else shards
    )
    with _rivals(folder, python, names) as rivals:
        if "a" in cells or "c" in cells:
            able, claims_of_the_unable = _prepared(rivals, shards, folder / "raw")
            yield from claims_of_the_unable
            if "a" in cells:
                yield from claims.told("a", reading.read_raw(able, size.samples, size.repeats))
            if "c" in cells:
                yield from claims.told("c", resuming.resume(able, size.samples, size.repeats))
                yield from claims.told("c", resuming.resume_at_any_size(folder, size.sets, 6 * size.repeats))
        if "b" in cells:
            able, claims_of_the_unable = _prepared(rivals, decoded, folder / "b")
            yield from claims_of_the_unable
            yield from claims.told("b", reading.read_decoded(able, decoded, size.decoded, size.repeats))
    if "d" in cells:
        yield from claims.told("d", damage.survive_damage(folder))
    if "e" in cells:
        yield from claims.told("e", scale.open_billion(folder, size.repeats))
        yield from claims.told("e", [scale.build_indexes(shards, size.repeats)])


@contextlib.contextmanager
def _rivals(folder: Path, python: Path | None, names: Sequence[str]) -> Iterator[list[Rival]]:
    with contextlib.ExitStack() as stack:
        rivals = [stack.enter_context(Rival(OURS, Path(sys.executable), folder / f"{OURS}.log"))]
        if python is not None:
            rivals += [stack.enter_context(Rival(name, python, folder / f"{name}.log")) for name in names]
        yield rivals


def _prepared(rivals: Sequence[Rival], shards: Path, folder: Path) -> tuple[list[Rival], list[Claim]]:
    """Lets each get ready for a set; who cannot is shown once and measured no more."""
    folder.mkdir()
    able, unable = [], []
    for rival in rivals:
        try:
            rival.ask(
                {"do": "prepare", "tars": [str(tar) for tar in sorted(shards.glob("*.tar"))], "folder": str(folder)}
            )
            able.append(rival)
        except Cannot as error:
            name = f"{rival.name} gets ready"
            unable.append(claims.cannot(name, [0.0], "", peer_name=rival.name, bar=None, why=str(error)))
    return able, unable


if __name__ == "__main__":
    main()
