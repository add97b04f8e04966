"""What a model can be asked, as far as planning knows: by its family, and by what its manifest says of it."""

from collections.abc import Mapping
from typing import Any

from stages import ABILITIES, PARTS


def asked_in_vain(family: str, asked: Mapping[str, str], abilities: Mapping[str, str]) -> dict[str, str]:
    """Finds what no model of a family can be asked.

    Args:
        family: As in FAMILIES; of a plug-in's nothing is known before it is asked.
        asked: Key below the stage -> what is asked there.
        abilities: All that could be asked -> the protocol of `stages/family.py` that answers it.
    """
    able = ABILITIES.get(family)
    if able is None:
        return {}
    fitting = [name for name, ability in abilities.items() if ability in able]
    can = ", ".join(fitting) or "none of these"
    return {
        key: f"a {family} model cannot be asked {name!r}; it can: {can}"
        for key, name in asked.items()
        if name not in fitting
    }


def asked_without_part(
    facts: Mapping[str, Any], asked: Mapping[str, str], abilities: Mapping[str, str]
) -> dict[str, str]:
    """Finds what others of its family can be asked, but not the model whose manifest says these facts."""
    return {
        key: f"{name!r} cannot be asked: {why}"
        for key, name in asked.items()
        if (why := lacking_part(facts, abilities[name]))
    }


def lacking_part(facts: Mapping[str, Any], ability: str) -> str | None:
    """Says why a model whose manifest says this lacks an ability of its family; None: it has it, for all we know."""
    family, model = facts.get("family"), facts.get("model")
    part, key = PARTS.get(str(family), {}).get(ability, ("", ""))
    if not part or not isinstance(model, Mapping) or model.get(part) is not None:
        return None
    return f"this {family} model has no {key}: no stage that trains it has config.model.{key} or config.{key}"
