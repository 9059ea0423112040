"""The command `metarl adapt`: an agent meets one new task."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from metarl.commands import family_type, given_family
from metarl.options import parse_known_options, parse_options
from metarl.run_folder import RunFolder
from metarl.training import load_run, run_config
from metarl_envs import TaskEnv, TaskSet


@dataclass(frozen=True)
class _Start:
    run: Positional[tuple[str, ...]] = ()
    env: str | None = None


def adapt_to_one_task(args: list[str]) -> None:
    """Let a run's agent adapt to one new task, of its family or of your own environment."""
    start, rest = parse_known_options(_Start, args, prog="metarl adapt")
    family = None
    if start.env is not None:
        family = given_family(start.env, rest)
    elif start.run:
        family = run_config(RunFolder.open(start.run[0])).family

    @dataclass(frozen=True)
    class AdaptOptions:
        """Let a run's agent adapt to ONE new task, and show the return of each episode.

        The task is a fresh one of the run's family, or of another Gymnasium environment with the same spaces.
        """

        run: Annotated[Positional[Path], arg(metavar="RUN")]
        """The run folder."""
        env: str | None = None
        """Gymnasium id, or module:id, of a family or environment with the same spaces; the run's own family by default."""
        env_kwargs: family_type(family) = family
        episodes: int | None = None
        """Episodes to play; as many as the agent was trained with by default."""
        gradient_steps: int | None = None
        """Play as many episodes as it takes for so many gradient steps, and no more; agents of maml only."""
        export: Path | None = None
        """Write the policy as it is after these episodes to this file, as a Stable-Baselines3 PPO; agents of maml only."""
        seed: int | None = None
        """Seed of the task, the environment and the actions; a fresh one by default."""
        deterministic: bool = False
        """Take the likeliest action instead of sampling."""

    options = parse_options(AdaptOptions, args, prog="metarl adapt")
    model = load_run(options.run)
    family = options.env_kwargs
    episodes = model.episodes_in(family) if options.episodes is None else options.episodes
    if options.gradient_steps is not None:
        every = getattr(model.config, "episodes_per_update", None)
        if every is None:
            raise ValueError("gradient_steps must be left out: this agent adapts by its memory, as it acts")
        if options.episodes is not None:
            raise ValueError(f"episodes must be left out with gradient_steps, got {options.episodes}")
        if options.gradient_steps < 0:
            raise ValueError(f"gradient_steps must be at least 0, got {options.gradient_steps}")
        episodes = options.gradient_steps * every
    elif episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    env = TaskEnv(family=family, split="test")
    env.task = task = family.sample(1, "test", seed)
    learner = model.adapt(env, seed=seed, deterministic=options.deterministic)
    if options.export is not None:
        learner.check_exportable()
    name = options.env or getattr(family, "env", family.env_id)
    print(f"{name}, seed {seed}, task: {_shown(task)}\n")
    for episode in range(1, episodes + 1):
        try:
            result = learner.run_episode(env, seed=seed if episode == 1 else None)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        print(f"episode {episode:>{len(str(episodes))}}/{episodes}   return {result:10.3f}", flush=True)
    if options.export is not None:
        print(f"Exported, for Stable-Baselines3's PPO.load: {learner.export(options.export)}")
    if not learner.returns:
        return
    first, last, mean = learner.returns[0], learner.returns[-1], sum(learner.returns) / episodes
    print(f"\n{_sparkline(learner.returns)}   first {first:.3f}   last {last:.3f}   mean {mean:.3f}")


def _shown(task: TaskSet) -> str:
    """The parameters of one task; large ones by their shape."""
    if "only_task" in task.params:
        return "the family's only one"
    parts = {name: values[0] for name, values in task.params.items()}
    shown = {n: v.round(4).tolist() if v.size <= 20 else f"array of shape {v.shape}" for n, v in parts.items()}
    return ", ".join(f"{name} = {value}" for name, value in shown.items())


def _sparkline(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    scale = 7 / (high - low) if high > low else 0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in values)
