"""Numbered points of a hidden linear map, each with its own noise: data whose every sample leaves a trace in a loss."""

import json
import random
from collections.abc import Mapping, Sequence

from orchestrator.errors import InputError
from orchestrator.records import record

NOISE = 0.1
MEMBER = "json"


@record
class Point:
    """One sample: `outputs` is a linear map of `inputs`, with noise."""

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]


def key_of(number: int) -> str:
    """Returns the key of the sample with this number."""
    return f"{number:08d}"


class HiddenMap:
    """A linear map that follows from a seed."""

    def __init__(self, seed: int, *, features: int, targets: int) -> None:
        """Draws the map."""
        chance = random.Random(f"map {seed}")  # noqa: S311 - data, not secrets
        self._seed, self._features = seed, features
        self._rows = [[chance.gauss(0, 1) for _ in range(features)] for _ in range(targets)]

    def point(self, number: int) -> Point:
        """Makes the sample with this number: always the same one."""
        chance = random.Random(f"point {self._seed} {number}")  # noqa: S311 - data, not secrets
        inputs = [chance.gauss(0, 1) for _ in range(self._features)]
        outputs = [
            sum(weight * value for weight, value in zip(row, inputs, strict=True)) + chance.gauss(0, NOISE)
            for row in self._rows
        ]
        return Point(inputs=tuple(inputs), outputs=tuple(outputs))


def to_members(number: int, point: Point) -> dict[str, bytes]:
    """Writes a sample as the members of a tar."""
    plain = {"number": number, "inputs": point.inputs, "outputs": point.outputs}
    return {MEMBER: json.dumps(plain).encode()}


def from_members(key: str, members: Mapping[str, bytes]) -> Point:
    """Reads a sample; InputError says what is wrong with one of others."""
    try:
        plain = json.loads(members[MEMBER])
        return Point(inputs=_floats(plain["inputs"]), outputs=_floats(plain["outputs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{key} is no sample of rehearsal_data: {error!r}") from error


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
