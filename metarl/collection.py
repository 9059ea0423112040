"""Playing and recording trials for training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from metarl.distributions import Head
from metarl.policies import AdaptedPolicy, TrialPolicy
from metarl.trials import TensorObs, Trials, check_finite, to_tensor
from metarl_envs import TaskSet, TaskVectorEnv
from metarl_envs.family import Arrays


@torch.no_grad()
def collect_trials(
    envs: TaskVectorEnv,
    policy: TrialPolicy | AdaptedPolicy,
    *,
    num_steps: int,
    episodes_per_trial: int,
    split: str,
    rng: np.random.Generator,
    generator: torch.Generator,
    tasks: TaskSet | None = None,
    whole: bool = False,
    read_task: Callable[[Arrays], np.ndarray] | None = None,
    on_step: Callable[[np.ndarray, np.ndarray], bool] = lambda rewards, trial_over: True,
) -> Trials | None:
    """Play `num_steps` steps in every slot, a new task at each trial's start, or one trial in each of given tasks.

    Everything restarts here, tasks, environments and memories, so two generators are all the state there is between
    calls.

    Args:
        envs: environments with autoreset disabled.
        policy: who acts.
        num_steps: `T`; at least one whole trial must fit.
        episodes_per_trial: episodes in one task.
        split: where tasks come from.
        rng: draws tasks and the environments' seed.
        generator: draws actions.
        tasks: one per slot, to stay in. Then collection ends as soon as all slots have played one trial; those that are
            done sooner play on in their task, and `Trials.first` tells their first trial from what came after it.
        whole: play all `num_steps` nevertheless, for records of one shape.
        read_task: the parameters of tasks as numbers `[B, P]`, for a value function that is told them.
        on_step: called after every step with its rewards and the ends of trials, both `[B]`; False stops at once.

    Returns:
        The record, or None if stopped.

    Raises:
        ValueError: at a reward that is not finite, naming environment, task and step.
    """
    family, num_slots, device = envs.family, envs.num_envs, policy.device
    seed = int(rng.integers(2**31))
    drawn = family.sample(num_slots, split, rng) if tasks is None else tasks
    observations, _ = envs.reset(seed=seed, options={"tasks": drawn})
    observations = to_tensor(observations, device)
    task = next_task = None if read_task is None else torch.as_tensor(read_task(drawn.params), device=device)
    memory = policy.initial_memory(num_slots)
    episode = np.zeros(num_slots, np.int64)
    played = np.zeros(num_slots, bool)  # a whole trial
    starts = np.ones((2, num_slots), bool)  # of an episode, of a trial
    record = _Recorder(num_steps, num_slots, device)
    head = policy.policy_head

    for t in range(num_steps):
        params, values, core = policy.act(observations, memory, task)
        actions = head.sample(params, generator)
        successors, rewards, terminated, truncated, _ = envs.step(head.to_env(actions))
        check_finite("reward", rewards, envs, t)
        check_finite("observation", successors, envs, t)
        done = terminated | truncated
        episode += done
        trial_over = episode >= episodes_per_trial
        over = trial_over if tasks is None else trial_over & ~played  # a slot's further trials in a given task are no trials
        played |= trial_over
        finished = t + 1 == num_steps or (tasks is not None and played.all() and not whole)
        last = np.ones(num_slots, bool) if finished else trial_over
        after = policy.remember(core, actions, rewards, done)

        bootstrap = None
        if (truncated & trial_over).any():
            cut = torch.as_tensor(truncated & trial_over, device=device)
            bootstrap = policy.value_if_it_went_on(to_tensor(successors, device), after, task) * cut
        next_starts = np.stack([done, trial_over])
        if done.any():
            if trial_over.any():
                if tasks is None:
                    envs.set_tasks(family.sample(int(trial_over.sum()), split, rng), trial_over)
                    if read_task is not None:
                        next_task = torch.as_tensor(read_task(envs.tasks.params), device=device)
                episode[trial_over] = 0
            successors, _ = envs.reset(options={"reset_mask": done})
        next_observations = to_tensor(successors, device)
        if finished and not trial_over.all():
            unfinished = torch.as_tensor(~trial_over, device=device)
            rest = policy.act(next_observations, after, task)[1] * unfinished
            bootstrap = rest if bootstrap is None else bootstrap + rest

        record.write(
            t,
            observations=observations,
            actions=actions,
            params=params,
            task=task,
            values=values,
            bootstrap=bootstrap,
            rewards=rewards,
            flags=(terminated, truncated, *starts, last),
        )
        observations, starts, task = next_observations, next_starts, next_task
        memory = policy.forget(after, trial_over) if trial_over.any() else after
        if not on_step(rewards, over):
            return None
        if finished:
            break
    return record.trials(t + 1, head)


class _Recorder:
    """Preallocated `[T, B]` storage. Rewards and flags stay in NumPy until the end: they come from there."""

    def __init__(self, num_steps: int, num_slots: int, device: torch.device):
        self.shape, self.device = (num_steps, num_slots), device
        self.floats = torch.zeros(2, num_steps, num_slots, device=device)  # values, bootstrap
        self.rewards = np.zeros((num_steps, num_slots), np.float32)
        self.flags = np.zeros((5, num_steps, num_slots), bool)
        self.observations: TensorObs | None = None
        self.actions: Tensor | None = None
        self.params: Tensor | None = None
        self.task: Tensor | None = None

    def write(self, t, *, observations, actions, params, task, values, bootstrap, rewards, flags) -> None:
        if self.actions is None:
            self.actions, self.params = self._like(actions), self._like(params)
            self.task = None if task is None else self._like(task)
            is_dict = isinstance(observations, dict)
            self.observations = {k: self._like(v) for k, v in observations.items()} if is_dict else self._like(observations)
        if isinstance(observations, dict):
            for key, value in observations.items():
                self.observations[key][t] = value
        else:
            self.observations[t] = observations
        self.actions[t] = actions
        self.params[t] = params
        if task is not None:
            self.task[t] = task
        self.floats[0, t] = values
        if bootstrap is not None:
            self.floats[1, t] = bootstrap
        self.rewards[t] = rewards
        for i, flag in enumerate(flags):
            self.flags[i, t] = flag

    def _like(self, x: Tensor) -> Tensor:
        return torch.zeros(self.shape[0], *x.shape, dtype=x.dtype, device=self.device)

    def trials(self, num_steps: int, head: Head) -> Trials:
        values, bootstrap = self.floats[:, :num_steps]
        flags = torch.as_tensor(self.flags[:, :num_steps], device=self.device)
        terminated, truncated, episode_start, trial_start, trial_end = flags
        nested = isinstance(self.observations, dict)
        return Trials(
            observations={k: v[:num_steps] for k, v in self.observations.items()}
            if nested
            else self.observations[:num_steps],
            actions=self.actions[:num_steps],
            log_probs=head.log_prob(self.params[:num_steps], self.actions[:num_steps]),  # at once, which is cheaper
            rewards=torch.as_tensor(self.rewards[:num_steps], device=self.device),
            terminated=terminated,
            truncated=truncated,
            episode_start=episode_start,
            trial_start=trial_start,
            trial_end=trial_end,
            bootstrap=bootstrap,
            values=values,
            task=None if self.task is None else self.task[:num_steps],
        )
