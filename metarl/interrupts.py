"""Interrupts: the first Ctrl-C or `kill` asks a training to stop where it can be continued, the second Ctrl-C stops it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stable_baselines3.common.callbacks import BaseCallback

_NOTICE = b"\nStopping at the next safe point. Press Ctrl-C again to stop at once.\n"


class Interrupts:
    """What was asked for so far. `requested` is the number of the first SIGINT or SIGTERM, None before it."""

    def __init__(self) -> None:
        self.requested: int | None = None

    @property
    def exit_code(self) -> int:
        """What the process should exit with, as shells have it: 130 after SIGINT, 143 after SIGTERM, else 0."""
        return 0 if self.requested is None else 128 + self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = number
            os.write(2, _NOTICE)  # not `print`: the signal may have come in the midst of one
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)


@contextmanager
def graceful_interrupts() -> Iterator[Interrupts]:
    """Within the block, SIGINT and SIGTERM set `requested` and nothing else; poll it, or pass it to `StopOnInterrupt`.

    A SIGINT after any first signal raises `KeyboardInterrupt` at once; SIGTERM may be repeated. The handlers from before
    are put back at the end. Outside the main thread, where Python allows no handlers, `requested` stays None.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    previous = {number: signal.signal(number, interrupts._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopOnInterrupt(BaseCallback):
    """A Stable-Baselines3 callback that ends `learn()` at the first step after a signal."""

    def __init__(self, interrupts: Interrupts):
        super().__init__()
        self.interrupts = interrupts

    def _on_step(self) -> bool:
        return self.interrupts.requested is None
