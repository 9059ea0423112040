import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from metarl_envs import TaskVectorEnv
from metarl_envs.checker import check_vector_env


class Good(TaskVectorEnv):
    """A bandit; the classes below break one rule each."""

    def __init__(self, mode="SameStep"):
        super().__init__(4, family="metarl_envs.tabular:TabularMDP", num_steps=5, autoreset_mode=mode)


class WrongMode(Good):
    def __init__(self):
        super().__init__()
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}


class WrongSpace(Good):
    def __init__(self):
        super().__init__()
        self.observation_space = gym.spaces.MultiDiscrete([10] * 3)


class ObservationsOutside(Good):
    def step(self, actions):
        observations, *rest = super().step(actions)
        return observations + 10, *rest


class RewardsOfWrongShape(Good):
    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards[:, None], *rest


class RewardsNotFinite(Good):
    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards * np.nan, *rest


class TerminatedAsNumbers(Good):
    def step(self, actions):
        observations, rewards, terminated, *rest = super().step(actions)
        return observations, rewards, terminated.astype(int), *rest


class ReusedArrays(Good):
    buffer = np.zeros(4, np.int64)

    def step(self, actions):
        observations, *rest = super().step(actions)
        self.buffer[:] = observations
        return self.buffer, *rest


class Unseeded(Good):
    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards + np.random.default_rng().normal(), *rest


class CoupledSlots(Good):
    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards + actions.mean(), *rest


class NoFinalObservations(Good):
    def step(self, actions):
        *result, _ = super().step(actions)
        return *result, {}


class WrongMarks(Good):
    def step(self, actions):
        *result, infos = super().step(actions)
        if "_final_obs" in infos:
            infos["_final_obs"] = ~infos["_final_obs"]
        return *result, infos


class ChangesOptions(Good):
    def __init__(self):
        super().__init__("Disabled")

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        (options or {}).pop("reset_mask", None)
        return result


class IgnoresMask(Good):
    def __init__(self):
        super().__init__("Disabled")

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


class DrawsFromAllStreams(Good):
    def __init__(self):
        super().__init__("Disabled")

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        self._streams.uniform()
        return result


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_a_right_environment_passes(mode):
    check_vector_env(Good(mode))


def test_gymnasiums_own_vector_environment_passes():
    check_vector_env(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=AutoresetMode.SAME_STEP))


def test_one_slot_passes():
    check_vector_env(gym.make_vec("metarl/GridNavi-v0", num_envs=1))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongMode, "autoreset_mode"),
        (WrongSpace, "observation_space must be"),
        (ObservationsOutside, "step must return observations in"),
        (RewardsOfWrongShape, r"rewards must be floats of shape \(4,\), got float64 \(4, 1\)"),
        (RewardsNotFinite, "rewards must be finite"),
        (TerminatedAsNumbers, "terminated must be booleans"),
        (ReusedArrays, "observations must be fresh arrays"),
        (Unseeded, "same seed and actions must be equal, but slot 0 differs after 1 steps"),
        (CoupledSlots, "slot 0 must not depend on what its neighbours do"),
        (NoFinalObservations, "infos must hold 'final_obs'"),
        (WrongMarks, "_final_obs"),
        (ChangesOptions, "caller's options"),
        (IgnoresMask, "reset_mask must leave the observations of the other slots"),
        (DrawsFromAllStreams, "reset_mask must leave the other slots as they were"),
    ],
)
def test_broken_environments_are_found(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_vector_env(broken())
