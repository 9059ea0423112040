"""Trained agents as players of whole batches of trials: by a memory, or by gradient steps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.algorithms.meta_gradient import Settings, make_batch, take_step
from metarl.batched import Params
from metarl.policies import AdaptedPolicy, GradientPolicy, Memory, TrialPolicy
from metarl.policies.parts import map_leaves
from metarl.trials import Observations, Transition, Trials, to_tensor
from metarl.updates import Diverged
from metarl_envs import TaskSet

STEPS_AT_ONCE = 16_384
"""Steps of all tasks together that an inner step is taken on at once: thousands of tasks would need gigabytes."""


class AdaptivePlayer:
    """A player that adapts by a policy of its own; a `Learner` acts with one.

    Args:
        policy: the policy.
        name: how tables and pictures call it.
        deterministic: take the likeliest action instead of sampling.
    """

    def __init__(self, policy: TrialPolicy | GradientPolicy, name: str = "agent", deterministic: bool = False):
        self.policy = policy
        self.name = name
        self.deterministic = deterministic

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Be before the first step of one trial per task."""
        self.start(len(tasks), int(rng.integers(2**31)))

    def start(self, batch_size: int, seed: int) -> None:
        """Be before the first step of `batch_size` trials; `seed` draws the actions."""
        self.policy.set_training_mode(False)
        self._generator = torch.Generator(self.policy.device).manual_seed(seed)

    def act(self, observations: Observations, deterministic: bool | None = None) -> np.ndarray:
        """Actions `[B, ...]` as the environment takes them; `deterministic` as in the constructor if None."""
        raise NotImplementedError

    def observe(self, transition: Transition) -> None:
        """Take in what came of the last actions."""
        raise NotImplementedError

    def _choose(self, params: Tensor, deterministic: bool | None) -> Tensor:
        """Actions `[B, ...]` in the head's units, from parameters of their distributions."""
        head = self.policy.policy_head
        likeliest = self.deterministic if deterministic is None else deterministic
        return head.mode(params) if likeliest else head.sample(params, self._generator)


class MemoryPlayer(AdaptivePlayer):
    """Plays trials with a `TrialPolicy`; adaptation is what its memory takes in."""

    policy: TrialPolicy

    def start(self, batch_size: int, seed: int) -> None:
        """Empty the memory for `batch_size` trials; `seed` draws the actions."""
        super().start(batch_size, seed)
        self.memory: Memory = self.policy.initial_memory(batch_size)

    @torch.no_grad()
    def act(self, observations: Observations, deterministic: bool | None = None) -> np.ndarray:
        """As in the base class."""
        params, _, self._core = self.policy.act(to_tensor(observations, self.policy.device), self.memory)
        self._actions = self._choose(params, deterministic)
        return self.policy.policy_head.to_env(self._actions)

    def observe(self, transition: Transition) -> None:
        """Take in what came of the last actions."""
        done = transition.terminated | transition.truncated
        self.memory = self.policy.remember(self._core, self._actions, transition.rewards, done)


class GradientPlayer(AdaptivePlayer):
    """Plays trials with a `GradientPolicy`, whose parameters take a step after every `episodes_per_update` episodes.

    It samples its actions: episodes that are all alike have no gradient.

    Args:
        policy: the policy and its update rule.
        settings: of the inner loss.
        episodes_per_update: episodes of a slot between its steps.
        name: how tables and pictures call it.
    """

    policy: GradientPolicy

    def __init__(self, policy: GradientPolicy, settings: Settings, episodes_per_update: int, name: str = "agent"):
        super().__init__(policy, name)
        self.settings = settings
        self.episodes_per_update = episodes_per_update

    def start(self, batch_size: int, seed: int) -> None:
        """Go back to the starting point for `batch_size` trials; `seed` draws the actions."""
        super().start(batch_size, seed)
        starting = self.policy.starting_params(batch_size)
        self._acting = AdaptedPolicy(self.policy, {name: value.clone() for name, value in starting.items()})
        self._rule_state = self.policy.rule.init(self.params)
        self.updates = np.zeros(batch_size, np.int64)
        self._episodes = np.zeros(batch_size, np.int64)  # since the last update
        self._since = np.zeros(batch_size, np.int64)  # the step at which these began
        self._step = self._forgotten = 0
        self._steps: list[dict[str, Any]] = []

    @property
    def params(self) -> Params:
        """The parameters that each slot has adapted to, `[B, ...]`."""
        return self._acting.params

    @torch.no_grad()
    def act(self, observations: Observations, deterministic: bool | None = None) -> np.ndarray:
        """As in the base class."""
        head = self.policy.policy_head
        observations = map_leaves(to_tensor(observations, self.policy.device), torch.clone)
        params, values, _ = self._acting.act(observations, None)
        actions = self._choose(params, deterministic)
        log_probs = head.log_prob(params, actions)
        self._now = {"observations": observations, "actions": actions, "log_probs": log_probs, "values": values}
        return head.to_env(actions)

    def observe(self, transition: Transition) -> None:
        """Take in what came of the last actions; slots with enough episodes take a gradient step."""
        terminated, truncated = transition.terminated, transition.truncated
        self._now |= {"rewards": transition.rewards.astype(np.float32), "terminated": terminated, "truncated": truncated}
        self._now["bootstrap"] = self._value_after(transition)
        self._steps.append(self._now)
        self._step += 1
        self._episodes += terminated | truncated
        due = self._episodes >= self.episodes_per_update
        if transition.playing is not None:  # the others have nothing more to learn, nor to remember
            due &= transition.playing
            self._since[~transition.playing] = self._step
        if due.any():
            rows = np.flatnonzero(due)
            longest = self._step - self._since[rows].min()
            at_once = max(1, STEPS_AT_ONCE // int(longest))
            for start in range(0, len(rows), at_once):
                self._update(rows[start : start + at_once])
            self._since[due], self._episodes[due] = self._step, 0
            self.updates += due
        outdated = self._since.min() - self._forgotten
        del self._steps[:outdated]
        self._forgotten += outdated

    @torch.no_grad()
    def _value_after(self, transition: Transition) -> Tensor:
        values = torch.zeros_like(self._now["values"])
        if self.settings.baseline == "network" and transition.truncated.any():
            cut = torch.as_tensor(transition.truncated, device=values.device)
            successors = transition.next_observations
            after = self._now["values"]
            if successors is not None:
                after = self._acting.value_if_it_went_on(to_tensor(successors, values.device), None)
            values = after * cut
        return values

    def _update(self, rows: np.ndarray) -> None:
        first = self._since[rows].min()
        steps = self._steps[first - self._forgotten :]
        device = self.policy.device
        index = torch.as_tensor(rows, device=device)
        record = tree_map(lambda *parts: torch.stack([torch.as_tensor(x, device=device)[index] for x in parts]), *steps)
        done = record["terminated"] | record["truncated"]
        start = torch.ones_like(done)
        start[1:] = done[:-1]
        end = torch.zeros_like(done)
        end[-1] = True
        trials = Trials(**record, episode_start=start, trial_start=torch.zeros_like(done), trial_end=end)
        times = torch.arange(first, self._step, device=device)[:, None]
        valid = times >= torch.as_tensor(self._since[rows], device=device)
        batch = make_batch(self.policy, trials, len(rows), valid, self.settings)
        params = {name: value[index] for name, value in self.params.items()}
        state = tree_map(lambda x: x[index], self._rule_state)
        try:
            params, state = take_step(self.policy, params, state, batch, self.settings, self.updates[rows] + 1)
        except Diverged as error:
            raise Diverged(int(rows[error.task]), str(error)) from error
        for name, value in self.params.items():
            value[index] = params[name]
        self._rule_state = tree_map(lambda old, new: old.index_copy(0, index, new), self._rule_state, state)
