"""Films of agents that adapt: the first and the last episode of a trial, side by side."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import gymnasium as gym
import numpy as np

from metarl.evaluation.play import play_trials
from metarl.trials import Player
from metarl_envs import TaskFamily, TaskSet, TaskVectorEnv

CAPTION = 18
"""Height of a caption, in pixels."""
MOST_FPS = 50
"""Pictures per second at most: what a GIF can say, and more than is seen."""


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
    every = math.ceil(family.render_fps / MOST_FPS)
    films: list[list[list[np.ndarray]]] = [[[] for _ in shown] for _ in range(len(tasks))]
    steps = np.zeros((len(tasks), episodes), np.int64)

    def watch(envs: TaskVectorEnv, episode: np.ndarray) -> None:
        at = [(slot, number) for slot, number in enumerate(episode.tolist()) if number in shown]
        if any(steps[slot, number] % every == 0 for slot, number in at):
            pictures = envs.render()
        for slot, number in at:
            if steps[slot, number] % every == 0:
                films[slot][shown.index(number)].append(pictures[slot])
            steps[slot, number] += 1

    returns = play_trials(player, family, tasks, episodes=episodes, seed=seed, batch_size=len(tasks), watch=watch)
    width = films[0][0][0].shape[1]
    banners = []
    for task in range(len(tasks)):
        titles = [f"episode {number + 1}: return {returns[task, number]:.1f}" for number in shown]
        titles[0] = f"{_described(tasks[task])}, {titles[0]}"
        banners.append([_banner(title, width) for title in titles])
    return _write(Path(path), _joined(films, banners), family.render_fps / every)


def check_drawable(family: TaskFamily) -> None:
    """Raise a `ValueError` unless pictures can be made of this family, here."""
    if "rgb_array" not in family.render_modes:
        raise ValueError(f"video must be off for {family.label}, which draws no pictures: MuJoCo's robots do")
    try:
        family.check_drawing()
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(f"video must be off: {error}") from error


def _joined(films: list[list[list[np.ndarray]]], banners: list[list[np.ndarray]]) -> Iterator[np.ndarray]:
    """One picture after the other: tasks below each other, episodes side by side, those that ended held."""
    for t in range(max(len(film) for row in films for film in row)):
        rows = []
        for row, titles in zip(films, banners, strict=True):
            cells = [np.concatenate([title, film[min(t, len(film) - 1)]]) for film, title in zip(row, titles, strict=True)]
            rows.append(np.concatenate(cells, axis=1))
        yield np.concatenate(rows)


def _described(tasks: TaskSet) -> str:
    """One task in a few words, those of its parameters that are short."""
    short = {name: values[0] for name, values in tasks.params.items() if np.size(values[0]) <= 3}
    shown = {name: " ".join(f"{x:.2f}" for x in np.ravel(value)) for name, value in short.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "task"


def _banner(title: str, width: int) -> np.ndarray:
    """A caption `[CAPTION, width, 3]`."""
    from PIL import Image, ImageDraw

    banner = Image.new("RGB", (width, CAPTION), "white")
    ImageDraw.Draw(banner).text((4, 3), title, fill="black")
    return np.asarray(banner)


def _write(path: Path, pictures: Iterator[np.ndarray], fps: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first = next(pictures)
    if find_spec("imageio_ffmpeg") is None:
        from PIL import Image

        path = path.with_name(path.name + ".gif")
        others = (Image.fromarray(picture) for picture in pictures)
        delay = 10 * round(100 / fps)  # in milliseconds; the format knows hundredths of a second
        Image.fromarray(first).save(path, save_all=True, append_images=others, duration=delay, loop=0)
        return path
    import imageio_ffmpeg

    path = path.with_name(path.name + ".mp4")
    size = (first.shape[1], first.shape[0])
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    writer.send(None)
    for picture in chain([first], pictures):
        writer.send(np.ascontiguousarray(picture))
    writer.close()
    return path
