"""Finds ranks that do not run the same modules, while they wait for each other, and names module, ranks and step.

Under ZeRO-3 a rank that runs a module which another does not waits for it in a collective, until a time-out half an
hour later that names neither. Here every rank keeps the order in which its partitioned modules began. A thread looks on
each rank whether anything begins; where nothing does for a while, it shows the order to the first rank, which compares.
Two orders that part from each other can never meet again, however slow a rank is; one that is merely shorter may.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

from torch import Tensor, nn

from orchestrator.errors import AsymmetricRanks
from orchestrator.records import record
from orchestrator.training.balance import Balance
from orchestrator.training.optim import is_leaf, is_partitioned
from orchestrator.training.task import Uneven
from orchestrator.world import World

QUIET_S = 1.5  # nothing has begun for so long: only then the ranks ask each other
LOOK_EVERY_S = 0.5
SHOWN = 2048  # of the latest beginnings of a step; where ranks part, the others stop soon after
MOST_RANKS_NAMED = 8
FORWARD, BACKWARD, AGREE = "<the next micro-batch>", "<the backward pass>", "<the end of the step>"

log = logging.getLogger(__name__)


class Board(Protocol):
    """Where ranks leave notes for each other: torch's store."""

    def set(self, key: str, value: str) -> None:
        """Leaves a note."""

    def get(self, key: str) -> bytes:
        """Reads a note that is there."""

    def check(self, keys: list[str]) -> bool:
        """Tells whether all of these notes are there."""


@record
class Shown:
    """What a rank that waits has begun in its step, the latest last."""

    step: int
    before: int  # how many beginnings came before those that are kept
    begun: Sequence[str]


class Guard:
    """Keeps the order in which this rank's modules begin within a step, and compares it when nothing goes on."""

    def __init__(
        self, model: nn.Module, parts: Sequence[Uneven], world: World, fail: Callable[[AsymmetricRanks], None]
    ) -> None:
        """Hooks into every module whose weights lie on several ranks; without any, there is nothing to guard.

        `parts` are balanced all the same. `fail` is called from another thread: the main one cannot be interrupted
        where it waits.
        """
        self._balance = Balance(model, parts, world)
        gathered = gathered_modules(model)
        self.active = world.size > 1 and bool(gathered)
        self._world, self._fail = world, fail
        self._step, self._begun = 0, list[str]()
        self._over = threading.Event()
        if self.active:
            for name, module in gathered.items():
                module.register_forward_pre_hook(self._noting(name), prepend=True)  # before it waits for its weights

    def begin(self, step: int) -> None:
        """Starts a step."""
        self._begun, self._step = [], step

    def forward(self, runs: Mapping[str, int]) -> None:
        """Starts a micro-batch that runs the uneven parts so often. Collective: every rank must call."""
        self._begun.append(FORWARD)
        self._balance.expect(runs, self._step)

    def backward(self, loss: Tensor) -> Tensor:
        """Ends the forward pass; returns the loss with what was made up for in its graph, counting nothing."""
        penalty = self._balance.penalty()
        self._begun.append(BACKWARD)
        return loss if penalty is None else loss + penalty

    def agree(self) -> None:
        """Ends the last backward pass of the step."""
        self._begun.append(AGREE)

    def end(self) -> None:
        """Ends a step: until the next, ranks may do different things."""
        self._step = 0

    def __enter__(self) -> Self:
        """Begins to look."""
        if self.active:
            threading.Thread(target=self._watch, name="symmetry", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Looks no more."""
        self._over.set()

    def _noting(self, name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            self._begun.append(name)

        return note

    def _watch(self) -> None:
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        notes = Notes(PrefixStore("orch/symmetry", _get_default_store()), self._world.rank, self._world.size)
        seen, since = (0, 0), time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            now = (self._step, len(self._begun))
            if now != seen or now[0] == 0:
                seen, since = now, time.monotonic()
                continue
            if time.monotonic() - since < QUIET_S:
                continue
            begun = self._begun
            shown = Shown(step=now[0], before=max(0, now[1] - SHOWN), begun=begun[-SHOWN:])
            if (found := notes.compare(shown)) is not None:
                self._over.set()
                self._fail(AsymmetricRanks(found))


def gathered_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the modules for whose weights ranks wait: those with weights in pieces, and leaves with any within."""
    found: dict[str, nn.Module] = {}
    leaves: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(leaves):  # a leaf is gathered as one: which of its parts a rank runs is its own affair
            continue
        leaf = is_leaf(module)
        if leaf:
            leaves += (f"{name}.",)
        if any(is_partitioned(p) and not p.ds_persist for p in module.parameters(recurse=leaf)):
            found[name] = module
    return found


class Notes:
    """What the waiting ranks show each other; the first rank compares, and all read what it found."""

    def __init__(self, board: Board, rank: int, size: int) -> None:
        """Has shown nothing."""
        self._board, self._rank, self._size = board, rank, size
        self._last: Shown | None = None

    def compare(self, shown: Shown) -> str | None:
        """Shows what this rank has begun; returns what was found, if ranks have parted."""
        if shown != self._last:
            note = {"step": shown.step, "before": shown.before, "begun": list(shown.begun)}
            self._board.set(f"rank/{self._rank}", json.dumps(note))
            self._last = shown
        if self._rank == 0 and (all_shown := self._all()) is not None and (found := parting(all_shown)) is not None:
            self._board.set("found", found)
        return self._board.get("found").decode() if self._board.check(["found"]) else None

    def _all(self) -> list[Shown] | None:
        keys = [f"rank/{rank}" for rank in range(self._size)]
        if not all(self._board.check([key]) for key in keys):
            return None
        notes: list[dict[str, Any]] = [json.loads(self._board.get(key)) for key in keys]
        return [Shown(**note) for note in notes]


def parting(shown: Sequence[Shown]) -> str | None:
    """Says where the orders of ranks that all wait part from each other; None where they do not, or not yet."""
    if len({one.step for one in shown}) > 1:
        return None  # some notes are old: those ranks have gone on
    start = max(one.before for one in shown)
    rows = [one.begun[start - one.before :] for one in shown]
    for place in range(max(map(len, rows))):
        groups: dict[str, list[int]] = {}
        for rank, row in enumerate(rows):
            if place < len(row):
                groups.setdefault(row[place], []).append(rank)
        if len(groups) > 1:
            return _sentence(groups, shown[0].step)
    return None


def _sentence(groups: Mapping[str, Sequence[int]], step: int) -> str:
    told = "; ".join(f"{event} on {_ranks(ranks)}" for event, ranks in sorted(groups.items(), key=lambda g: len(g[1])))
    return (
        f"the ranks do not run the same modules at step {step}, so they wait for each other for ever: {told}. "
        "A part that only some batches need belongs in the task's `uneven`"
    )


def _ranks(ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:MOST_RANKS_NAMED]))
    rest = f" and {len(ranks) - MOST_RANKS_NAMED} more" if len(ranks) > MOST_RANKS_NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{rest}"
