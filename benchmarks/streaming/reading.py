"""Cells a and b: how many samples a second, as they are stored, and decoded."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.streaming.claims import Claim, cannot, claim
from benchmarks.streaming.rivals import OURS, Cannot, Rival

RAW_BARS: Mapping[str, float] = {"webdataset": 10.0, "megatron-energon": 3.0}
DECODED_BAR = 1.3
Rates = dict[str, list[float]]


def read_raw(rivals: Sequence[Rival], samples: int, repeats: int) -> list[Claim]:
    """Measures reading without decoding, in the order of the tars and shuffled."""
    claims = []
    for words, shuffled in (("in order", False), ("shuffled", True)):
        rates, why = _rates(rivals, {"work": "raw", "shuffled": shuffled, "workers": 0}, samples, repeats)
        note = "one process, no workers, warm page cache, batches of 64; ours proves every member's checksum"
        for rival in rivals[1:]:
            bar = RAW_BARS.get(rival.name)
            claims.append(_claim(f"a. raw reading, {words}", rates, why, rival.name, bar=bar, note=note))
    return claims


def read_decoded(rivals: Sequence[Rival], samples: int, repeats: int) -> list[Claim]:
    """Measures reading with the same decoding: in one process, and with a worker a core."""
    claims = []
    cores = len(os.sched_getaffinity(0))
    for words, workers in (("one process", 0), (f"{cores} workers", cores)):
        rates, why = _rates(rivals, {"work": "decode", "shuffled": True, "workers": workers}, samples, repeats)
        note = "Pillow to RGB and json.loads, stacked into a torch tensor a batch; the same code for all"
        best = max(
            (name for name in rates if name != OURS), key=lambda name: sorted(rates[name])[len(rates[name]) // 2]
        )
        for rival in rivals[1:]:
            bar = DECODED_BAR if rival.name == best else None
            claims.append(_claim(f"b. JPEG decoded, {words}", rates, why, rival.name, bar=bar, note=note))
    return claims


def _rates(
    rivals: Sequence[Rival], request: Mapping[str, Any], samples: int, repeats: int
) -> tuple[Rates, dict[str, str]]:
    """Asks each in turn, again and again; the first round warms up and is not counted."""
    rates: Rates = {}
    why: dict[str, str] = {}
    expected = None
    for number in range(repeats + 1):
        for rival in rivals:
            if rival.name in why:
                continue
            try:
                answer = rival.ask({"do": "read", **request})
            except Cannot as error:
                why[rival.name] = str(error)
                continue
            expected = expected or answer
            if abs(answer["samples"] - samples) >= 64:  # a stream ends with a whole batch
                why[rival.name] = f"delivered {answer['samples']} of {samples} samples"
            elif number:
                rates.setdefault(rival.name, []).append(answer["samples"] / answer["seconds"])
    if OURS in why:
        raise SystemExit(f"ours failed: {why[OURS]}")
    return rates, why


def _claim(name: str, rates: Rates, why: Mapping[str, str], peer: str, *, bar: float | None, note: str) -> Claim:
    if peer in why:
        return cannot(name, rates[OURS], "samples/s", peer_name=peer, bar=bar, why=why[peer])
    return claim(name, rates[OURS], rates[peer], "samples/s", peer_name=peer, bar=bar, note=note)
