"""The packs or buckets of a stage's sources: measured by its task on all ranks, planned by the first."""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.data.lengths import Lengths, awaited, join_parts, measure_part
from orchestrator.data.packing import PLAN, PackingPlan, make_plan
from orchestrator.data.reader import ShardSet
from orchestrator.errors import InputError, OrchError, SurroundingsError
from orchestrator.stage import StageContext
from orchestrator.training.config import TrainConfig
from orchestrator.training.task import TrainTask

log = logging.getLogger(__name__)

UNITS = "units"
_ORDER = "order.json"


def plan_units(
    task: TrainTask[Any], shards: Mapping[str, Path], train: TrainConfig, context: StageContext
) -> dict[str, PackingPlan]:
    """Opens the plan of each source, and makes it first where it is not there; nothing, where the recipe wants none.

    Collective: every rank must call.
    """
    rule, world = train.order.units, context.world
    if rule is None:
        return {}
    plans: dict[str, PackingPlan] = {}
    for place, (name, path) in enumerate(sorted(shards.items())):
        folder, samples = context.directory / UNITS / f"{place:02d}", ShardSet(path, remote=train.remote)
        origin = f"{name} as stage {context.fingerprint} measures it"
        measure_part(folder, samples, partial(task.length_of, name), origin, rank=world.rank, size=world.size)
        samples.close()
        world.barrier()
        problem: OrchError | None = None
        try:
            if world.is_main:
                facts = make_plan(folder, join_parts(folder, len(samples), origin), rule).facts
                log.info("%s: %s", name, ", ".join(f"{value:.6g} {fact}" for fact, value in facts.items()))
        except OrchError as error:
            problem = error
        except OSError as error:
            problem = SurroundingsError(f"cannot write in {folder}: {error.strerror or error}")
        problem = world.broadcast(problem)
        if problem is not None:  # on all ranks, or the others would wait for the first
            raise problem
        awaited(folder / PLAN)
        lengths = Lengths.load(folder, origin)
        assert lengths is not None  # noqa: S101 - the first rank has just written them
        plans[name] = PackingPlan(folder, lengths)
    if world.is_main:
        context.journal.append("units", sources={name: plan.facts for name, plan in plans.items()})
    return plans


def keep_order(digest: str, context: StageContext) -> None:
    """Notes what the order of the data follows from; refuses to go on in another order than the stage began with.

    Collective: every rank must call.
    """
    path, now = context.directory / _ORDER, {"fingerprint": context.fingerprint, "digest": digest}
    began: dict[str, str] | None = None
    if context.world.is_main:
        began = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if began is None or began["fingerprint"] != context.fingerprint:
            write_json(path, now)
            began = now
    if context.world.broadcast(began) != now:
        raise InputError(
            f"{path}: the data would come in another order than when this stage began: its shards or its plan of packs "
            f"have changed since; put them back, or begin anew without {context.directory}"
        )
