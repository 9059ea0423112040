"""How players adapt: the return of each episode of a trial, over many tasks that they were not trained on."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from metarl.evaluation.curve import AdaptationCurve
from metarl.evaluation.play import play_trials
from metarl.evaluation.references import reference_players
from metarl.trials import Player
from metarl_envs import TaskFamily, TaskSet, make_family

MAX_TASKS = 20_000
"""Tasks that `evaluate` plays by default where trials are short ..."""
MAX_STEPS = 2_000_000
"""... and the steps per player within which it stays by default where they are long."""


def evaluate(
    model_or_player: Any,
    family: TaskFamily | str | None = None,
    *,
    split: str = "test",
    num_tasks: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    references: bool | Sequence[Player] = True,
    reference_tasks: int | None = None,
    tasks: TaskSet | None = None,
    batch_size: int = 2048,
    progress_bar: bool = False,
) -> AdaptationCurve:
    """Play one trial in each of many tasks and record the return of every episode.

    Equal arguments give equal task sets and equal noise, so results of different players can be paired task by task
    (`compare`).

    Args:
        model_or_player: a trained model (with `player()`, `family` and `num_timesteps`), or any `Player`.
        family: what to play, a family or an id; the model's own family by default. Its spaces must be those the model was
            trained on.
        split: where tasks are drawn from.
        num_tasks: how many; by default 20,000, or as many as two million steps allow where trials are long.
        episodes: episodes per trial; by default as many as the model was trained with, or the family's own trial length.
        seed: seeds the drawing of tasks, the environments and the players.
        references: whether the family's classical players (`reference_players`) play the same tasks for comparison;
            or players of your own choice.
        reference_tasks: let references play only so many of the tasks, the first ones.
        tasks: play these instead of drawing; `split` and `num_tasks` are then ignored.
        batch_size: tasks played side by side.
        progress_bar: show progress.
    """
    model = model_or_player if hasattr(model_or_player, "player") else None
    player = model_or_player if model is None else model.player()
    family = make_family(family) if isinstance(family, str) else family
    if family is None:
        if model is None:
            raise ValueError("family must be given with a player: only models know theirs")
        family = model.family
    elif model is not None:
        for kind in ("observation_space", "action_space"):
            expected, given = getattr(model.family, kind), getattr(family, kind)
            if given != expected:
                raise ValueError(f"family must have the model's {kind}, {expected}, got {given}")
    if reference_tasks is not None and reference_tasks < 1:
        raise ValueError(f"reference_tasks must be at least 1, got {reference_tasks}")
    if episodes is None:
        episodes = model.episodes_in(family) if hasattr(model, "episodes_in") else family.episodes_per_trial
    if tasks is None:
        if num_tasks is None:
            num_tasks = int(np.clip(MAX_STEPS // (family.max_episode_steps * max(episodes, 1)), 1, MAX_TASKS))
        tasks = family.sample(num_tasks, split, np.random.default_rng(seed))
    elif (tasks.env_id, dict(tasks.family_kwargs)) != (family.env_id, family.kwargs):
        raise ValueError(
            f"tasks must be of the family {family.env_id} {family.kwargs}, "
            f"got tasks of {tasks.env_id} {dict(tasks.family_kwargs)}: give their family as family="
        )

    if references is True:
        references = reference_players(family)
    curves = []
    players = [player, *(references or ())]
    with _progress(progress_bar) as advance_of:
        for who in players:
            played = tasks if who is player or reference_tasks is None else tasks[:reference_tasks]
            options = {"episodes": episodes, "seed": seed, "batch_size": batch_size}
            returns = play_trials(who, family, played, on_batch=advance_of(who.name, len(played)), **options)
            curves.append(
                AdaptationCurve(
                    name=who.name,
                    env_id=tasks.env_id,
                    family_kwargs=dict(tasks.family_kwargs),
                    split=tasks.split,
                    task_hash=played.hash,
                    returns=returns,
                    seed=seed,
                    label=family.label,
                    training_steps=getattr(model, "num_timesteps", None) if who is player else None,
                    episodes_per_update=getattr(who, "episodes_per_update", None),
                    ceiling=family.ceiling(played),
                    occurrences=family.occurrences(played, episodes),
                )
            )
    return dataclasses.replace(curves[0], references=tuple(curves[1:]))


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, int], Callable[[int], None] | None]]:
    """Gives a function `(title, total) -> (advance by)` that starts a progress bar, or does nothing."""
    if not shown:
        yield lambda title, total: None
        return
    from rich.progress import Progress

    with Progress() as progress:

        def start(title: str, total: int) -> Callable[[int], None]:
            bar = progress.add_task(title, total=total)
            return lambda count: progress.advance(bar, count)

        yield start
