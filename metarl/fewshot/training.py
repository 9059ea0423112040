"""Meta-training of few-shot learners: one episodic loop for all of them (Vinyals et al. 2016, section 4.1)."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.checkpoint import CheckpointError
from metarl.fewshot.episodes import Episodes, EpisodeSource
from metarl.fewshot.learner import FewShotLearner
from metarl.outer_loop import OuterLoop
from metarl.plain import configured
from metarl.schedules import geometric, set_learning_rate
from metarl.seeding import spawn

PATIENCE = 100
"""Iterations in a row without a finite gradient, after which training stops."""
HINT = "try a smaller learning_rate, or a smaller rate where the learner has one"


@dataclass(frozen=True)
class FewShotTrainingConfig:
    """How a few-shot learner is trained."""

    batch: int = 4
    """Episodes in an iteration."""
    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    final_learning_rate: float | None = None
    """At the end, a tenth of the first by default; it moves geometrically between the two."""
    max_grad_norm: float = 10.0
    """Bound on the norm of the gradient."""
    transductive: bool = False
    """Normalise queries in training by the statistics of all of them, not by those of the support set."""
    compile: bool = False
    """Compile an iteration's forward and backward with torch.compile: the same numbers, faster, after a minute or so."""

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        for name in ("learning_rate", "final_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}")


class FewShotTraining(OuterLoop):
    """Trains a learner on the training split of a source; it counts episodes.

    What an iteration draws is a function of the seed and the number of episodes so far, so training goes on exactly.

    Args:
        learner: what to train.
        source: where episodes come from.
        config: hyperparameters; single ones may be given by name instead or on top.
        workers: processes that draw episodes ahead; results are the same.
        tensorboard_log, verbose, seed: as in Stable-Baselines3.
    """

    unit = "episodes"
    log_interval = 20
    all_or_nothing = True  # what changes, changes at the end
    config_class = FewShotTrainingConfig

    def __init__(
        self,
        learner: FewShotLearner,
        source: EpisodeSource,
        *,
        config: FewShotTrainingConfig | None = None,
        workers: int = 0,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int = 0,
        **hyperparameters: Any,
    ):
        super().__init__(tensorboard_log, verbose)
        self.learner, self.source, self.workers, self.seed = learner, source, workers, seed
        self.config = configured(FewShotTrainingConfig, config, hyperparameters)
        if not learner.trained:
            raise ValueError(f"learner must be one that is trained over tasks, but {type(learner).__name__} is not")
        learner.check_fits(source.spec, training=True)
        self._asked = _Losses(learner)
        self._params = {name: value for name, value in self._asked.named_parameters() if value.requires_grad}
        self._detached = {name: parameter.detach() for name, parameter in self._params.items()}
        self.optimizer = torch.optim.Adam(self._params.values(), lr=self.config.learning_rate, fused=True)
        self._stream = None
        self._skipped = 0

    def learn(self, *arguments: Any, **options: Any) -> Self:
        """As in the base class."""
        try:
            return super().learn(*arguments, **options)
        finally:
            self._stream = None  # its processes end, and what it drew and was not used is drawn again

    def _iterate(self) -> dict[str, float]:
        config, starting = self.config, False
        if self._stream is None:
            self._stream = self.source.stream("train", config.batch, self.seed, self.num_timesteps, self.workers)
            starting = True
        episodes = next(self._stream).to(self.learner.like)
        if starting:
            episodes.check(self.source.spec, f"training episodes from {self.num_timesteps} on of {self.source.name}")
        rate = geometric(config.learning_rate, config.final_learning_rate, self.progress)
        set_learning_rate(self.optimizer, rate)
        if not self.learner.training:
            self.learner.train()
        with self._own_randomness():
            losses, norm = self._backward(episodes)
        loss = losses.mean().item()
        if not math.isfinite(loss):
            episode = self.num_timesteps + int((~losses.isfinite()).nonzero()[0])
            raise ValueError(f"the loss is not finite in episode {episode}: {HINT}")
        if math.isfinite(norm := norm.item()):  # otherwise nothing is known about where to go
            self.optimizer.step()
            self._skipped = -1
        self._skipped += 1
        if self._skipped == PATIENCE:
            raise ValueError(f"gradients were not finite {PATIENCE} times, up to episode {self.num_timesteps}: {HINT}")
        self.num_timesteps += config.batch
        return {"train/loss": loss, "train/learning_rate": rate, "train/grad_norm": norm}

    @cached_property
    def _compiled(self) -> Callable[..., tuple[dict[str, Tensor], Tensor]]:
        self.learner.functional = True
        from metarl.compilation import compiled  # which takes seconds to import

        # shapes stay as they are, too: nothing need be looked at before each call
        options = {"fallback_random": True, "guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        return compiled(meta_gradient, self.learner.like.device, type(self.learner).__name__, **options)

    def _backward(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Give the parameters their gradients of the mean loss, clipped; the losses `[N]`, and the norm before."""
        config = self.config
        if not config.compile:
            self.optimizer.zero_grad()
            losses = self.learner.losses(episodes, config.transductive)
            losses.mean().backward()
            return losses.detach(), torch.nn.utils.clip_grad_norm_(self._params.values(), config.max_grad_norm)
        with torch.no_grad():
            gradients, losses, norm = self._compiled(
                self._asked, self._detached, episodes, config.transductive, config.max_grad_norm
            )
        for name, gradient in gradients.items():
            self._params[name].grad = gradient
        return losses, norm

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """For learners that draw: PyTorch's generator in a state that is this iteration's own."""
        if not self.learner.draws:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            (rng,) = spawn(self.seed, [f"losses {self.num_timesteps}"]).values()
            torch.manual_seed(int(rng.integers(2**62)))
            yield

    # -- saving and loading --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As in the base class."""
        return {
            "algorithm": type(self).__name__,
            "learner": type(self.learner).__name__,
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "total_timesteps": self._total_timesteps,
            "weights": {name: value.clone() for name, value in self.learner.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """As in the base class."""
        if state["learner"] != type(self.learner).__name__:
            raise CheckpointError(f"checkpoint must be of {type(self.learner).__name__}, got {state['learner']}")
        try:
            self.learner.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            why = why if len(why) < 200 else f"{why[:200]} ..."
            message = f"checkpoint must be of this learner and version of metarl, made for such tasks: {why}"
            raise CheckpointError(message) from error
        self.num_timesteps, self._total_timesteps = state["num_timesteps"], state["total_timesteps"]

    @classmethod
    def from_state(cls, state: dict[str, Any], *, learner: FewShotLearner, source: EpisodeSource, **options: Any) -> Self:
        """One that goes on from `state()`, with a `learner` and a `source` made as they were, and the same `config`."""
        if state.get("algorithm") != cls.__name__:
            raise CheckpointError(f"checkpoint must be of {cls.__name__}, got {state.get('algorithm')!r}")
        training = cls(learner, source, **{"seed": state["seed"], **options})
        training.set_state(state)
        return training


class _Losses(nn.Module):
    """A learner's `losses` as a call: `functional_call` knows `forward` only."""

    def __init__(self, learner: FewShotLearner):
        super().__init__()
        self.learner = learner

    def forward(self, episodes: Episodes, transductive: bool) -> Tensor:
        return self.learner.losses(episodes, transductive)


def meta_gradient(
    losses: _Losses, params: dict[str, Tensor], episodes: Episodes, transductive: bool, max_grad_norm: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients of the mean loss by `params`, put in the places of its own, clipped; the losses `[N]`; the norm before.

    All in one function of tensors: compiled, it is faster than a compiled forward with a compiled backward.
    """

    def mean_loss(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = functional_call(losses, params, (episodes, transductive))
        return found.mean(), found

    gradients, found = torch.func.grad(mean_loss, has_aux=True)(params)
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as in `torch.nn.utils.clip_grad_norm_`
    return {name: scale * gradient for name, gradient in gradients.items()}, found, norm
