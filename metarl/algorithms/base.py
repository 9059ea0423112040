"""The seam to Stable-Baselines3: what every meta-learning algorithm shares, so that its callbacks and loggers work."""

import copy
import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from metarl.algorithms.families import EnvLike, check_spaces, family_of
from metarl.algorithms.learner import Learner
from metarl.algorithms.vec_env import TrialVecEnv
from metarl.allocator import keep_freed_memory
from metarl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from metarl.plain import configured
from metarl.seeding import generator_state, restore_generator, spawn
from metarl.trials import Player
from metarl_envs import TaskEnv, TaskFamily, TaskVectorEnv


class MetaAlgorithm(BaseAlgorithm):
    """A Stable-Baselines3 algorithm that trains on a task family.

    A subclass names its `config_class` and policies and implements `_make_policy`, `_iterate` and `player`.

    Args:
        policy: name among `policy_aliases`.
        env: a Gymnasium id (of a family, or of any environment, which is then a family of one task), a `TaskFamily`,
            or an environment of one. None only together with `_init_setup_model=False`.
        env_kwargs: the family's parameters, with an id.
        policy_kwargs: arguments of the policy's constructor.
        config: hyperparameters; single ones may be given by name instead or on top.
        tensorboard_log, verbose, seed, device: as in Stable-Baselines3. Without a seed one is drawn and kept.
    """

    config_class: ClassVar[type]
    log_interval = 1
    """As in `metarl.outer_loop.OuterLoop`."""
    family: TaskFamily
    envs: TaskVectorEnv
    _before_iteration: dict[str, Any] | None = None
    """Where the iteration that is going on began."""

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: EnvLike | None,
        *,
        env_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        config: Any = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        _init_setup_model: bool = True,
        **hyperparameters: Any,
    ):
        self.config = configured(self.config_class, config, hyperparameters)
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(f"policy must be one of {', '.join(self.policy_aliases)}, got {policy!r}")
        self.policy_name = policy if isinstance(policy, str) else policy.__name__
        super().__init__(
            policy,
            None,
            learning_rate=self.config.learning_rate,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=int(np.random.SeedSequence().generate_state(1)[0] >> 1) if seed is None else seed,
        )
        self.n_envs = self.config.num_envs
        if env is not None or _init_setup_model:
            self._take_family(family_of(env, env_kwargs))
        if _init_setup_model:
            self._setup_model()

    # -- environments --------------------------------------------------------------------------------------------

    def _take_family(self, family: TaskFamily) -> None:
        split = self.config.train_split
        if split not in family.splits:
            raise ValueError(f"train_split must be one of {', '.join(family.splits)}, got {split!r}")
        self.family = family
        self.observation_space, self.action_space = family.observation_space, family.action_space
        self.envs = family.make_vec(self.n_envs, autoreset_mode=AutoresetMode.DISABLED)
        self.env = None

    def get_env(self) -> VecEnv:
        """The family as a Stable-Baselines3 environment whose episodes are trials (see `TrialVecEnv`).

        It is wrapped in a `VecMonitor`, as Stable-Baselines3 wraps its own, and apart from the environments that
        training uses, so stepping it disturbs nothing.
        """
        if self.env is None:
            self.env = VecMonitor(TrialVecEnv(self.family, self.n_envs, episodes_per_trial=self.episodes_per_trial))
        return self.env

    def set_env(self, env: EnvLike, force_reset: bool = True, env_kwargs: dict[str, Any] | None = None) -> None:
        """Go on in another family with the same spaces."""
        family = family_of(env, env_kwargs)
        check_spaces(family, self.observation_space, self.action_space)
        self._take_family(family)
        if force_reset:
            self._last_obs = None

    @property
    def episodes_per_trial(self) -> int:
        """Episodes in one task during training."""
        return self.episodes_in(self.family)

    def episodes_in(self, family: TaskFamily) -> int:
        """Episodes of a trial in a task of `family`: as the hyperparameters say, or the family's own trial length."""
        return self.config.episodes_per_trial or family.episodes_per_trial

    # -- training ------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.rngs = spawn(self.seed, ("tasks", "minibatches"))
        self.set_random_seed(self.seed)
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self.policy = self._make_policy().to(self.device)

    def _make_policy(self) -> BasePolicy:
        raise NotImplementedError

    def _iterate(self, callback: Any) -> bool:
        """Collect trials and update once. False when a callback stopped the collection."""
        raise NotImplementedError

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least `total_timesteps` environment steps, in whole iterations; arguments as in SB3.

        When a callback or an exception ends training in the middle of a collection, that collection is dropped without
        a trace; a model that is saved there, by a callback for example, is saved as it was before the collection. So
        a saved model always continues exactly as if it had not been stopped.
        """
        if total_timesteps < 1:
            raise ValueError(f"total_timesteps must be at least 1, got {total_timesteps}")
        keep_freed_memory()
        self.get_env()
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps:
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self._before_iteration = self._position()
            finished = False
            try:
                callback.on_rollout_start()
                finished = self._iterate(callback)
            finally:
                if not finished:
                    self._go_to(self._before_iteration)
                self._before_iteration = None
            if not finished:
                break
            iteration += 1
            if log_interval and (iteration % log_interval == 0 or self.num_timesteps >= total_timesteps):
                self.dump_logs(iteration)
        callback.on_training_end()
        return self

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what was recorded."""
        elapsed = max(self._seconds_since_start(), 1e-9)
        self.logger.record("time/iterations", iteration, exclude="tensorboard")
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def _seconds_since_start(self) -> float:
        return (time.time_ns() - self.start_time) / 1e9

    # -- using what was learned ----------------------------------------------------------------------------------

    def player(self, deterministic: bool = False) -> Player:
        """The agent as a player of whole batches of trials, for `evaluate`."""
        raise NotImplementedError

    def adapt(self, env: gym.Env, episodes: int = 0, *, seed: int | None = None, deterministic: bool = False) -> Learner:
        """Play `episodes` episodes in ONE new task and return the learner, which goes on adapting as it acts.

        An environment of the family stays in that task from then on, instead of drawing a new one after every trial.

        Args:
            env: a Gymnasium environment with the training spaces: of the family, or your own.
            episodes: episodes to play first; 0 gives the learner before its first.
            seed: seeds the environment and the actions.
            deterministic: take likeliest actions instead of sampling.
        """
        if not isinstance(env, gym.Env):
            raise ValueError(f"env must be a single Gymnasium environment, such as gym.make(ID), got {type(env).__name__}")
        check_spaces(env, self.observation_space, self.action_space)
        if episodes < 0:
            raise ValueError(f"episodes must be at least 0, got {episodes}")
        if isinstance(task_env := env.unwrapped, TaskEnv):
            env.reset(seed=seed)
            task_env.task = task_env.task
        learner = self._learner(int(np.random.default_rng(seed).integers(2**31)), deterministic)
        for episode in range(episodes):
            learner.run_episode(env, seed=seed if episode == 0 else None)
        return learner

    def _learner(self, seed: int, deterministic: bool) -> Learner:
        return Learner(self.player(deterministic), seed)

    # -- saving and loading --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that decides what happens next, as plain values and tensors."""
        return {
            "algorithm": type(self).__name__,
            "policy": self.policy_name,
            "policy_kwargs": _plain_kwargs(self.policy_kwargs),
            "env_id": self.family.env_id,
            "env_kwargs": self.family.kwargs,
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "total_timesteps": self._total_timesteps,
            "n_updates": self._n_updates,
            **(self._before_iteration or self._position()),
            "weights": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over weights, optimizer, generators and counters from `state()`."""
        try:
            self.policy.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise CheckpointError(f"checkpoint must be of this policy and version of metarl: {error}") from error
        self.policy.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # PyTorch keeps the tensors it is given
        self._go_to(state)
        self._total_timesteps = state["total_timesteps"]
        self._n_updates = state["n_updates"]

    def _position(self) -> dict[str, Any]:
        """What moves during a collection."""
        generators = {name: generator_state(g) for name, g in {**self.rngs, "actions": self.generator}.items()}
        return {"num_timesteps": self.num_timesteps, "generators": generators}

    def _go_to(self, position: dict[str, Any]) -> None:
        for name, generator in self.rngs.items():
            restore_generator(generator, position["generators"][name])
        try:
            restore_generator(self.generator, position["generators"]["actions"])
        except RuntimeError:  # of another kind of device, whose random numbers cannot go on here
            self.generator.manual_seed(self.seed + position["num_timesteps"])
        self.num_timesteps = position["num_timesteps"]

    def save(self, path: str | Path, exclude: Any = None, include: Any = None) -> None:
        """Write one file, atomically; `.zip` is appended as in Stable-Baselines3 when there is no suffix.

        `exclude` and `include` exist for Stable-Baselines3's signature only and must be None.
        """
        if exclude is not None or include is not None:
            raise ValueError("exclude and include must be None: a saved model is always complete")
        save_checkpoint(_with_suffix(path), self.state())

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: EnvLike | None = None,
        device: torch.device | str = "cpu",
        *,
        env_kwargs: dict[str, Any] | None = None,
        policy: type[BasePolicy] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Read what `save` wrote; no code in the file is run.

        Args:
            path: the file.
            env: needed only where the family was never registered; its spaces must be the saved ones.
            device: where to put it. On another kind of device than the saved one, actions are drawn from a fresh stream.
            env_kwargs: the family's parameters, with an id.
            policy: needed only where the policy is a class of your own.
            policy_kwargs: needed only where the saved ones held classes or functions.
            options: further constructor arguments, or hyperparameters to change, one by one or all as `config=`. With a
                `seed`, what is random goes on from there and not as it would have.

        Raises:
            CheckpointError: when the file is truncated, altered or of another kind.
            ValueError: when spaces differ.
        """
        path = Path(path)
        return cls.from_state(
            load_checkpoint(path if path.is_file() else _with_suffix(path)),
            env,
            device=device,
            env_kwargs=env_kwargs,
            policy=policy,
            policy_kwargs=policy_kwargs,
            **options,
        )

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        env: EnvLike | None = None,
        *,
        env_kwargs: dict[str, Any] | None = None,
        policy: type[BasePolicy] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        config: Any = None,
        **options: Any,
    ) -> Self:
        """A model from `state()`; arguments as in `load`."""
        if state.get("algorithm") != cls.__name__:
            raise CheckpointError(f"checkpoint must be of {cls.__name__}, got {state.get('algorithm')!r}")
        if env is None:
            env, env_kwargs = state["env_id"], state["env_kwargs"]
            if not env:
                raise ValueError("env must be given: the saved family has no env_id by which it could be found")
        if policy_kwargs is None:
            policy_kwargs = state["policy_kwargs"]
            if policy_kwargs is None:
                raise ValueError(
                    "policy_kwargs must be given: the saved ones held classes or functions, which are not stored"
                )
        known = {f.name for f in dataclasses.fields(cls.config_class)}
        if unknown := sorted(set(state["config"]) - known):
            raise CheckpointError(f"checkpoint has the unknown hyperparameter {unknown[0]!r}")
        family = family_of(env, env_kwargs)
        for name in ("observation_space", "action_space"):
            if str(getattr(family, name)) != state[name]:
                raise ValueError(f"env must have the checkpoint's {name} {state[name]}, got {getattr(family, name)}")
        config = config or cls.config_class(**state["config"])
        if policy is None and state["policy"] not in cls.policy_aliases:
            raise ValueError(f"policy must be given: the saved one is the class {state['policy']}, which is not stored")
        policy = policy or state["policy"]
        model = cls(policy, family, policy_kwargs=policy_kwargs, config=config, **{"seed": state["seed"], **options})
        fresh = model._position()["generators"]
        model.set_state(state if "seed" not in options else {**state, "generators": fresh})
        return model


def _plain_kwargs(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """`kwargs` if they are plain values, else None: classes and functions are not stored."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        if isinstance(value, list | tuple):
            return all(plain(v) for v in value)
        return value is None or isinstance(value, bool | int | float | str)

    return dict(kwargs) if plain(kwargs) else None


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")
