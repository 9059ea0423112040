from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from metarl.evaluation import film_trials, video
from metarl.evaluation.references import RandomPlayer
from metarl_envs import make_family
from metarl_envs.bandits import BernoulliBandit
from metarl_envs.navigation import Navigation2D

COLOURS = (50, 100, 150)


@dataclass(frozen=True)
class Drawn(BernoulliBandit):
    """Every slot a colour, which gets brighter from step to step."""

    render_modes: ClassVar[tuple[str, ...]] = ("rgb_array",)
    render_fps: ClassVar[int] = 20

    def make_state(self, num_slots):
        return {**super().make_state(num_slots), "steps": np.zeros(1, int)}

    def step(self, tasks, state, actions, streams):
        state["steps"] += 1
        return super().step(tasks, state, actions, streams)

    def frames(self, tasks, state):
        return [np.full((30, 64, 3), COLOURS[i] + 10 * state["steps"][0], np.uint8) for i in range(len(tasks["means"]))]


def film(path, suffix):
    family = Drawn(num_arms=2, num_pulls=4)
    written = film_trials(RandomPlayer(family), family, family.sample(3, "test", 0), path)
    assert written == path.with_suffix(suffix)
    return written


def test_rows_are_tasks_and_columns_first_and_last_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with Image.open(film(tmp_path / "film", ".gif")) as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    height = 30 + video.CAPTION
    assert picture.shape == (3 * height, 128, 3)
    for row, colour in enumerate(COLOURS):
        bottom = (row + 1) * height - 5
        assert abs(picture[bottom, 32] - colour).max() <= 3  # the first pull
        assert abs(picture[bottom, 96] - colour - 30).max() <= 3  # the fourth
        assert (picture[row * height : row * height + video.CAPTION] == 255).mean() > 0.5


def test_mp4_where_there_is_ffmpeg(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(film(tmp_path / "film", ".mp4")))
    assert frames == 1  # a pull is an episode of a single step
    assert seconds == pytest.approx(1 / 20, abs=0.02)


def test_films_hold_their_last_picture():
    films = [[[np.full((2, 2, 3), value, np.uint8) for value in range(count)] for count in (2, 4)]]
    joined = list(video._joined(films, [[np.zeros((1, 2, 3), np.uint8)] * 2]))
    assert [picture[-1, (0, -1), 0].tolist() for picture in joined] == [[0, 0], [1, 1], [1, 2], [1, 3]]


def test_no_more_pictures_than_are_seen(tmp_path, monkeypatch):
    class Walk(Navigation2D):
        render_modes, render_fps = ("rgb_array",), 125

        def frames(self, tasks, state):
            return [np.full((30, 64, 3), round(1000 * abs(state["position"][0, 0])), np.uint8)]

        def step(self, tasks, state, actions, streams):
            state["position"][:, 0] += 0.02
            return np.zeros(1), np.zeros(1, bool)

    written = []
    monkeypatch.setattr(video, "_write", lambda path, pictures, fps: written.append((list(pictures), fps)))
    family = Walk(num_steps=7, num_episodes=1)
    film_trials(RandomPlayer(family), family, family.sample(1, "test", 0), tmp_path / "film")
    pictures, fps = written[0]
    assert fps == pytest.approx(125 / 3)
    assert [int(picture[-1, 0, 0]) for picture in pictures] == [0, 60, 120]


def test_families_without_pictures_are_refused(tmp_path):
    family = make_family("metarl/GridNavi-v0")
    with pytest.raises(ValueError, match="video must be off for metarl/GridNavi-v0, which draws no pictures"):
        film_trials(RandomPlayer(family), family, family.sample(2, "test", 0), tmp_path / "film")
