"""What will be known of a stage's outputs once it has run, before it has: passed on from stage to stage of a plan."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.drafts import Draft
from orchestrator.errors import OrchError
from orchestrator.records import record

if TYPE_CHECKING:
    from orchestrator.training.memory.sketch import Sketch

Facts = Mapping[str, Any]  # of a manifest


@record
class Foresight:
    """A stage, as far as its config and what comes before it tell."""

    outputs: Mapping[str, Facts]  # what manifests will say, as far as anybody knows
    sketch: "Sketch | None"  # for the planner of memory and cost
    faults: Mapping[str, str]  # of what it will be given: dotted key below the stage -> message


BLIND = Foresight(outputs={}, sketch=None, faults={})


def foresee(draft: Draft, before: Callable[[str], Foresight]) -> Foresight:
    """Asks a stage about its outputs and its model; one that cannot start yet may not know.

    `before` returns what is foreseen of another stage by its name.
    """
    if draft.faults:
        return BLIND
    try:
        facts = {name: found for name in draft.wires if (found := _facts(draft, name, before))}
        stage = draft.stage
        if faults := stage.faults_given(facts):
            return Foresight(outputs={}, sketch=None, faults=faults)
        return Foresight(outputs=stage.foresee(facts), sketch=stage.sketch(facts), faults={})
    except (OrchError, OSError, KeyError, TypeError, ValueError):  # a manifest of another making: nothing is foreseen
        return BLIND


def _facts(draft: Draft, name: str, before: Callable[[str], Foresight]) -> Facts:
    """Returns what is known of an input: foreseen by the stage that makes it, or said by the manifest that is there."""
    wire = draft.wires[name]
    if wire.path is not None:
        return wire.kind(wire.path).facts()
    return before(wire.stage or "").outputs.get(wire.output or "", {})
