"""What the commands that train have in common."""

from pathlib import Path
from typing import Any

from metarl import training
from metarl.options import numbered
from metarl.progress import Progress
from metarl.run_config import RunConfig


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
