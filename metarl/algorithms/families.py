"""What stands for a task family: an id, a family, or an environment of one."""

from typing import Any

import gymnasium as gym

from metarl_envs import TaskFamily, TaskVectorEnv, make_family

EnvLike = str | TaskFamily | TaskVectorEnv | gym.Env


def family_of(env: EnvLike, env_kwargs: dict[str, Any] | None = None) -> TaskFamily:
    """The task family behind an id, a family, or an environment of one."""
    if isinstance(env, str):
        return make_family(env, **(env_kwargs or {}))
    if env_kwargs:
        raise ValueError(f"env_kwargs go with an environment's id, but env is {type(env).__name__}")
    if isinstance(env, TaskFamily):
        return env
    family = getattr(getattr(env, "unwrapped", None), "family", None)
    if isinstance(family, TaskFamily):
        while env is not env.unwrapped:  # training makes its own environments of the family
            if not isinstance(env, gym.wrappers.OrderEnforcing | gym.wrappers.PassiveEnvChecker):
                raise ValueError(
                    f"env must be without wrappers, which training would leave out, got {type(env).__name__}: "
                    "give the id or the TaskFamily, and build what the wrapper does into the family"
                )
            env = env.env
        return family
    raise ValueError(
        f"env must be a Gymnasium id, a TaskFamily or an environment of one, got {type(env).__name__}; "
        "metarl_envs.ContextFamily makes a family of any registered environment"
    )


def check_spaces(env: Any, observation_space: gym.Space, action_space: gym.Space) -> None:
    """Raise a `ValueError` naming the space unless `env` has these."""
    for name, expected in (("observation_space", observation_space), ("action_space", action_space)):
        if (got := getattr(env, name)) != expected:
            raise ValueError(f"env must have the {name} {expected}, got {got}")
