"""What the stages of a plan need and cost: memory of a rank, GPU-hours, and what failures leave of the time."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.hardware import Hardware
from orchestrator.interval import best_interval_s, expected_goodput, job_mtbf_s
from orchestrator.journal import read_backwards
from orchestrator.plan import Plan, PlannedStage
from orchestrator.records import record
from orchestrator.resources import rank_count
from orchestrator.training.memory.advice import Advice, advise
from orchestrator.training.memory.anatomy import Anatomy
from orchestrator.training.memory.asking import anatomies, key_of
from orchestrator.training.memory.sketch import Sketch
from orchestrator.training.memory.zero import FP32, GB, Footprint, Setting, footprint, remembered, setting_of
from orchestrator.typed import plain

FEWEST_RATES = 3  # log lines of an earlier attempt, of which the median counts
MOST_EVENTS = 2000  # of a journal, the latest
COPY_GB_PER_S = 10.0  # assumed: from a GPU to the memory of its host, a rank


@record
class Estimate:
    """What one stage needs and costs; null = not known, for a reason that the place or the stage has."""

    memory: Footprint  # of a rank: a GPU, or a process where there is none
    parts: Mapping[str, float]  # bytes of activations at the highest moment, by the part of the model that made them
    fits: bool | None
    advice: Advice | None  # where it does not fit
    step_s: float | None
    rate_from: str | None  # "measured" or "computed"
    gpu_hours: float | None  # of the steps that are left, were there no failures
    goodput: float | None  # the share of the time that is kept work, saving as the recipe says
    best_every_steps: int | None  # to save at the interval that loses the least time

    def document(self) -> dict[str, Any]:
        """Returns what `orch plan --json` shows under `estimate`."""
        memory = {f"{name}_gb": _rounded(size) for name, size in asdict(self.memory).items()}
        return {
            "memory": {**memory, "total_gb": _rounded(self.memory.total)},
            "activations_gb_by_part": {part: _rounded(size) for part, size in self.parts.items()},
            "fits": self.fits,
            "advice": None if self.advice is None else self.advice.document(),
            "step_s": self.step_s,
            "rate_from": self.rate_from,
            "gpu_hours": self.gpu_hours,
            "gpu_hours_with_failures": _with_failures(self),
            "goodput": self.goodput,
            "best_save_every_steps": self.best_every_steps,
        }


def estimate_plan(plan: Plan, hardware: Hardware) -> tuple[dict[str, Estimate], str]:
    """Estimates every stage that describes itself and is to be run; also says why the others have no estimate.

    What torch must be asked for is asked once, in a child process, and remembered.
    """
    stages = {stage.name: stage for stage in plan.stages if stage.action != "reuse" and stage.foresight.sketch}
    keys = {name: _key(stage) for name, stage in stages.items()}
    known, problem = anatomies(dict(keys.values()))
    reckoner = _Reckoner(plan, hardware)
    found: dict[str, Estimate] = {}
    for name, (key, _) in keys.items():
        if key in known:
            try:
                found[name] = reckoner.estimate(stages[name], key, known[key])
            except InputError as error:  # a batch that does not divide over the ranks; who launches it will hear it too
                problem = problem or str(error)
    return found, f"note: some memory is not estimated: {problem}" if problem else ""


class _Reckoner:
    """Reckons once what many stages have in common."""

    def __init__(self, plan: Plan, hardware: Hardware) -> None:
        self._plan, self._hardware = plan, hardware
        self._footprints: dict[tuple[str, Setting], Footprint] = {}
        self._advice: dict[tuple[str, Setting], Advice] = {}

    def estimate(self, stage: PlannedStage, key: str, anatomy: Anatomy) -> Estimate:
        sketch, hardware = _sketch(stage), self._hardware
        on_gpu, ranks = stage.resources.gpus_per_node > 0, stage.resources.nodes * rank_count(stage.resources)
        setting = setting_of(sketch.train, ranks, on_gpu=on_gpu)
        if (key, setting) not in self._footprints:
            self._footprints[key, setting] = footprint(anatomy, setting)
        memory = self._footprints[key, setting]
        fits = None
        if on_gpu and hardware.memory_gb_per_gpu is not None:
            fits = memory.total <= hardware.memory_gb_per_gpu * GB
        step_s, source = self._step_s(stage, anatomy, setting)
        hours = (
            None if step_s is None or stage.steps is None else step_s * (stage.steps - (stage.from_step or 0)) / 3600
        )
        goodput, best = self._goodput(stage, anatomy, setting, step_s)
        return Estimate(
            memory=memory,
            parts={part: line.at(setting.micro_batch) for part, line in anatomy.at_peak.items()},
            fits=fits,
            advice=self._advise(stage, key, anatomy, setting) if fits is False else None,
            step_s=step_s,
            rate_from=source,
            gpu_hours=None
            if hours is None or not on_gpu
            else hours * stage.resources.nodes * stage.resources.gpus_per_node,
            goodput=goodput,
            best_every_steps=best,
        )

    def _step_s(self, stage: PlannedStage, anatomy: Anatomy, setting: Setting) -> tuple[float | None, str | None]:
        """Returns how long a step takes: as it did before in this run, else by its operations."""
        train = _sketch(stage).train
        rate = _measured_rate(self._plan.directory / stage.name, stage)
        if rate is not None:
            return train.global_batch / rate, "measured"
        peak = self._hardware.tflops_per_gpu
        if peak is None or not setting.on_gpu:
            return None, None
        operations = anatomy.flops.at(setting.micro_batch) * setting.accumulation
        return operations / (peak * 1e12 * self._hardware.utilisation), "computed"

    def _goodput(
        self, stage: PlannedStage, anatomy: Anatomy, setting: Setting, step_s: float | None
    ) -> tuple[float | None, int | None]:
        """Returns the share of the time that is kept, saving as the recipe says, and the best steps between saves."""
        hours, save = self._hardware.node_mtbf_hours, _sketch(stage).train.save
        if hours is None or step_s is None:
            return None, None
        mtbf_s = job_mtbf_s(hours, stage.resources.nodes)
        stall_s, save_s = _measured_costs(self._plan.directory / stage.name) or self._costs(anatomy, setting)
        lost_s = self._hardware.restart_s
        if save.in_background:
            lost_s += save_s  # a failure also costs what was done since a checkpoint began that was not yet whole
        else:
            stall_s = save_s
        best_s = max(best_interval_s(stall_s, mtbf_s), save_s)
        interval_s = best_s if save.every_steps == "auto" else save.every_steps * step_s
        return expected_goodput(stall_s, mtbf_s, lost_s, interval_s), max(1, math.ceil(best_s / step_s))

    def _costs(self, anatomy: Anatomy, setting: Setting) -> tuple[float, float]:
        """Returns for how long a save stops training, and how long it takes: masters and moments of what learns."""
        size = FP32 * anatomy.elements(learning=True) + remembered(anatomy)  # of one tensor-parallel piece
        whole = size * setting.pieces
        return size / setting.ranks / (COPY_GB_PER_S * GB), whole / (self._hardware.storage_gb_per_s * GB)

    def _advise(self, stage: PlannedStage, key: str, anatomy: Anatomy, setting: Setting) -> Advice:
        if (key, setting) not in self._advice:
            train, limit_gb = _sketch(stage).train, self._hardware.memory_gb_per_gpu or 0.0
            choices = {train.engine.activation_checkpointing: anatomy}
            if not train.engine.activation_checkpointing:
                other, request = _key(stage, recomputes=True)
                known, _ = anatomies({other: request})
                choices |= {True: known[other]} if other in known else {}
            self._advice[key, setting] = advise(train, choices, setting.ranks * setting.pieces, limit_gb * GB)
        return self._advice[key, setting]


def _sketch(stage: PlannedStage) -> Sketch:
    sketch = stage.foresight.sketch
    assert sketch is not None  # noqa: S101 - only such stages come here
    return sketch


def _key(stage: PlannedStage, *, recomputes: bool = False) -> tuple[str, dict[str, Any]]:
    """Returns what must be asked about a stage's model, and the digest of that."""
    sketch = _sketch(stage)
    engine, optim = sketch.train.engine, sketch.train.optim
    grouping = {
        "name": optim.name, "muon_skips": optim.muon_skips, "lr_scales": optim.lr_scales,
        "weight_decay": float(optim.weight_decay > 0), "layer_decay": plain(optim.layer_decay),
    }  # fmt: skip
    request = {
        "opener": sketch.opener, "plain": sketch.plain, "learning": sketch.learning, "precision": engine.precision,
        "recomputes": recomputes or engine.activation_checkpointing, "eager": engine.attention == "eager",
        "on_gpu": stage.resources.gpus_per_node > 0, "optim": grouping,
    }  # fmt: skip
    return key_of(request, stage.identity["code"]), request


def _measured_rate(folder: Path, stage: PlannedStage) -> float | None:
    """Returns the samples a second of an earlier attempt in this folder, had it the same ranks and batches."""
    try:
        before = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        same = before["resources"] == stage.document()["resources"] and _sizes(before["config"]) == _sizes(
            stage.plain_config
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    rates = sorted(_rates(folder)) if same else []
    return rates[len(rates) // 2] if len(rates) >= FEWEST_RATES else None


def _rates(folder: Path) -> Iterator[float]:
    """Yields the latest rates of the journal."""
    for count, event in enumerate(read_backwards(folder)):
        if count > MOST_EVENTS:
            return
        if event.get("event") == "metrics" and "samples_per_s" in event.get("values", {}):
            yield float(event["values"]["samples_per_s"])


def _measured_costs(folder: Path) -> tuple[float, float] | None:
    """Returns for how long the last save in this folder stopped training, and how long it took."""
    for count, event in enumerate(read_backwards(folder)):
        if count > MOST_EVENTS:
            break
        if event.get("event") == "saved" and "stall_s" in event:
            return float(event["stall_s"]), float(event["save_s"])
    return None


def _sizes(config: Mapping[str, Any]) -> tuple[Any, ...]:
    train = config["train"]
    return train["global_batch"], train["micro_batch"], train["engine"], config.get("model"), config.get("lora")


def _with_failures(estimate: Estimate) -> float | None:
    if estimate.gpu_hours is None or not estimate.goodput:
        return None
    return estimate.gpu_hours / estimate.goodput


def _rounded(size: float) -> float:
    return round(size / GB, 3)
