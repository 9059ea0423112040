"""MuJoCo for many slots at once, on all cores, in threads of this process.

Two ways, with one face. `Rollouts` advances all slots in one call of `mujoco.rollout`: the fastest, where positions and
velocities say everything. `Slots` keeps an `MjData` per slot, which is what Gymnasium's environments have: needed where
rewards or observations read what MuJoCo leaves in there (positions of bodies are those before a step's last stage), and
where what the solver finds depends on where it starts, which a rollout forgets.

Environments are drawn and stepped in the thread that made them. They may be copied, pickled and taken into other processes.
"""

import copy
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from metarl_envs.streams import Rows

try:
    import mujoco
    from mujoco import rollout
except ImportError as error:
    raise gym.error.DependencyNotInstalled("MuJoCo is not installed: pip install 'metarl-toolkit[mujoco]'") from error
except RuntimeError as error:  # what MUJOCO_GL says is not understood
    raise gym.error.DependencyNotInstalled(f"MuJoCo cannot be loaded: {error}") from error

logger = logging.getLogger(__name__)

_left_behind: list[dict[str, Any]] = []
_ASSETS = Path(gym.__file__).parent / "envs" / "mujoco" / "assets"


def _log(message: str) -> None:
    """What MuJoCo would print and append to MUJOCO_LOG.TXT in the working directory. Of its own files' age, nothing."""
    if "deprecated" not in message:
        logger.warning("MuJoCo: %s", message)


mujoco.set_mju_user_warning(_log)


def load_model(file: str) -> "mujoco.MjModel":
    """The model that Gymnasium's environments of this name use."""
    return mujoco.MjModel.from_xml_path(str(_ASSETS / file))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Simulation:
    """`B` slots of one robot, each with dynamics of its own if it is given any.

    Copies and pickles go on exactly as the original would, edited dynamics included.

    Args:
        model: the robot as it is by default.
        num_slots: `B`.
        frame_skip: MuJoCo's steps in one step here.
        threads: as many as there are cores by default; results do not depend on it.
    """

    qpos: np.ndarray
    """Positions `[B, nq]`. Change them by `place`."""
    qvel: np.ndarray
    """Velocities `[B, nv]`. Change them by `place`."""

    def __init__(self, model: "mujoco.MjModel", num_slots: int, frame_skip: int, threads: int | None = None):
        self.model = model
        self.frame_skip = frame_skip
        self.threads = min(threads or _cores(), num_slots)
        self.models = [model] * num_slots
        self._start()

    @property
    def dt(self) -> float:
        """Seconds per step."""
        return self.model.opt.timestep * self.frame_skip

    def set_dynamics(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Give `slot` a model with these arrays (`body_mass`, ...), and what MuJoCo derives from them."""
        model = self.models[slot]
        if all(np.array_equal(getattr(model, name), values) for name, values in arrays.items()):
            return
        if model is self.model:
            model = self.models[slot] = copy.copy(self.model)
        for name, values in arrays.items():
            getattr(model, name)[:] = values
        mujoco.mj_setConst(model, self._scratch)

    def place(self, rows: Rows, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put the slots in `rows` into these positions and velocities, and forget everything else about them."""
        raise NotImplementedError

    def step(self, controls: np.ndarray) -> None:
        """Advance all slots under `controls [B, nu]`."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the threads."""

    def _start(self) -> None:
        """Make what cannot be copied: scratch memory and threads."""
        self._scratch = mujoco.MjData(self.model)
        self._process = os.getpid()

    def _ensure_threads(self) -> None:
        """Threads do not follow into a forked process. What waits for them to end would wait for ever, so it is kept."""
        if self._process != os.getpid():
            _left_behind.append({name: value for name, value in vars(self).items() if name.startswith("_")})
            self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()


class Rollouts(Simulation):
    """All slots in one call of `mujoco.rollout`: nothing but positions and velocities goes from step to step.

    A slot whose physics becomes unstable is not put back within the step, as `mj_step` would, but with the next one.
    """

    def __init__(self, model: "mujoco.MjModel", num_slots: int, frame_skip: int, threads: int | None = None):
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        if size != 1 + model.nq + model.nv:
            raise ValueError(f"model must have no state but time, positions and velocities, got {size} numbers")
        self.state = np.zeros((num_slots, size))
        super().__init__(model, num_slots, frame_skip, threads)

    def _start(self) -> None:
        super()._start()
        rows, nq = len(self.state), self.model.nq
        self.qpos, self.qvel = self.state[:, 1 : 1 + nq], self.state[:, 1 + nq :]
        self._rollout = rollout.Rollout(nthread=self.threads if self.threads > 1 else 0)
        self._data = [mujoco.MjData(self.model) for _ in range(self.threads)]
        self._controls = np.zeros((rows, self.frame_skip, self.model.nu))
        self._states = np.zeros((rows, self.frame_skip, self.state.shape[1]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in ("qpos", "qvel")}

    def place(self, rows: Rows, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """As in `Simulation`."""
        self.state[rows, 0] = 0.0
        self.qpos[rows], self.qvel[rows] = qpos, qvel

    def step(self, controls: np.ndarray) -> None:
        """As in `Simulation`."""
        self._ensure_threads()
        self._controls[:] = controls[:, None]
        self._rollout.rollout(
            self.models,
            self._data,
            self.state,
            self._controls,
            skip_checks=True,
            nstep=self.frame_skip,
            state=self._states,
        )
        self.state[:] = self._states[:, -1]

    def close(self) -> None:
        """As in `Simulation`."""
        self._rollout.close()


class Slots(Simulation):
    """An `MjData` per slot, each advanced by `mj_step`, which leaves Python's lock to other threads."""

    def __init__(self, model: "mujoco.MjModel", num_slots: int, frame_skip: int, threads: int | None = None):
        self.data = [mujoco.MjData(model) for _ in range(num_slots)]
        super().__init__(model, num_slots, frame_skip, threads)
        self._update()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        slots = zip(self.models, state.pop("data"), strict=True)
        return {**state, "states": np.array([_state_of(model, data) for model, data in slots])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        states = state.pop("states")
        self.data = [mujoco.MjData(model) for model in state["models"]]
        for model, data, row in zip(state["models"], self.data, states, strict=True):
            mujoco.mj_setState(model, data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
        super().__setstate__(state)

    def _start(self) -> None:
        super()._start()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mujoco")
        self._parts = [slice(p[0], p[-1] + 1) for p in np.array_split(np.arange(len(self.data)), self.threads)]
        self._inputs = [data.ctrl for data in self.data]

    def place(self, rows: Rows, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """As in `Simulation`."""
        for slot, positions, velocities in zip(np.arange(len(self.data))[rows], qpos, qvel, strict=True):
            model, data = self.models[slot], self.data[slot]
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = positions, velocities
            mujoco.mj_forward(model, data)
        self._update()

    def step(self, controls: np.ndarray) -> None:
        """As in `Simulation`."""
        self._ensure_threads()
        if self.threads == 1:
            self._advance(self._parts[0], controls)
        else:
            list(self._pool.map(self._advance, self._parts, [controls] * self.threads))
        self._update()

    def _advance(self, part: slice, controls: np.ndarray) -> None:
        slots = zip(self.models[part], self.data[part], self._inputs[part], controls[part], strict=True)
        for model, data, inputs, row in slots:
            inputs[:] = row
            mujoco.mj_step(model, data, self.frame_skip)

    def _update(self) -> None:
        self.qpos, self.qvel = self.read("qpos"), self.read("qvel")

    def read(self, name: str) -> np.ndarray:
        """The array `name` of every slot's `MjData`, `[B, ...]`."""
        return np.array([getattr(data, name) for data in self.data])

    def close(self) -> None:
        """As in `Simulation`."""
        self._pool.shutdown()


def _state_of(model: "mujoco.MjModel", data: "mujoco.MjData") -> np.ndarray:
    """All that decides how a slot goes on, the solver's start included."""
    state = np.zeros(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return state
