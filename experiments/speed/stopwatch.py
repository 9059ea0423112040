"""Timing trainings from within: what the speed scripts share."""

import time
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback

CLOCK: Callable[[], float] = time.process_time
"""Seconds of work on one thread: the wall clock of an idle machine, and not slowed down by other programs on a busy one."""

MIN_UPDATES = 2


class Stopwatch(BaseCallback):
    """Stops training when enough updates were timed. An update is a rollout and the epochs on it.

    Args:
        seconds: least time.
        warm_up: updates at the start that are left out.
        on_start: called when timing starts.
    """

    def __init__(self, seconds: float, warm_up: int = 1, on_start: Callable[[], object] = lambda: None):
        super().__init__()
        self.seconds, self.warm_up = seconds, warm_up
        self._start = on_start
        self._marks: list[float] = []

    def _on_rollout_start(self) -> None:
        self._marks.append(CLOCK())
        if len(self._marks) == self.warm_up + 1:
            self._start()

    def _on_step(self) -> bool:
        return self.updates < MIN_UPDATES or self.total < self.seconds

    @property
    def updates(self) -> int:
        """Updates timed."""
        return len(self._marks) - 1 - self.warm_up

    @property
    def total(self) -> float:
        """Seconds that these took."""
        return self._marks[-1] - self._marks[self.warm_up]


def timed(function: Callable, spent: dict[str, float], name: str) -> Callable:
    """`function`, adding the seconds that it takes to `spent[name]`."""

    def run(*args, **kwargs):
        start = CLOCK()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += CLOCK() - start

    return run
