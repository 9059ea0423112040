"""What the training of a few-shot learner is made of, as one checked value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from metarl.fewshot.datasets import DATASETS, make_source
from metarl.fewshot.datasets.folders import Images
from metarl.fewshot.episodes import EpisodeSource
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.learners import LEARNERS, make_learner
from metarl.fewshot.training import FewShotTraining, FewShotTrainingConfig
from metarl.plain import check_known
from metarl.run_config import RunConfig, check_device
from metarl_envs.family import check_at_least


@dataclass(frozen=True, kw_only=True)
class FewShotEvaluation:
    """How a few-shot learner is evaluated."""

    split: str = "test"
    """Split of the data set that episodes are drawn from."""
    episodes: int = 600
    """Number of episodes."""
    ways: int | None = None
    """Classes in an episode; as in training by default. Only some learners take others."""
    shots: int | None = None
    """Examples of each class in a support set; as in training by default."""
    queries: int | None = None
    """Examples of each class that are asked about; as in training by default."""
    seed: int = 0
    """Seed of the episodes: runs evaluated with equal ones can be compared."""
    references: tuple[str, ...] = ("nearest_neighbour",)
    """Untrained learners to put beside it, on the same episodes: nearest_neighbour; from_scratch, which is slow."""
    step_curve: tuple[int, ...] = ()
    """Numbers of gradient steps after which learners that take such are scored too."""
    shot_curve: tuple[int, ...] = ()
    """Numbers of shots with which to score too."""

    def __post_init__(self):
        for name, least in (("episodes", 1), ("ways", 2), ("shots", 1), ("queries", 1), ("seed", 0)):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), least)
        for name, least in (("step_curve", 0), ("shot_curve", 1)):
            for number in getattr(self, name):
                check_at_least(name, number, least)
        for name in self.references:
            check_known(f"references: {name!r}", name, [known for known, made in LEARNERS.items() if not made.trained])


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(RunConfig):
    """Everything that decides how the training of a few-shot learner goes."""

    algorithm: Literal["fewshot"] = "fewshot"
    """Always this."""
    learner: str = "protonet"
    """Name of the learner."""
    learner_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the learner, such as rate and steps of maml, and of its network: kind, width, hidden, normalise."""
    dataset: str = "glyphs"
    """Name of a data set, or path of a folder of pictures by class or of a CSV file."""
    dataset_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the data set, such as path."""
    ways: int = 5
    """Classes in an episode; of no account in regression."""
    shots: int = 1
    """Examples of each class in a support set; in regression, points."""
    queries: int = 15
    """Examples of each class that are asked about; in regression, points."""
    total_timesteps: int = 20_000
    """Episodes to train for; whole batches are played."""
    checkpoint_every: int = 5_000
    """Episodes between checkpoints; each batch saves one at most."""
    device: str = "cpu"
    """PyTorch device of the learner."""
    workers: int = 0
    """Processes that draw episodes ahead; the episodes are the same."""
    hyperparameters: FewShotTrainingConfig = field(default_factory=FewShotTrainingConfig)
    """Hyperparameters of the training."""
    evaluation: FewShotEvaluation = FewShotEvaluation()
    """How the run is evaluated unless told otherwise."""

    algorithms: ClassVar = ("fewshot",)
    commands: ClassVar = "metarl fewshot"

    def __post_init__(self):
        super().__post_init__()
        check_at_least("workers", self.workers, 0)
        check_device(self.device)
        if self.dataset not in DATASETS and Path(self.dataset).exists():
            object.__setattr__(self, "dataset", str(Path(self.dataset).absolute()))  # runs are looked at from anywhere
        if not make_learner(self.learner, self.source.spec, self.learner_kwargs).trained:
            raise ValueError(f"learner must be one that is trained over tasks, but {self.learner} is not")
        self.source_with(**{name: getattr(self.evaluation, name) for name in ("ways", "shots", "queries")})

    @cached_property
    def source(self) -> EpisodeSource:
        """Where episodes come from."""
        sizes = {name: getattr(self, name) for name in ("ways", "shots", "queries")}
        return make_source(self.dataset, options=self.dataset_kwargs, **sizes)

    def source_with(self, **sizes: int | None) -> EpisodeSource:
        """The same with other ways, shots or queries, where they are not None.

        Raises:
            ValueError: in one line, at other ways than in training where the learner takes no others.
        """
        changes = {name: size for name, size in sizes.items() if size is not None}
        ways = changes.get("ways", self.ways)
        if "ways" in changes and not self.source.spec.classification:
            raise ValueError(f"ways must be left out in regression, got {ways}")
        if ways != self.ways and not LEARNERS[self.learner].any_ways:
            raise ValueError(f"ways must be {self.ways}, as in training, for {self.learner}, got {ways}")
        return self.source.resized(**changes)

    @property
    def setting(self) -> str:
        """What an episode is, in words."""
        ways = f"{self.ways}-way " if self.source.spec.classification else ""
        return f"{ways}{self.shots}-shot"

    def make_learner(self) -> FewShotLearner:
        """The learner before training."""
        return make_learner(self.learner, self.source.spec, self.learner_kwargs, self.seed).to(self.device)

    def resolved(self) -> Self:
        """The same: nothing is left open."""
        return self

    def make_model(self) -> FewShotTraining:
        """The training before its first iteration.

        Raises:
            ValueError: in one line that names the file, at a picture that cannot be read.
        """
        for classes in getattr(self.source, "data", {}).values():
            if isinstance(classes.x, Images):
                for i in np.concatenate(classes.members):
                    classes.x[[i]]
        learner = self.make_learner()
        return FewShotTraining(learner, self.source, config=self.hyperparameters, workers=self.workers, seed=self.seed)

    def restore(self, state: dict[str, Any]) -> FewShotTraining:
        """As in the base class."""
        options = {"learner": self.make_learner(), "source": self.source, "config": self.hyperparameters}
        return FewShotTraining.from_state(state, workers=self.workers, **options)
