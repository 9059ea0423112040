"""What a long training tells while it runs: how fast it is, how long it will take, and where the time goes."""

import time

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback


class Progress(BaseCallback):
    """Prints a line now and then, and logs `time/stepping`, `time/acting` and `time/updating`, shares of the time so far.

    Stepping is the environments', with their physics; acting is the rest of collecting trials; updating is all else. A
    training without environments has no shares.

    Args:
        every: seconds between lines; None prints none.
    """

    def __init__(self, every: float | None = 60.0):
        super().__init__()
        self.every = every

    def _on_training_start(self) -> None:
        self.start = self.printed = self.now = time.perf_counter()
        self.first_step = self.model.num_timesteps
        self.envs = getattr(self.model, "envs", None)
        self.stepped_before = self.envs.seconds if self.envs else 0.0
        self.collecting = 0.0
        self.collecting_since: float | None = None

    def _on_rollout_start(self) -> None:
        self.now = time.perf_counter()
        if self.model.num_timesteps > self.first_step:
            for name, share in self.shares().items():
                self.logger.record(f"time/{name}", share)
            if self.every is not None and self.now - self.printed >= self.every:
                self.printed = self.now
                print(self.line(), flush=True)
        self.collecting_since = self.now

    def _on_rollout_end(self) -> None:
        self.collecting += time.perf_counter() - self.collecting_since

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.now = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long training has taken in this process."""
        return max(self.now - self.start, 1e-9)

    @property
    def speed(self) -> float:
        """Environment steps per second, training included."""
        return (self.model.num_timesteps - self.first_step) / self.seconds

    @property
    def unit(self) -> str:
        """What is counted."""
        return getattr(self.model, "unit", "steps")

    def shares(self) -> dict[str, float]:
        """Parts of the time, which sum to 1."""
        if self.envs is None:
            return {}
        stepping = (self.envs.seconds - self.stepped_before) / self.seconds
        collecting = self.collecting / self.seconds
        return {"stepping": stepping, "acting": collecting - stepping, "updating": 1 - collecting}

    def line(self) -> str:
        """Steps, speed, time left, shares, and the mean return of the last trials."""
        model = self.model
        total = model._total_timesteps
        left = (total - model.num_timesteps) / max(self.speed, 1e-9)
        returns = [info["r"] for info in getattr(model, "ep_info_buffer", None) or ()]
        parts = [
            f"{model.num_timesteps:,} of {total:,} {self.unit}",
            f"{self.speed:,.0f} {self.unit}/s",
            f"{_clock(left)} left",
            *([self._shares()] if self.envs else []),
        ]
        if returns:
            parts.append(f"return {np.mean(returns):.2f}")
        return ", ".join(parts)

    def summary(self) -> str:
        """What to say at the end."""
        speed = f"{_clock(self.seconds)}, {self.speed:,.0f} {self.unit}/s"
        return f"{speed}: {self._shares()}" if self.envs else speed

    def _shares(self) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, without leading zeros."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
