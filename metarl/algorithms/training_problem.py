"""Reinforcement learning as a problem for update rules: `N` agents, each in a task of its own, trained side by side by PPO.

Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7 and 9, as in Stable-Baselines3: clipped surrogate,
GAE, value loss, entropy bonus, a bound on the gradient's norm, several epochs of minibatches. With one epoch of one
minibatch it is advantage actor-critic (A2C; Mnih et al. 2016): where nothing has been learned from a batch yet, the
surrogate's gradient is the policy gradient (Huang et al. 2022, "A2C is a special case of PPO").

Departures from Stable-Baselines3: advantages are normalised over the batch, not over each minibatch; networks for actions
and values start as `GradientPolicy`'s do; rewards are divided by a running scale (see `PPOProblem`), as `VecNormalize` may
do there; every batch begins with fresh episodes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl import losses
from metarl.algorithms.meta_gradient import Settings, make_batch
from metarl.algorithms.side_by_side import Agents, TwinEnvs, fresh_params, mean_returns
from metarl.batched import Params, subset
from metarl.collection import collect_trials
from metarl.policies import GradientPolicy
from metarl.problems.base import Instances, Problem, Run, split_stream
from metarl.problems.tuning import OPTIONS
from metarl.returns import gae
from metarl.trials import TensorObs, Trials
from metarl.updates import UpdateRule
from metarl.updates.dormancy import dormancy_of_layers, reads_dormancy
from metarl_envs import TaskFamily, TaskSet
from metarl_envs.family import check_above, check_at_least

LEAST_DEVIATION = 1e-4
"""Added to the deviation of advantages, in units of the scale of returns: well above rounding, where all are alike."""


class PPOState(NamedTuple):
    """What a run carries from update to update besides parameters, `[N, ...]`."""

    rule: Any  # the update rule's
    returns: Tensor  # [N, 2]: sum over batches of the mean squared return to go, and their number


class Batch(NamedTuple):
    """`M = T K` steps of each agent. Advantages and targets are in units of the scale of its returns."""

    inputs: TensorObs  # [N, M, ...], as `GradientPolicy.features` takes them
    actions: Tensor  # [N, M, ...]
    log_probs: Tensor  # [N, M], of the policy that acted
    advantages: Tensor  # [N, M], of mean 0 and deviation 1
    targets: Tensor  # [N, M], of the value network


@dataclass(frozen=True)
class PPOProblem(Problem):
    """Training freshly initialised agents by PPO or A2C on tasks of a family; an inner step is one PPO iteration.

    An instance is a task. All agents play at once, then take `epochs x minibatches` steps of the update rule on their own
    gradients `[N, ...]`. What is to be made small is MINUS the mean return per episode of what was collected before these
    steps; it has no derivative, so rules are trained on it by evolution strategies. It is nan for an agent whose parameters
    are no longer finite.

    Rewards are divided by the root mean square of the agent's own discounted returns to go, over all batches so far: value
    targets are near 1 from the first step on, in every family. Measures are in units of the reward.

    Every batch starts with fresh episodes and holds `num_steps` of each slot; what is under way at its end is
    bootstrapped. So of episodes longer than `num_steps`, only the first `num_steps` are ever seen, and the return is that
    of this stretch. Shorter ones follow one another; the mean return is over those that began early enough to be over
    in time, however long they would last.
    """

    differentiable: ClassVar[bool] = False
    tuning: ClassVar[Mapping[str, Any]] = {
        "num": 64,
        "rates": tuple(float(f"{10 ** (k / 4):.2g}") for k in range(-16, 5)),
        # Adam with Stable-Baselines3's eps: where gradients are zero, 1e-8 steps on rounding
        "options": {**OPTIONS, "adam": {"eps": (1e-5,)}},
    }

    family: TaskFamily
    """Where tasks come from."""
    horizon: int = 20
    """PPO iterations of an inner training, as it is evaluated."""
    hidden: Sequence[int] = (32, 32)
    """Sizes of the tanh layers, both of the policy and of the value network."""
    slots: int = 8
    """Environments per agent, `K`, all in its task."""
    num_steps: int | None = None
    """Steps per batch in each slot, `T`; None: the longest episode."""
    epochs: int = 4
    """Passes over a batch."""
    minibatches: int = 4
    """Steps of the update rule per pass."""
    clip_range: float = 0.2
    """PPO's bound on the change of an action's probability ratio."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Weight of longer advantage estimates."""
    value_coef: float = 1.0
    """Weight of the value loss `(v - target)^2 / 2`; 1 is Stable-Baselines3's 0.5, whose loss has no half."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Bound on the norm of each agent's gradient."""
    dormancy: bool = False
    """Tell rules that read it (mlp) how dormant each number's neuron is, on every minibatch, as OPEN does."""
    _envs: dict[tuple[int, int], "TwinEnvs"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        for name in ("horizon", "slots", "epochs", "minibatches", *(() if self.num_steps is None else ("num_steps",))):
            check_at_least(name, getattr(self, name), 1)
        for name in ("clip_range", "max_grad_norm"):
            check_above(name, getattr(self, name), 0)
        for name in ("value_coef", "entropy_coef"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        steps = self.slots * self.steps_per_batch
        if steps < 2 * self.minibatches:
            raise ValueError(f"minibatches must be at most {steps // 2}, half of slots x num_steps, got {self.minibatches}")
        if not self.policy.inputs_are_fixed:
            raise ValueError(f"family must have observations that need no convolutions, got {self.family.observation_space}")

    @property
    def name(self) -> str:
        """Such as "a2c of metarl/GridNavi-v0"."""
        return f"{'a2c' if self.epochs == self.minibatches == 1 else 'ppo'} of {self.family.label}"

    @property
    def splits(self) -> Sequence[str]:
        """The family's."""
        return self.family.splits

    @property
    def steps_per_batch(self) -> int:
        """`T`."""
        return self.family.max_episode_steps if self.num_steps is None else self.num_steps

    @property
    def rule_steps(self) -> int:
        """Steps of the update rule in an inner training."""
        return self.horizon * self.epochs * self.minibatches

    @cached_property
    def policy(self) -> GradientPolicy:
        """The network, without anybody's parameters."""
        with torch.random.fork_rng(devices=[]):  # the parameters it draws are not used
            spaces = self.family.observation_space, self.family.action_space
            return GradientPolicy(*spaces, hidden=self.hidden, with_value=True)

    # -- as a problem ----------------------------------------------------------------------------------------------

    def sample(self, num: int, split: str, rng: np.random.Generator) -> Instances:
        """The parameters of `num` tasks."""
        tasks = self.family.sample(num, split, split_stream(self, num, split, rng))
        return {name: torch.as_tensor(values) for name, values in tasks.params.items()}

    def start(self, instances: Instances, rng: np.random.Generator) -> Params:
        """A network for each, drawn on its own."""
        return fresh_params(self.policy, len(next(iter(instances.values()))), _generator(rng))

    def template(self) -> dict[str, Tensor]:
        """As in the base class."""
        return {name: value.detach() for name, value in self.policy.initial_params().items()}

    def begin(self, rule: UpdateRule, instances: Instances, rng: np.random.Generator, copies: int = 1) -> Run:
        """As in the base class."""
        run = super().begin(rule, instances, rng, copies)
        return run._replace(state=PPOState(run.state, torch.zeros(len(run.age), 2)))

    def losses(self, params: Params, instances: Instances, batch: Any) -> Tensor:
        """There are none: what is to be made small has no derivative."""
        raise NotImplementedError(f"{self.name} has no loss with a derivative: update rules are trained on it by PES")

    @torch.no_grad()
    def advance(self, run: Run, rule: UpdateRule, rng: np.random.Generator, copies: int = 1) -> tuple[Run, Tensor]:
        """One iteration of all agents: collecting a batch, then `epochs x minibatches` steps of the rule.

        Args:
            run: from `begin` or the last `advance`.
            rule: moves the parameters.
            rng: draws the noise of environments and actions, and minibatches.
            copies: blocks of rows whose environments and actions receive the same random numbers.

        Returns:
            the run after it, and minus the mean return per episode `[N]` before it.
        """
        trials = self._collect(run, rng, copies)
        returns = run.state.returns + torch.stack([self._squared_return(trials, len(run.age)), torch.ones(len(run.age))], 1)
        batch = self._batch(trials, (returns[:, 0] / returns[:, 1]).sqrt().clamp(min=1e-8))
        params, state = run.params, run.state.rule
        generator = _generator(rng)
        for _ in range(self.epochs):
            # one order for all agents: each sees it as random, and rows that are copies of each other stay so
            order = torch.randperm(batch.targets.shape[1], generator=generator)
            for columns in order.tensor_split(self.minibatches):
                part = tree_map(lambda leaf, columns=columns: leaf[:, columns], batch)
                params, state = self._step(rule, params, state, part)
        after = Run(params, PPOState(state, returns), run.instances, run.age + 1)
        return after, self._measure(trials, run.params)

    @torch.no_grad()
    def measure(self, run: Run, rng: np.random.Generator, copies: int = 1) -> Tensor:
        """Minus the mean return per episode `[N]` of the agents as they are."""
        return self._measure(self._collect(run, rng, copies), run.params)

    # -- one iteration ---------------------------------------------------------------------------------------------

    def _collect(self, run: Run, rng: np.random.Generator, copies: int) -> Trials:
        """`T` steps in the slots `[N K]` of all agents."""
        params = {name: value.repeat_interleave(self.slots, 0).numpy() for name, value in run.instances.items()}
        size = len(run.age) * self.slots, copies
        if size not in self._envs:
            self._envs[size] = TwinEnvs(*size, self.family)
        return collect_trials(
            self._envs[size],
            Agents(self.policy, run.params, copies),
            num_steps=self.steps_per_batch,
            episodes_per_trial=1,
            split=self.splits[0],
            rng=rng,
            generator=_generator(rng),
            tasks=TaskSet(self.family.env_id, self.family.kwargs, self.splits[0], params),
            whole=True,
        )

    def _measure(self, trials: Trials, params: Params) -> Tensor:
        finite = torch.stack([value.flatten(1).isfinite().all(1) for value in params.values()]).all(0)
        returns = mean_returns(trials, len(finite), self.family.max_episode_steps)
        return torch.where(finite, -returns, math.nan)

    def _squared_return(self, trials: Trials, num_agents: int) -> Tensor:
        """The mean over steps of the squared discounted return to go, without what follows after the batch, `[N]`."""
        nothing = torch.zeros_like(trials.rewards)
        end = trials.terminated | trials.truncated | trials.trial_end
        _, returns = gae(trials.rewards, nothing, end, nothing, self.gamma, 1.0)
        return returns.square().unflatten(1, (num_agents, -1)).mean((0, 2))

    def _batch(self, trials: Trials, scale: Tensor) -> Batch:
        """What is learned from, with rewards in units of each agent's `scale [N]`."""
        scaled = dataclasses.replace(trials, rewards=trials.rewards / scale.repeat_interleave(self.slots))
        settings = Settings(baseline="network", gamma=self.gamma, gae_lambda=self.gae_lambda, normalise_advantages=False)
        whole = make_batch(self.policy, scaled, len(scale), torch.ones_like(trials.terminated), settings)
        batch = Batch(*(getattr(whole, name) for name in Batch._fields))
        centred = batch.advantages - batch.advantages.mean(1, keepdim=True)
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        return batch._replace(advantages=centred / (deviation + LEAST_DEVIATION))

    def _step(self, rule: UpdateRule, params: Params, state: Any, batch: Batch) -> tuple[Params, Any]:
        """One step of every agent on its own minibatch."""
        with torch.enable_grad():
            changing = {name: value.detach().requires_grad_() for name, value in params.items()}
            each = self.loss(changing, batch)
            found = torch.autograd.grad(each.sum(), changing.values())
        grads = clip_norms(dict(zip(changing, found, strict=True)), self.max_grad_norm)
        told = self.dormancy and reads_dormancy(rule)
        signals = {"dormancy": self._dormancy(params, batch.inputs)} if told else {}
        return rule.update(grads, state, params, each.detach(), **signals)

    def _dormancy(self, params: Params, inputs: TensorObs) -> Params:
        """That of each number's neuron, `[N, ...]`; outputs have none."""
        features, found = self.policy.features(params, inputs), {n: torch.zeros_like(value) for n, value in params.items()}
        for name in ("policy_trunk", "value_trunk"):
            of_trunk = dormancy_of_layers(getattr(self.policy, name), subset(params, name), features)
            found |= {f"{name}.{one}": value for one, value in of_trunk.items()}
        return found

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """PPO's loss of each agent, `[N]`: surrogate, value loss and entropy bonus (Schulman et al. 2017, eq. 9)."""
        features = self.policy.features(params, batch.inputs)
        action_params = self.policy.action_params(params, features)
        log_probs = self.policy.policy_head.log_prob(action_params, batch.actions)
        per_step = losses.ppo_clip(log_probs, batch.log_probs, batch.advantages, self.clip_range)
        per_step = per_step + self.value_coef * losses.squared_error(self.policy.values(params, features), batch.targets)
        if self.entropy_coef:
            per_step = per_step - self.entropy_coef * self.policy.policy_head.entropy(action_params)
        return per_step.mean(1)


def clip_norms(grads: Params, largest: float) -> Params:
    """Gradients `[N, ...]`, each agent's scaled down so that its norm over all of them is at most `largest`."""
    norms = torch.stack([grad.reshape(len(grad), -1).square().sum(1) for grad in grads.values()]).sum(0).sqrt()
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)  # as in `torch.nn.utils.clip_grad_norm_`
    return {name: grad * factors.view(-1, *[1] * (grad.ndim - 1)) for name, grad in grads.items()}


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**63)))
