"""What commands have in common: training in a new folder, and options for the parameters of a task family."""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress, arg

from metarl import training
from metarl.config import checked_family
from metarl.options import literals, numbered
from metarl.progress import Progress
from metarl.run_config import RunConfig
from metarl_envs import TaskFamily


def train_in_new_folder(
    config: RunConfig, name: str, subject: str, out: Path | None, progress_bar: bool
) -> tuple[Any, Path]:
    """Train as `config` says, and say how it goes; returns what was trained, and its run folder.

    Args:
        config: of the training.
        name: of the run folder, in runs/ and numbered, where `out` names none.
        subject: what is trained on what, for how long.
        out: the run folder.
        progress_bar: show one; otherwise a line every minute.
    """
    folder = out or numbered(Path("runs") / name)
    print(f"Training {subject}, in {folder}", flush=True)
    print(f"Watch it: tensorboard --logdir {folder / 'tensorboard'}", flush=True)
    progress = shown_progress(progress_bar)
    model = training.train(config, folder, callback=progress, progress_bar=progress_bar)
    print(progress.summary())
    return model, folder


def shown_progress(progress_bar: bool) -> Progress:
    """Lines for a log file where there is no progress bar."""
    return Progress(every=None if progress_bar else 60.0)


def given_family(env: str, args: list[str]) -> TaskFamily:
    """The family to read options `--env.NAME` for. One that cannot be made without some is made with those in `args`."""
    try:
        return checked_family(env)
    except ValueError:
        if given := literals(args, "env"):
            return checked_family(env, given)
        raise


def family_type(family: TaskFamily | None) -> Any:
    """The type of options `--env.NAME`."""
    return Suppress[None] if family is None else Annotated[type(family), arg(name="env")]
