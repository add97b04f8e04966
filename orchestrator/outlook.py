"""What a launch would mean, beyond what the plan itself says: when stages would begin, what they need and cost."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Fault
from orchestrator.forecast import Forecast, ask, refusals
from orchestrator.hardware import Hardware
from orchestrator.plan import Plan
from orchestrator.records import record
from orchestrator.training.memory.estimate import Estimate, estimate_plan

if TYPE_CHECKING:
    from orchestrator.launcher import Launcher


@record
class Outlook:
    """A plan, with what a place and the estimates say about its stages."""

    plan: Plan
    forecasts: Mapping[str, Forecast]
    estimates: Mapping[str, Estimate]
    faults: tuple[Fault, ...]  # of the plan, and of what the place cannot give
    notes: tuple[str, ...]  # what could not be found out, and why

    def document(self) -> dict[str, Any]:
        """Returns what `orch plan --json` prints.

        `queue` and `estimated_start` are null where nobody was asked; `memory_gb_per_gpu` and `estimate` are null for
        stages that do not describe themselves; `gpu_hours` are those asked for, or else estimated.
        """
        document = self.plan.document()
        for stage in document["stages"]:
            forecast, estimate = self.forecasts.get(stage["name"]), self.estimates.get(stage["name"])
            stage["queue"] = None if forecast is None else forecast.queue
            stage["estimated_start"] = None if forecast is None else forecast.estimated_start
            stage["estimate"] = None if estimate is None else estimate.document()
            if estimate is not None:
                stage["memory_gb_per_gpu"] = stage["estimate"]["memory"]["total_gb"]
                stage["gpu_hours"] = estimate.gpu_hours if stage["gpu_hours"] is None else stage["gpu_hours"]
        return document


def look_ahead(plan: Plan, place: "Launcher | None") -> Outlook:
    """Asks a place about every stage, and estimates what each needs; nothing is started. null = no place was named."""
    forecasts, note = ask(place, plan)
    estimates, silence = estimate_plan(plan, Hardware() if place is None else place.hardware())
    faults = (*plan.faults, *(() if place is None else place.check(plan)), *refusals(forecasts))
    notes = tuple(filter(None, (note, silence)))
    return Outlook(plan=plan, forecasts=forecasts, estimates=estimates, faults=faults, notes=notes)
