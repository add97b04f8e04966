"""Frozen weights: written with the first checkpoint of a stage, and part of every later one by a hard link.

So each checkpoint stays whole by itself, whichever others go, and a later one costs what learns and no more. What lies
in these files, with their checksums, stands beside them, so that a resumed stage need not write them again, on however
many ranks it goes on.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.training.elastic import WEIGHTS, tensors
from orchestrator.training.writing import Written, is_frozen

if TYPE_CHECKING:
    from orchestrator.training.holdings import Held
    from orchestrator.world import World

log = logging.getLogger(__name__)

FROZEN = "frozen.json"


class Frozen:
    """The files of the frozen weights, as the first rank knows them."""

    def __init__(self, world: "World") -> None:
        """Has no such files yet."""
        self._world = world
        self.known = False  # on all ranks alike: there are files, or nothing is frozen
        self._home = Path()  # the newest checkpoint that holds them
        self._files: Sequence[Written] = ()
        self._told = False

    def find(self, checkpoint: Path, held: Callable[[], "Held"]) -> None:
        """Takes the files of a checkpoint that was just loaded, where they hold what is frozen now, laid out alike.

        Collective: every rank must call.
        """
        fits = self._world.is_main and self._fits(checkpoint, held())
        self.known = self._world.broadcast(fits)
        self._home = checkpoint

    def complete(self, draft: Path, files: Sequence[Written]) -> list[Written]:
        """Adds the files of the frozen weights to a draft's others, or takes note of them where the draft has new ones.

        Raises OSError.
        """
        if self.known:
            for file in self._files:
                self._link(self._home / WEIGHTS / file.file, draft / WEIGHTS / file.file)
            files = [*files, *self._files]
        else:
            self._files = [file for file in files if is_frozen(file.file)]
        if self._files:
            text = json.dumps([file.plain() for file in self._files])
            (draft / WEIGHTS / FROZEN).write_text(text, encoding="utf-8")
        return list(files)

    def published(self, checkpoint: Path) -> None:
        """Takes note of a checkpoint that holds the files."""
        self._home = checkpoint

    def _fits(self, checkpoint: Path, held: "Held") -> bool:
        wanted = {piece.name: piece for piece in held[WEIGHTS] if piece.frozen}
        try:
            plain = json.loads((checkpoint / WEIGHTS / FROZEN).read_text(encoding="utf-8"))
            self._files = [Written.from_json(file) for file in plain]
        except (OSError, ValueError, KeyError, TypeError):  # nothing was frozen, or it is older than this file
            return not wanted
        stored = tensors(checkpoint / WEIGHTS)
        there = {run.name for file in self._files for run in file.runs}
        return there == set(wanted) and all(stored[name] == piece.entry() for name, piece in wanted.items())

    def _link(self, source: Path, target: Path) -> None:
        try:
            os.link(source, target)
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning("frozen weights are copied into each checkpoint: %s cannot be linked (%s)", source, error)
            shutil.copyfile(source, target)
