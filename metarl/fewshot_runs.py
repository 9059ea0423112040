"""Few-shot runs: loading, evaluating, comparing. `metarl.training` trains and resumes them, as all others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarl.evaluation.few_shot import FewShotComparison, FewShotScores, compare_few_shot
from metarl.fewshot.config import FewShotConfig, FewShotEvaluation
from metarl.fewshot.episodes import episodes_hash
from metarl.fewshot.evaluate import evaluate_learner
from metarl.fewshot.gradient import GradientLearner
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.learners import LEARNERS, make_learner
from metarl.fewshot.networks import NETWORK
from metarl.plain import convert, shallow
from metarl.run_config import check_kind
from metarl.run_folder import RunFolder
from metarl.training import load_newest, run_names


def evaluate_few_shot_run(folder: str | Path, *, progress_bar: bool = True, **settings: Any) -> tuple[FewShotScores, Path]:
    """Measure a few-shot run; returns what was found and the CSV file in its folder, with picture, page and NPZ beside it.

    They are `fewshot.csv` and so on for the episodes that the run's config says; what differs from these is in the names of
    others, such as `fewshot_ood_5-shot_100-episodes.csv`.

    Args:
        folder: the run.
        progress_bar: show one.
        settings: fields of `FewShotEvaluation`, over the run's own.

    Raises:
        ValueError: in one line, at settings that do not fit the run.
    """
    config = few_shot_config(folder)
    settings = dataclasses.replace(config.evaluation, **settings)
    _check_steps([folder], settings)
    scores = _few_shot_scores(folder, config, settings, progress_bar)
    file = few_shot_file(folder, config, settings)
    scores.save_csv(file)
    scores.plot(file.with_suffix(".png"))
    scores.save_html(file.with_suffix(".html"), config={**config.plain(), "evaluation": shallow(settings)})
    scores.save_npz(file.with_suffix(".npz"))
    return scores, file


def compare_few_shot_runs(folders: Sequence[str | Path], *, progress_bar: bool = True, **settings: Any) -> FewShotComparison:
    """Put few-shot runs side by side on the same episodes, under the names of their folders.

    Runs that were not so evaluated yet, or have trained on since, are evaluated first. What that gives is kept for the next
    time in their folders, as `fewshot_compared.npz` and so on: files of `evaluate_few_shot_run` are read, never replaced.

    Args:
        folders: the runs; the first is what the others are compared with, and its config makes the references.
        progress_bar: show one for each evaluation.
        settings: fields of `FewShotEvaluation`, over those of the first run's config.

    Raises:
        ValueError: in one line, at a run that is given twice, and when the runs' episodes differ, naming two of them.
    """
    places = [Path(folder).resolve() for folder in folders]
    for i, folder in enumerate(folders):
        if places[i] in places[:i]:
            raise ValueError(f"runs must be different ones, but {folder} is given twice")
    settings = dataclasses.replace(few_shot_settings(folders[0]), **settings)
    _check_steps(folders, settings)
    configs = [few_shot_config(folder) for folder in folders]
    _check_same(folders, configs, settings)
    scores = []
    for folder, config in zip(folders, configs, strict=True):
        asked = settings if _takes_steps(folder, settings) else dataclasses.replace(settings, step_curve=())
        file = few_shot_file(folder, config, asked).with_suffix(".npz")
        kept = file.with_name(f"{file.stem}_compared.npz")
        known = [FewShotScores.load(path) for path in (file, kept) if path.exists()]
        done = next((one for one in known if _is_up_to_date(one, folder, config, asked)), None)
        if done is None:
            done = _few_shot_scores(folder, config, asked, progress_bar)
            done.save_npz(kept)
        scores.append(done.part(asked.references, asked.step_curve, asked.shot_curve))
        settings = dataclasses.replace(settings, references=())  # they are the same for all
    return compare_few_shot(scores, run_names(folders))


def load_few_shot_run(folder: str | Path, config: FewShotConfig | None = None) -> FewShotLearner:
    """The learner of a few-shot run, as of its newest readable checkpoint; errors as in `load_run`.

    It adapts to examples such as those of the run's data, before they become numbers: texts, or rows of a table in the order
    of its columns and in their units. `config`: that of the run, where it was read before.
    """
    config = config or few_shot_config(folder)
    learner = load_newest(folder, config).learner.eval()
    learner.prepare = getattr(config.source, "encode", None)
    return learner


def few_shot_config(folder: str | Path) -> FewShotConfig:
    """The config of a few-shot run. Raises `ValueError`, naming the file, when it is not one."""
    return FewShotConfig.from_yaml(RunFolder.open(folder).config_file)


def few_shot_settings(folder: str | Path) -> FewShotEvaluation:
    """How a few-shot run is evaluated unless told otherwise: of its config, without reading its data. Errors the same."""
    run = RunFolder.open(folder)
    check_kind(FewShotConfig, run.config, run.config_file)
    try:
        return convert(run.config.get("evaluation", {}), FewShotEvaluation, "evaluation")
    except ValueError as error:
        raise ValueError(f"{run.config_file}: {error}") from error


def few_shot_file(folder: str | Path, config: FewShotConfig, settings: FewShotEvaluation) -> Path:
    """Where `evaluate_few_shot_run` writes its table: the name holds how episodes differ from those of the run's config."""
    own, asked = (_of_episodes(config, one) for one in (config.evaluation, settings))
    parts = [_IN_NAMES[name].format(value) for name, value in asked.items() if value != own[name]]
    return Path(folder) / f"{'_'.join(['fewshot', *parts])}.csv"


# -- inside ------------------------------------------------------------------------------------------------------------


_IN_NAMES = {
    "split": "{}",
    "ways": "{}-way",
    "shots": "{}-shot",
    "queries": "{}-query",
    "episodes": "{}-episodes",
    "seed": "seed-{}",
}
"""What decides the episodes of an evaluation, and how it stands in the names of files."""


def _of_episodes(config: FewShotConfig, settings: FewShotEvaluation) -> dict[str, Any]:
    """What decides the episodes, by name; as in training where `settings` leave it open."""
    asked = {name: getattr(settings, name) for name in _IN_NAMES}
    return {name: getattr(config, name) if value is None else value for name, value in asked.items()}


def _few_shot_scores(
    folder: str | Path, config: FewShotConfig, settings: FewShotEvaluation, progress_bar: bool
) -> FewShotScores:
    model = load_newest(folder, config)
    source = config.source_with(ways=settings.ways, shots=settings.shots, queries=settings.queries)
    references = {}
    for name in settings.references:
        options = {k: v for k, v in config.learner_kwargs.items() if k in NETWORK} if name == "from_scratch" else {}
        references[name] = make_learner(name, source.spec, options, config.seed).to(model.learner.like.device)
    scores = evaluate_learner(
        model.learner,
        source,
        name=config.learner,
        split=settings.split,
        num_episodes=settings.episodes,
        seed=settings.seed,
        references=references,
        steps=settings.step_curve,
        shots=settings.shot_curve,
        training_episodes=model.num_timesteps,
        progress_bar=progress_bar,
    )
    options = [f"{k}: {Path(v).name if k == 'path' else v}" for k, v in config.dataset_kwargs.items()]
    return dataclasses.replace(scores, dataset=f"{scores.dataset} ({', '.join(options)})") if options else scores


def _is_up_to_date(scores: FewShotScores, folder: str | Path, config: FewShotConfig, settings: FewShotEvaluation) -> bool:
    """Whether `scores` hold what `settings` ask for, and are of the run as it is now."""
    ways = scores.outputs if scores.accuracy else config.ways
    found = (scores.split, ways, scores.shots, scores.queries, scores.num_episodes, scores.seed)
    return (
        found == tuple(_of_episodes(config, settings).values())
        and scores.training_episodes == RunFolder.open(folder).progress().get("num_timesteps")
        and {*settings.references} <= {one.name for one in scores.references}
        and all(any(k in one.by_step for one in (scores, *scores.references)) for k in settings.step_curve)
        and all(k in scores.by_shot for k in settings.shot_curve)
    )


def _check_same(folders: Sequence[str | Path], configs: Sequence[FewShotConfig], settings: FewShotEvaluation) -> None:
    """A `ValueError`, in one line, where the runs' first episodes are not the same."""
    hashes = []
    for config in configs:
        source = config.source_with(ways=settings.ways, shots=settings.shots, queries=settings.queries).unaugmented()
        hashes.append(episodes_hash(source.episodes(settings.split, [0], settings.seed)))
    for folder, config, found in zip(folders, configs, hashes, strict=True):
        if found != hashes[0]:
            one, other = (_of_episodes(c, settings) for c in (configs[0], config))
            values = [f"{name} are {one[name]} and {other[name]}" for name in one if one[name] != other[name]]
            reason = ", ".join(values) or "their data differ"
            raise ValueError(f"runs must be on the same episodes, but those of {folders[0]} and {folder} are not: {reason}")


def _check_steps(folders: Sequence[str | Path], settings: FewShotEvaluation) -> None:
    if settings.step_curve and not any(_takes_steps(folder, settings) for folder in folders):
        steps = " ".join(map(str, settings.step_curve))
        raise ValueError(f"--step-curve must be left out where no learner takes gradient steps, got {steps}")


def _takes_steps(folder: str | Path, settings: FewShotEvaluation) -> bool:
    """Whether the run's learner does, or one of the references."""
    names = (RunFolder.open(folder).config.get("learner"), *settings.references)
    return any(issubclass(LEARNERS.get(name, object), GradientLearner) for name in names)
