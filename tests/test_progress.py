import re

import pytest

from metarl import MAMLPPO, RL2PPO
from metarl.progress import Progress, _clock


def made(algorithm):
    env = {"env": "metarl/BernoulliBandit-v0", "env_kwargs": {"num_arms": 2, "num_pulls": 4}, "seed": 0}
    if algorithm is RL2PPO:
        return RL2PPO("LstmPolicy", **env, num_envs=4, policy_kwargs={"core_size": 8})
    return MAMLPPO("MlpPolicy", **env, num_tasks=2, episodes_per_update=4)


@pytest.mark.parametrize("algorithm", [RL2PPO, MAMLPPO])
def test_a_line_tells_speed_time_left_and_shares(algorithm, capsys):
    progress = Progress(every=0)
    model = made(algorithm).learn(64, progress)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # of four iterations, none before the first
    assert re.fullmatch(
        r"16 of 64 steps, [\d,]+ steps/s, \d+ s left, stepping \d+%, acting \d+%, updating \d+%, return \d\.\d\d", lines[0]
    )
    shares = progress.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in shares.values())
    assert progress.speed == pytest.approx(64 / progress.seconds)
    assert progress.summary().startswith(f"{round(progress.seconds)} s, ")
    assert model.envs.seconds == pytest.approx(shares["stepping"] * progress.seconds)


def test_shares_are_logged_and_nothing_is_printed(capsys):
    logged = []

    class Listening(Progress):
        def _on_rollout_end(self):
            super()._on_rollout_end()
            logged.append({k for k in self.logger.name_to_value if k.startswith("time/")})

    made(RL2PPO).learn(48, Listening(every=None), log_interval=1)
    assert capsys.readouterr().out == ""
    assert logged[-1] == {"time/stepping", "time/acting", "time/updating"}


@pytest.mark.parametrize(
    ("seconds", "expected"), [(7.4, "7 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min"), (7261, "2 h 01 min")]
)
def test_clock(seconds, expected):
    assert _clock(seconds) == expected
