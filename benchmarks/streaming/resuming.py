"""Cell c: how long until the first batch, nine tenths into an epoch."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.claims import Claim, cannot, claim
from benchmarks.streaming.programs.serve import BATCH
from benchmarks.streaming.rivals import OURS, Cannot, Rival
from benchmarks.streaming.tars import write_large_set, write_set
from orchestrator.data.rules import OrderRules, ShuffleRule
from orchestrator.data.stream import Drawn, SampleStream

REPLAY_BAR, OTHERS_BAR, FLAT_BAR = 1 / 100, 1 / 5, 1.2
_WINDOW = 5  # blocks: none of a window is missing at nine tenths of ten tars either


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


def resume_at_any_size(folder: Path, sizes: Sequence[int], repeats: int) -> list[Claim]:
    """Measures ours, in this process, on sets of growing size: one real tar under many names.

    It is a matter of milliseconds, so a few rounds would tell more of the machine than of us.
    """
    one = write_set(folder / "one", 1000)
    sets = {size: write_large_set(folder / f"of-{size}", size, one) for size in sizes}
    ways: Mapping[str, _Way] = {
        "open": lambda path, size: _first_batch(path, size * 9 // 10, in_blocks=True, opened=True),
        "anew": lambda path, size: _first_batch(path, size * 9 // 10, in_blocks=False, opened=False),
        "at 0": lambda path, _: _first_batch(path, 0, in_blocks=False, opened=False),
    }
    found = {(way, size): list[float]() for way in ways for size in sizes}
    for number in range(repeats + 1):
        for size, path in sets.items():
            for way, measure in ways.items():
                seconds = measure(path, size)
                if number:
                    found[way, size].append(seconds)
    return [one for size in sizes for one in _of_a_size(found, size, sizes[0])]


_Way = Callable[[Path, int], float]


def _of_a_size(found: Mapping[tuple[str, int], list[float]], size: int, smallest: int) -> Iterator[Claim]:
    made = f"{size // 1000:,} tars, one real tar of 1,000 samples under many names"
    if size > smallest:
        yield claim(
            f"c. first batch at 90 % of {size:,} samples, data open", found["open", size], found["open", smallest], "s",
            peer_name=f"ours, {smallest:,}", bar=FLAT_BAR, direction="at most",
            note=f"{made}; in blocks, so that all sizes open as many tars for a batch ({_WINDOW})",
        )  # fmt: skip
    yield claim(
        f"c. first batch at 90 % of {size:,} samples, opened anew", found["anew", size], found["at 0", size], "s",
        peer_name="ours, at 0 %", bar=FLAT_BAR, direction="at most",
        note=f"{made}; fully shuffled: a batch opens up to 64 tars; what grows is opening the set, wherever one begins",
    )  # fmt: skip


def _first_batch(path: Path, sample: int, *, in_blocks: bool, opened: bool) -> float:
    shuffle = ShuffleRule(mode="blocks", block=1000, window=_WINDOW) if in_blocks else ShuffleRule()
    start = time.perf_counter()
    stream = SampleStream(
        {"a": path}, weights={}, rules=OrderRules(shuffle=shuffle), seed=0, global_batch=BATCH, micro_batch=BATCH,
        world_rank=0, world_size=1,
    )  # fmt: skip
    if opened:
        start = time.perf_counter()
    next(iter(stream.batches(_as_drawn, start_step=sample // BATCH, steps=1)))
    return time.perf_counter() - start


def _as_drawn(drawn: Sequence[Drawn]) -> Sequence[Drawn]:
    return drawn


def _how(name: str) -> str:
    how = {"webdataset": "; reads again what was before", "megatron-energon": "; restores its saved state"}
    return how.get(name, "; loads its state_dict")
