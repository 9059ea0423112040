"""How fast MuJoCo's families step, next to MuJoCo alone and to Gymnasium's processes.

    python experiments/speed/mujoco.py [--cores 2]

Environment steps per second of the whole machine, all with the same random actions: this toolkit's batched environments
with tasks, observations, rewards and resets; a bare loop over `mj_step` in as many threads as there are cores, which does
nothing else; and Gymnasium's AsyncVectorEnv of the v5 environments, each at its best number of environments. They run in
turns, so that a machine that slows down for a while slows all of them down; figures are medians over the turns. Exits with
1 when the toolkit is below 0.85 of the bare loop, or below twice AsyncVectorEnv. Result:
`experiments/results/speed_mujoco.json`.
"""

import sys

sys.path.append(sys.path.pop(0))  # this script's folder goes last: in it `import mujoco` would find this script

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import mujoco
import numpy as np
from machines import keep

from metarl_envs import make_family

RESULT = "speed_mujoco.json"
ROBOTS = {"HalfCheetah-v5": "metarl/HalfCheetahVelocity-v0", "Ant-v5": "metarl/AntGoal-v0"}
NO_CONTACTS = {
    "Ant-v5": {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0, "terminate_when_unhealthy": False}
}
OF_BARE, OF_ASYNC = 0.85, 2.0
BATCH = 128
"""Slots of the toolkit and of the bare loop."""


def toolkit(env_id: str, cores: int) -> Callable[[int], None]:
    """A function that plays so many batched steps."""
    envs = make_family(env_id, threads=cores).make_vec(BATCH)
    return _player(envs, BATCH)


def processes(env_id: str, count: int) -> Callable[[int], None]:
    """The same for Gymnasium's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        envs = gym.make_vec(env_id, num_envs=count, vectorization_mode="async", **NO_CONTACTS.get(env_id, {}))
    return _player(envs, count)


def _player(envs: gym.vector.VectorEnv, count: int) -> Callable[[int], None]:
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    space = envs.single_action_space

    def play(steps: int) -> None:
        for action in rng.uniform(space.low, space.high, (steps, count, *space.shape)).astype(np.float32):
            envs.step(action)

    play.close = envs.close
    return play


def bare(env_id: str, cores: int) -> Callable[[int], None]:
    """The same for `mj_step` alone, from the same starts."""
    family = make_family(env_id)
    model, skip = family.model, family.frame_skip
    data = [mujoco.MjData(model) for _ in range(BATCH)]
    rng = np.random.default_rng(0)
    low, high = model.actuator_ctrlrange.T
    pool = ThreadPoolExecutor(cores)
    parts = np.array_split(np.arange(BATCH), cores)
    elapsed = 0

    def advance(part: np.ndarray, actions: np.ndarray) -> None:
        for slot in part:
            data[slot].ctrl[:] = actions[slot]
            mujoco.mj_step(model, data[slot], skip)

    def play(steps: int) -> None:
        nonlocal elapsed
        for actions in rng.uniform(low, high, (steps, BATCH, model.nu)):
            if elapsed % family.num_steps == 0:
                for d in data:
                    mujoco.mj_resetData(model, d)
                    d.qpos += family.reset_noise_scale * rng.uniform(-1, 1, model.nq)
            elapsed += 1
            list(pool.map(advance, parts, [actions] * cores))

    play.close = pool.shutdown
    return play


def measure(robot: str, cores: int, turns: int) -> dict[str, float]:
    """Environment steps per second of each arrangement; of AsyncVectorEnv, the best."""
    env_id = ROBOTS[robot]
    players = {"bare mj_step": (bare(env_id, cores), BATCH), "metarl": (toolkit(env_id, cores), BATCH)}
    for count in (cores, 2 * cores, 8 * cores):
        players[f"AsyncVectorEnv, {count} processes"] = (processes(robot, count), count)
    rates: dict[str, list[float]] = {name: [] for name in players}
    for turn in range(turns + 1):
        for name, (play, count) in players.items():
            steps = max(1, 6400 // count)
            start = time.perf_counter()
            play(steps)
            if turn:  # the first warms up
                rates[name].append(steps * count / (time.perf_counter() - start))
    for play, _ in players.values():
        play.close()
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> int:
    """Measure, print the table, write the result, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="threads, and processes at least")
    parser.add_argument("--turns", type=int, default=9, help="turns per arrangement")
    options = parser.parse_args()
    rows, failed = [], False
    for robot in ROBOTS:
        speeds = measure(robot, options.cores, options.turns)
        best = max(value for name, value in speeds.items() if name.startswith("Async"))
        of_bare, of_async = speeds["metarl"] / speeds["bare mj_step"], speeds["metarl"] / best
        rows.append({"robot": robot, "speeds": speeds, "of_bare": of_bare, "of_async": of_async})
        failed |= of_bare < OF_BARE or of_async < OF_ASYNC
        print(f"{robot}, {options.cores} cores, MuJoCo {mujoco.__version__}, medians of {options.turns} turns, steps/s")
        for name, value in speeds.items():
            print(f"  {name:32}{value:10,.0f}")
        print(
            f"  metarl is {of_bare:.2f} of bare (at least {OF_BARE}), {of_async:.1f} x AsyncVectorEnv (at least {OF_ASYNC})"
        )
    result = {
        "command": f"python experiments/speed/mujoco.py --cores {options.cores}",
        "cores": options.cores,
        "mujoco": mujoco.__version__,
        "targets": {"of_bare": OF_BARE, "of_async": OF_ASYNC},
        "rows": rows,
    }
    keep(RESULT, result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
