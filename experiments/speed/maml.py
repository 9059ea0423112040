"""Meta-iterations per second of MAML-PPO here and of the usual arrangement of the public toolkits, in one run.

    python experiments/speed/maml.py

Both do the same: MAML with PPO as the outer loop, second order, one inner step, on 2-D navigation with a policy of 64-64
tanh units and a linear baseline per task, on one thread. Per meta-iteration each of 20 tasks is played before and after the
inner step; then come 5 outer epochs, each of which adapts anew.

- Here: all tasks and episodes side by side, one forward for all tasks. Measured as it is, and with `compile=True`.
- The usual arrangement: one task after another; its episodes in Gymnasium's `SyncVectorEnv`; a module called with the
  adapted parameters, and an autograd graph per task. It is written with care (baseline fitted by NumPy, tensors of whole
  batches, no copies of modules), so it is faster than the toolkits that it stands for. It is measured twice: with the
  environment as such toolkits have it (made by `gym.make`, clipping and checking its action), and with one written by hand,
  as cheap as a step can be. The targets are for the first.

Before anything is timed, both compute the meta-gradient of the same episodes, which must agree, compiled or not. Two
settings: `large`, 20 trajectories of 100 steps per task and step (MAML's), and `small`, 100 transitions. Exit code 1 when
either ratio is below its target, 5 and 8. Seconds are of processor time; since processors change their pace, all are
measured in turn, several times, and the medians of speeds and of ratios within a round count. Compiling is not timed.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from machines import keep
from stopwatch import CLOCK, Stopwatch, timed
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import functional_call

from metarl import MAMLPPO
from metarl.algorithms import maml
from metarl.algorithms.meta_gradient import TaskBatch
from metarl.algorithms.outer_updates import chunk_size, chunks
from metarl.allocator import keep_freed_memory

TASKS, EPOCHS, RATE, GAMMA, CLIP = 20, 5, 0.1, 0.99, 0.2
SETTINGS = {"large": (20, 100, 5.0), "small": (5, 20, 8.0)}
"""Trajectories per task and step, steps of each, and the least ratio aimed at."""
RESULT = "speed_maml.json"


# -- here --------------------------------------------------------------------------------------------------------------


def our_model(trajectories: int, steps: int, compiled: bool = False) -> MAMLPPO:
    """MAML-PPO on episodes of fixed length."""
    return MAMLPPO(
        "MlpPolicy",
        "metarl/Navigation2D-v0",
        env_kwargs={"num_steps": steps, "done_within": None},
        num_tasks=TASKS,
        episodes_per_update=trajectories,
        epochs=EPOCHS,
        inner_rate=RATE,
        gamma=GAMMA,
        gae_lambda=1.0,
        clip_range=CLIP,
        compile=compiled,
        seed=0,
    )


def measure_ours(model: MAMLPPO, seconds: float) -> tuple[float, dict[str, float]]:
    """Meta-iterations per second, and the shares of acting, stepping, the inner steps between them, and the outer loop."""
    spent = dict.fromkeys(("stepping", "inner", "outer"), 0.0)
    stopwatch = Stopwatch(seconds, warm_up=2, on_start=lambda: spent.update(dict.fromkeys(spent, 0.0)))
    for name in ("step", "reset"):
        setattr(model.envs, name, timed(getattr(model.envs, name), spent, "stepping"))
    originals = {name: getattr(maml, name) for name in ("make_batch", "take_step", "update")}
    for name, part in {"make_batch": "inner", "take_step": "inner", "update": "outer"}.items():
        setattr(maml, name, timed(originals[name], spent, part))
    try:
        model.learn(10**12, callback=stopwatch, log_interval=0)
    finally:
        for name, original in originals.items():
            setattr(maml, name, original)
        del model.envs.step, model.envs.reset  # the class has its own
    shares = {name: value / stopwatch.total for name, value in spent.items()}
    return stopwatch.updates / stopwatch.total, {"acting": 1 - sum(shares.values()), **shares}


# -- the usual arrangement ---------------------------------------------------------------------------------------------


class BareNavigation(gym.Env):
    """2-D navigation by hand, without families, batches or checks."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gym.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def __init__(self, steps: int | None = None):
        self.steps = steps
        self.goal = np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        """Go to the origin."""
        self.position = np.zeros(2, np.float32)
        self.t = 0
        return self.position, {}

    def step(self, action):
        """Move."""
        self.position = self.position + action
        x, y = self.position - self.goal
        self.t += 1
        return self.position, -float((x * x + y * y) ** 0.5), False, self.t == self.steps, {}


class Navigation(BareNavigation):
    """2-D navigation as environments are usually written; its horizon is `gym.make`'s."""

    def step(self, action):
        """Move."""
        action = np.clip(action, self.action_space.low, self.action_space.high)
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in {self.action_space}, got {action}")
        self.position = self.position + action
        return self.position, -float(np.linalg.norm(self.position - self.goal)), False, False, {}


gym.register("UsualNavigation-v0", Navigation)


class Network(nn.Module):
    """Mean and standard deviation of the action, in units of a tenth."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        self.log_std = nn.Parameter(torch.full((2,), -0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For `x [M, 2]`."""
        return self.layers(x), self.log_std.exp()


class Usual:
    """MAML-PPO, one task after another."""

    def __init__(self, trajectories: int, steps: int, bare: bool = False):
        self.network = Network()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, eps=1e-5)
        self.trajectories, self.steps = trajectories, steps
        make = (lambda: BareNavigation(steps)) if bare else (lambda: gym.make("UsualNavigation-v0", max_episode_steps=steps))
        self.envs = SyncVectorEnv([make] * trajectories, autoreset_mode=AutoresetMode.NEXT_STEP)
        self.rng = np.random.default_rng(0)
        self.spent = dict.fromkeys(("stepping", "acting", "inner", "outer"), 0.0)

    def iteration(self) -> None:
        """One meta-iteration."""
        theta = dict(self.network.named_parameters())
        collected = []
        for _ in range(TASKS):
            goal = self.rng.uniform(-0.5, 0.5, 2).astype(np.float32)
            self.set_goal(goal)
            before = self.batch(theta)
            start = CLOCK()
            adapted = {name: value.detach() for name, value in self.adapted(theta, before).items()}
            self.spent["inner"] += CLOCK() - start
            collected.append((before, self.batch(adapted)))
        start = CLOCK()
        for _ in range(EPOCHS):
            self.optimizer.zero_grad()
            for before, after in collected:
                (self.loss(theta, before, after) / TASKS).backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
        self.spent["outer"] += CLOCK() - start

    def set_goal(self, goal: np.ndarray) -> None:
        """Play another task."""
        for env in self.envs.envs:
            env.unwrapped.goal = goal

    @torch.no_grad()
    def batch(self, params: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Observations, actions, log-probabilities and normalised advantages of one task's trajectories."""
        observations, _ = self.envs.reset()
        record: list[tuple] = []
        for _ in range(self.steps):
            start = CLOCK()
            x = torch.as_tensor(observations)
            policy = Normal(*functional_call(self.network, params, (x,)))
            actions = policy.sample()
            log_probs = policy.log_prob(actions).sum(-1)
            middle = CLOCK()
            successors, rewards, *_ = self.envs.step((0.1 * actions).clamp(-0.1, 0.1).numpy())
            self.spent["acting"] += middle - start
            self.spent["stepping"] += CLOCK() - middle
            record.append((x.clone(), actions, log_probs, torch.as_tensor(rewards, dtype=torch.float32)))
            observations = successors
        start = CLOCK()
        x, actions, log_probs, rewards = (torch.stack(part) for part in zip(*record, strict=True))
        advantages = self.advantages(x, rewards)
        self.spent["inner"] += CLOCK() - start
        return x.flatten(0, 1), actions.flatten(0, 1), log_probs.flatten(), advantages

    def advantages(self, x: Tensor, rewards: Tensor) -> Tensor:
        """Returns `[T K]` less a linear baseline (Duan et al. 2016), normalised."""
        returns = torch.zeros_like(rewards)
        running = torch.zeros_like(rewards[0])
        for t in range(self.steps - 1, -1, -1):
            running = rewards[t] + GAMMA * running
            returns[t] = running
        time = torch.arange(self.steps, dtype=torch.float64)[:, None, None].expand(*rewards.shape, 1) / 100
        x = x.double()
        features = torch.cat([x, x**2, time, time**2, time**3, torch.ones_like(time)], -1).flatten(0, 1).numpy()
        targets = returns.double().flatten().numpy()
        weights = np.linalg.solve(features.T @ features + 1e-5 * np.eye(features.shape[1]), features.T @ targets)
        advantages = torch.as_tensor(targets - features @ weights, dtype=torch.float32)
        return (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)

    def adapted(self, theta: dict[str, Tensor], before: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One inner step on the likelihood-ratio surrogate."""
        x, actions, old, advantages = before
        policy = Normal(*functional_call(self.network, theta, (x,)))
        loss = -(torch.exp(policy.log_prob(actions).sum(-1) - old) * advantages).mean()
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        return {name: value - RATE * grad for (name, value), grad in zip(theta.items(), gradients, strict=True)}

    def loss(self, theta: dict[str, Tensor], before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> Tensor:
        """PPO's clipped surrogate after adaptation."""
        x, actions, old, advantages = after
        policy = Normal(*functional_call(self.network, self.adapted(theta, before), (x,)))
        ratio = torch.exp(policy.log_prob(actions).sum(-1) - old)
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()

    def measure(self, seconds: float) -> tuple[float, dict[str, float]]:
        """Meta-iterations per second, and shares."""
        self.iteration()
        self.spent = dict.fromkeys(self.spent, 0.0)
        start, count = CLOCK(), 0
        while count < 2 or CLOCK() - start < seconds:
            self.iteration()
            count += 1
        total = CLOCK() - start
        return count / total, {name: value / total for name, value in self.spent.items()}


# -- both --------------------------------------------------------------------------------------------------------------


def gradient_gap(model: MAMLPPO, usual: Usual) -> float:
    """Largest difference of the meta-gradients of the usual arrangement's episodes, relative to the largest entry."""
    theta = dict(usual.network.named_parameters())
    collected = []
    for goal in usual.rng.uniform(-0.5, 0.5, (TASKS, 2)).astype(np.float32):
        usual.set_goal(goal)
        before = usual.batch(theta)
        collected.append((before, usual.batch({n: v.detach() for n, v in usual.adapted(theta, before).items()})))
    loss = sum(usual.loss(theta, before, after) for before, after in collected)
    theirs = torch.autograd.grad(loss, list(theta.values()))
    names = {"layers.0": "policy_trunk.0", "layers.2": "policy_trunk.2", "layers.4": "policy_head.linear"}
    renamed = {}
    for name, value in theta.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{names[layer]}.{kind}" if layer else "policy_head.log_std"] = value.detach()
    policy = model.policy
    policy.load_state_dict({**policy.state_dict(), **renamed})
    batches = []
    for stage in range(2):
        x, actions, old, advantages = (torch.stack(part) for part in zip(*(pair[stage] for pair in collected), strict=True))
        weights = torch.full_like(old, 1 / old.shape[1])
        batches.append(TaskBatch(x, actions, old, advantages, old, weights, old.long(), usual.trajectories))
    total, config = torch.zeros(()), model.config
    for rows in chunks(batches[-1], chunk_size(policy, config)):
        part = [batch.tasks(rows) for batch in batches]
        total = total + model._meta_loss(policy, part, None, config.settings, functional=config.compile)[0].sum()
    ours = torch.autograd.grad(total, policy.parameters())
    found = dict(zip((name for name, _ in policy.named_parameters()), ours, strict=True))
    pairs = [(found[name], grad) for name, grad in zip(renamed, theirs, strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(b.abs().max()) for _, b in pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, store it, and exit with 1 below a target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="least time measured per entry and round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in each of which all are measured")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, help="what to measure")
    parser.add_argument("--no-write", action="store_true", help="do not store the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()  # for both
    rows, failed = [], False
    for setting in options.settings:
        trajectories, steps, target = SETTINGS[setting]
        torch.manual_seed(0)
        usual = Usual(trajectories, steps)
        gap = max(gradient_gap(our_model(trajectories, steps, compiled), usual) for compiled in (False, True))
        if gap > 1e-4:
            sys.exit(f"the meta-gradients differ by {gap:.1e} of the largest entry")
        print(f"{setting}: {TASKS} tasks x {trajectories} x {steps} steps; meta-gradients equal to {gap:.0e}", flush=True)
        contestants: dict[str, Callable[[float], tuple[float, dict[str, float]]]] = {
            "MAML-PPO here": partial(measure_ours, our_model(trajectories, steps)),
            "MAML-PPO here, compiled": partial(measure_ours, our_model(trajectories, steps, compiled=True)),
            "usual arrangement": Usual(trajectories, steps).measure,
            "usual, bare environment": Usual(trajectories, steps, bare=True).measure,
        }
        rounds = [{name: run(options.seconds) for name, run in contestants.items()} for _ in range(options.rounds)]
        speeds = {name: statistics.median(found[name][0] for found in rounds) for name in contestants}
        by_round = [{name: found[name][0] / found["usual arrangement"][0] for name in contestants} for found in rounds]
        ratios = {name: statistics.median(found[name] for found in by_round) for name in contestants}
        shares = {
            name: {part: statistics.mean(found[name][1][part] for found in rounds) for part in rounds[0][name][1]}
            for name in contestants
        }
        for name, speed in speeds.items():
            parts = ", ".join(f"{part} {share:.0%}" for part, share in shares[name].items())
            spread = "{:.1f} to {:.1f}".format(*(pick(found[name] for found in by_round) for pick in (min, max)))
            print(f"  {name:<24} {speed:8.2f} meta-iterations/s, {ratios[name]:.1f} times ({spread})   {parts}", flush=True)
        best = max(ratio for name, ratio in ratios.items() if "here" in name)
        failed |= best < target
        print(f"  best here is {best:.1f} times the usual arrangement, aimed at {target:g}", flush=True)
        rows.append(
            {"setting": setting, "target": target, "speeds": speeds, "shares": shares, "ratios": ratios, "gradient_gap": gap}
        )
    if not options.no_write:
        keep(RESULT, {"rows": rows, "torch": torch.__version__})
    sys.exit(failed)


if __name__ == "__main__":
    main()
