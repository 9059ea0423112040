"""A player for bandits that come back: what it once found out under a barcode it knows from then on."""

import numpy as np

from metarl.trials import Observations, Transition
from metarl_envs import TaskFamily, TaskSet

CERTAIN = 1e-12
"""Probabilities of 0 and 1 are taken to be so far away from them."""


class PerfectRecall:
    """Pulls the arm that is likeliest to be the best, given all pulls ever made under this barcode; ties at random.

    It knows how often the best arm and the others pay, as a trained agent does. But for a constant, the log-probability that
    an arm is the best is the sum of `log(high / low)` over its pulls that paid, and of `log((1 - high) / (1 - low))` over
    the others. Greedy, so not quite the best that can be done.
    """

    name = "perfect recall"

    def __init__(self, family: TaskFamily):
        self.family = family
        high, low = (np.clip(p, CERTAIN, 1 - CERTAIN) for p in (family.high, family.low))
        self.gain = {True: np.log(high / low), False: np.log((1 - high) / (1 - low))}

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Forget all pulls."""
        self.rng = rng
        self.slots = np.arange(len(tasks))
        self.barcodes = np.full((len(tasks), self.family.num_contexts), -1)
        self.beliefs = np.zeros((len(tasks), self.family.num_contexts, self.family.num_arms))

    def act(self, observations: Observations) -> np.ndarray:
        """The likeliest arm `[B]`."""
        beliefs = self.beliefs[self.slots, self._places(observations)]
        best = beliefs == beliefs.max(-1, keepdims=True)
        return np.where(best, self.rng.random(beliefs.shape), -1.0).argmax(-1)

    def observe(self, transition: Transition) -> None:
        """Learn about the arm."""
        places = self._places(transition.observations)
        paid = transition.rewards > 0.5
        self.beliefs[self.slots, places, transition.actions] += np.where(paid, self.gain[True], self.gain[False])

    def _places(self, observations: Observations) -> np.ndarray:
        """Where each barcode is kept `[B]`; one that is new gets the next free place."""
        numbers = observations @ (1 << np.arange(observations.shape[1]))
        known = self.barcodes == numbers[:, None]
        places = np.where(known.any(1), known.argmax(1), (self.barcodes < 0).argmax(1))
        self.barcodes[self.slots, places] = numbers
        return places
