"""From what a recipe says about its sources to weights and caps, or to what is wrong with it. No numpy."""

import math
from collections.abc import Mapping
from fractions import Fraction

from orchestrator.data.rules import OrderRules


def mixture_faults(
    sizes: Mapping[str, int | None], weights: Mapping[str, float], global_batch: int, rules: OrderRules
) -> dict[str, str]:
    """Finds what is wrong: key (`mixture...`, `order...`, `shards...` or `global_batch`) -> message.

    `sizes` are samples per source; None = not known yet.
    """
    found: dict[str, str] = {}
    allowed = f"allowed: {', '.join(sizes)}"
    for key, named in (("mixture", weights), ("order.max_epochs", rules.max_epochs)):
        found |= {
            f"{key}.{name}": f"no such entry under inputs.shards; {allowed}" for name in named if name not in sizes
        }
    for name in weights.keys() & sizes.keys():
        if not (math.isfinite(weights[name]) and weights[name] > 0):
            found[f"mixture.{name}"] = f"a weight must be a finite number above 0, not {weights[name]}"
    if weights and (unnamed := [name for name in sizes if name not in weights]):
        found["mixture"] = f"must weigh every entry of inputs.shards or none; missing: {', '.join(unnamed)}"
    if weights and rules.temperature is not None:
        found["order.temperature"] = "makes weights of the sizes: leave mixture empty, or temperature null"
    if not sizes:
        found["shards"] = "training needs at least one entry"
    found |= {f"shards.{name}": "holds no samples" for name, size in sizes.items() if size == 0}
    if global_batch < 1:
        found["global_batch"] = f"must be 1 or more, not {global_batch}"
    elif rules.bucket is not None and global_batch % rules.bucket.size:
        found["order.bucket.size"] = f"global_batch = {global_batch} is no multiple of {rules.bucket.size}"
    return found


def weights_of(units: Mapping[str, int], weights: Mapping[str, float], rules: OrderRules) -> dict[str, float]:
    """Returns each source's weight: the given one, or by temperature from its number of units, or equal."""
    if weights or rules.temperature is None:
        return {name: float(weights[name]) if weights else 1.0 for name in units}
    if rules.temperature == 1:
        return {name: float(size) for name, size in units.items()}
    # by logarithms relative to the largest, so that nothing overflows; to 12 digits, the same on any machine
    largest = math.log(max(units.values()))
    powers = {name: math.exp((math.log(size) - largest) / rules.temperature) for name, size in units.items()}
    return {name: float(f"{power:.12g}") for name, power in powers.items()}


def caps_of(units: Mapping[str, int], rules: OrderRules, per_turn: int) -> dict[str, int]:
    """Returns the most turns of each source that has max_epochs; a turn that would go beyond them is not taken."""
    return {
        name: math.floor(Fraction(str(epochs)) * units[name] / per_turn)
        for name, epochs in sorted(rules.max_epochs.items())
    }
