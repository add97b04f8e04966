"""Brings checkpoints to the disk while training goes on: copied, written by every rank, published by the first.

The threads that write meet nobody. That every rank is done is agreed in the collective that each step has anyway
(`signs` go into it, `follow` hears what came out), so they cannot mix with the training's collectives, and of a rank
that cannot write all ranks hear. What a rank wrote it says in a file of its own, which the first rank reads.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from orchestrator.errors import Diverged, OrchError, SurroundingsError
from orchestrator.journal import Journal
from orchestrator.records import record
from orchestrator.training.elastic import Piece
from orchestrator.training.holdings import Held
from orchestrator.training.hostroom import HostRoom, free_memory_bytes, lacking_memory, room_bytes
from orchestrator.training.retention import clear_left_over
from orchestrator.training.writing import SHARES, Share, read_share, write_share
from orchestrator.world import World

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

BUSY, FAILED = "?saving", "?unsaved"


@record
class Draft:
    """A checkpoint that has no name yet."""

    path: Path
    step: int
    metrics: Mapping[str, float]
    held: Held  # live: when it is published, only names, shapes and types of it count


@record
class Saved:
    """What a checkpoint cost: the most of any rank."""

    step: int
    save_s: float  # from its beginning until it was published, without waiting for steps to end
    stall_s: float  # for which training stood still
    size_bytes: int  # that were written for it

    def __str__(self) -> str:
        """Reads like a log line."""
        still = f"training stood still for {self.stall_s:.3f} s"
        return f"saved step {self.step} in {self.save_s:.2f} s ({self.size_bytes / 1e6:.1f} MB; {still})"


class Saver:
    """Saves one checkpoint after another, never two at a time."""

    def __init__(
        self,
        directory: Path,
        *,
        publish: Callable[[Draft, Sequence[Share]], None],
        ended: Callable[[Saved], None],
        in_background: bool,
        world: World,
        journal: Journal,
        free_bytes: Callable[[], int] = free_memory_bytes,
    ) -> None:
        """Has nothing to save yet.

        `publish` gives a draft its name, on the first rank, and may raise OSError or an OrchError; `ended` hears on all
        ranks that it has one.
        """
        self._directory, self._publish, self._ended = directory, publish, ended
        self._world, self._journal = world, journal
        self._in_background, self._free_bytes = in_background, free_bytes
        self._room: HostRoom | None = None
        self._under_way: _UnderWay | None = None
        self._told_slow = False

    @property
    def busy(self) -> bool:
        """Tells whether a save is under way, on all ranks or on none."""
        return self._under_way is not None

    def __enter__(self) -> Self:
        """Does nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the save under way where training diverged: it is from before, and all ranks leave here."""
        if kind is not None and issubclass(kind, Diverged):
            self.finish()

    def begin(self, step: int, held: Callable[[], Held], metrics: Mapping[str, float], *, frozen: bool) -> None:
        """Starts to save what is held, the frozen weights too if asked; without a room for a copy it also ends it.

        Until `before_update` nothing that is held may change. Collective: every rank must call.
        """
        assert self._under_way is None  # noqa: S101 - whoever begins has made way
        began = time.perf_counter()
        draft = Draft(path=self._directory / f".step_{step:08d}.draft", step=step, metrics=metrics, held=held())
        chosen = {folder: [p for p in pieces if frozen or not p.frozen] for folder, pieces in draft.held.items()}
        room = self._prepared(draft, [p for pieces in chosen.values() for p in pieces if not p.frozen])
        moment = room.moment() if room else None
        one = self._under_way = _UnderWay(draft, in_background=room is not None)

        def work() -> None:
            pieces = _copied(chosen, room, moment) if room else chosen
            one.copied.set()
            write_share(draft.path, self._world.rank, pieces, began)

        one.start(work)
        one.stall_s = time.perf_counter() - began
        if room is None:
            one.stall_s += self.finish()

    def before_update(self) -> float:
        """Waits until all that training is about to change is copied; returns for how long."""
        if self._under_way is None:
            return 0.0
        began = time.perf_counter()
        self._under_way.copied.wait()
        waited_s = time.perf_counter() - began
        self._under_way.stall_s += waited_s
        return waited_s

    def signs(self) -> dict[str, float]:
        """Says how far this rank is; what all ranks together say goes to `follow`."""
        one = self._under_way
        return {BUSY: float(one is not None and one.busy), FAILED: float(one is not None and one.problem is not None)}

    def follow(self, signs: Mapping[str, float]) -> None:
        """Goes on when every rank has done its part: `signs` are above 0 where any rank's are.

        Raises SurroundingsError on all ranks if one could not write. Collective: every rank must call, with the same.
        """
        one = self._under_way
        if one is None or signs[BUSY] > 0:
            return
        if signs[FAILED] > 0:
            self._give_up(one)
        elif one.publishing:
            self._end(one)
        else:
            one.publishing = True
            if self._world.is_main:
                one.start(lambda: self._publish_share(one))

    def finish(self) -> float:
        """Waits until the save under way, if any, is published; returns for how long.

        Collective: every rank must call.
        """
        began = time.perf_counter()
        while self._under_way is not None:  # twice: until it is written, and until it is published
            self._under_way.wait()
            self.follow(self._world.highest_of(self.signs()))
        return time.perf_counter() - began

    def make_way(self, step: int) -> None:
        """Waits for the save before, if it is still under way: there is room for one copy only.

        Collective: every rank must call.
        """
        if self._under_way is None:
            return
        late = self._under_way.draft.step
        waited_s = self.finish()
        if not self._told_slow:
            self._told_slow = True
            log.warning(
                "step %d is to be saved before step %d was: training waited %.2f s for it, and will again where the "
                "disk is slower than train.save.every_steps asks for; this is said once", step, late, waited_s,
            )  # fmt: skip
            self._journal.append("slow_saves", step=step, before=late, waited_s=waited_s)

    def _prepared(self, draft: Draft, pieces: Sequence[Piece]) -> HostRoom | None:
        """Makes the draft's folders, and room for a copy where it is asked for and there is any.

        Collective: every rank must call.
        """
        problem = None
        if self._world.is_main:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                clear_left_over(self._directory)
                for folder in (SHARES, *draft.held):
                    (draft.path / folder).mkdir(parents=True)
            except OSError as error:
                problem = str(error)
        small = self._in_background and (self._room is None or not self._room.fits(pieces))
        told = self._world.gather((problem, small))
        self._refuse([text for text, _ in told], draft)
        if any(wanting for _, wanting in told):
            self._make_room(pieces)
        return self._room

    def _make_room(self, pieces: Sequence[Piece]) -> None:
        self._room = None
        if lacking := lacking_memory(room_bytes(pieces), self._free_bytes(), self._world):
            self._in_background = False
            if self._world.is_main:
                log.warning("training will stand still for each save: %s", lacking)
            self._journal.append("saves_in_foreground", reason=lacking)
        else:
            self._room = HostRoom(pieces, self._world.device)

    def _publish_share(self, one: "_UnderWay") -> None:
        began = time.perf_counter()
        shares = [read_share(one.draft.path, rank) for rank in range(self._world.size)]
        shutil.rmtree(one.draft.path / SHARES)
        self._publish(one.draft, shares)
        one.size_bytes = sum(file.size_bytes for share in shares for files in share.files.values() for file in files)
        one.save_s = max(share.took_s for share in shares) + time.perf_counter() - began

    def _end(self, one: "_UnderWay") -> None:
        self._under_way = None
        costs = {"save_s": one.save_s, "stall_s": one.stall_s, "size_bytes": float(one.size_bytes)}
        costs = self._world.highest_of(costs)
        saved = Saved(
            step=one.draft.step, save_s=costs["save_s"], stall_s=costs["stall_s"], size_bytes=int(costs["size_bytes"])
        )
        if self._world.is_main:
            log.info("%s", saved)
        self._journal.append("saved", **costs, step=saved.step)
        self._ended(saved)

    def _give_up(self, one: "_UnderWay") -> None:
        self._under_way = None
        self._refuse(self._world.gather(one.problem), one.draft)

    def _refuse(self, problems: Sequence[str | None], draft: Draft) -> None:
        """Raises what went wrong on any rank; nothing of the draft is left."""
        found = [text for text in problems if text]
        if not found:
            return
        if self._world.is_main:
            shutil.rmtree(draft.path, ignore_errors=True)
        free_gb = _free_bytes(self._directory) / 1e9
        raise SurroundingsError(f"cannot write in {self._directory}: {found[0]} ({free_gb:.2f} GB free there)")


class _UnderWay:
    """A save, and on this rank the thread that is at it."""

    def __init__(self, draft: Draft, *, in_background: bool) -> None:
        self.draft = draft
        self.copied = threading.Event()
        self.publishing = False
        self.problem: str | None = None
        self.stall_s, self.save_s, self.size_bytes = 0.0, 0.0, 0
        self._in_background = in_background
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        if self._in_background:  # a daemon: a process that ends for another reason does not wait for the disk
            self._thread = threading.Thread(target=self._run, args=(work,), name="saving", daemon=True)
            self._thread.start()
        else:
            self._run(work)

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, OrchError) as error:
            self.problem = str(error)
        except Exception as error:  # whatever it was: all ranks must hear of it, none may wait for it
            log.exception("a checkpoint cannot be saved")
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self.copied.set()


def _copied(held: Held, room: HostRoom, moment: "torch.cuda.Event | None") -> Held:
    """Returns the same pieces, those that change as copies."""
    copies = iter(room.copy([p for pieces in held.values() for p in pieces if not p.frozen], moment))
    return {folder: [p if p.frozen else next(copies) for p in pieces] for folder, pieces in held.items()}


def _free_bytes(directory: Path) -> int:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
