"""How fast the families step, next to Gymnasium's own batched CartPole. MuJoCo's have `mujoco.py`.

    python experiments/speed/vector_stepping.py [--num-envs 256]

Every environment plays the same number of steps with actions drawn beforehand, in turns, so that a machine that slows
down for a while slows all of them down; the table shows medians over the turns. Exits with 1 when a family of bandits
takes 3 times as long as CartPole or longer.
"""

import argparse
import statistics
import sys
import time

import gymnasium as gym

from metarl_envs import families, make_family

REFERENCE = "CartPole-v1"
BANDIT_LIMIT = 3.0


def main() -> int:
    """Measure, print the table, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=256, help="slots stepped side by side")
    parser.add_argument("--steps", type=int, default=100, help="steps per turn")
    parser.add_argument("--turns", type=int, default=15, help="turns per environment")
    options = parser.parse_args()

    batched = [env_id for env_id in families() if ".mujoco." not in str(gym.spec(env_id).kwargs["family"])]
    seconds = measure([REFERENCE, *batched], options.num_envs, options.steps, options.turns)
    reference = seconds[REFERENCE]
    print(f"{options.num_envs} slots, medians of {options.turns} turns of {options.steps} steps")
    print(f"{'environment':36}{'us per step':>12}{'M steps/s':>12}{'x CartPole':>12}")
    for env_id, value in seconds.items():
        rate = options.num_envs / value / 1e6
        print(f"{env_id:36}{1e6 * value:12.1f}{rate:12.2f}{value / reference:12.2f}")
    slow = [env_id for env_id in seconds if is_bandit(env_id) and seconds[env_id] >= BANDIT_LIMIT * reference]
    if slow:
        print(f"not below {BANDIT_LIMIT} x CartPole: {', '.join(slow)}")
    return int(bool(slow))


def measure(env_ids: list[str], num_envs: int, steps: int, turns: int) -> dict[str, float]:
    """Median seconds per batched step of each environment."""
    players = {env_id: make_player(env_id, num_envs, steps) for env_id in env_ids}
    times = {env_id: [] for env_id in env_ids}
    for turn in range(turns + 1):
        for env_id, play in players.items():
            start = time.perf_counter()
            play()
            if turn:  # the first warms up
                times[env_id].append((time.perf_counter() - start) / steps)
    return {env_id: statistics.median(values) for env_id, values in times.items()}


def make_player(env_id: str, num_envs: int, steps: int):
    """A function that plays `steps` batched steps."""
    envs = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point")
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(steps)]

    def play() -> None:
        for action in actions:
            envs.step(action)

    return play


def is_bandit(env_id: str) -> bool:
    """Whether this is one of the bandit families."""
    return env_id != REFERENCE and (make_family(env_id).structure or "").endswith("bandit")


if __name__ == "__main__":
    sys.exit(main())
