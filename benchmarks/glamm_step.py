"""Measures a training step of GLaMM: ours against the original's, on the same weights and samples.

python -m benchmarks.glamm_step                 # a table; tiny and medium on a CPU, the full size on a GPU
python -m benchmarks.glamm_step --json --quick  # tiny only, about a minute

The original step is `benchmarks.glamm_original`, in plain PyTorch. Optimizer, clipping and recomputation are the same
code on all sides, which take turns within one process. First the losses and gradients are compared: what may differ by
rounding only must.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks import claims
from benchmarks.claims import Claim
from benchmarks.glamm_data import KINDS, SIZES
from benchmarks.glamm_original import original_loss
from benchmarks.glamm_sides import Data, Learner, Loss, Side, featured
from orchestrator.data.stream import SampleStream
from stages.glamm.batches import GlammBatch
from stages.glamm.config import Blueprint
from stages.glamm.task import GlammTask, Weights
from stages.point_rule import PointRule

SPEED_BAR, WAIT_BAR, MFU_BAR = 1.5, 0.01, 0.45  # the first and the last on a GPU only
LOSS_BAR, GRADIENT_BAR = 1e-5, 1e-4  # relative, in fp32; gradients: of the norm of all
BATCHES = 6
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, FLOP/s
ORIGINAL = "the original step"


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    options = claims.command_line(__doc__).parse_args()
    machine, on_gpu = claims.machine(), torch.cuda.is_available()
    if on_gpu:
        machine["gpu"] = torch.cuda.get_device_name()
    names = ["full"] if on_gpu else ["tiny"] if options.quick else ["tiny", "medium"]
    rounds = 3 if options.quick else 7
    found: list[Claim] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="orch-glamm-step-") as folder:
            found += claims.told(name, _measured(name, Path(folder), rounds))
    claims.show(found, machine, claims.versions(), as_json=options.json)


def _measured(name: str, folder: Path, rounds: int) -> list[Claim]:
    data = Data(folder, SIZES[name])
    learner = Learner(data)
    sides = _sides(data, learner)
    found = _agreement(name, data, learner)
    speeds = _speeds(learner, sides, rounds)
    peaks = {side.name: learner.peak_bytes(partial(learner.step, side, iter(side.batches))) for side in sides}
    bar = SPEED_BAR if learner.device == "cuda" else None
    for side in sides[1:]:
        last = side is sides[-1]
        found.append(
            claims.claim(
                f"{name}: step, {side.name}", speeds[side.name], speeds[ORIGINAL], "samples/s", peer_name=ORIGINAL,
                bar=bar if last else None, note=_told(side),
            )
        )  # fmt: skip
        found.append(
            claims.claim(
                f"{name}: peak memory, {side.name}", [peaks[side.name] / 1e9], [peaks[ORIGINAL] / 1e9], "GB",
                peer_name=ORIGINAL, bar=None, direction="at most",
            )
        )  # fmt: skip
    found.append(_data_wait(name, data, learner, sides[2], rounds))
    return [*found, *_flops(name, data.blueprint, learner, sides[-1], speeds)]


def _sides(data: Data, learner: Learner) -> list[Side]:
    size, plain, device = data.size, data.task(), learner.device
    low_px = data.blueprint.canvas_px // 4  # what SAM's decoder gives
    small, points = data.task(mask_side_px=low_px), data.task(mask_points=PointRule())
    padded = _batches(data.stream(plain, size.micro_batch), plain, device)
    packed = _batches(data.stream(small, size.micro_batch, packs=True), small, device)
    a_batch = statistics.mean(len(batch.clip_pixels_BCHW) for batch in packed)
    many, few = size.step // size.micro_batch, max(1, round(size.step / a_batch))
    return [
        Side(name=ORIGINAL, batches=padded, micro_batches=many, loss=partial(original_loss, weights=Weights())),
        Side(name="as by default", batches=padded, micro_batches=many, loss=_loss_of(plain)),
        Side(name=f"packed, masks at {low_px} px", batches=packed, micro_batches=few, loss=_loss_of(small)),
        Side(name="masks at 12,544 points", batches=padded, micro_batches=many, loss=_loss_of(points)),
        Side(
            name="the same, features kept", batches=[featured(learner.model, batch) for batch in packed],
            micro_batches=few, loss=_loss_of(small),
        ),
    ]  # fmt: skip


def _batches(stream: SampleStream, task: GlammTask, device: str) -> list[GlammBatch]:
    return [batch.to(device) for batch in stream.batches(task.collate, start_step=0, steps=BATCHES)]


def _loss_of(task: GlammTask) -> Loss:
    return lambda model, batch: task.loss(model, batch).total


def _agreement(name: str, data: Data, learner: Learner) -> list[Claim]:
    """Compares loss and gradients of the same samples, padded and packed, with the original's."""
    task = data.task()
    stream = data.stream(task, data.size.micro_batch, packs=True)
    losses, gradients = [], []
    for drawn in stream.batches(list, start_step=0, steps=len(KINDS)):  # each kind has its turn
        alone = [one._replace(place=number) for number, one in enumerate(drawn)]
        padded, packed = (task.collate(some).to(learner.device) for some in (alone, drawn))
        original, flat = learner.gradients(partial(original_loss, weights=Weights()), padded)
        for batch in (padded, packed, featured(learner.model, packed)):
            ours, ours_flat = learner.gradients(_loss_of(task), batch)
            losses.append(abs(ours - original) / abs(original))
            gradients.append(float((ours_flat - flat).norm() / flat.norm()))
    exact = learner.device == "cpu"
    note = f"largest of {len(KINDS)} batches, padded, packed and with features kept{'' if exact else '; in bf16'}"
    return [
        claims.claim(
            f"{name}: {what} against the original's", [max(values)], None, "relative", peer_name=None,
            bar=bar if exact else None, direction="at most", note=note,
        )
        for what, values, bar in (("loss", losses, LOSS_BAR), ("gradients", gradients, GRADIENT_BAR))
    ]  # fmt: skip


def _speeds(learner: Learner, sides: Sequence[Side], rounds: int) -> dict[str, list[float]]:
    """Lets the sides take turns; every round and side is as many steps as see all its batches about once."""
    batches = {side.name: cycle(side.batches) for side in sides}
    speeds: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides if turn % 2 else reversed(sides):
            learner.wait()
            began, samples = time.perf_counter(), 0
            for _ in range(max(1, BATCHES // side.micro_batches)):
                samples += learner.step(side, batches[side.name])
            learner.wait()
            if turn:  # the first round warms up
                speeds[side.name].append(samples / (time.perf_counter() - began))
    return speeds


def _data_wait(name: str, data: Data, learner: Learner, side: Side, rounds: int) -> Claim:
    """Trains on what data processes hand over meanwhile; returns which part of the time it had to wait for them."""
    task = data.task(mask_side_px=data.blueprint.canvas_px // 4)
    workers, warm_up = (4 if learner.device == "cuda" else 1), 2
    stream = data.stream(task, data.size.micro_batch, packs=True, workers=workers)
    batches = stream.batches(task.collate, start_step=0, steps=side.micro_batches * (rounds + warm_up))
    waits, times = [], []
    for _ in range(rounds + warm_up):
        began = time.perf_counter()
        step = list(islice(batches, side.micro_batches))
        waited = time.perf_counter()
        learner.step(side, iter([batch.to(learner.device) for batch in step]))
        learner.wait()
        waits.append(waited - began)
        times.append(time.perf_counter() - began)
    share = sum(waits[warm_up:]) / sum(times[warm_up:])
    return claims.claim(
        f"{name}: share of a step that waits for data", [share], None, "of the time", peer_name=None, bar=WAIT_BAR,
        direction="at most", note=f"{side.name}; {workers} data processes, which share the cores",
    )  # fmt: skip


def _flops(
    name: str, blueprint: Blueprint, learner: Learner, side: Side, speeds: dict[str, list[float]]
) -> list[Claim]:
    """Counts what the language model must compute: two passes, for its matrices get no gradients of their own."""
    parameters = sum(p.numel() for n, p in learner.model.language_model.named_parameters() if ".layers." in n)
    tokens = sum(int(batch.attention_BL.sum()) for batch in side.batches)
    samples = sum(len(batch.clip_pixels_BCHW) for batch in side.batches)
    flops = [4 * parameters * tokens / samples * speed for speed in speeds[side.name]]
    found = [
        claims.claim(
            f"{name}: language model, {side.name}", [value / 1e12 for value in flops], None, "TFLOP/s",
            peer_name=None, bar=None, note=f"matrices of {blueprint.language['num_hidden_layers']} layers only",
        )
    ]  # fmt: skip
    gpu = torch.cuda.get_device_name() if learner.device == "cuda" else ""
    for known, peak in PEAKS.items():
        if known in gpu:
            found.append(
                claims.claim(
                    f"{name}: of the dense bf16 peak", [value / peak for value in flops], None, known, peer_name=None,
                    bar=MFU_BAR,
                )
            )  # fmt: skip
    return found


def _told(side: Side) -> str:
    tokens = sum(batch.attention_BL.numel() for batch in side.batches)
    used = sum(int(batch.attention_BL.sum()) for batch in side.batches)
    samples = sum(len(batch.clip_pixels_BCHW) for batch in side.batches)
    return f"{samples / len(side.batches):.1f} samples a micro-batch, {100 * (1 - used / tokens):.0f} % padding"


if __name__ == "__main__":
    main()
