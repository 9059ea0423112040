"""The command line: `metarl envs | train | evaluate | adapt | compare | resume | fewshot`.

Every command imports what it needs when it runs, so that help comes at once. What is wrong with the input is told in one
line, with exit code 2; with METARL_DEBUG=1 in the environment a traceback is shown instead.
"""

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from metarl.options import parse_known_options, parse_options, preset_names, preset_path
from metarl.plain import check_known, first_sentence, shallow

if TYPE_CHECKING:
    from metarl.config import TrainingConfig
    from metarl_envs import TaskFamily

_HELP = {"-h", "--help"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 after bad input, 130 and 143 after SIGINT and SIGTERM."""
    command, *args = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # terminals that lack a character get a question mark
    try:
        if command in _HELP:
            print(_usage())
            return 0
        check_known(f"command {command!r}", command, COMMANDS)
        sys.path.extend({os.getcwd()} - {*sys.path})  # modules here can be named in `--env module:Env-v0`
        with _one_line_warnings():
            COMMANDS[command](args)
        return 0
    except KeyboardInterrupt:
        print("metarl: stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if message := getattr(stop, "message", ""):
            print(f"metarl: {message}", file=sys.stderr)
        return stop.code or 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("METARL_DEBUG"):
            raise
        print(f"metarl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


# -- envs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnvsOptions:
    """List the task families, or show one family's parameters."""

    env: Annotated[Positional[str | None], arg(metavar="ID")] = None
    """Gymnasium id of a family, or of any other environment; all families when left out."""


def envs(args: list[str]) -> None:
    """List the task families, or show one family's parameters."""
    options = parse_options(EnvsOptions, args, prog="metarl envs")
    from metarl.catalogue import print_families, print_family
    from metarl.config import checked_family

    if options.env is None:
        print_families()
    else:
        print_family(options.env, checked_family(options.env))


# -- train and resume --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Start:
    """What decides which further options there are."""

    env: str | None = None
    preset: Annotated[str | None, arg(aliases=["--config"])] = None


def train(args: list[str]) -> None:
    """Train an agent: `metarl train rl2 --env ID`, or `--preset NAME`. Or an update rule: `train learned-optimizer`."""
    from metarl.commands import train_in_new_folder
    from metarl.config import CONFIGS, RunConfig, TrainingConfig
    from metarl.fewshot_commands import PRESETS as FEW_SHOT

    kinds = {name: kind for name, kind in CONFIGS.items() if kind.commands == RunConfig.commands}
    algorithm, *args = args or ["--help"]
    if algorithm in _HELP:
        print(f"usage: metarl train ALGORITHM [OPTIONS]\n\nalgorithms: {', '.join(kinds)}")
        names = [name for name in preset_names() if not name.startswith(FEW_SHOT)]
        print(f"presets:    {', '.join(names)}\n\nOptions: metarl train ALGORITHM --help")
        return
    if algorithm in CONFIGS and algorithm not in kinds:
        raise ValueError(f"algorithm {algorithm} is trained by `{CONFIGS[algorithm].commands} train`")
    check_known(f"algorithm {algorithm!r}", algorithm, kinds)
    if kinds[algorithm] is not TrainingConfig:
        from metarl.optimizer_commands import train_optimizer

        return train_optimizer(args)
    default = _default_config(algorithm, args)
    family = None if default is None else default.family
    cls = _train_options(family, algorithm)
    defaults = None if default is None else cls(**{**shallow(default), "env_kwargs": family})
    options = parse_options(cls, args, prog=f"metarl train {algorithm}", default=defaults)

    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(TrainingConfig)}
    config = TrainingConfig(**{**values, "env_kwargs": shallow(options.env_kwargs)})
    subject = f"{algorithm} on {config.env} for {config.total_timesteps:,} steps"
    name = f"{algorithm}-{config.env.rpartition('/')[2]}"
    _, folder = train_in_new_folder(config, name, subject, options.out, options.progress_bar)
    print(f"Done. See how it adapts: metarl evaluate {folder}")


def _default_config(algorithm: str, args: list[str]) -> "TrainingConfig | None":
    """What holds where the command line says nothing; None when it asks for no more than help."""
    from metarl.commands import given_family
    from metarl.config import TrainingConfig

    start, rest = parse_known_options(_Start, args, prog=f"metarl train {algorithm}")
    if start.preset is not None:
        config = TrainingConfig.from_yaml(preset_path(start.preset), start.env)
        if config.algorithm != algorithm:
            raise ValueError(f"algorithm must be {config.algorithm} with --preset {start.preset}, got {algorithm}")
        return config
    if start.env is not None:
        return TrainingConfig(algorithm=algorithm, env=start.env, env_kwargs=shallow(given_family(start.env, rest)))
    if _HELP & {*args}:
        return None
    raise ValueError("--env must be given, an id that `metarl envs` lists or any other, or --preset")


def _train_options(family: "TaskFamily | None", algorithm_name: str) -> type:
    from metarl.commands import family_type
    from metarl.config import ALGORITHMS, TrainingConfig

    config_class = ALGORITHMS[algorithm_name].config_class

    @dataclass(frozen=True, kw_only=True)
    class TrainOptions(TrainingConfig):
        """Train an agent in a new run folder.

        The command line goes before the preset, the preset before the defaults. Parameters of a task family are options
        too: `--env ID --help` lists them. A preset's parameters hold for its own env only.
        """

        algorithm: Suppress[str] = algorithm_name
        env_kwargs: family_type(family) = family
        hyperparameters: OmitArgPrefixes[config_class] = field(default_factory=config_class)
        preset: Annotated[str | None, arg(aliases=["--config"])] = None
        """Name of a config that comes with the package (`metarl train --help` lists them), or path of a YAML file,
        such as the config.yaml of a run."""
        out: Path | None = None
        """The run folder; by default a new one in runs/."""
        progress_bar: bool = True
        """Show a progress bar; without it, a line every minute."""

        def __post_init__(self):
            """Checked when the options become a config."""

    return TrainOptions


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with an interrupted training, exactly as if it had not been interrupted."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    progress_bar: bool = True
    """Show a progress bar; without it, a line every minute."""


def resume(args: list[str]) -> None:
    """Go on with an interrupted training, exactly as if it had not been interrupted."""
    options = parse_options(ResumeOptions, args, prog="metarl resume")
    from metarl import training
    from metarl.commands import shown_progress
    from metarl.config import read_config

    progress = shown_progress(options.progress_bar)
    model = training.resume(options.run, callback=progress, progress_bar=options.progress_bar)
    if hasattr(progress, "start"):  # there was something left to do
        print(progress.summary())
    commands = read_config(options.run / "config.yaml").commands
    print(f"Done, at step {model.num_timesteps:,}. See what it learned: {commands} evaluate {options.run}")


# -- evaluate and compare ----------------------------------------------------------------------------------------------


def evaluate(args: list[str]) -> None:
    """Measure on new tasks how a run adapts, beside classical players; write table, picture and report."""
    from metarl.config import EvaluationConfig, TrainingConfig, read_config
    from metarl.evaluation.remembering import check_memory
    from metarl.evaluation.report import text_table
    from metarl.evaluation.video import check_drawable
    from metarl.run_folder import RunFolder
    from metarl.training import curve_file, evaluate_run, film_run, load_run, recall_file, run_config, show_memory

    @dataclass(frozen=True, kw_only=True)
    class EvaluateOptions(EvaluationConfig):
        """Measure on new tasks how a run adapts, beside classical players. The run's config holds the defaults.

        Writes adaptation.csv, adaptation.png, adaptation.npz and report.html into the run folder, and adaptation_recall.png
        where situations come back within a trial; for splits other than test the files are named adaptation_SPLIT, with
        likeliest actions adaptation_deterministic.
        """

        run: Annotated[Positional[Path], arg(metavar="RUN")]
        """The run folder."""
        video: bool = False
        """Film the first and last episodes of three tasks too: adaptation.mp4 (or .gif), where the family draws pictures."""
        show_memory: bool = False
        """Draw what the memory reads and writes in one trial, and how far back it reaches, too: adaptation_memory.png."""
        progress_bar: bool = True
        """Show a progress bar."""

    prog = "metarl evaluate"
    files = [file for part in args if (file := Path(part) / "config.yaml").is_file()]
    if files and not isinstance(read_config(files[0]), TrainingConfig):
        from metarl.optimizer_commands import evaluate_optimizer

        return evaluate_optimizer(args)
    run = parse_options(EvaluateOptions, args, prog=prog).run
    config = run_config(RunFolder.open(run))
    default = EvaluateOptions(run=run, **dataclasses.asdict(config.evaluation))
    options = parse_options(EvaluateOptions, args, prog=prog, default=default)
    settings = {f.name: getattr(options, f.name) for f in dataclasses.fields(EvaluationConfig)}
    if options.video:
        check_drawable(config.family)  # before the work
    if options.show_memory:
        try:
            check_memory(load_run(run).player())
        except ValueError as error:
            raise ValueError(f"show_memory must be off: {error}") from None
    curve = evaluate_run(run, progress_bar=options.progress_bar, **settings)
    print(f"\n{curve.label}, {curve.num_tasks:,} {curve.split} tasks, 95 % intervals:\n\n{curve.table()}\n")
    for table in curve.further_tables():
        print(f"{text_table(*table)}\n")
    file = curve_file(run, options.split, options.deterministic)
    chosen = {name: settings[name] for name in ("split", "deterministic", "episodes", "seed")}
    if options.video:
        print(f"Video:   {film_run(run, **chosen)}")
    if curve.by_occurrence is not None:
        print(f"Recall:  {recall_file(file)}")
    if options.show_memory:
        picture, reach = show_memory(run, **chosen)
        print(f"Memory:  {picture}; {reach}")
    print(f"Picture: {file.with_suffix('.png')}\nReport:  {run / 'report.html'}\nNumbers: {file.with_suffix('.csv')}")


@dataclass(frozen=True)
class CompareOptions:
    """Put runs side by side on the same tasks, the first against each other one, task by task.

    Runs that were not evaluated on the split yet are evaluated first, on the tasks of those that were.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN [RUN ...]")]
    """The run folders, at least two."""
    split: str = "test"
    """Split of the family that tasks are drawn from."""
    deterministic: bool = False
    """Take likeliest actions; otherwise, what the first run's config says."""
    out: Path = Path("runs/comparison")
    """Folder for comparison.csv, comparison.png and comparison.html."""
    progress_bar: bool = True
    """Show a progress bar."""


def compare(args: list[str]) -> None:
    """Put runs side by side on the same tasks; write table, picture and report."""
    options = parse_options(CompareOptions, args, prog="metarl compare")
    if len(options.runs) < 2:
        raise ValueError(f"runs must be at least 2 run folders, got {len(options.runs)}")
    from metarl.training import compare_runs

    settings = {"split": options.split, "deterministic": options.deterministic or None}
    comparison = compare_runs(options.runs, progress_bar=options.progress_bar, **settings)
    files = [options.out / f"comparison.{suffix}" for suffix in ("png", "html", "csv")]
    for save, file in zip((comparison.plot, comparison.save_html, comparison.save_csv), files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file)
    print(f"{comparison.table()}\n\nPicture: {files[0]}\nReport:  {files[1]}\nNumbers: {files[2]}")


# -- adapt -------------------------------------------------------------------------------------------------------------


def adapt(args: list[str]) -> None:
    """Let a run's agent adapt to one new task, of its family or of your own environment."""
    from metarl.adapt_command import adapt_to_one_task

    adapt_to_one_task(args)


# -- few-shot learning -------------------------------------------------------------------------------------------------


def fewshot(args: list[str]) -> None:
    """Few-shot classification and regression: `metarl fewshot train | evaluate | compare | predict`."""
    from metarl import fewshot_commands

    fewshot_commands.fewshot(args)


# -- inside ------------------------------------------------------------------------------------------------------------


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__: command for command in (envs, train, evaluate, adapt, compare, resume, fewshot)
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {first_sentence(command)}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: metarl COMMAND [OPTIONS]\n",
            "Train agents that learn to learn, and measure how fast they adapt.\n",
            "commands:",
            *lines,
            "\nOptions: metarl COMMAND --help",
        ]
    )


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        print(f"metarl: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
