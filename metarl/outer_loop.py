"""Training that needs no environment of its own, in the manners of Stable-Baselines3's algorithms.

Its callbacks work, but for those that ask for an environment.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from tqdm import tqdm

from metarl.allocator import keep_freed_memory
from metarl.checkpoint import load_checkpoint, save_checkpoint


class OuterLoop:
    """Whole iterations, one after another, each followed by a callback's `on_step`.

    A subclass implements `_iterate`, `state` and `set_state`, and `from_state`.

    Attributes:
        num_timesteps: what has been done so far, in units that the subclass names.
        unit: their name, in the plural.
        log_interval: iterations between two lines in the log of a run folder.
        all_or_nothing: whether an iteration that fails leaves all as it was; otherwise the state is copied before each.
    """

    unit = "steps"
    log_interval = 1
    all_or_nothing = False
    num_timesteps = 0
    _total_timesteps = 0
    _logger: Logger | None = None

    def __init__(self, tensorboard_log: str | None = None, verbose: int = 0):
        self.tensorboard_log = tensorboard_log
        self.verbose = verbose

    # -- what callbacks ask for ----------------------------------------------------------------------------------

    def get_env(self) -> None:
        """There is none."""

    def set_logger(self, logger: Logger) -> None:
        """Log to `logger` from now on."""
        self._logger = logger

    @property
    def logger(self) -> Logger:
        """As in Stable-Baselines3; there from the first `learn` on, or once it was set."""
        if self._logger is None:
            raise ValueError("logger must be set first: it is made when learn() begins")
        return self._logger

    # -- training ------------------------------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least `total_timesteps`, in whole iterations; arguments as in Stable-Baselines3.

        What an exception interrupts is taken back, so that a model that is saved goes on as if there had been none.
        """
        if total_timesteps < 1:
            raise ValueError(f"total_timesteps must be at least 1, got {total_timesteps}")
        keep_freed_memory()
        if reset_num_timesteps:
            self.num_timesteps = 0
        self._total_timesteps = self.num_timesteps + total_timesteps
        if self._logger is None:
            name = tb_log_name or type(self).__name__
            self._logger = configure_logger(self.verbose, self.tensorboard_log, name, reset_num_timesteps)
        callback = _as_callback(callback)
        callback.init_callback(self)
        began, at = time.monotonic(), self.num_timesteps
        callback.on_training_start(locals(), globals())
        iteration, going = 0, True
        with _bar(progress_bar, total_timesteps, self.unit) as bar:
            while going and self.num_timesteps < self._total_timesteps:
                callback.on_rollout_start()
                before, start = None if self.all_or_nothing else self.state(), self.num_timesteps
                finished = False
                try:
                    metrics = self._iterate()
                    finished = True
                finally:
                    if not finished and before is not None:
                        self.set_state(before)
                bar.update(self.num_timesteps - start)
                iteration += 1
                for name, value in metrics.items():
                    self.logger.record(name, value)
                callback.update_locals(locals())
                going = callback.on_step()
                callback.on_rollout_end()
                if log_interval and (iteration % log_interval == 0 or self.num_timesteps >= self._total_timesteps):
                    self.logger.record("time/speed", (self.num_timesteps - at) / max(time.monotonic() - began, 1e-9))
                    self.logger.dump(step=self.num_timesteps)
        callback.on_training_end()
        return self

    @property
    def progress(self) -> float:
        """Share of training that is done, from 0 to 1."""
        return min(1.0, self.num_timesteps / max(self._total_timesteps, 1))

    def _iterate(self) -> dict[str, float]:
        """One iteration, which counts itself in `num_timesteps`; what to log of it, by name."""
        raise NotImplementedError

    # -- saving and loading --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that decides what happens next, as plain values and tensors."""
        raise NotImplementedError

    def set_state(self, state: dict[str, Any]) -> None:
        """Take it over from `state()`."""
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: dict[str, Any], **options: Any) -> Self:
        """One that goes on from `state()`."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write one file, atomically."""
        save_checkpoint(path, self.state())

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Self:
        """Read what `save` wrote; no code in the file is run. `options` as in `from_state`.

        Raises:
            CheckpointError: when the file is truncated, altered or of another kind.
        """
        return cls.from_state(load_checkpoint(path), **options)


def _as_callback(callback: MaybeCallback) -> BaseCallback:
    if isinstance(callback, BaseCallback):
        return callback
    if callable(callback):
        return ConvertCallback(callback)
    return CallbackList(list(callback or []))


@contextmanager
def _bar(shown: bool, total: int, unit: str) -> Iterator[tqdm]:
    with tqdm(total=total, unit=f" {unit}", unit_scale=True, disable=not shown) as bar:
        yield bar
