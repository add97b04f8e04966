"""Run: the folder of one launch, who works on it, and what is written there before anything starts."""

from pathlib import Path
from typing import Any, Self

from orchestrator.plan import Plan


class RunLock:
    """Holds a run for this process, and for every process that inherits the file descriptor, until all closed it.

    The supervisor inherits it: `Popen(..., pass_fds=(lock.fileno(),))`, then `RunLock.adopt(directory, fileno, ...)`
    in the supervisor and `close()` in the launcher: the run is never without a holder.
    """

    @classmethod
    def adopt(cls, directory: Path, fileno: int, command: str) -> Self:
        """Takes over a lock whose descriptor was inherited, and names this process as the holder."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Returns the descriptor that holds the lock."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go; the run is free once every inherited descriptor is closed too."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Holds the run for the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go."""
        self.close()


class Run:
    """The folder of one recipe's work: recipe.yaml, code/, one folder a stage."""

    def __init__(self, directory: Path) -> None:
        """Names the folder; nothing is read or written yet."""
        self.directory = directory

    @classmethod
    def find(cls, name_or_path: str, runs: Path = Path("runs")) -> "Run":
        """Opens an existing run by folder or by name under `runs`; InputError lists the known ones."""
        raise NotImplementedError

    def lock(self, command: str) -> RunLock:
        """Takes the run for this process, or raises RunBusy naming the holder. Makes the folder if needed."""
        raise NotImplementedError

    def holder(self) -> dict[str, Any] | None:
        """Returns who holds the run now ({pid, host, user, started, command}), or None if nobody does."""
        raise NotImplementedError

    def prepare(self, plan: Plan, code_root: Path, *, require_clean: bool = False) -> None:
        """Writes all that stages need: code snapshot, stage folders with stage.json, plan.json, recipe.yaml last.

        The caller holds the lock. `plan.json` is `plan.document()`: the stages in order with action and reason.
        """
        raise NotImplementedError

    def stage_directory(self, name: str) -> Path:
        """Returns the folder of a stage."""
        return self.directory / name

    def stage_document(self, name: str) -> dict[str, Any]:
        """Reads a stage's `stage.json`."""
        raise NotImplementedError

    def record_inputs(self, name: str) -> None:
        """Notes the digests of the inputs a stage is about to read, in `inputs.json` of its folder.

        The worker's first rank calls it before `stage.run`: a later plan reuses or resumes the work only if the inputs
        are still these.
        """
        raise NotImplementedError
