"""Env steps per second, training included, of RL² here and of sb3-contrib's RecurrentPPO, in one run.

    python experiments/speed/recurrent_ppo.py --seconds 10 --num-envs 16 64 256 512

The task is the ten-armed Bernoulli bandit with 100 pulls. Both do the same work: per iteration a trial of 100 steps in each
environment, then 4 epochs of 4 minibatches on one LSTM of 64 units that policy and value function share, linear heads, on
one thread. RL² is measured twice: in float32, and with its LSTM scanned in bfloat16 (`core_kwargs={"bfloat16": True}`),
which RecurrentPPO does not offer and which not every processor is fast at. RecurrentPPO is measured three times:

- on this toolkit's single environments in a `DummyVecEnv`, with the wrapper that RL² needs. They are one-slot views of a
  batch, so about half of its time goes into stepping them;
- on the same bandit written by hand, as cheap as a Gymnasium environment can be, in a `DummyVecEnv`;
- helped: on this toolkit's batched environments as one flat vector.

The ratios of best to best are given for all. The target is for our best against its best on this toolkit's environments as
a user of Stable-Baselines3 meets them, the first of the three. Exit code 1 below it. Seconds are of processor time, on one
thread.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from machines import keep
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stopwatch import Stopwatch, timed

from metarl.algorithms import rl2
from metarl.algorithms.rl2 import RL2PPO
from metarl.algorithms.vec_env import TrialVecEnv
from metarl.allocator import keep_freed_memory
from metarl_envs import TaskFamily, make_family

ENV_ID = "metarl/BernoulliBandit-v0"
NUM_ARMS = 10
NUM_PULLS = 100
LSTM_SIZE = 64
EPOCHS = 4
MINIBATCHES = 4
RESULT = "speed_recurrent_ppo.json"


def bandit() -> TaskFamily:
    """The problem."""
    return make_family(ENV_ID, num_arms=NUM_ARMS, num_pulls=NUM_PULLS)


# -- RL² here ----------------------------------------------------------------------------------------------------------


def measure_metarl(num_envs: int, seconds: float, bfloat16: bool = False) -> tuple[float, dict[str, float]]:
    """Env steps per second, and the shares of acting, stepping the environments and updating."""
    model = RL2PPO(
        "LstmPolicy",
        bandit(),
        num_envs=num_envs,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        policy_kwargs={"core_size": LSTM_SIZE, "encoder": (), "skip": False, "core_kwargs": {"bfloat16": bfloat16}},
        seed=0,
    )
    spent = {"stepping": 0.0, "updating": 0.0}
    stopwatch = Stopwatch(seconds, on_start=lambda: spent.update(stepping=0.0, updating=0.0))
    for name in ("step", "reset"):
        setattr(model.envs, name, timed(getattr(model.envs, name), spent, "stepping"))
    original = rl2.update
    rl2.update = timed(original, spent, "updating")
    try:
        model.learn(10**12, callback=stopwatch, log_interval=0)
    finally:
        rl2.update = original
    shares = {name: value / stopwatch.total for name, value in spent.items()}
    return num_envs * NUM_PULLS * stopwatch.updates / stopwatch.total, {"acting": 1 - sum(shares.values()), **shares}


# -- RecurrentPPO ------------------------------------------------------------------------------------------------------


def measure_recurrent_ppo(envs: VecEnv, seconds: float) -> float:
    """Env steps per second of RecurrentPPO, over at least `seconds` and two updates, after one update to warm up."""
    model = RecurrentPPO(
        "MlpLstmPolicy",
        envs,
        n_steps=NUM_PULLS,
        batch_size=envs.num_envs * NUM_PULLS // MINIBATCHES,
        n_epochs=EPOCHS,
        policy_kwargs={"shared_lstm": True, "enable_critic_lstm": False, "lstm_hidden_size": LSTM_SIZE, "net_arch": []},
        seed=0,
        device="cpu",
    )
    stopwatch = Stopwatch(seconds)
    model.learn(10**12, callback=stopwatch)
    return envs.num_envs * NUM_PULLS * stopwatch.updates / stopwatch.total


class TrialWrapper(gym.Wrapper):
    """A trial as one episode of a single environment, observing the previous action, reward and done."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (NUM_ARMS + 2,), np.float32)
        self.pulls = 0

    def reset(self, **kwargs):
        """Start a trial."""
        self.env.reset(**kwargs)
        self.pulls = 0
        return np.zeros(NUM_ARMS + 2, np.float32), {}

    def step(self, action):
        """Pull; the last pull ends the trial."""
        _, reward, _, _, info = self.env.step(action)
        observation = np.zeros(NUM_ARMS + 2, np.float32)
        observation[[action, -2, -1]] = 1.0, reward, 1.0
        self.pulls += 1
        over = self.pulls == NUM_PULLS
        if not over:
            self.env.reset()
        return observation, reward, over, False, info


class BareBandit(gym.Env):
    """The same problem and observations by hand, without families, tasks or checks: as cheap as a step can be."""

    observation_space = spaces.Box(-np.inf, np.inf, (NUM_ARMS + 2,), np.float32)
    action_space = spaces.Discrete(NUM_ARMS)

    def reset(self, *, seed=None, options=None):
        """Start a trial with new arms."""
        super().reset(seed=seed)
        self.wins = self.np_random.random((NUM_PULLS, NUM_ARMS)) < self.np_random.random(NUM_ARMS)
        self.pulls = 0
        return np.zeros(NUM_ARMS + 2, np.float32), {}

    def step(self, action):
        """Pull; the last pull ends the trial."""
        reward = float(self.wins[self.pulls, action])
        self.pulls += 1
        observation = np.zeros(NUM_ARMS + 2, np.float32)
        observation[action] = observation[-1] = 1.0
        observation[-2] = reward
        return observation, reward, self.pulls == NUM_PULLS, False, {}


def usual_envs(num_envs: int) -> VecEnv:
    """Single environments of this toolkit, one after another."""
    return DummyVecEnv([lambda: TrialWrapper(gym.make(ENV_ID, num_arms=NUM_ARMS, num_pulls=NUM_PULLS))] * num_envs)


def bare_envs(num_envs: int) -> VecEnv:
    """Bandits written by hand, one after another."""
    return DummyVecEnv([BareBandit] * num_envs)


def batched_envs(num_envs: int) -> VecEnv:
    """A batch of this toolkit's environments, as one."""
    return FlatContext(TrialVecEnv(bandit(), num_envs))


class FlatContext(VecEnvWrapper):
    """What happened at the step before as one vector `[num_arms + 2]`; a bandit has nothing else to observe."""

    KEYS = ("previous_action", "previous_reward", "previous_done")

    def __init__(self, envs: TrialVecEnv):
        size = sum(envs.observation_space[key].shape[0] for key in self.KEYS)
        super().__init__(envs, spaces.Box(-np.inf, np.inf, (size,), np.float32))

    def reset(self) -> VecEnvObs:
        """Start a trial in every environment."""
        return self._flat(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """Observations `[B, num_arms + 2]`, rewards, ends of trials, and infos."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for slot in np.flatnonzero(dones):
            infos[slot]["terminal_observation"] = self._flat(infos[slot]["terminal_observation"])
        return self._flat(observations), rewards, dones, infos

    def _flat(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([observations[key] for key in self.KEYS], -1)


# -- both --------------------------------------------------------------------------------------------------------------

OURS = {"RL² here": False, "RL² here, bfloat16": True}
"""Name, and whether the LSTM is scanned in bfloat16."""
THEIRS: dict[str, Callable[[int], VecEnv]] = {
    "RecurrentPPO, DummyVecEnv": usual_envs,
    "RecurrentPPO, bandit by hand": bare_envs,
    "RecurrentPPO, batched envs": batched_envs,
}
"""Name, and the environments. The target is against the first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, store it, and exit with 1 below the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="least time measured per entry")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[16, 64, 256, 512], help="rows of the table")
    parser.add_argument("--target", type=float, default=8.0, help="least ratio of the best of both")
    parser.add_argument("--no-write", action="store_true", help="do not store the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()  # for both
    rows = []
    columns = [*OURS, *THEIRS]
    print("  ".join(["  envs", *columns, "acting / stepping / updating, of each RL²"]), flush=True)
    for num_envs in options.num_envs:
        row = {"num_envs": num_envs, "shares": {}}
        for name, bfloat16 in OURS.items():
            row[name], row["shares"][name] = measure_metarl(num_envs, options.seconds, bfloat16)
        for name, make_envs in THEIRS.items():
            row[name] = measure_recurrent_ppo(make_envs(num_envs), options.seconds)
        rows.append(row)
        parts = "; ".join(" / ".join(f"{share:.0%}" for share in shares.values()) for shares in row["shares"].values())
        speeds = [f"{row[column]:>{len(column)},.0f}" for column in columns]
        print("  ".join([f"{num_envs:>6}", *speeds, parts]), flush=True)
    best = {column: max(row[column] for row in rows) for column in columns}
    ratios = {ours: {theirs: best[ours] / best[theirs] for theirs in THEIRS} for ours in OURS}
    for ours, against in ratios.items():
        for theirs, ratio in against.items():
            print(f"best against best: {ours} is {ratio:.1f} times {theirs}")
    if not options.no_write:
        keep(RESULT, {"rows": rows, "ratios": ratios, "torch": torch.__version__})
    reached = max(against[next(iter(THEIRS))] for against in ratios.values())
    sys.exit(reached < options.target)


if __name__ == "__main__":
    main()
