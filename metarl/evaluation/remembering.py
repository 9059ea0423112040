"""What a memory does in a trial, and how far back it reaches."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.evaluation.play import play_trials
from metarl.policies import Memory, TrialPolicy
from metarl.trials import Observations, Player, Transition, to_tensor
from metarl_envs import TaskFamily, TaskSet

FORGOTTEN = 0.05
"""A history is long enough where no more than this share is missing of what the whole past changes about decisions."""
NOTHING = 1e-6
"""Nats per decision below which a memory decides nothing: what is left is rounding."""
AT_ONCE = 4096
"""States of the memory that are held at once: those of cores with attention are large."""


class Remembered(NamedTuple):
    """One trial of `T` steps as the memory went through it."""

    weights: dict[str, np.ndarray]  # [T, K] each: what `MemoryCore.watch` says
    places: str  # what the K are
    rewards: np.ndarray  # [T]
    episode_ends: np.ndarray  # [T] bool


@dataclass(frozen=True)
class Reach:
    """How much of a policy's decisions is decided by the last steps alone."""

    steps: np.ndarray
    """Steps that are remembered, the present one included, `[H]`, rising."""
    missing: np.ndarray
    """What is missing with no more than these, `[H]`: 1 with the present one alone, in between also more, 0 with all."""
    nats: float
    """What memory changes about a decision: mean divergence of the actions' distribution from that without a past."""

    @property
    def length(self) -> int:
        """The effective memory length: steps, the present one included, from which on at most 5 % are missing."""
        short = np.flatnonzero(self.missing > FORGOTTEN)
        return int(self.steps[min(short[-1] + 1, len(self.steps) - 1) if len(short) else 0])

    def __str__(self) -> str:
        if self.nats < NOTHING:
            return "nothing is decided by it"
        steps = f"{self.length} step{'s' if self.length > 1 else ''}"
        return f"effective length {steps}; a decision changes by {self.nats:.2g} nats on average"


def check_memory(player: Player) -> None:
    """Raise a `ValueError` unless the player adapts by a memory."""
    policy = getattr(player, "policy", None)
    if not isinstance(policy, TrialPolicy):
        raise ValueError(f"{player.name} does not adapt by a memory: there is none to show")
    if not policy.core.initial_state(1):
        raise ValueError(f"{player.name} has no memory to show")


class Watched:
    """A player with a memory, and what went in and out of it. `inputs` are the core's: the policy's may be pictures.

    Args:
        player: has a `TrialPolicy` as `policy` and its `memory`.
        watch: whether to note what the memory does.

    Raises:
        ValueError: when the player has no such memory.
    """

    def __init__(self, player: Player, watch: bool = True):
        check_memory(player)
        self.player, self.name, self.watch = player, player.name, watch
        self.policy: TrialPolicy = player.policy
        self.inputs: list[Tensor] = []
        self.weights: list[dict[str, Tensor]] = []
        self.rewards: list[np.ndarray] = []
        self.done: list[np.ndarray] = []
        self.playing: list[np.ndarray] = []

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """As the player does."""
        self._going_on = np.ones(len(tasks), bool)
        self.player.start_trials(tasks, rng)

    @torch.no_grad()
    def act(self, observations: Observations) -> np.ndarray:
        """Note what the policy reads, and act."""
        memory: Memory = self.player.memory
        read = self.policy.inputs(to_tensor(observations, self.policy.device), *memory[1:])
        self.inputs.append(self.policy.encode(read))
        if self.watch:
            self.weights.append(self.policy.core.watch(self.inputs[-1], memory.core))
        return self.player.act(observations)

    def observe(self, transition: Transition) -> None:
        """Note what came of it."""
        self.rewards.append(transition.rewards.copy())
        self.done.append(transition.terminated | transition.truncated)
        self.playing.append(self._going_on)
        self._going_on = self._going_on if transition.playing is None else transition.playing.copy()
        self.player.observe(transition)


def remember(
    player: Player, family: TaskFamily, tasks: TaskSet, *, episodes: int | None = None, seed: int = 0
) -> list[Remembered]:
    """Play a trial in each of a few tasks, and note what the memory does in every step.

    Raises:
        ValueError: when `player` does not adapt by a memory.
    """
    watched = Watched(player)
    play_trials(watched, family, tasks, episodes=episodes, seed=seed, batch_size=len(tasks))
    rewards, done, playing = (np.stack(part) for part in (watched.rewards, watched.done, watched.playing))
    weights = {name: torch.stack([w[name] for w in watched.weights]).cpu().numpy() for name in watched.weights[0]}
    trials = []
    for row in range(len(tasks)):
        steps = playing[:, row]
        own = {name: values[steps, row] for name, values in weights.items()}
        trials.append(Remembered(own, watched.policy.core.watched, rewards[steps, row], done[steps, row]))
    return trials


@torch.no_grad()
def reach(
    player: Player,
    family: TaskFamily,
    tasks: TaskSet,
    *,
    episodes: int | None = None,
    seed: int = 0,
    decisions: int = 512,
) -> Reach:
    """How far back a memory reaches: decisions with the whole trial remembered against its last `h` steps only.

    With `p` the distribution of a decision's actions, and `p_h` that of the same policy when its memory was empty `h - 1`
    steps before and has read the recorded steps since, what is missing is

        sum of KL(p || p_h) over all decisions  /  sum of KL(p || p_1) over all decisions

    Both sums are estimated on `decisions` of them, half drawn evenly and half in proportion to `KL(p || p_1)`: a trial's
    only decision that hangs on the past is found. `h` runs over a geometric grid and, where the share falls for good to
    what counts as nothing, over all numbers. A step that is remembered brings what the step before it led to: it is read
    with the observation. A memory that is empty in the middle of a trial is something that the policy was not trained
    with; so what is missing says what this policy needs, not what the task does.

    Raises:
        ValueError: when `player` does not adapt by a memory.
    """
    if decisions < 1:
        raise ValueError(f"decisions must be at least 1, got {decisions}")
    watched = Watched(player, watch=False)
    play_trials(watched, family, tasks, episodes=episodes, seed=seed, batch_size=len(tasks))
    policy = watched.policy
    inputs = torch.stack(watched.inputs)
    playing = torch.as_tensor(np.stack(watched.playing), device=inputs.device)
    total, rows, _ = inputs.shape

    def divergence(whole: Tensor, part: Tensor) -> Tensor:
        return policy.policy_head.kl(whole.double(), part.double()).clamp(min=0)

    def after(windows: Tensor) -> Tensor:
        """Action parameters at the end of `windows [h, B, ...]` that begin with an empty memory, `[B, ...]`."""
        ends = []
        for part in windows.split(AT_ONCE, 1):
            reset = torch.zeros(part.shape[:2], dtype=torch.bool, device=part.device)
            ends.append(policy.scan_encoded(part, policy.core.initial_state(part.shape[1]), reset)[0][-1])
        return torch.cat(ends)

    nothing = torch.zeros(total, rows, dtype=torch.bool, device=inputs.device)
    whole = policy.scan_encoded(inputs, policy.core.initial_state(rows), nothing)[0]
    alone = after(inputs.flatten(0, 1)[None]).unflatten(0, (total, rows))
    changes = divergence(whole, alone) * playing
    nats = float(changes.sum() / playing.sum())
    if nats < NOTHING:
        return Reach(np.array([1]), np.array([0.0]), nats)
    chances = (changes / changes.sum() + playing / playing.sum()).flatten() / 2
    generator = torch.Generator(inputs.device).manual_seed(seed)
    at = torch.multinomial(chances, decisions, replacement=True, generator=generator)
    time, row = at // rows, at % rows
    expected, weights = whole[time, row], 1 / chances[at]
    at_all = float((weights * changes[time, row]).sum())

    def missing(steps: int) -> float:
        longer = time >= steps  # the others have seen no more than these anyway
        if not longer.any():
            return 0.0
        back = torch.arange(steps - 1, -1, -1, device=inputs.device)[:, None]
        left = divergence(expected[longer], after(inputs[time[longer] - back, row[longer]]))
        return float((weights[longer] * left).sum()) / at_all

    grid = np.unique(np.geomspace(1, total, 2 + 4 * int(np.log2(total))).round().astype(int)).tolist()
    found = {steps: missing(steps) for steps in grid}
    low, high = _last_interval([steps for steps in grid if found[steps] > FORGOTTEN], grid)
    while high - low > 1:
        middle = (low + high) // 2
        found[middle] = missing(middle)
        low, high = (low, middle) if found[middle] <= FORGOTTEN else (middle, high)
    return Reach(np.array(sorted(found)), np.array([found[steps] for steps in sorted(found)]), nats)


def _last_interval(short: list[int], grid: list[int]) -> tuple[int, int]:
    """The last of the grid's steps that are too few, and the one after it."""
    return (short[-1], grid[grid.index(short[-1]) + 1]) if short else (grid[0], grid[0])
