"""Which samples an evaluation asks about, which of them are this rank's, and how one is read."""

from collections.abc import Mapping, Sequence

from orchestrator.artifacts import Shards
from orchestrator.data.reader import ShardSet
from orchestrator.errors import InputError
from orchestrator.records import record
from orchestrator.world import World
from stages.samples import Sample


@record
class Place:
    """Where one sample lies."""

    source: str  # name of the shards input
    number: int  # within that input


class HeldOut:
    """The samples of all shards inputs, at most `limit` of each, in a fixed order."""

    def __init__(self, shards: Mapping[str, Shards], limit: int | None) -> None:
        """Opens the inputs; reads no sample yet."""
        self._sets = {source: ShardSet(shards[source].path) for source in sorted(shards)}
        self.places = [
            Place(source=source, number=number)
            for source, samples in self._sets.items()
            for number in range(len(samples) if limit is None else min(limit, len(samples)))
        ]
        self.limited = {source for source, samples in self._sets.items() if limit is not None and limit < len(samples)}
        if not self.places:
            raise InputError(f"there is not one sample in {', '.join(self._sets) or 'no shards at all'}")

    def read(self, place: Place) -> Sample:
        """Reads one sample."""
        key, members = self._sets[place.source].read(place.number)
        return Sample.from_members(key, members)

    def close(self) -> None:
        """Closes every open tar."""
        for samples in self._sets.values():
            samples.close()


def rounds_of(places: Sequence[Place], world: World, batch_size: int) -> list[Sequence[Place]]:
    """Cuts this rank's share into batches: every place is one rank's, and every rank has equally many batches.

    Equally many, so that ranks can speak to each other between batches; a rank's last ones may be empty.
    """
    mine = places[world.rank :: world.size]
    most = -(-len(places) // world.size)
    return [mine[start : start + batch_size] for start in range(0, most, batch_size)]
