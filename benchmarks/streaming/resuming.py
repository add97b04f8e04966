"""Cell c: how long until the first batch, nine tenths into an epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.streaming.claims import Claim, cannot, claim, spread
from benchmarks.streaming.programs.serve import BATCH
from benchmarks.streaming.rivals import OURS, Cannot, Rival
from benchmarks.streaming.tars import write_large_set, write_set

REPLAY_BAR, OTHERS_BAR, FLAT_BAR = 1 / 100, 1 / 5, 1.2


def resume(rivals: Sequence[Rival], samples: int, repeats: int) -> list[Claim]:
    """Measures opening anew at nine tenths, on the same samples; peers' states were saved before, off the clock."""
    at = samples * 9 // 10 // BATCH * BATCH
    seconds: dict[str, list[float]] = {}
    why: dict[str, str] = {}
    for number in range(repeats + 1):
        for rival in rivals:
            if rival.name in why:
                continue
            try:
                answer = rival.ask({"do": "resume", "sample": at})
            except Cannot as error:
                why[rival.name] = str(error)
                continue
            if number:
                seconds.setdefault(rival.name, []).append(answer["seconds"])
    name = "c. first batch at 90 % of an epoch"
    claims = []
    others = [rival.name for rival in rivals[1:] if rival.name != "webdataset" and rival.name in seconds]
    best = min(others, key=lambda peer: sorted(seconds[peer])[len(seconds[peer]) // 2]) if others else None
    bars = {"webdataset": REPLAY_BAR} | ({best: OTHERS_BAR} if best else {})
    for rival in rivals[1:]:
        bar = bars.get(rival.name)
        if rival.name in why:
            claims.append(cannot(name, seconds[OURS], "s", peer_name=rival.name, bar=bar, why=why[rival.name]))
            continue
        note = f"sample {at:,} of {samples:,}, everything opened anew" + _how(rival.name)
        found = seconds[rival.name]
        claims.append(
            claim(name, seconds[OURS], found, "s", peer_name=rival.name, bar=bar, direction="at most", note=note)
        )
    return claims


def resume_at_any_size(ours: Rival, folder: Path, sizes: Sequence[int], repeats: int) -> list[Claim]:
    """Measures ours on sets of growing size: one real tar under many names."""
    one = write_set(folder / "one", 1000)
    sets = {size: write_large_set(folder / f"of-{size}", size, one) for size in sizes}
    found: Mapping[int, list[float]] = {size: [] for size in sizes}
    for number in range(repeats + 1):
        for size, path in sets.items():
            ours.ask({"do": "prepare", "tars": [str(path / "shard-000000.tar")], "folder": str(folder)})
            answer = ours.ask({"do": "resume", "sample": size * 9 // 10})
            if number:
                found[size].append(answer["seconds"])
    smallest = found[sizes[0]]
    claims = []
    for size in sizes[1:]:
        note = f"{size // 1000:,} tars against {sizes[0] // 1000:,}: one real tar of 1,000 samples under many names"
        name = f"c. first batch at 90 % of {size:,} samples, against {sizes[0]:,}"
        made = claim(name, found[size], smallest, "s", peer_name="ours", bar=FLAT_BAR, direction="at most", note=note)
        claims.append(made | {"spread": {"ours": spread(found[size]), "peer": spread(smallest)}})
    return claims


def _how(name: str) -> str:
    how = {"webdataset": "; reads again what was before", "megatron-energon": "; restores its saved state"}
    return how.get(name, "; loads its state_dict")
