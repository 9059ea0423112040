"""Closed-form dynamics of classic-control environments for a whole batch, each slot with physical constants of its own.

They repeat Gymnasium's single environments operation by operation, in the same precision, so a slot's trajectory equals
that of the environment with its attributes set to the same constants.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

Constants = Mapping[str, Any]
"""Physical constants: one number for all slots, or an array `[B]`."""


class BatchedDynamics(Protocol):
    """What `metarl_envs.context` needs to step an environment without building it."""

    constants: Constants
    """Attributes of the environment that may vary, with Gymnasium's values."""
    options: Constants
    """Arguments of its constructor that are understood, besides `constants`, with Gymnasium's defaults."""
    state_size: int
    """Numbers in the state of one slot."""

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the state `[state_size]` that one slot's episode starts from, as the environment's `reset` does."""

    def step(self, state: np.ndarray, actions: np.ndarray, constants: Constants) -> tuple[np.ndarray, np.ndarray]:
        """Advance `state [B, state_size]` in place; rewards `[B]` and terminated `[B]`."""

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Fresh observations `[B, ...]`."""

    def highest_return(self, steps: int, constants: Constants) -> float | None:
        """The return of a perfect episode of `steps` steps, where it is known whatever the constants."""


class CartPole:
    """CartPole (Barto, Sutton & Anderson 1983): push a cart left or right to keep its pole upright.

    State and observation: position (m), velocity (m/s), pole angle (rad), its rate (rad/s). SI units; `length` is half
    of the pole's.
    """

    constants = MappingProxyType(
        {
            "gravity": 9.8,
            "masscart": 1.0,
            "masspole": 0.1,
            "length": 0.5,
            "force_mag": 10.0,
            "tau": 0.02,
            "theta_threshold_radians": 12 * 2 * np.pi / 360,
            "x_threshold": 2.4,
        }
    )
    options = MappingProxyType({"sutton_barto_reward": False})
    state_size = 4

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """All four uniform in [-0.05, 0.05)."""
        return rng.uniform(-0.05, 0.05, 4)

    def step(self, state: np.ndarray, actions: np.ndarray, constants: Constants) -> tuple[np.ndarray, np.ndarray]:
        """One Euler step; terminated where cart or pole leave their thresholds."""
        x, x_dot, theta, theta_dot = state.T.copy()
        tau, length, masspole = constants["tau"], constants["length"], constants["masspole"]
        total_mass = masspole + constants["masscart"]
        polemass_length = masspole * length
        force = np.where(actions == 1, constants["force_mag"], -constants["force_mag"])
        cos, sin = np.cos(theta), np.sin(theta)
        temp = (force + polemass_length * np.square(theta_dot) * sin) / total_mass
        theta_acc = (constants["gravity"] * sin - cos * temp) / (
            length * (4.0 / 3.0 - masspole * np.square(cos) / total_mass)
        )
        x_acc = temp - polemass_length * theta_acc * cos / total_mass
        state[:, 0] = x = x + tau * x_dot
        state[:, 1] = x_dot + tau * x_acc
        state[:, 2] = theta = theta + tau * theta_dot
        state[:, 3] = theta_dot + tau * theta_acc
        terminated = (np.abs(x) > constants["x_threshold"]) | (np.abs(theta) > constants["theta_threshold_radians"])
        return (-terminated.astype(np.float64) if constants["sutton_barto_reward"] else np.ones(len(state))), terminated

    def observe(self, state: np.ndarray) -> np.ndarray:
        """The state `[B, 4]`, float32."""
        return state.astype(np.float32)

    def highest_return(self, steps: int, constants: Constants) -> float | None:
        """One per step; nothing is lost under the reward of Sutton and Barto."""
        return 0.0 if constants["sutton_barto_reward"] else float(steps)


class Pendulum:
    """Pendulum: swing a rod up with a torque that is too weak to lift it, and hold it there.

    State: angle from upright (rad) and its rate (rad/s). SI units.
    """

    constants = MappingProxyType({"max_speed": 8, "max_torque": 2.0, "dt": 0.05, "g": 10.0, "m": 1.0, "l": 1.0})
    options = MappingProxyType({})
    state_size = 2

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Any angle, rates in [-1, 1)."""
        high = np.array([np.pi, 1.0])
        return rng.uniform(-high, high)

    def step(self, state: np.ndarray, actions: np.ndarray, constants: Constants) -> tuple[np.ndarray, np.ndarray]:
        """One semi-implicit Euler step; it never terminates."""
        angle, rate = state.T.copy()
        g, m, length, dt = constants["g"], constants["m"], constants["l"], constants["dt"]
        limit = np.asarray(constants["max_torque"], actions.dtype)  # torques stay float32, as in Gymnasium
        torque = np.clip(actions[:, 0], -limit, limit)
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        costs = wrapped**2 + 0.1 * rate**2 + 0.001 * torque**2
        push = np.asarray(3.0 / (m * length**2), actions.dtype) * torque
        rate = rate + (3 * g / (2 * length) * np.sin(angle) + push) * dt
        rate = np.clip(rate, -constants["max_speed"], constants["max_speed"])
        state[:, 0] = angle + rate * dt
        state[:, 1] = rate
        return -costs, np.zeros(len(state), bool)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Cosine and sine of the angle, and its rate `[B, 3]`, float32."""
        return np.stack([np.cos(state[:, 0]), np.sin(state[:, 0]), state[:, 1]], -1).astype(np.float32)

    def highest_return(self, steps: int, constants: Constants) -> float | None:
        """Depends on where the rod starts."""
        return None


BATCHED: dict[str, BatchedDynamics] = {
    "gymnasium.envs.classic_control.cartpole:CartPoleEnv": CartPole(),
    "gymnasium.envs.classic_control.pendulum:PendulumEnv": Pendulum(),
}
"""Batched dynamics by the entry point that environments are registered with."""
