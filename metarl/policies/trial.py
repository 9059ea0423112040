"""Policies that adapt by acting: encoder, memory core and heads, reading what just happened beside what is seen."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from metarl.distributions import make_head
from metarl.kernels import Tanh
from metarl.memory import CORES, State
from metarl.memory.base import check_flag, check_slice
from metarl.plain import check_count
from metarl.policies.parts import NormalisedValue, check_sizes, default_extractor, mlp, preprocess
from metarl.trials import TensorObs


class Memory(NamedTuple):
    """What a policy carries from step to step through `B` trials."""

    core: State
    previous_action: Tensor  # [B, ...] in the head's units; meaningless where `started` is 0
    previous_reward: Tensor  # [B]
    previous_done: Tensor  # [B] float, whether the last step ended an episode
    started: Tensor  # [B] float, 0 at the first step of a trial


class TrialPolicy(NormalisedValue, BasePolicy):
    """RL²'s policy (Duan et al. 2016; Wang et al. 2016).

    The input at every step is (observation, previous action, previous reward, previous done). The last three are zero
    at the first step of a TRIAL only: at the first step of a later episode they tell how the one before ended. The
    policy and the value function share encoder and core. In training the value function may also be told the task
    (`task_size`); nothing else needs it.

    Args:
        observation_space: `Box`, `Discrete`, `MultiBinary`, `MultiDiscrete`, or a flat `Dict` of these.
        action_space: `Discrete`, `MultiDiscrete`, `MultiBinary` or `Box`.
        core: name in `metarl.memory.CORES`.
        core_size: units of the core.
        core_kwargs: further arguments of the core's constructor.
        encoder: sizes of tanh layers before the core, one of `core_size` units by default. What a memory must keep is often
            a conjunction: this reward in that state.
        bypass: features `(start, stop)` of the input, observations first, that reach the core as they are as well, before
            what the encoder makes of it: a barcode that is to be a key (`context_slice` of the episodic core). Without an
            encoder all of it reaches the core anyway.
        skip: let the outputs read the core's input beside its output, through a tanh layer of `core_size` units. A gated
            core lets a new input through slowly, and what to do often hangs on memory AND present observation together.
        heads: sizes of tanh layers before each of the two outputs.
        task_size: numbers that describe the task, for the value function alone to read beside the memory; 0 for none. Then
            it has layers of its own before its output, two of `core_size` units where `heads` names none.
        features_extractor_class: as in Stable-Baselines3; flattens by default.
        features_extractor_kwargs: arguments of its constructor.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        core: str = "lstm",
        core_size: int = 128,
        core_kwargs: Mapping[str, Any] | None = None,
        encoder: Sequence[int] | None = None,
        bypass: Sequence[int] | None = None,
        skip: bool = True,
        heads: Sequence[int] = (),
        task_size: int = 0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
    ):
        check_count("core_size", core_size)
        if core not in CORES:
            raise ValueError(f"core must be one of {', '.join(CORES)}, got {core!r}")
        encoder = (core_size,) if encoder is None else encoder
        check_sizes(encoder=encoder, heads=heads)
        check_flag("skip", skip)
        if core_kwargs is not None and not isinstance(core_kwargs, Mapping):
            raise ValueError(f"core_kwargs must be a mapping, got {core_kwargs!r}")
        features_extractor_class = features_extractor_class or default_extractor(observation_space)
        super().__init__(observation_space, action_space, features_extractor_class, features_extractor_kwargs)
        self.kwargs = {
            "core_size": core_size,
            "core_kwargs": CORES[core].defaults() | dict(core_kwargs or {}),
            "encoder": list(encoder),
            "bypass": list(bypass) if isinstance(bypass, Sequence) else bypass,
            "skip": skip,
            "heads": list(heads),
        }
        """What it was made with, defaults written out, features extractor apart."""
        self.extractor = self.make_features_extractor()
        self.policy_head = make_head(core_size if not heads else heads[-1], action_space)
        input_size = self.extractor.features_dim + self.policy_head.feature_size + 2
        self.encoder = mlp(input_size, encoder)
        encoded_size = encoder[-1] if encoder else input_size
        self.bypass = None if bypass is None else check_slice("bypass", bypass, input_size)
        if self.bypass is not None:
            if not encoder:
                raise ValueError(f"bypass must be left out where there is no encoder, got {bypass!r}")
            encoded_size += self.bypass.stop - self.bypass.start
        self.core = CORES[core](encoded_size, core_size, **(core_kwargs or {}))
        self.readout = nn.Sequential(nn.Linear(encoded_size + core_size, core_size), Tanh()) if skip else None
        self.policy_trunk = mlp(core_size, heads)
        self.task_size = task_size
        value_layers = heads or ((core_size, core_size) if task_size else ())
        self.value_trunk = mlp(core_size + task_size, value_layers)
        self.value_head = nn.Linear(value_layers[-1] if value_layers else core_size, 1)
        self.make_value_scale()
        with torch.no_grad():  # start near the uniform policy and a zero value
            for layer in (self.policy_head.linear, self.value_head):
                nn.init.orthogonal_(layer.weight, 0.01)
                layer.bias.zero_()

    # -- inputs --------------------------------------------------------------------------------------------------

    @property
    def inputs_are_fixed(self) -> bool:
        """Whether `inputs` has nothing to learn, so that it can be computed once for several epochs."""
        return not any(True for _ in self.extractor.parameters())

    def inputs(
        self,
        observations: TensorObs,
        previous_action: Tensor,
        previous_reward: Tensor,
        previous_done: Tensor,
        started: Tensor,
    ) -> Tensor:
        """Everything that the policy reads, `[..., input_size]`; arguments as in `Memory`, of any leading shape."""
        lead = started.shape
        features = self.extractor(preprocess(observations, self.observation_space, len(lead))).reshape(*lead, -1)
        context = [
            self.policy_head.features(previous_action) * started[..., None],
            (previous_reward * started)[..., None],
            (previous_done * started)[..., None],
        ]
        return torch.cat([features, *context], -1)

    def encode(self, inputs: Tensor) -> Tensor:
        """What the core reads, `[..., core.input_size]`."""
        encoded = self.encoder(inputs)
        return encoded if self.bypass is None else torch.cat([inputs[..., self.bypass], encoded], -1)

    # -- outputs -------------------------------------------------------------------------------------------------

    def step(self, inputs: Tensor, state: State, task: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """One step: action parameters `[B, ...]`, values `[B]` and the core's state."""
        x = self.encode(inputs)
        y, state = self.core.step(x, state)
        params, values = self._outputs(self._read(x, y), task)
        return params, self.denormalise(values), state

    def scan(self, inputs: Tensor, state: State, reset: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whole sequences `[T, B, ...]`: action parameters and NORMALISED values (see `normalise`), as in `step`."""
        return self.scan_encoded(self.encode(inputs), state, reset, task)

    def scan_encoded(self, x: Tensor, state: State, reset: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `scan`, from what `encode` made of the inputs."""
        y, _ = self.core.scan(x, state, reset)
        return self._outputs(self._read(x, y), task)

    def _read(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.readout is None else self.readout(torch.cat([x, y], -1))

    def _outputs(self, y: Tensor, task: Tensor | None) -> tuple[Tensor, Tensor]:
        """Action parameters and normalised values; these are 0, the mean return, where they need a task that is not told."""
        if task is None and self.task_size:
            return self._action_params(y), y.new_zeros(y.shape[:-1])
        if len(self.value_trunk):
            values = self.value_head(self.value_trunk(y if task is None else torch.cat([y, task], -1)))
            return self._action_params(y), values[..., 0]
        layers = self.policy_head.linear, self.value_head  # both read `y`: one product
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        outputs = nn.functional.linear(y, weight, bias)
        return self.policy_head.finish(outputs[..., :-1]), outputs[..., -1]

    def _action_params(self, y: Tensor) -> Tensor:
        return self.policy_head(self.policy_trunk(y))

    # -- acting --------------------------------------------------------------------------------------------------

    def initial_memory(self, batch_size: int) -> Memory:
        """The memory of `batch_size` trials in which nothing has happened yet."""
        zeros = torch.zeros(batch_size, device=self.device)
        head = self.policy_head
        actions = torch.zeros(batch_size, *head.shape, dtype=head.dtype, device=self.device)
        return Memory(self.core.initial_state(batch_size), actions, zeros, zeros, zeros)

    def act(self, observations: TensorObs, memory: Memory, task: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """Action parameters, values `[B]` (see `step`) and the core's next state after seeing `observations`."""
        return self.step(self.inputs(observations, *memory[1:]), memory.core, task)

    def remember(self, core: State, actions: Tensor, rewards: np.ndarray, done: np.ndarray) -> Memory:
        """The memory after a step: `core` from `act`, and what came of `actions`."""
        device = actions.device  # `self.device` walks through all modules, which costs a tenth of a step
        rewards = torch.as_tensor(rewards, dtype=torch.float32, device=device)
        done = torch.as_tensor(done, dtype=torch.float32, device=device)
        return Memory(core, actions, rewards, done, torch.ones_like(rewards))

    def forget(self, memory: Memory, rows: np.ndarray) -> Memory:
        """The memory with `rows [B]` (bool) as at the start of a trial."""
        keep = torch.as_tensor(~rows, device=memory.started.device)
        core = self.core.restart(memory.core, ~keep)
        return memory._replace(core=core, started=memory.started * keep)

    def value_if_it_went_on(self, observations: TensorObs, memory: Memory, task: Tensor | None = None) -> Tensor:
        """What is expected from `observations [B, ...]` on, had the episode not been cut before them."""
        memory = memory._replace(previous_done=torch.zeros_like(memory.previous_done))
        return self.act(observations, memory, task)[1]

    def forward(self, observations: TensorObs, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """As `act`."""
        return self.act(observations, memory)

    def _predict(self, observation: TensorObs, deterministic: bool = False) -> Tensor:
        raise TypeError("this policy acts with a memory: use the model's predict(observation, state, episode_start)")
