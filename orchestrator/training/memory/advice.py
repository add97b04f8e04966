"""Which setting fits where the recipe's does not: the one that should cost the least time."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from orchestrator.records import record
from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.anatomy import Anatomy
from orchestrator.training.memory.zero import GB, Footprint, footprint, setting_of
from orchestrator.training.options import option_faults

# Assumed, to put settings into an order: what it costs to compute fewer samples at a time, and ZeRO-3's half more
# communication (Rajbhandari et al. 2020, section 7).
HALF_THE_SAMPLES, PARAMETERS_CUT = 0.05, 0.1
OPTIMIZER_AWAY = 0.3  # an update on the host, and gradients and weights on their way there and back


@record
class Advice:
    """Changes of a recipe's `train`, and what becomes of it."""

    changes: Mapping[str, Any]  # key below the stage -> value; empty = nothing that may be changed makes it fit
    memory: Footprint  # with them; with the smallest setting where none fits
    slower: float  # times as long a step as now, as far as that can be told beforehand

    def document(self) -> dict[str, Any]:
        """Returns JSON-ready data."""
        return {
            "changes": dict(self.changes),
            "memory_gb": round(self.memory.total / GB, 3),
            "slower": round(self.slower, 3),
        }


def advise(train: TrainConfig, anatomies: Mapping[bool, Anatomy], ranks: int, limit_bytes: float) -> Advice:
    """Tries what does not change the result: micro-batch, activation checkpointing, ZeRO stage, off-loading.

    `anatomies` holds those known, by whether activations are computed again. Without any that fits, the smallest.
    """
    tried = [_try(train, changed, anatomies, ranks) for changed in _settings(train, anatomies, ranks)]
    fitting = [advice for advice in tried if advice.memory.total <= limit_bytes]
    if fitting:
        return min(fitting, key=lambda advice: (advice.slower, len(advice.changes)))
    return replace(min(tried, key=lambda advice: advice.memory.total), changes={})


def _settings(train: TrainConfig, anatomies: Mapping[bool, Anatomy], ranks: int) -> Iterator[TrainConfig]:
    most, share = train.micro_batch_on(ranks), train.global_batch // train.readers_on(ranks)
    stages = range(train.engine.zero_stage, 4) if train.engine.name == "deepspeed" else (train.engine.zero_stage,)
    places = dict.fromkeys((train.engine.offload, replace(train.engine.offload, optimizer="cpu")))
    for zero_stage, recomputes, offload in product(stages, anatomies, places):
        for micro_batch in (size for size in range(1, most + 1) if share % size == 0):
            engine = replace(train.engine, zero_stage=zero_stage, activation_checkpointing=recomputes, offload=offload)
            changed = replace(train, engine=engine, micro_batch=micro_batch)
            if changed.engine == train.engine or not option_faults(changed, on_gpus=True):
                yield changed


def _try(train: TrainConfig, changed: TrainConfig, anatomies: Mapping[bool, Anatomy], ranks: int) -> Advice:
    before, after = train.engine, changed.engine
    anatomy = anatomies[after.activation_checkpointing]
    size, now = changed.micro_batch_on(ranks), train.micro_batch_on(ranks)
    operations = anatomy.flops.at(size) / size
    usual = anatomies[before.activation_checkpointing].flops.at(now) / now
    cut = PARAMETERS_CUT if after.zero_stage == 3 and before.zero_stage != 3 else 0.0
    away = OPTIMIZER_AWAY if after.offload != before.offload else 0.0
    changes: dict[str, Any] = {}
    if size != now:
        changes["config.train.micro_batch"] = size
    for name in ("activation_checkpointing", "zero_stage"):
        if getattr(after, name) != getattr(before, name):
            changes[f"config.train.engine.{name}"] = getattr(after, name)
    if away:
        changes["config.train.engine.offload.optimizer"] = after.offload.optimizer
    return Advice(
        changes=changes,
        memory=footprint(anatomy, setting_of(changed, ranks, on_gpu=True)),
        slower=operations / usual * (1 + HALF_THE_SAMPLES * math.log2(now / size)) * (1 + cut) * (1 + away),
    )
