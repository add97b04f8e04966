"""Ends the attempt of a keeper that has a fault of its own, as if it were the stage's: somebody has to hear of it."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.causes import cause_of
from orchestrator.notify import tell, tell_failure
from orchestrator.retry import Decision, conclude
from orchestrator.state import Ending, open_attempt, read_plain_stage, read_state
from slurm.again import queue_again
from slurm.attempt import Allocation, Standing
from slurm.cluster import Cluster, reopen_cluster
from slurm.submissions import Replaced

log = logging.getLogger(__name__)


class Broken:
    """A keeper that cannot go on."""

    def __init__(self, run: Path, stage: str, allocation: Allocation) -> None:
        """Touches nothing."""
        self._run, self._name, self._allocation = run, stage, allocation
        self._stage = run / stage

    def end(
        self, error: Exception, held: Callable[[], AbstractContextManager[None]], *, opened: int, now: Standing
    ) -> None:
        """Ends the attempt, and lets the stage be tried again or somebody be told.

        `held` holds the stage, and raises if it is another keeper's; `opened` is the last attempt that this one began.
        """
        detail = f"its keeper broke: {type(error).__name__}: {error}"
        ending = Ending(state="failed", cause=cause_of(error), detail=detail)
        try:
            cluster = reopen_cluster(self._run / "cluster.yaml")
            with held():
                decision = self._conclude(ending, opened, cluster)
            if decision is not None and not decision.again:
                tell_failure(self._run, self._name, others=(cluster.notify,)).wait()
                return
            if decision is not None:
                queue_again(self._run, self._name, decision, cluster, self._allocation, now)
                return
        except Replaced as replaced:
            log.warning("%s", replaced)
            return
        except Exception:
            log.exception("that could not be written down, or the stage not be queued again")
        tell(self._run, "needs_human", stage=self._name, cause=ending.cause or "", detail=detail).wait()

    def _conclude(self, ending: Ending, opened: int, cluster: Cluster) -> Decision | None:
        """Ends the open attempt; if there was none yet, this is one. None if it had ended before the keeper broke."""
        state, place = read_state(self._stage), self._allocation
        if state.state != "running":
            if state.attempts and state.attempts[-1].number == opened:
                return None
            open_attempt(self._stage, launcher=cluster.name, job_id=place.job_id, nodes=place.nodes)
        number = read_state(self._stage).attempts[-1].number
        return conclude(self._stage, number, ending, read_plain_stage(self._stage), again="queued")[1]
