"""Pictures of MuJoCo's robots without a screen."""

import atexit
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module

import gymnasium as gym
import mujoco
import numpy as np

from metarl_envs.mujoco.simulation import load_model

_BACKENDS = {"Linux": ("egl", "osmesa"), "Darwin": ("cgl",)}
_PROBE = """
import mujoco
from mujoco.{0} import GLContext
context = GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""


@cache
def backend() -> str:
    """Which of MuJoCo's ways to OpenGL works here: what `MUJOCO_GL` says, or the first that makes a context.

    Each is tried in a process of its own, as those that fail may take the process with them.

    Raises:
        gymnasium.error.DependencyNotInstalled: when none works.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in ("disable", "disabled", "off", "false", "0"):
        raise gym.error.DependencyNotInstalled(f"drawing is switched off by MUJOCO_GL={chosen}")
    automatic = chosen in ("", "enable", "enabled", "on", "true", "1")
    candidates = _BACKENDS.get(platform.system(), ("glfw",)) if automatic else (chosen,)
    said = []
    for name in candidates:
        environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name if name in ("egl", "osmesa") else ""}
        command = [sys.executable, "-c", _PROBE.format(name)]
        try:
            probe = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            said.append(f"{name} (no answer in a minute)")
            continue
        if probe.returncode == 0:
            return name
        said.append(f"{name} ({(probe.stderr.strip() or 'it crashed').splitlines()[-1]})")
    raise gym.error.DependencyNotInstalled(
        f"no way to draw without a screen: MuJoCo tried {', '.join(said)}. On Debian and Ubuntu, `apt-get install libegl1 "
        "libgl1-mesa-dri` gives egl, and MUJOCO_GL=egl, osmesa or glfw chooses"
    )


class Camera:
    """Draws one robot with a camera that goes along.

    Args:
        file: the robot's model.
        from_above: look down on the plane that it walks in; otherwise from the side.
        width, height: of the pictures, in pixels.
    """

    def __init__(self, file: str, from_above: bool, width: int, height: int):
        name = backend()
        if name in ("egl", "osmesa"):
            os.environ["PYOPENGL_PLATFORM"] = name
        self.model = load_model(file)
        visual = self.model.vis.global_
        visual.offwidth, visual.offheight = max(visual.offwidth, width), max(visual.offheight, height)
        self.data = mujoco.MjData(self.model)
        self._gl = import_module(f"mujoco.{name}").GLContext(width, height)
        atexit.register(self._gl.free)  # while there still are modules to do it with
        self._gl.make_current()
        self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self.model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        if from_above:
            self._view.type, self._view.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
            self._view.distance, self._view.elevation, self._view.azimuth = 5.0, -40.0, 90.0
        else:
            self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self.model.camera("track").id
        self._size = mujoco.MjrRect(0, 0, width, height)

    def picture(self, qpos: np.ndarray, markers: Sequence[np.ndarray] = ()) -> np.ndarray:
        """The robot in positions `qpos [nq]`, and red balls at `markers`, points in metres: `[height, width, 3]` bytes."""
        self.data.qpos[:] = qpos
        mujoco.mj_forward(self.model, self.data)
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self.model, self.data, self._options, None, self._view, everything, self._scene)
        for point in markers:
            size, turned, red = np.array([0.15, 0.0, 0.0]), np.eye(3).ravel(), np.array([0.9, 0.1, 0.1, 1.0], np.float32)
            ball = self._scene.geoms[self._scene.ngeom]
            mujoco.mjv_initGeom(ball, mujoco.mjtGeom.mjGEOM_SPHERE, size, np.asarray(point, float), turned, red)
            self._scene.ngeom += 1
        pixels = np.empty((self._size.height, self._size.width, 3), np.uint8)
        mujoco.mjr_render(self._size, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, self._size, self._context)
        return np.flipud(pixels).copy()


@cache
def camera(file: str, from_above: bool, width: int = 320, height: int = 240) -> Camera:
    """The camera for a robot, made once and kept."""
    return Camera(file, from_above, width, height)
