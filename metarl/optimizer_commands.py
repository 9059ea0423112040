"""The commands of `metarl` for update rules: `metarl train learned-optimizer`, and `metarl evaluate` of what it trained."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from metarl import training
from metarl.algorithms.learned_optimizer import OptimizerTrainingConfig
from metarl.commands import train_in_new_folder
from metarl.config import OptimizerConfig
from metarl.options import parse_known_options, parse_options, preset_path
from metarl.plain import shallow

NAME = "learned-optimizer"


@dataclass(frozen=True)
class _Start:
    preset: Annotated[str | None, arg(aliases=["--config"])] = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OptimizerConfig):
    """Train an update rule, that is a learned optimizer, in a new run folder; it is left there as rule.safetensors.

    The command line goes before the preset, the preset before the defaults.
    """

    algorithm: Suppress[str] = NAME
    hyperparameters: OmitArgPrefixes[OptimizerTrainingConfig] = field(default_factory=OptimizerTrainingConfig)
    preset: Annotated[str | None, arg(aliases=["--config"])] = None
    """Name of a config that comes with the package (`metarl train --help` lists them), or path of a YAML file,
    such as the config.yaml of a run."""
    out: Path | None = None
    """The run folder; by default a new one in runs/."""
    progress_bar: bool = True
    """Show a progress bar; without it, a line every minute."""

    def __post_init__(self):
        """Checked when the options become a config."""


def train_optimizer(args: list[str]) -> None:
    """Train an update rule."""
    prog = f"metarl train {NAME}"
    start, _ = parse_known_options(_Start, args, prog=prog)
    default = None
    if start.preset is not None:
        default = TrainOptions(**shallow(OptimizerConfig.from_yaml(preset_path(start.preset))))
    options = parse_options(TrainOptions, args, prog=prog, default=default)
    config = OptimizerConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(OptimizerConfig)})
    subject = f"{config.rule} on {config.family} for {config.total_timesteps:,} inner steps"
    if config.rate is None:
        print("Tuning the rate on training problems first: --rate gives one", flush=True)
    name = f"{config.rule}-{config.family.rpartition('/')[2]}"
    model, folder = train_in_new_folder(config, name, subject, options.out, options.progress_bar)
    print(f"Done. The rule, whose learning rate is {model.made_of['rate']:g}: {training.rule_file(folder)}")
    print(f"See how it optimises: metarl evaluate {folder}")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Measure how an update rule optimises new problems, beside hand-made rules tuned on training problems.

    Writes optimization.csv, optimization.png and optimization.html into the run folder; for splits other than test and for
    other numbers of steps they are named so.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    split: str = "test"
    """Split of the problems."""
    num_problems: int | None = None
    """Problems, by default 512, or 128 where agents are trained."""
    steps: int | None = None
    """Steps of an inner training, by default the problem's horizon."""
    seed: int = 0
    """Seed of problems, initial parameters and minibatches."""


def evaluate_optimizer(args: list[str]) -> None:
    """Measure how an update rule optimises new problems."""
    options = shallow(parse_options(EvaluateOptions, args, prog="metarl evaluate"))
    run = options.pop("run")
    curve, file = training.evaluate_optimizer_run(run, **options)
    print(f"\n{curve.subject}, 95 % intervals:\n\n{curve.table()}\n")
    print(f"Picture: {file.with_suffix('.png')}\nReport:  {file.with_suffix('.html')}\nNumbers: {file.with_suffix('.csv')}")
