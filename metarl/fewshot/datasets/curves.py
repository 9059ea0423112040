"""Families of functions from a number to a number, to learn from a few points of one: few-shot regression.

- `Sinusoids`: Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning", section 5.1. The paper does not say which sign
  the phase has; its released code subtracts it, and so does this.
- `GaussianProcessCurves`: Kim et al. 2019, "Attentive neural processes", section 4.1, with the random kernel. Garnelo et
  al. 2018, "Conditional neural processes", have one fixed kernel instead.
- `DampedOscillators`: not of a paper; a family with four parameters, whose curves fade.

All splits but "ood" draw other curves of the same distribution; there, amplitudes go on where training's end, up to twice
that. Numbers are computed in double precision and given in single.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from metarl.fewshot.episodes import Episodes, EpisodeSource, TaskSpec, episode_rngs
from metarl.plain import check_count, check_known


@dataclass(frozen=True)
class Curves(EpisodeSource):
    """Base class: every parameter of a curve, and every `x`, is drawn uniformly from its range.

    A subclass says `name`, `ranges` (one is called amplitude), `domain` and `curve`.

    Raises:
        ValueError: in one line, at fewer than one shot or query.
    """

    shots: int = 5
    """Points to learn from."""
    queries: int = 10
    """Points to be asked about."""

    splits: ClassVar[Sequence[str]] = ("train", "validation", "test", "ood")
    ahead: ClassVar[int] = 16
    ranges: ClassVar[Mapping[str, tuple[float, float]]]
    domain: ClassVar[tuple[float, float]]

    def __post_init__(self):
        for name in ("shots", "queries"):
            check_count(name, getattr(self, name))

    @property
    def spec(self) -> TaskSpec:
        """A number to a number."""
        return TaskSpec(shape=(1,), outputs=1, classification=False, shots=self.shots)

    def curve(self, x: np.ndarray, *drawn: np.ndarray) -> np.ndarray:
        """`y [N, M]` of `N` curves at `x [N, M]`; `drawn`: their parameters `[N, 1]`, in the order of `ranges`."""
        raise NotImplementedError

    def draw(self, rngs: Iterable[np.random.Generator]) -> np.ndarray:
        """The random numbers of episodes `[N, R]`: of `ranges` and of `x`, from 0 to 1; then what else `curve` is given."""
        size = len(self.ranges) + self.shots + self.queries
        return np.array([rng.random(size) for rng in rngs])

    def episode(self, split: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """As in the base class."""
        return tuple(part[0] for part in self._arrays(split, self.draw([rng])))

    def episodes(self, split: str, indices: Sequence[int], seed: int = 0) -> Episodes:
        """As in the base class, but the arithmetic is done for all episodes at once."""
        check_known(f"split {split!r}", split, self.splits)
        random = self.draw(episode_rngs(seed, split, indices))
        return Episodes(*map(torch.from_numpy, self._arrays(split, random)))

    def _arrays(self, split: str, random: np.ndarray) -> tuple[np.ndarray, ...]:
        """Parts of episodes, from the random numbers `[N, R]`."""
        ranges, points = dict(self.ranges), self.shots + self.queries
        if split == "ood":
            most = ranges["amplitude"][1]
            ranges["amplitude"] = (most, 2.0 * most)
        low, high = np.array([*ranges.values(), *[self.domain] * points]).T
        uniform, rest = random[:, : len(low)], random[:, len(low) :]
        *parameters, x = np.split(low + (high - low) * uniform, range(1, len(ranges) + 1), axis=1)
        y = self.curve(x, *parameters, *([rest] if rest.size else []))
        support, query = np.s_[:, : self.shots, None], np.s_[:, self.shots :, None]
        parts = (values[places].astype(np.float32) for places in (support, query) for values in (x, y))
        return *parts, np.empty((len(x), 0), np.int64)


@dataclass(frozen=True)
class Sinusoids(Curves):
    """`y = amplitude sin(x - phase)`, amplitude in [.1, 5], phase in [0, pi], `x` in [-5, 5]; amplitude in [5, 10] in "ood".

    There is no noise: the smallest error that a learner can reach is 0, from two points on. Training in the paper's released
    code has as many queries as shots.
    """

    name: ClassVar[str] = "sinusoids"
    ranges: ClassVar = {"amplitude": (0.1, 5.0), "phase": (0.0, math.pi)}
    domain: ClassVar = (-5.0, 5.0)

    def curve(self, x: np.ndarray, amplitude: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """As in the base class."""
        return amplitude * np.sin(x - phase)


@dataclass(frozen=True)
class GaussianProcessCurves(Curves):
    """Curves of a Gaussian process with mean 0 and covariance `amplitude^2 exp(-(x - x')^2 / (2 length_scale^2))`.

    Every curve has an amplitude in [.1, 1] and a length scale in [.1, .6] of its own, `x` in [-2, 2], as in Attentive Neural
    Processes; Conditional Neural Processes fix them. Amplitude in [1, 2] in "ood". No learner's expected error is below that
    of the posterior mean given the curve's own amplitude and length scale.

    Raises:
        ValueError: in one line, at fewer than one shot or query, or noise below 1e-4.
    """

    noise: float = 0.02
    """Standard deviation of what is added to every `y`, queries included."""

    name: ClassVar[str] = "gaussian-process-curves"
    ranges: ClassVar = {"amplitude": (0.1, 1.0), "length_scale": (0.1, 0.6)}
    domain: ClassVar = (-2.0, 2.0)

    def __post_init__(self):
        super().__post_init__()
        # without noise, rounding leaves the covariance of near points no Cholesky factor
        if not 1e-4 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and at least 0.0001, got {self.noise}")

    def draw(self, rngs: Iterable[np.random.Generator]) -> np.ndarray:
        """As in the base class, and a standard normal number for each point."""
        points = self.shots + self.queries
        size = len(self.ranges) + points
        return np.array([np.concatenate([rng.random(size), rng.standard_normal(points)]) for rng in rngs])

    def curve(self, x: np.ndarray, amplitude: np.ndarray, length_scale: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """As in the base class; `normal [N, M]` becomes `y` by the covariance's Cholesky factor."""
        distance = (x[:, :, None] - x[:, None, :]) / length_scale[..., None]
        covariance = amplitude[..., None] ** 2 * np.exp(-0.5 * distance**2) + self.noise**2 * np.eye(x.shape[1])
        return (np.linalg.cholesky(covariance) @ normal[..., None])[..., 0]


@dataclass(frozen=True)
class DampedOscillators(Curves):
    """`y = amplitude exp(-damping x) sin(frequency x + phase)`, where `x` in [0, 5] is time.

    Amplitude in [.5, 2], frequency in [1, 4] radians per unit of time, phase in [0, pi], damping in [.1, 1] per unit of
    time; amplitude in [2, 4] in "ood". There is no noise: with enough shots the smallest error in reach is 0.
    """

    name: ClassVar[str] = "damped-oscillators"
    ranges: ClassVar = {"amplitude": (0.5, 2.0), "frequency": (1.0, 4.0), "phase": (0.0, math.pi), "damping": (0.1, 1.0)}
    domain: ClassVar = (0.0, 5.0)

    def curve(
        self, x: np.ndarray, amplitude: np.ndarray, frequency: np.ndarray, phase: np.ndarray, damping: np.ndarray
    ) -> np.ndarray:
        """As in the base class."""
        return amplitude * np.exp(-damping * x) * np.sin(frequency * x + phase)
