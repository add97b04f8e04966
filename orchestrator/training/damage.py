"""Counts what a training lost of its data, names it, and ends a training that would go on on rubble.

A sample that cannot be used has a stand-in (see `data/stream.py`). The journal has an event for each step that lost
some: `{"event": "damage", "step": n, "lost": how many draws, "samples": [{source, number, tar, key, reason}, ...]}`,
where a sample is named the first time only, however many epochs and attempts come by it. A draw counts once, however
many of its stand-ins are lost as well. A resumed attempt goes on with the counts of the steps before its checkpoint, as
the journal has them; the steps after it are drawn again, and count again. No rank but the first needs the journal.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.stream import Loss
from orchestrator.errors import DamagedArtifact, StorageAway
from orchestrator.journal import JOURNAL, read_events
from orchestrator.stage import StageContext

log = logging.getLogger(__name__)

_EVENT = "damage"
_FEWEST_DRAWS = 1000  # of fewer a share says little: until then that many count as drawn
_EXAMPLES = 3
_UNREAD = "cannot be read"  # in the reason of a loss: the disk or file system answered with an error


class Damage:
    """What a training has lost so far, the same on all ranks."""

    def __init__(self, context: StageContext, *, limit: float, step: int) -> None:
        """Goes on where the journal was at a step; `limit` is the share of draws that may be lost.

        Collective: every rank must call.
        """
        self._context = context
        self._limit = limit
        self._named: set[tuple[str, int]] = set()
        self._seen, self._unread = 0, 0  # of this attempt
        found: tuple[int, list[str]] = (0, [])
        if context.world.is_main:
            found = self._told_before(step)
        self.lost, self._examples = context.world.broadcast(found)

    def take(self, step: int, losses: Sequence[Loss], *, drawn: int) -> None:
        """Counts and names what all ranks lost in a step, after which `drawn` samples were drawn in all."""
        lost = sum(not loss.stands_in for loss in losses)
        if not losses:
            return
        self.lost += lost
        new = list({(loss.source, loss.number): loss for loss in losses}.items())
        samples = [_named(loss) for sample, loss in new if sample not in self._named]
        self._named.update(sample for sample, _ in new)
        self._examples = [*self._examples, *(_in_words(sample) for sample in samples)][:_EXAMPLES]
        self._context.journal.append(_EVENT, step=step, lost=lost, samples=samples)
        if samples and self._context.world.is_main:
            log.warning(
                "step %d lost %d samples, which have stand-ins; the first: %s", step, lost, _in_words(samples[0])
            )
        draws = [loss for loss in losses if not loss.stands_in]
        self._seen += len(draws)
        self._unread += sum(_UNREAD in loss.reason for loss in draws)
        if self.lost > self._limit * max(drawn, _FEWEST_DRAWS):
            away = 2 * self._unread > self._seen  # what is rotten can be read: of these most could not
            raise (StorageAway if away else DamagedArtifact)(
                f"{self.lost} of {drawn} samples drawn until step {step} are lost, which is more than "
                f"train.max_bad_fraction = {self._limit:g} allows (of at least {_FEWEST_DRAWS}); the first: "
                f"{'; '.join(self._examples)}; all of them: the {_EVENT} events in {self._context.directory / JOURNAL}"
            )

    def _told_before(self, step: int) -> tuple[int, list[str]]:
        """Reads the journal: what was lost until a step, and the first samples that were named."""
        lost: dict[int, int] = {}
        examples: list[str] = []
        for event in _events(self._context.directory):
            lost[event["step"]] = event["lost"]  # a later attempt knows better
            self._named.update((sample["source"], sample["number"]) for sample in event["samples"])
            examples += [_in_words(sample) for sample in event["samples"]][: _EXAMPLES - len(examples)]
        return sum(count for at, count in lost.items() if at <= step), examples


def _events(directory: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(directory) if event.get("event") == _EVENT]


def _named(loss: Loss) -> dict[str, str | int]:
    return {
        "source": loss.source, "number": loss.number, "tar": loss.tar, "key": loss.key, "reason": loss.reason,
    }  # fmt: skip


def _in_words(sample: dict[str, Any]) -> str:
    return f"{sample['tar']}: {sample['key'] or 'unknown key'}: {sample['reason']}"
