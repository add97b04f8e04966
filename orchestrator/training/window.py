"""What happened since the last log line: mean losses, samples a second, time spent waiting for data."""

import time
from collections.abc import Mapping


class Window:
    """Adds up losses, samples and times."""

    def __init__(self) -> None:
        """Begins now."""
        self.save_wait_s = 0.0  # of the last step: until what it changes was copied
        self.steps = 0  # that are done
        self.restart()

    def restart(self) -> None:
        """Begins anew."""
        self._since, self._wait_s, self._samples, self.steps = time.perf_counter(), 0.0, 0, 0
        self._losses = Means()

    def begin_step(self) -> None:
        """Begins to measure how long a step waits."""
        self._waited_before_s = self._wait_s

    def add(self, losses: Mapping[str, float], samples: int) -> None:
        """Adds a step that is done."""
        self._samples, self.steps = self._samples + samples, self.steps + 1
        self._losses.add(losses)

    def waiting(self) -> "_Waiting":
        """Measures a `with` block as waiting for data."""
        return _Waiting(self)

    def waited(self, seconds: float) -> None:
        """Adds a time of waiting for data."""
        self._wait_s += seconds

    def means(self) -> dict[str, float]:
        """Returns the mean losses of a step."""
        return self._losses.means()

    def samples_per_s(self) -> float:
        """Returns how many samples a second were learned from."""
        return self._samples / self.seconds()

    def step_wait_s(self) -> float:
        """Returns how long the last step waited for its data."""
        return self._wait_s - self._waited_before_s

    def wait_s(self) -> float:
        """Returns how long a step waited for its data."""
        return self._wait_s / self.steps

    def step_s(self) -> float:
        """Returns how long a step took."""
        return self.seconds() / self.steps

    def seconds(self) -> float:
        """Returns how long it has been."""
        return max(time.perf_counter() - self._since, 1e-9)

    def wait_share(self) -> float:
        """Returns which share of a step went by waiting for its data."""
        return self.wait_s() / self.step_s()


class Means:
    """The means of the losses over the steps since they were last taken."""

    def __init__(self) -> None:
        """Has seen no step."""
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, losses: Mapping[str, float]) -> None:
        """Adds a step."""
        self._steps += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Returns the mean of each loss; of no step, none."""
        return {name: value / self._steps for name, value in self._sums.items()}

    def take(self) -> dict[str, float]:
        """Returns the means, and begins anew."""
        means, self._sums, self._steps = self.means(), {}, 0
        return means


class _Waiting:
    """Measures the time inside a `with` block."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._window.waited(time.perf_counter() - self._started)
