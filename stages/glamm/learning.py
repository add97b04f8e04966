"""Which weights of a GLaMM learn, by patterns of their names. Imports no torch."""

from collections.abc import Iterable

ENCODERS = ("vision_tower.", "sam.vision_encoder.")
_WILD = "*?["


def usual(trainable: Iterable[str], *, adapters: bool) -> tuple[str, ...]:
    """Returns a stage's patterns of what learns where the recipe does not say; of adapters only where there are any."""
    return tuple(pattern for pattern in trainable if adapters or "lora_" not in pattern)


def learning_encoders(patterns: Iterable[str]) -> list[str]:
    """Returns the patterns by which a part of an image encoder may learn: their features would grow old."""
    found = []
    for pattern in patterns:
        literal = pattern[: min((pattern.index(mark) for mark in _WILD if mark in pattern), default=len(pattern))]
        if any(name.startswith(literal) or literal.startswith(name) for name in ENCODERS):
            found.append(pattern)
    return found
