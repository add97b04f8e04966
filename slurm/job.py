"""What a submission carries: submitit starts it on the first node of the job's nodes, and it becomes the keeper."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


class StageJob:
    """One stage of a run. Three strings: whatever else it needs lies in the run folder, in the state of that moment."""

    def __init__(self, *, run: str, stage: str, token: str) -> None:
        """Names the run's folder, the stage, and the submission that this job belongs to."""
        self.run = run
        self.stage = stage
        self.token = token

    def __call__(self) -> None:
        """Keeps the stage until it is done or somebody else has to go on; the exit code says which."""
        from slurm.keeper import Keeper

        sys.exit(Keeper(Path(self.run), self.stage, self.token).work())

    def checkpoint(self) -> "DelayedSubmission":
        """Returns what submitit puts in the queue again if Slurm speaks to it before the keeper listens: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
