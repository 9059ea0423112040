"""The commands of `metarl fewshot`: train, evaluate, compare, predict."""

import csv
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from metarl import fewshot_runs
from metarl.commands import train_in_new_folder
from metarl.evaluation.few_shot_report import FewShotReport
from metarl.evaluation.report import text_table
from metarl.fewshot.config import FewShotConfig, FewShotEvaluation
from metarl.fewshot.datasets import describe, describe_options
from metarl.fewshot.datasets.own import read_queries, read_support
from metarl.fewshot.datasets.table import number
from metarl.fewshot.learners import LEARNERS
from metarl.fewshot.training import FewShotTrainingConfig
from metarl.options import parse_known_options, parse_options, preset_names, preset_path
from metarl.plain import check_known, first_sentence, shallow
from metarl.run_config import from_values
from metarl.yaml_text import read_yaml

_HELP = {"-h", "--help"}
PRESETS = "fewshot-"
"""What the names of presets begin with."""


def fewshot(args: list[str]) -> None:
    """Few-shot classification and regression: `metarl fewshot train | evaluate | compare | predict`."""
    command, *args = args or ["--help"]
    if command in _HELP:
        print("usage: metarl fewshot COMMAND [OPTIONS]\n\ncommands:")
        width = max(map(len, COMMANDS))
        print("\n".join(f"  {name.ljust(width)}  {first_sentence(made)}" for name, made in COMMANDS.items()))
        print("\nOptions: metarl fewshot COMMAND --help")
        return
    check_known(f"command {command!r}", command, COMMANDS)
    COMMANDS[command](args)


# -- train -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Start:
    dataset: Annotated[str | None, arg(aliases=["--data"])] = None
    preset: Annotated[str | None, arg(aliases=["--config"])] = None


def train(args: list[str]) -> None:
    """Train a learner: `metarl fewshot train protonet --dataset glyphs`, or on your own: `--data PATH`."""
    learner, *args = args or ["--help"]
    if learner in _HELP:
        print("usage: metarl fewshot train LEARNER [OPTIONS]\n\nlearners:")
        print("\n".join(f"  {name:<18} {first_sentence(made)}" for name, made in LEARNERS.items() if made.trained))
        print("\ndata sets:")
        print("\n".join(f"  {name:<18} {sentence}" for name, sentence in describe()))
        print(f"\npresets: {', '.join(name for name in preset_names() if name.startswith(PRESETS))}")
        print("\nOptions, those of a data set included: metarl fewshot train LEARNER --dataset NAME --help")
        return
    check_known(f"learner {learner!r}", learner, LEARNERS)
    prog = f"metarl fewshot train {learner}"
    start, _ = parse_known_options(_Start, args, prog=prog)
    preset = None
    if start.preset is not None:
        path = preset_path(start.preset)
        preset = from_values(FewShotConfig, {**read_yaml(path), "data_hash": None}, path)  # the data may be others by now
    if preset is not None and preset.learner != learner:
        raise ValueError(f"learner must be {preset.learner} with --preset {start.preset}, got {learner}")

    data = start.dataset or (preset or FewShotConfig).dataset
    known = "".join(f"\n- {name}: {sentence}" for name, sentence in describe_options(data))

    @dataclass(frozen=True, kw_only=True)
    class TrainOptions(FewShotConfig):
        """Train a few-shot learner in a new run folder.

        The command line goes before the preset, the preset before the defaults.
        """

        algorithm: Suppress[str] = "fewshot"
        learner: Suppress[str] = "protonet"
        dataset: Annotated[str, arg(aliases=["--data"])] = FewShotConfig.dataset
        """Name of a data set (`metarl fewshot train --help` lists them), or path of a folder of pictures by class or of
        a CSV file with a column "label"."""
        dataset_kwargs: Annotated[
            Mapping[str, Any], arg(help=f"Parameters of the data set; those of {data}:{known or ' none.'}")
        ] = field(default_factory=dict)
        data_hash: Suppress[str | None] = None
        hyperparameters: OmitArgPrefixes[FewShotTrainingConfig] = field(default_factory=FewShotTrainingConfig)
        evaluation: FewShotEvaluation = field(default_factory=FewShotEvaluation)
        preset: Annotated[str | None, arg(aliases=["--config"])] = None
        """Name of a config that comes with the package, or path of a YAML file, such as the config.yaml of a run."""
        out: Path | None = None
        """The run folder; by default a new one in runs/."""
        progress_bar: bool = True
        """Show a progress bar; without it, a line every minute."""

        def __post_init__(self):
            """Checked when the options become a config."""

    default = TrainOptions(**({"learner": learner} if preset is None else shallow(preset)))
    options = parse_options(TrainOptions, args, prog=prog, default=default)
    config = FewShotConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(FewShotConfig)})
    subject = f"{learner} on {config.dataset} ({config.setting}) for {config.total_timesteps:,} episodes"
    name = f"{learner}-{Path(config.dataset).stem}"
    _, folder = train_in_new_folder(config, name, subject, options.out, options.progress_bar)
    print(f"Done. See how well it learns: metarl fewshot evaluate {folder}")


# -- evaluate and compare ----------------------------------------------------------------------------------------------


def evaluate(args: list[str]) -> None:
    """Measure a run on episodes of new classes, beside baselines; write table, picture and page."""

    @dataclass(frozen=True, kw_only=True)
    class EvaluateOptions(FewShotEvaluation):
        """Measure a run on episodes of new classes or functions, beside baselines. The run's config holds the defaults.

        Writes fewshot.csv, fewshot.png, fewshot.npz and fewshot.html into the run folder. For other episodes than the run's
        config says, what differs is in the names: fewshot_ood_5-shot_100-episodes.csv. Files of the same name are replaced.
        """

        run: Annotated[Positional[Path], arg(metavar="RUN")]
        """The run folder."""
        progress_bar: bool = True
        """Show a progress bar."""

    prog = "metarl fewshot evaluate"
    run = parse_options(EvaluateOptions, args, prog=prog).run
    default = EvaluateOptions(run=run, **shallow(fewshot_runs.few_shot_settings(run)))
    options = shallow(parse_options(EvaluateOptions, args, prog=prog, default=default))
    _show(*fewshot_runs.evaluate_few_shot_run(options.pop("run"), **options))


@dataclass(frozen=True, kw_only=True)
class CompareOptions(FewShotEvaluation):
    """Put runs side by side on the same episodes, the first against each other one, episode by episode.

    Runs that were not so evaluated yet are evaluated first, which leaves the files of `metarl fewshot evaluate` as they are:
    what was found is kept beside them in fewshot_compared.npz. The config of the first run holds the defaults, and makes
    the references.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN [RUN ...]")]
    """The run folders, at least two."""
    out: Path = Path("runs/fewshot-comparison")
    """Folder for comparison.csv, comparison.png and comparison.html."""
    progress_bar: bool = True
    """Show a progress bar."""


def compare(args: list[str]) -> None:
    """Put runs side by side on the same episodes; write table, picture and page."""
    prog = "metarl fewshot compare"
    runs = parse_options(CompareOptions, args, prog=prog).runs
    if len(runs) < 2:
        raise ValueError(f"runs must be at least 2 run folders, got {len(runs)}")
    default = CompareOptions(runs=runs, **shallow(fewshot_runs.few_shot_settings(runs[0])))
    options = shallow(parse_options(CompareOptions, args, prog=prog, default=default))
    runs, file = options.pop("runs"), options.pop("out") / "comparison.csv"
    comparison = fewshot_runs.compare_few_shot_runs(runs, **options)
    comparison.save_csv(file)
    comparison.plot(file.with_suffix(".png"))
    comparison.save_html(file.with_suffix(".html"))
    _show(comparison, file)


def _show(report: FewShotReport, file: Path) -> None:
    """Print the tables, and where they and the picture lie."""
    print(f"\n{report.first.subject}\n\n{report.table()}\n")
    for table in report.further_tables():
        print(f"{text_table(*table)}\n")
    print(f"Picture: {file.with_suffix('.png')}\nPage:    {file.with_suffix('.html')}\nNumbers: {file}")


# -- predict -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Let a run's learner adapt to a few examples of your own, and answer for others.

    Examples are pictures in folders, or rows of CSV files with the columns that the learner knows.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    support: Path
    """What to learn from: a folder with a folder of pictures for each class, or a CSV file with labels."""
    query: Path
    """What to answer for: a folder of pictures, or a CSV file."""
    label: str = "label"
    """The column of labels, or of targets, in a CSV file."""
    text: str = "text"
    """The column of texts in a CSV file, where the learner reads texts."""
    invert: bool = False
    """Turn dark ink on light paper into light on dark, which learners of glyphs know."""
    out: Path | None = None
    """A CSV file for the answers; by default they are printed."""


def predict(args: list[str]) -> None:
    """Let a run's learner adapt to a few examples of your own, and answer for others."""
    options = parse_options(PredictOptions, args, prog="metarl fewshot predict")
    if options.out is not None and not options.out.parent.is_dir():
        raise ValueError(f"--out must be a file in a folder that there is, got {options.out}")
    config = fewshot_runs.few_shot_config(options.run)
    source, learner = config.source, fewshot_runs.load_few_shot_run(options.run, config)
    reading = {"label": options.label, "text": options.text, "invert": options.invert}
    with _naming("--support"):
        support, labels = read_support(options.support, source, **reading)
    with _naming("--query"):
        queries, names = read_queries(options.query, source, **reading)
    if source.spec.classification:
        classes, targets = np.unique(labels, return_inverse=True)
        if len(classes) > (ways := source.spec.outputs) and not learner.any_ways:
            raise ValueError(f"{options.support} must hold at most {ways} classes, as in training, got {len(classes)}")
    else:
        where = f"--support: {options.label} of example"
        classes, targets = None, np.array([number(label, f"{where} {i}") for i, label in enumerate(labels, 1)])
    answers = learner.adapt(support, targets)(queries).numpy(force=True)
    # a learner made for more classes may prefer one of those that there are no examples of
    answers = answers[:, 0] if classes is None else classes[answers[:, : len(classes)].argmax(1)]
    with open(options.out, "w", newline="") if options.out else nullcontext(sys.stdout) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", options.label])
        writer.writerows(zip(names, answers, strict=True))


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Errors about a path name the option that it is of."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ValueError(option + (message[4:] if message.startswith("path ") else f": {message}")) from error


COMMANDS: dict[str, Callable[[list[str]], None]] = {made.__name__: made for made in (train, evaluate, compare, predict)}
