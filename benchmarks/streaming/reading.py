"""Cells a and b: how many samples a second, as they are stored, and decoded."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.claims import Claim, cannot, claim
from benchmarks.streaming.programs.serve import BATCH
from benchmarks.streaming.programs.work import decode
from benchmarks.streaming.rivals import OURS, Cannot, Rival
from orchestrator.data.reader import ShardSet
from stages.vision import decode_pixels

RAW_BARS: Mapping[str, float] = {"webdataset": 10.0, "megatron-energon": 3.0}
DECODED_BAR = 1.3
ALONE = "decoding alone"
HELPED = "litdata with libjpeg-turbo"  # what it would be beside a torchvision that loads
Rates = dict[str, list[float]]


def read_raw(rivals: Sequence[Rival], samples: int, repeats: int) -> list[Claim]:
    """Measures reading without decoding: in the order of the tars, shuffled in blocks or by a buffer, and fully."""
    note = "one process, no workers, warm page cache, batches of 64; ours proves every member's checksum"
    raw = {"do": "read", "work": "raw", "workers": 0}
    in_order = [_Turn(rival.name, partial(rival.ask, raw | {"order": "none"})) for rival in rivals]
    shuffled = [_Turn(rival.name, partial(rival.ask, raw | {"order": "blocks"})) for rival in rivals]
    fully = _Turn(f"{OURS}, fully", partial(rivals[0].ask, raw | {"order": "full"}))
    claims = []
    for name, turns in (("in order", in_order), ("shuffled", [*shuffled, fully])):
        rates, why = _rates(turns, samples, repeats)
        if not rivals[1:]:
            claims += [_alone(f"a. raw reading, {name}: {turn.name}", rates[turn.name], note) for turn in turns]
        for rival in rivals[1:]:
            bar = RAW_BARS.get(rival.name)
            claims.append(_claim(f"a. raw reading, {name}", OURS, rates, why, rival.name, bar=bar, note=note))
            if name == "shuffled":
                more = f"{note}; the peer shuffles as before, ours any sample to any place"
                title = "a. raw reading, fully shuffled"
                claims.append(_claim(title, fully.name, rates, why, rival.name, bar=bar, note=more))
    return claims


def read_decoded(rivals: Sequence[Rival], shards: Path, samples: int, repeats: int) -> list[Claim]:
    """Measures reading with decoding, in one process and with a worker a core: against the ceiling, and peers.

    The ceiling is the work alone with our decoder, on samples in memory, times the processes that do it.
    """
    claims = []
    alone = _DecodingAlone(shards, samples)
    cores = len(os.sched_getaffinity(0))
    note = "JPEG to RGB by each one's own decoder, json.loads, stacked into a torch tensor a batch: one code for all"
    for words, workers in (("one process", 0), (f"{cores} workers", cores)):
        request = {"do": "read", "work": "decode", "order": "blocks", "workers": workers}
        turns = [_Turn(rival.name, partial(rival.ask, request)) for rival in rivals]
        turbo = request | {"work": "decode by libjpeg-turbo"}
        turns += [_Turn(HELPED, partial(rival.ask, turbo)) for rival in rivals if rival.name == "litdata"]
        rates, why = _rates([*turns, _Turn(ALONE, alone)], samples, repeats)
        rates[ALONE] = [rate * max(1, workers) for rate in rates[ALONE]]
        best = max(
            (name for name in rates if name not in {OURS, ALONE, HELPED}),
            key=lambda name: median(rates[name]),
            default="",
        )
        more = f"{note}; the peer is that work alone with our decoder, from memory, times its processes: the ceiling"
        for name in (rival.name for rival in rivals if rival.name in rates):
            title = f"b. share of the ceiling, {words}: {name}"
            claims.append(_claim(title, name, rates, why, ALONE, bar=None, note=more))
        for peer in [turn.name for turn in turns[1:]]:
            bar = DECODED_BAR if peer == best else None
            helped = "; its own decoder does not load here: libjpeg-turbo stands in" if peer == HELPED else ""
            most = f"{note}; {_most(rates, peer)}{helped}"
            claims.append(_claim(f"b. JPEG decoded, {words}", OURS, rates, why, peer, bar=bar, note=most))
    return claims


def _most(rates: Rates, peer: str) -> str:
    """Tells which ratio to a peer the ceiling allows: a bar above that nobody can reach."""
    return f"the ceiling is {median(rates[ALONE]) / median(rates[peer]):.2f} x the peer" if peer in rates else ""


class _DecodingAlone:
    """The work itself, without reading."""

    def __init__(self, shards: Path, samples: int) -> None:
        self._samples = samples
        whole = ShardSet(shards)
        self._batches = []
        for start in range(0, min(len(whole), 32 * BATCH) - BATCH + 1, BATCH):
            members = [whole.read(number)[1] for number in range(start, start + BATCH)]
            self._batches.append([(one["jpg"], one["json"]) for one in members])
        whole.close()

    def __call__(self) -> dict[str, Any]:
        start = time.perf_counter()
        for batch in self._batches:
            decode(batch, decode_pixels)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "samples": self._samples, "timed": len(self._batches) * BATCH}


class _Turn(NamedTuple):
    name: str
    ask: Callable[[], Mapping[str, Any]]


def _rates(turns: Sequence[_Turn], samples: int, repeats: int) -> tuple[Rates, dict[str, str]]:
    """Asks each in turn, again and again; the first round warms up and is not counted."""
    rates: Rates = {}
    why: dict[str, str] = {}
    for number in range(repeats + 1):
        for name, ask in turns:
            if name in why:
                continue
            try:
                answer = ask()
            except Cannot as error:
                why[name] = str(error)
                continue
            if abs(answer["samples"] - samples) >= BATCH:  # a stream ends with a whole batch
                why[name] = f"delivered {answer['samples']} of {samples} samples"
            elif number:
                rates.setdefault(name, []).append(answer["timed"] / answer["seconds"])
    if OURS in why:
        raise SystemExit(f"ours failed: {why[OURS]}")
    return rates, why


def _alone(name: str, rates: Sequence[float], note: str) -> Claim:
    return claim(name, rates, None, "samples/s", peer_name=None, bar=None, note=note)


def _claim(
    name: str, ours: str, rates: Rates, why: Mapping[str, str], peer: str, *, bar: float | None, note: str
) -> Claim:
    if peer in why:
        return cannot(name, rates[ours], "samples/s", peer_name=peer, bar=bar, why=why[peer])
    return claim(name, rates[ours], rates[peer], "samples/s", peer_name=peer, bar=bar, note=note)
