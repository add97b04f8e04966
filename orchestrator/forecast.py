"""Where and when the stages of a plan would begin, as far as whoever keeps the queue says."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.errors import Fault, SurroundingsError
from orchestrator.plan import Plan
from orchestrator.records import record

if TYPE_CHECKING:
    from orchestrator.launcher import Launcher


@record
class Forecast:
    """What would become of a stage if it were handed over now."""

    queue: str  # where it would wait; empty = the default of the place
    estimated_start: float | None = None  # seconds since 1970; None = nobody dares to say
    refusal: str | None = None  # why it would not be taken at all


def ask(place: "Launcher | None", plan: Plan) -> tuple[Mapping[str, Forecast], str]:
    """Asks a place about every stage; returns what it said, and a note for the user where it did not answer."""
    try:
        return ({} if place is None else place.forecast(plan)), ""
    except SurroundingsError as error:
        return {}, f"note: when stages would begin is not known: {error}"


def refusals(forecasts: Mapping[str, Forecast]) -> Iterator[Fault]:
    """Lists the stages that would not be taken."""
    for name, forecast in forecasts.items():
        if forecast.refusal is not None:
            yield Fault(key=f"stages.{name}.resources", message=forecast.refusal)


def start_in_words(forecast: Forecast | None) -> str:
    """Puts an estimated start into a few words."""
    if forecast is None or forecast.estimated_start is None:
        return "" if forecast is None else "refused" if forecast.refusal else "?"
    if forecast.estimated_start <= time.time() + 60:
        return "now"
    return time.strftime("%a %d %b %H:%M", time.localtime(forecast.estimated_start))
