"""What the training of a few-shot learner is made of, as one checked value."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from stable_baselines3.common.utils import get_device

from metarl.fewshot.classes import NWayKShot
from metarl.fewshot.datasets import DATASETS, fingerprint, make_source
from metarl.fewshot.datasets.folders import Images
from metarl.fewshot.episodes import EpisodeSource
from metarl.fewshot.gradient import GradientLearner
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.learners import LEARNERS, make_learner
from metarl.fewshot.training import FewShotTraining, FewShotTrainingConfig
from metarl.plain import check_known
from metarl.run_config import RunConfig, check_available, check_device
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
    data_hash: str | None = None
    """SHA-256 of the data, filled in when a run is made: where they change, the run is refused."""
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
        # runs are looked at from anywhere
        if self.dataset not in DATASETS and Path(self.dataset).exists():
            object.__setattr__(self, "dataset", str(Path(self.dataset).absolute()))
        if isinstance(path := self.dataset_kwargs.get("path"), str | Path):
            absolute = str(Path(path).expanduser().absolute())
            object.__setattr__(self, "dataset_kwargs", {**self.dataset_kwargs, "path": absolute})
        self._check_data()
        self._check_learner()
        if isinstance(self.source, NWayKShot):
            self.source.check("train")
        if self._of_evaluation or self.evaluation.shot_curve:
            self._check_evaluation()

    def _check_data(self) -> None:
        """A `ValueError`, in one line, where the data are no longer those that the run was made with."""
        if self.data_hash is None:
            return
        needs = "and the run cannot be used without its data: restore them, or train again"
        if self.path is not None and not Path(self.path).exists():
            raise ValueError(f"{self.path} is missing, {needs}")
        reason = ""
        try:
            if self.source_hash == self.data_hash:
                return
        except (ValueError, OSError) as error:
            if self.path is None:  # not the data, but a package or fonts are missing
                raise
            reason = f" ({error})"
        raise ValueError(f"{self.path or self.dataset} has changed since the run was made{reason}, {needs}")

    def _check_learner(self) -> None:
        """A `ValueError`, in one line, where the learner, or its evaluation, is not for such tasks."""
        check_known(f"learner {self.learner!r}", self.learner, LEARNERS)
        trained = {name: made for name, made in LEARNERS.items() if made.trained}
        if self.learner not in trained:
            raise ValueError(f"learner must be one that is trained over tasks, but {self.learner} is not")
        kind = "classification" if self.source.spec.classification else "regression"
        fitting = [name for name, made in trained.items() if kind in made.kinds]
        if self.learner not in fitting:
            raise ValueError(
                f"learner must be one for {kind}, as {self.source.name} is ({', '.join(fitting)}), got {self.learner}"
            )
        make_learner(self.learner, self.source.spec, self.learner_kwargs)
        steps, names = self.evaluation.step_curve, (self.learner, *self.evaluation.references)
        if steps and not any(issubclass(LEARNERS[name], GradientLearner) for name in names):
            raise ValueError(
                f"evaluation.step_curve must be empty for {self.learner}, which takes no gradient steps, got {steps}"
            )

    @property
    def _of_evaluation(self) -> list[str]:
        """What of an evaluation's episodes is set."""
        names = ("split", "ways", "shots", "queries")
        return [name for name in names if getattr(self.evaluation, name) != getattr(FewShotEvaluation, name)]

    def _check_evaluation(self) -> None:
        """A `ValueError`, in one line, where there can be no episodes such as the run's own evaluation is to have."""
        asked = self.evaluation
        check_known(f"evaluation.split {asked.split!r}", asked.split, self.source.splits)
        sizes = {name: getattr(asked, name) for name in ("ways", "shots", "queries")}
        of_curve = [("shot_curve", {**sizes, "shots": shots}) for shots in asked.shot_curve]
        for name, changes in [(", ".join(self._of_evaluation), sizes), *of_curve]:
            try:
                source = self.source_with(**changes)
                if isinstance(source, NWayKShot):
                    source.check(asked.split)
            except ValueError as error:
                raise ValueError(f"evaluation.{name}: {error}" if name else str(error)) from error

    @property
    def path(self) -> str | None:
        """Of the data, where they are not found without."""
        return self.dataset_kwargs.get("path") if self.dataset in DATASETS else self.dataset

    @property
    def source_hash(self) -> str | None:
        """SHA-256 of the data as they are now; None where there are none, in regression."""
        return fingerprint(self.source, self.path) if isinstance(self.source, NWayKShot) else None

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
        return make_learner(self.learner, self.source.spec, self.learner_kwargs, self.seed).to(get_device(self.device))

    def resolved(self) -> Self:
        """The same with the hash of its data."""
        resolved = copy.copy(self)  # with the data, which need not be read again
        object.__setattr__(resolved, "data_hash", self.source_hash)
        return resolved

    def make_model(self) -> FewShotTraining:
        """The training before its first iteration.

        Warns (`UserWarning`) where the test split does not suffice for the evaluation that a run has by default.

        Raises:
            ValueError: in one line, at a device that is not here, at more examples than the learner takes, and, naming the
                file, at a picture that cannot be read.
        """
        check_available(self.device)
        if self.evaluation.split in self.source.splits:  # otherwise there is deliberately nothing to test on
            try:
                self._check_evaluation()
            except ValueError as error:
                warnings.warn(f"this can be trained, but not evaluated by default: {error}", stacklevel=2)
        for classes in getattr(self.source, "data", {}).values():
            if isinstance(classes.x, Images):
                for i in chain(*classes.members):
                    classes.x[[i]]
        learner = self.make_learner()
        learner.check_support(self.shots * (self.ways if self.source.spec.classification else 1))
        return FewShotTraining(learner, self.source, config=self.hyperparameters, workers=self.workers, seed=self.seed)

    def restore(self, state: dict[str, Any]) -> FewShotTraining:
        """As in the base class."""
        options = {"learner": self.make_learner(), "source": self.source, "config": self.hyperparameters}
        return FewShotTraining.from_state(state, workers=self.workers, **options)
