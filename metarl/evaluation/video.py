"""Films of agents that adapt: the first and the last episode of a trial, side by side."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from metarl.evaluation.play import play_trials
from metarl.trials import Player
from metarl_envs import TaskFamily, TaskSet, TaskVectorEnv

CAPTION = 18
"""Height of a caption, in pixels."""


def film_trials(
    player: Player, family: TaskFamily, tasks: TaskSet, path: str | Path, *, episodes: int | None = None, seed: int = 0
) -> Path:
    """Play one trial per task and write its first and last episodes, a task in every row: MP4, or GIF without ffmpeg.

    Args:
        player: who plays.
        family: what `tasks` belong to.
        tasks: a few tasks.
        path: where to, without a suffix.
        episodes: episodes per trial; the family's own trial length by default.
        seed: seeds the environment and the player.

    Returns:
        The file.

    Raises:
        ValueError: when the family cannot be drawn, or there is nothing to draw it with.
    """
    check_drawable(family)
    episodes = family.episodes_per_trial if episodes is None else episodes
    shown = sorted({0, episodes - 1})
    frames: list[list[list[np.ndarray]]] = [[[] for _ in shown] for _ in range(len(tasks))]

    def watch(envs: TaskVectorEnv, episode: np.ndarray) -> None:
        if np.isin(episode, shown).any():
            for films, picture, number in zip(frames, envs.render(), episode.tolist(), strict=True):
                if number in shown:
                    films[shown.index(number)].append(picture)

    returns = play_trials(player, family, tasks, episodes=episodes, seed=seed, batch_size=len(tasks), watch=watch)
    length = max(len(film) for films in frames for film in films)
    rows = []
    for task, films in enumerate(frames):
        titles = [f"episode {number + 1}: return {returns[task, number]:.1f}" for number in shown]
        titles[0] = f"{_described(tasks[task])}, {titles[0]}"
        captioned = [_captioned(film, title, length) for film, title in zip(films, titles, strict=True)]
        rows.append(np.concatenate(captioned, axis=2))
    return _write(Path(path), np.concatenate(rows, axis=1), family.render_fps)


def check_drawable(family: TaskFamily) -> None:
    """Raise unless pictures can be made of this family."""
    if "rgb_array" not in family.render_modes:
        raise ValueError(f"video must be off for {family.label}, which draws no pictures: MuJoCo's robots do")


def _described(tasks: TaskSet) -> str:
    """One task in a few words, those of its parameters that are short."""
    short = {name: values[0] for name, values in tasks.params.items() if np.size(values[0]) <= 3}
    shown = {name: " ".join(f"{x:.2f}" for x in np.ravel(value)) for name, value in short.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "task"


def _captioned(film: Sequence[np.ndarray], title: str, length: int) -> np.ndarray:
    """`[length, height + CAPTION, width, 3]`: the film, its last picture held, below its title."""
    from PIL import Image, ImageDraw

    held = np.stack([*film, *[film[-1]] * (length - len(film))])
    banner = Image.new("RGB", (held.shape[2], CAPTION), "white")
    ImageDraw.Draw(banner).text((4, 3), title, fill="black")
    return np.concatenate([np.broadcast_to(np.asarray(banner), (length, *np.shape(banner))), held], axis=1)


def _write(path: Path, film: np.ndarray, fps: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if find_spec("imageio_ffmpeg") is None:
        from PIL import Image

        first, *others = (Image.fromarray(picture) for picture in film)
        path = path.with_name(path.name + ".gif")
        first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
        return path
    import imageio_ffmpeg

    path = path.with_name(path.name + ".mp4")
    height, width = film.shape[1:3]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    writer.send(None)
    for picture in film:
        writer.send(np.ascontiguousarray(picture))
    writer.close()
    return path
