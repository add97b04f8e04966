"""When the next checkpoint is due: every so many steps, or as what saving costs and how often nodes fail ask for."""

import logging
import math
import time

from orchestrator.interval import best_interval_s, job_mtbf_s
from orchestrator.training.config import TrainConfig

log = logging.getLogger(__name__)

FIRST_STEPS = 10  # until it is known what a save costs


class Pace:
    """Counts the steps between two saves."""

    def __init__(self, train: TrainConfig) -> None:
        """Knows nothing of costs yet."""
        self._train = train
        self._every = FIRST_STEPS if train.save.every_steps == "auto" else train.save.every_steps
        self._next = 0
        self._mtbf_s = math.inf
        self._since, self._steps = time.monotonic(), 0

    @property
    def measures(self) -> bool:
        """Tells whether it depends on what saves cost."""
        return self._train.save.every_steps == "auto"

    def start(self, step: int, *, nodes: int) -> None:
        """Begins to count after a step, on so many nodes."""
        self._next = step + self._every
        self._mtbf_s = job_mtbf_s(self._train.save.node_mtbf_hours, nodes)
        self._since, self._steps = time.monotonic(), 0

    def due(self, step: int) -> bool:
        """Tells whether a checkpoint is due after this step; asked once a step."""
        self._steps += 1
        if not self.measures:
            return step % self._every == 0 or step == self._train.steps
        if step < self._next and step != self._train.steps:
            return False
        self._next = step + self._every
        return True

    def step_s(self) -> float:
        """Returns how long a step took on this rank, of those since it was asked last."""
        now = time.monotonic()
        took_s, self._since = (now - self._since) / max(1, self._steps), now
        self._steps = 0
        return took_s

    def learn(self, step: int, *, stall_s: float, save_s: float, step_s: float) -> None:
        """Takes what the save after a step cost, the same on all ranks: never a save before the last one is done."""
        interval_s = max(best_interval_s(stall_s, self._mtbf_s), save_s)
        every = max(1, math.ceil(interval_s / max(step_s, 1e-6)))
        if not 0.8 * self._every <= every <= 1.25 * self._every:
            log.info(
                "a checkpoint every %d steps from now on: it costs %.3f s, a step takes %.3f s, a failure is expected "
                "every %.1f hours", every, stall_s, step_s, self._mtbf_s / 3600,
            )  # fmt: skip
        self._every, self._next = every, step + every
