"""Playing whole trials with any player and recording the return of each episode."""

from collections.abc import Callable

import numpy as np
from gymnasium.vector import AutoresetMode

from metarl.trials import Player, SelfPlayer, Transition, check_finite
from metarl.updates import Diverged
from metarl_envs import TaskFamily, TaskSet, TaskVectorEnv


def play_trials(
    player: Player | SelfPlayer,
    family: TaskFamily,
    tasks: TaskSet,
    *,
    episodes: int | None = None,
    seed: int = 0,
    batch_size: int = 2048,
    on_batch: Callable[[int], None] | None = None,
    watch: Callable[[TaskVectorEnv, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Undiscounted returns `[N, episodes]` of `player` in one trial per task.

    Args:
        player: who plays.
        family: what `tasks` belong to.
        tasks: `N` tasks.
        episodes: episodes per trial; the family's own trial length by default.
        seed: seeds the environment and the player.
        batch_size: tasks played side by side; a `SelfPlayer` plays them as it will.
        on_batch: called with the number of tasks finished after each batch.
        watch: called before every step with environments that can be drawn and the number of each slot's episode `[B]`.

    Raises:
        ValueError: at a reward that is not finite, naming environment, task and step.
    """
    episodes = family.episodes_per_trial if episodes is None else episodes
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if tasks.env_id != family.env_id:
        raise ValueError(f"tasks must belong to {family.env_id}, got tasks of {tasks.env_id}")
    if hasattr(player, "play"):
        return player.play(family, tasks, episodes=episodes, seed=seed, on_task=on_batch)
    seeds = np.random.SeedSequence(seed)
    parts = []
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        env_seed, player_seed = seeds.spawn(2)
        render_mode = None if watch is None else "rgb_array"
        envs = family.make_vec(len(batch), autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode)
        player.start_trials(batch, np.random.default_rng(player_seed))
        parts.append(_play_batch(player, envs, batch, episodes, int(env_seed.generate_state(1)[0]), start, watch))
        envs.close()
        if on_batch is not None:
            on_batch(len(batch))
    return np.concatenate(parts)


def _play_batch(
    player: Player,
    envs: TaskVectorEnv,
    tasks: TaskSet,
    episodes: int,
    seed: int,
    first_task: int,
    watch: Callable[[TaskVectorEnv, np.ndarray], None] | None,
) -> np.ndarray:
    slots = np.arange(len(tasks))
    returns = np.zeros((len(tasks), episodes + 1))  # the last column takes what slots do after their trial
    episode = np.zeros(len(tasks), np.int64)
    observations, _ = envs.reset(seed=seed, options={"tasks": tasks})
    step = 0
    while (episode < episodes).any():
        if watch is not None:
            watch(envs, episode)
        actions = player.act(observations)
        successors, rewards, terminated, truncated, _ = envs.step(actions)
        check_finite("reward", rewards, envs, step, first_task)
        check_finite("observation", successors, envs, step, first_task)
        returns[slots, episode] += rewards
        done = terminated | truncated
        episode = np.minimum(episode + done, episodes)
        playing = episode < episodes
        try:
            player.observe(Transition(observations, actions, rewards, terminated, truncated, successors, playing))
        except Diverged as error:
            task = first_task + error.task
            raise Diverged(task, f"task {task}: {error}") from error
        if done.any():
            successors, _ = envs.reset(options={"reset_mask": done})
        observations = successors
        step += 1
    return returns[:, :episodes]
