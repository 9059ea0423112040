"""Policies whose parameters adapt by gradient steps: feed-forward networks, run with one set of parameters per task."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import Tensor, nn

from metarl.batched import Params, TaskBatching, bind_all, call_batched, for_tasks, subset
from metarl.distributions import make_head
from metarl.policies.parts import NormalisedValue, check_sizes, default_extractor, map_leaves, mlp, preprocess
from metarl.trials import TensorObs
from metarl.updates import RULES

ADAPTED = ("all", "head", "body")
"""What may adapt: everything, the action layer (ANIL, Raghu et al. 2020), or everything but that (BOIL, Oh et al. 2021)."""


class GradientPolicy(NormalisedValue, BasePolicy):
    """A feed-forward policy, its starting point learned, and the update rule by which it adapts to a task.

    Its layers are those of Stable-Baselines3's `ActorCriticPolicy`: a features extractor, tanh layers for actions, tanh
    layers for values, and a linear layer on each. So an adapted policy can be handed over to Stable-Baselines3.

    Args:
        observation_space: `Box`, `Discrete`, `MultiBinary`, `MultiDiscrete`, or a flat `Dict` of these.
        action_space: `Discrete`, `MultiDiscrete`, `MultiBinary` or `Box`.
        hidden: sizes of the tanh layers.
        with_value: have a value network.
        update_rule: name in `metarl.updates.RULES`.
        inner_rate: the rule's step size, or where it starts.
        adapted: what adapts: all, head, or body. The value network always does.
        task_batching: how tasks run through layers other than linear ones, see `metarl.batched`.
        log_std_init: logarithm of the initial standard deviation of `Box` actions, in half ranges of the box.
        features_extractor_class: as in Stable-Baselines3; flattens by default.
        features_extractor_kwargs: arguments of its constructor.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        hidden: Sequence[int] = (64, 64),
        with_value: bool = False,
        update_rule: str = "sgd",
        inner_rate: float = 0.1,
        adapted: Literal["all", "head", "body"] = "all",
        task_batching: TaskBatching = "auto",
        log_std_init: float = -0.5,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
    ):
        check_sizes(hidden=hidden)
        features_extractor_class = features_extractor_class or default_extractor(observation_space)
        super().__init__(observation_space, action_space, features_extractor_class, features_extractor_kwargs)
        if update_rule not in RULES:
            raise ValueError(f"update_rule must be one of {', '.join(RULES)}, got {update_rule!r}")
        self.kwargs = {"hidden": list(hidden), "log_std_init": log_std_init}
        """What `policy_kwargs` were, defaults written out, features extractor apart."""
        self.task_batching = task_batching
        self.extractor = self.make_features_extractor()
        self.inputs_are_fixed = not any(True for _ in self.extractor.parameters())
        """Whether the features extractor has nothing to learn, so that features can be computed once."""
        vectors = isinstance(observation_space, gym.spaces.Box) and len(observation_space.shape) == 1
        self._read_as_they_are = vectors and type(self.extractor) is FlattenExtractor
        self.policy_trunk = mlp(self.extractor.features_dim, hidden)
        last = hidden[-1] if hidden else self.extractor.features_dim
        self.policy_head = make_head(last, action_space)
        self.value_trunk = self.value_head = None
        layers = [self.policy_head.linear]
        if with_value:
            self.value_trunk, self.value_head = mlp(self.extractor.features_dim, hidden), nn.Linear(last, 1)
            self.make_value_scale()
            layers.append(self.value_head)
        with torch.no_grad():  # start near the uniform policy and a zero value
            for layer in layers:
                nn.init.orthogonal_(layer.weight, 0.01)
                layer.bias.zero_()
            if isinstance(action_space, gym.spaces.Box):
                self.policy_head.log_std.fill_(log_std_init)
        network = self.initial_params()
        self.adapted = tuple(name for name in network if _adapts(name, adapted))
        if not self.adapted:
            raise ValueError(
                f"adapted must leave something to adapt, got {adapted!r} for a policy without layers before its head"
            )
        self.rule = RULES[update_rule]({name: network[name].detach() for name in self.adapted}, inner_rate)

    def initial_params(self) -> dict[str, Tensor]:
        """The starting point: the network's parameters by name, without those of the update rule."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("rule.")}

    def starting_params(self, num_tasks: int) -> Params:
        """The starting point for each of `num_tasks` tasks, `[N, ...]`, without derivatives."""
        return for_tasks({name: value.detach() for name, value in self.initial_params().items()}, num_tasks)

    # -- the network, for N tasks ----------------------------------------------------------------------------------

    def preprocessed(self, observations: TensorObs, lead: int) -> TensorObs:
        """Observations with `lead` leading axes as `action_params` takes them; features already where these are fixed."""
        if self._read_as_they_are:
            return observations.float()
        shape = next(iter(observations.values())).shape if isinstance(observations, dict) else observations.shape
        flat = preprocess(observations, self.observation_space, lead)
        if self.inputs_are_fixed:
            flat = self.extractor(flat)
        return map_leaves(flat, lambda x: x.unflatten(0, shape[:lead]))

    def features(self, params: Params, inputs: TensorObs) -> Tensor:
        """What both networks read, `[N, M, F]`, from `preprocessed` observations `[N, M, ...]`."""
        if self.inputs_are_fixed:
            return inputs
        return call_batched(self.extractor, subset(params, "extractor"), inputs, self.task_batching)

    def action_params(self, params: Params, features: Tensor) -> Tensor:
        """Parameters of the action distribution, `[N, M, ...]`."""
        return self.actor(params)(features)

    def actor(self, params: Params) -> Callable[[Tensor], Tensor]:
        """`action_params` as a function of features alone, for many calls."""
        return bind_all({"policy_trunk": self.policy_trunk, "policy_head": self.policy_head}, params, self.task_batching)

    def values(self, params: Params, features: Tensor) -> Tensor:
        """NORMALISED values `[N, M]` (see `normalise`)."""
        critic = {"value_trunk": self.value_trunk, "value_head": self.value_head}
        return bind_all(critic, params, self.task_batching)(features)[..., 0]

    # -- as an ordinary policy: the starting point -------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, observations: TensorObs) -> Tensor:
        """Parameters of the action distribution at the starting point, `[B, ...]`."""
        return AdaptedPolicy(self, self.starting_params(1)).act(observations, None)[0]

    def _predict(self, observation: TensorObs, deterministic: bool = False) -> Tensor:
        head = self.policy_head
        params = self(observation)
        return torch.as_tensor(head.to_env(head.mode(params) if deterministic else head.sample(params, None)))


class AdaptedPolicy:
    """A `GradientPolicy` with parameters `[N, ...]` for `N` tasks, acting in `B = N K` slots: `K` in a row per task.

    It has the methods by which `collect_trials` plays; there is no memory from step to step.
    """

    def __init__(self, policy: GradientPolicy, params: Params):
        self.policy, self.params = policy, params
        self.actor = policy.actor(params)
        self.policy_head, self.device = policy.policy_head, policy.device
        self.num_tasks = len(next(iter(params.values())))

    def initial_memory(self, batch_size: int) -> None:
        """Nothing."""

    def act(self, observations: TensorObs, memory: None, task: None = None) -> tuple[Tensor, Tensor, None]:
        """Action parameters `[B, ...]`, values `[B]` (zeros without a value network), and nothing."""
        policy = self.policy
        inputs = map_leaves(policy.preprocessed(observations, 1), lambda x: x.unflatten(0, (self.num_tasks, -1)))
        features = policy.features(self.params, inputs)
        params = self.actor(features).flatten(0, 1)
        if policy.value_head is None:
            return params, torch.zeros(len(params), device=self.device), None
        return params, policy.denormalise(policy.values(self.params, features)).flatten(), None

    def remember(self, core: None, actions: Tensor, rewards: np.ndarray, done: np.ndarray) -> None:
        """Nothing."""

    def forget(self, memory: None, rows: np.ndarray) -> None:
        """Nothing."""

    def value_if_it_went_on(self, observations: TensorObs, memory: None, task: None = None) -> Tensor:
        """Values `[B]`."""
        return self.act(observations, memory)[1]


def _adapts(name: str, adapted: str) -> bool:
    if adapted not in ADAPTED:
        raise ValueError(f"adapted must be one of {', '.join(ADAPTED)}, got {adapted!r}")
    if adapted == "all" or name.startswith("value_"):
        return True
    return (adapted == "head") == name.startswith("policy_head.")
