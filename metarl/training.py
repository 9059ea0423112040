"""Whole trainings in run folders: what the command line, the quickstart and the experiments share.

config = TrainingConfig(env="metarl/BernoulliBandit-v0", env_kwargs={"num_arms": 5}, total_timesteps=1_000_000)
model = train(config, "runs/bandit")         # or, after an interrupt or a crash: resume("runs/bandit")
curve = evaluate_run("runs/bandit", split="test")
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.type_aliases import MaybeCallback
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from metarl.algorithms.base import MetaAlgorithm
from metarl.algorithms.learned_optimizer import OptimizerTraining
from metarl.checkpoint import CheckpointStore, write_atomically
from metarl.config import OptimizerConfig, RunConfig, TrainingConfig, read_config
from metarl.evaluation import (
    AdaptationCurve,
    Comparison,
    OptimizationCurve,
    Reach,
    compare,
    evaluate,
    evaluate_optimizer,
    film_trials,
    plot_memory,
    plot_recall,
    reach,
    remember,
    write_report,
)
from metarl.interrupts import StopOnInterrupt, graceful_interrupts
from metarl.outer_loop import OuterLoop
from metarl.run_folder import RunFolder, RunFolderError
from metarl_envs.family import check_at_least


class Interrupted(SystemExit):
    """Training was stopped by a signal, and saved. `code` is what the process should exit with: 130 or 143."""

    def __init__(self, code: int, message: str):
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


def train(
    config: RunConfig, folder: str | Path, *, callback: MaybeCallback = None, progress_bar: bool = True
) -> MetaAlgorithm | OuterLoop:
    """Train in a new run folder: `config.yaml`, `checkpoints/`, `tensorboard/`, `progress.json`.

    An update rule is left there at the end as `rule.safetensors` too, for `LearnedOptimizer`.

    Args:
        config: what to train.
        folder: where; must not hold a run yet.
        callback: a further Stable-Baselines3 callback, or several.
        progress_bar: show Stable-Baselines3's.

    Raises:
        Interrupted: at SIGINT or SIGTERM, after saving; `resume(folder)` goes on as if nothing had happened.
        RunFolderError: when the folder is in use, or holds a run.
    """
    torch.set_num_threads(config.threads)
    config = config.resolved()
    model = config.make_model()
    with RunFolder.create(folder, config.plain()) as run:
        return _learn(model, config, run, callback, progress_bar)


def resume(folder: str | Path, *, callback: MaybeCallback = None, progress_bar: bool = True) -> MetaAlgorithm | OuterLoop:
    """Go on with an interrupted run up to its config's `total_timesteps`; arguments and errors as in `train`.

    The agent is the same, to the bit, as if the run had not been interrupted. When the newest checkpoint is damaged, the
    one before is taken, with a warning.
    """
    with RunFolder.open(folder, exclusive=True) as run:
        config = read_config(run.config_file)
        torch.set_num_threads(config.threads)
        found = CheckpointStore(run.checkpoints, config.keep).latest()
        model = config.restore(found[1]) if found else config.make_model()
        return _learn(model, config, run, callback, progress_bar)


def load_run(folder: str | Path) -> MetaAlgorithm:
    """The agent of a run, as of its newest readable checkpoint.

    Raises:
        RunFolderError: when `folder` is no run folder, or holds no checkpoint yet.
        CheckpointError: when no checkpoint is readable.
    """
    return load_newest(folder, run_config(RunFolder.open(folder)))


def load_optimizer_run(folder: str | Path) -> OptimizerTraining:
    """The training of an update rule, as of its newest readable checkpoint; errors as in `load_run`."""
    return load_newest(folder, OptimizerConfig.from_yaml(RunFolder.open(folder).config_file))


def run_config(run: RunFolder) -> TrainingConfig:
    """The config of a run that trains agents. Raises `ValueError`, naming the file, when it is not one."""
    return TrainingConfig.from_yaml(run.config_file)


def evaluate_run(folder: str | Path, *, progress_bar: bool = True, **settings: Any) -> AdaptationCurve:
    """Evaluate a run, and leave what was found in its folder.

    Writes `adaptation.csv`, `adaptation.png` and `adaptation.npz` (for `compare`), where situations come back also
    `adaptation_recall.png`; named `adaptation_ood.csv` and so on
    for splits other than `test` and `adaptation_deterministic.csv` for likeliest actions, and `report.html` on all splits
    that were so evaluated at this point of training.

    Args:
        folder: the run.
        progress_bar: show one per player.
        settings: fields of `EvaluationConfig`, over the run's own.
    """
    model = load_run(folder)
    run = RunFolder.open(folder)
    config = run_config(run)
    settings = dataclasses.replace(config.evaluation, **settings)
    path = curve_file(folder, settings.split, settings.deterministic)
    files = [curve_file(folder, split, settings.deterministic) for split in reversed(model.family.splits)]
    others = [AdaptationCurve.load(file) for file in files if file != path and file.exists()]  # damaged ones tell at once
    curve = evaluate(
        model.player(deterministic=settings.deterministic),
        model.family,
        split=settings.split,
        num_tasks=settings.num_tasks,
        episodes=model.episodes_in(model.family) if settings.episodes is None else settings.episodes,
        seed=settings.seed,
        references=settings.references,
        reference_tasks=settings.reference_tasks,
        progress_bar=progress_bar,
    )
    curve = dataclasses.replace(curve, training_steps=model.num_timesteps)
    curve.save_npz(path)
    curve.save_csv(path.with_suffix(".csv"))
    curve.plot(path.with_suffix(".png"))
    if curve.by_occurrence is not None:
        plot_recall(curve, recall_file(path))
    shown = {c.split: c for c in (curve, *others) if c.training_steps == curve.training_steps}
    facts = {"actions": "the likeliest" if settings.deterministic else "sampled", "training time": _training_time(run)}
    write_report(run.report, shown, title=f"{curve.name}: {run.path.name}", config=run.config, facts=facts)
    return curve


def evaluate_optimizer_run(
    folder: str | Path, *, split: str = "test", num_problems: int | None = None, steps: int | None = None, seed: int = 0
) -> tuple[OptimizationCurve, Path]:
    """Measure a trained update rule beside tuned hand-made ones; returns what was found and the CSV file in its folder.

    A picture and a page lie beside it. Arguments as in `metarl.evaluation.evaluate_optimizer`.
    """
    model = load_optimizer_run(folder)
    for name, value, least in (("num_problems", num_problems, 1), ("steps", steps, 1), ("seed", seed, 0)):
        if value is not None:
            check_at_least(name, value, least)
    has_losses = model.problem.differentiable
    curve = evaluate_optimizer(
        model.rule,
        model.problem,
        name=model.made_of["rule"],
        split=split,
        num_problems=num_problems or (512 if has_losses else 128),
        steps=steps,
        seed=seed,
        returns=not has_losses,
    )
    file = Path(folder) / f"{'_'.join(['optimization', *[split] * (split != 'test'), *[str(steps)] * bool(steps)])}.csv"
    curve.save_csv(file)
    curve.plot(file.with_suffix(".png"))
    curve.save_html(file.with_suffix(".html"), config=RunFolder.open(folder).config)
    return curve, file


def show_memory(
    folder: str | Path, *, split: str, deterministic: bool = False, episodes: int | None = None, seed: int = 0
) -> tuple[Path, Reach]:
    """Draw what a run's memory does in one trial; returns the picture in its folder, and how far back the memory reaches.

    The latter is measured on 64 tasks, on the distributions of actions, also where the likeliest ones are taken.

    Raises:
        ValueError: when the agent does not adapt by a memory.
    """
    model = load_run(folder)
    episodes = model.episodes_in(model.family) if episodes is None else episodes
    tasks = model.family.sample(64, split, np.random.default_rng(seed))
    player = model.player(deterministic=deterministic)
    (trial,) = remember(player, model.family, tasks[:1], episodes=episodes, seed=seed)
    how_far = reach(player, model.family, tasks, episodes=episodes, seed=seed)
    path = curve_file(folder, split, deterministic)
    path = path.with_name(f"{path.stem}_memory.png")
    plot_memory(trial, how_far, path, title=f"{player.name} on {model.family.label}, one {split} task")
    return path, how_far


def film_run(
    folder: str | Path, *, split: str, deterministic: bool = False, episodes: int | None = None, seed: int = 0
) -> Path:
    """Film how a run adapts to three different tasks (two where there are no more); returns the file in its folder.

    Raises:
        ValueError: when the family draws no pictures.
    """
    model = load_run(folder)
    episodes = model.episodes_in(model.family) if episodes is None else episodes
    drawn = model.family.sample(20, split, np.random.default_rng(seed))
    values = np.concatenate([v.reshape(len(drawn), -1) for v in drawn.params.values()], -1)
    tasks = drawn[np.sort(np.unique(values, axis=0, return_index=True)[1])[:3]]
    path = curve_file(folder, split, deterministic).with_suffix("")
    return film_trials(model.player(deterministic=deterministic), model.family, tasks, path, episodes=episodes, seed=seed)


def compare_runs(
    folders: Sequence[str | Path], *, split: str = "test", deterministic: bool | None = None, progress_bar: bool = True
) -> Comparison:
    """Put runs side by side on the same tasks, under the names of their folders.

    Runs that were not so evaluated on `split` yet, or in shorter trials, or have trained on since, are evaluated first, as
    another one of them was, or as the first one's config says; in trials as long as the longest that one of them trained on.

    Args:
        folders: the runs; the first is what the others are compared with.
        split: where tasks come from.
        deterministic: take likeliest actions instead of sampling; by default what the first run's config says.
        progress_bar: show one while evaluating.

    Raises:
        ValueError: when the runs were evaluated on different tasks, naming two of them.
    """
    runs = [RunFolder.open(folder) for folder in folders]
    config = run_config(runs[0]).evaluation
    deterministic = config.deterministic if deterministic is None else deterministic
    files = [curve_file(folder, split, deterministic) for folder in folders]
    known = [AdaptationCurve.load(file) if file.exists() else None for file in files]
    steps = [run.progress().get("num_timesteps") for run in runs]
    done = [curve if curve and curve.training_steps == step else None for curve, step in zip(known, steps, strict=True)]
    model = max((curve for curve in done if curve), key=lambda curve: curve.num_episodes, default=None)
    model = model or next((curve for curve in known if curve), None)
    if model is not None:
        shared = {"num_tasks": model.num_tasks, "episodes": model.num_episodes, "seed": model.seed}
    else:
        episodes = config.episodes or max(load_run(folder).episodes_per_trial for folder in folders)
        shared = {"num_tasks": config.num_tasks, "episodes": episodes, "seed": config.seed}
    done = [curve if curve and curve.num_episodes == shared["episodes"] else None for curve in done]
    shared |= {"split": split, "deterministic": deterministic, "progress_bar": progress_bar}
    curves = [curve or evaluate_run(folder, **shared) for folder, curve in zip(folders, done, strict=True)]
    return compare(curves, run_names(folders))


def load_newest(folder: str | Path, config: RunConfig) -> Any:
    """What was trained in `folder`, whose config this is, as of its newest readable checkpoint; errors as in `load_run`."""
    found = CheckpointStore(RunFolder.open(folder).checkpoints, config.keep).latest()
    if found is None:
        raise RunFolderError(f"{folder} holds no checkpoint yet: train it with `metarl resume {folder}`")
    torch.set_num_threads(config.threads)
    return config.restore(found[1])


def run_names(folders: Sequence[str | Path]) -> list[str]:
    """What to call runs that are compared: their folders' names, or paths where names repeat."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]


def curve_file(folder: str | Path, split: str, deterministic: bool = False) -> Path:
    """Where `evaluate_run` keeps the curve of a split, played with sampled or with likeliest actions."""
    parts = ["adaptation", *[split] * (split != "test"), *["deterministic"] * deterministic]
    return Path(folder) / f"{'_'.join(parts)}.npz"


def rule_file(folder: str | Path) -> Path:
    """Where the training of an update rule leaves the rule."""
    return Path(folder) / "rule.safetensors"


def recall_file(curve: Path) -> Path:
    """Where `evaluate_run` draws what is recalled of situations that come back, beside the file of the curve."""
    return curve.with_name(f"{curve.stem}_recall.png")


# -- inside ------------------------------------------------------------------------------------------------------------


def _learn(
    model: MetaAlgorithm | OuterLoop, config: RunConfig, run: RunFolder, callback: MaybeCallback, progress_bar: bool
) -> MetaAlgorithm | OuterLoop:
    remaining = config.total_timesteps - model.num_timesteps
    if remaining <= 0:
        _export(model, run)
        return model
    model.set_logger(_tensorboard(run.tensorboard, model.num_timesteps))
    further = callback if isinstance(callback, list) else [callback] if callback else []
    with graceful_interrupts() as interrupts:
        callbacks = [_SaveCheckpoints(run, config), StopOnInterrupt(interrupts), *further]
        model.learn(
            remaining,
            callbacks,
            log_interval=model.log_interval,
            reset_num_timesteps=False,
            progress_bar=progress_bar,
        )
    model.logger.close()
    if interrupts.requested is not None:
        raise Interrupted(
            interrupts.exit_code,
            f"stopped and saved at step {model.num_timesteps:,} of {config.total_timesteps:,}: "
            f"go on with `metarl resume {run.path}`",
        )
    _export(model, run)
    return model


def _export(model: MetaAlgorithm | OuterLoop, run: RunFolder) -> None:
    """Leave what can be used elsewhere in the run's folder."""
    if isinstance(model, OptimizerTraining):
        model.export(rule_file(run.path))


class _SaveCheckpoints(BaseCallback):
    """Saves between iterations, where the state is complete: every `checkpoint_every` steps, and at the end."""

    def __init__(self, run: RunFolder, config: RunConfig):
        super().__init__()
        self.store = CheckpointStore(run.checkpoints, config.keep)
        self.run = run
        self.every = config.checkpoint_every
        self.total = config.total_timesteps
        self.saved: int | None = None

    def _on_training_start(self) -> None:
        self.seconds = self.run.progress().get("training_seconds", 0.0) if self.model.num_timesteps else 0.0
        self.since = time.monotonic()

    def _on_rollout_start(self) -> None:
        if self.saved is None or self.model.num_timesteps - self.saved >= self.every:
            self._save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.saved != self.model.num_timesteps:
            self._save()

    def _save(self) -> None:
        self.saved = self.model.num_timesteps
        self.store.save(self.saved, self.model.state())
        seconds = round(self.seconds + time.monotonic() - self.since, 3)
        progress = {"num_timesteps": self.saved, "total_timesteps": self.total, "training_seconds": seconds}
        write_atomically(self.run.progress_file, json.dumps(progress).encode())


def _tensorboard(folder: Path, step: int) -> Logger:
    """A logger that writes TensorBoard events; what an earlier process wrote beyond `step` will not be shown."""
    output = TensorBoardOutputFormat(str(folder))
    if step:
        start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        output.writer.file_writer.add_event(start, step + 1)
    return Logger(str(folder), [output])


def _training_time(run: RunFolder) -> str:
    seconds = run.progress().get("training_seconds")
    return "unknown" if seconds is None else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
