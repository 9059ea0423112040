"""Adapted policies as Stable-Baselines3's own PPO: saved, loaded, acted with and trained on there."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import Tensor, nn

from metarl.batched import Params
from metarl.policies import GradientPolicy


def to_stable_baselines(policy: GradientPolicy, params: Params, **options: Any) -> PPO:
    """A PPO whose policy is that of one task, `params` without a task axis.

    It acts identically: the head's units are worked into the last layer. Where there is no value network, that of the PPO
    is a fresh one.

    Args:
        policy: the network.
        params: its parameters.
        options: arguments of PPO's constructor, for training on, `env` for example.

    Raises:
        ValueError: when Stable-Baselines3 cannot take the spaces, with the reason.
    """
    check_exportable(policy.observation_space, policy.action_space)
    if fixed := {"policy", "policy_kwargs", "use_sde", "_init_setup_model"} & options.keys():
        raise ValueError(f"{min(fixed)} must be left out: it follows from the policy")
    env = options.pop("env", None)
    sizes = [layer.out_features for layer in policy.policy_trunk if isinstance(layer, nn.Linear)]
    nested = isinstance(policy.observation_space, gym.spaces.Dict)
    kwargs = {
        "net_arch": {"pi": sizes, "vf": sizes},
        "activation_fn": nn.Tanh,
        "features_extractor_class": policy.features_extractor_class,
        "features_extractor_kwargs": policy.features_extractor_kwargs,
    }
    options = {"device": "cpu", **options}
    model = PPO(
        "MultiInputPolicy" if nested else "MlpPolicy", None, policy_kwargs=kwargs, _init_setup_model=False, **options
    )
    model.observation_space, model.action_space, model.n_envs = policy.observation_space, policy.action_space, 1
    model._setup_model()
    loaded = model.policy.load_state_dict(_weights(policy, params), strict=False)  # a fresh value network stays
    if loaded.unexpected_keys:
        raise RuntimeError(f"this version of Stable-Baselines3 names the parts of its policy otherwise: {loaded}")
    if env is not None:
        model.set_env(env)
    return model


def check_exportable(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Raise a `ValueError`, with the reason, at spaces that Stable-Baselines3 cannot take."""
    nested = isinstance(observation_space, gym.spaces.Dict)
    leaves = list(observation_space.values()) if nested else [observation_space]
    for space in (action_space, *leaves):
        if np.any(getattr(space, "start", 0)):
            raise ValueError(f"the policy cannot be exported: Stable-Baselines3 counts from 0, and a space is {space}")
    for space in leaves:
        if is_image_space(space) and not is_image_space_channels_first(space):
            raise ValueError(
                f"the policy cannot be exported: Stable-Baselines3 turns images to have channels first, got {space}"
            )
    if isinstance(action_space, gym.spaces.Box):
        if not np.issubdtype(action_space.dtype, np.floating):
            raise ValueError(
                f"the policy cannot be exported: Stable-Baselines3's actions are floats, and these {action_space}"
            )
        if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
            raise ValueError(f"the policy cannot be exported: Stable-Baselines3 needs finite bounds, got {action_space}")


def _weights(policy: GradientPolicy, params: Params) -> dict[str, Tensor]:
    """State of Stable-Baselines3's `ActorCriticPolicy`."""
    names = {
        "extractor.": ("features_extractor.", "pi_features_extractor.", "vf_features_extractor."),
        "policy_trunk.": ("mlp_extractor.policy_net.",),
        "policy_head.linear.": ("action_net.",),
        "value_trunk.": ("mlp_extractor.value_net.",),
        "value_head.": ("value_net.",),
    }
    params = {name: value.detach().cpu() for name, value in {**dict(policy.named_buffers()), **params}.items()}
    weights = {
        new + name.removeprefix(old): value
        for old, places in names.items()
        for name, value in params.items()
        if name.startswith(old)
        for new in places
    }
    if isinstance(policy.action_space, gym.spaces.Box):
        centre, half_range = (torch.as_tensor(x, dtype=torch.float32) for x in policy.policy_head.scale)
        weights["action_net.weight"] = half_range[:, None] * weights["action_net.weight"]
        weights["action_net.bias"] = centre + half_range * weights["action_net.bias"]
        weights["log_std"] = params["policy_head.log_std"] + half_range.log()
    if isinstance(policy.action_space, gym.spaces.MultiBinary):  # of no and yes there, of yes alone here
        for name in ("action_net.weight", "action_net.bias"):
            weights[name] = weights[name][1::2] - weights[name][0::2]
    if policy.value_head is not None:
        mean, std = policy.value_mean.cpu(), policy.value_std.cpu()
        weights["value_net.weight"] = std * weights["value_net.weight"]
        weights["value_net.bias"] = mean + std * weights["value_net.bias"]
    return weights
