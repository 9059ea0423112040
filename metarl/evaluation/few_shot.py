"""What few-shot learners score on episodes that they have not trained on, and what an episode costs them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from metarl.evaluation.compare import distinct
from metarl.evaluation.few_shot_report import FewShotReport, Setting
from metarl.evaluation.npz import reading_npz, save_npz
from metarl.evaluation.statistics import Estimate, estimate


@dataclass(frozen=True)
class FewShotCost:
    """What it costs to learn the support set of one episode and to answer its queries."""

    seconds: float
    """Wall-clock time, with `batch` episodes side by side."""
    batch: int
    threads: int
    """Of PyTorch, while the time was taken."""
    memory: int
    """Bytes that tensors hold at most at one time, for an episode alone, beyond the parameters and the episode itself."""
    gradient_evaluations: int
    """How often a gradient is taken."""
    parameters: int
    """Numbers that the learner consists of."""


@dataclass(frozen=True, eq=False)
class FewShotScores(FewShotReport):
    """What one learner scored on `E` episodes; all intervals are 95 % bootstrap intervals over episodes.

    Raises:
        ValueError: in one line, at scores of unequal number or that are not finite, and at references on other episodes.
    """

    name: str
    """The learner's name."""
    dataset: str
    """Where episodes come from."""
    split: str
    seed: int
    episodes_hash: str
    """SHA-256: scores can be paired episode by episode exactly where it is equal."""
    outputs: int
    """Classes in an episode, or numbers to predict."""
    shots: int
    """Support examples, in classification of each class."""
    queries: int
    """In classification of each class."""
    accuracy: bool
    """Whether scores are shares of queries that were answered rightly; otherwise mean squared errors: lower is better."""
    scores: np.ndarray
    """`[E]`. Learners that normalise do so by the support set's statistics: queries do not see one another (inductive)."""
    transductive: np.ndarray | None = None
    """`[E]`, where all queries of an episode are normalised together; None for learners that do not normalise."""
    by_step: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Inductive scores `[E]` after these numbers of gradient steps."""
    by_shot: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Inductive scores `[E]` with these numbers of shots: on other episodes, drawn by the same seed."""
    by_instance: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Inductive scores `[E]` at the first, second ... example of a class, where all are asked about one after the other."""
    cost: FewShotCost | None = None
    """Of an episode, where it was measured."""
    training_episodes: int | None = None
    """Episodes the learner was trained for, if it was."""
    references: tuple["FewShotScores", ...] = ()
    """What other learners scored on the same episodes."""

    def __post_init__(self):
        if self.scores.ndim != 1 or not len(self.scores):
            raise ValueError(f"scores must have shape [episodes], at least 1, got {self.scores.shape}")
        for (setting, at), scores in self.settings.items():
            what = " ".join(f"{setting} {at} scores of {self.name}".split())
            if scores.shape != self.scores.shape:
                raise ValueError(f"{what} must have shape {self.scores.shape}, got {scores.shape}")
            if not (finite := np.isfinite(scores)).all():
                raise ValueError(f"{what} must be finite, got {scores[~finite][0]} in episode {np.argmin(finite)}")
        for other in self.references:
            _check_same_episodes(self.name, self, other.name, other)

    @property
    def num_episodes(self) -> int:
        """`E`."""
        return len(self.scores)

    @property
    def settings(self) -> dict[Setting, np.ndarray]:
        """All scores `[E]`, by setting."""
        found: dict[Setting, np.ndarray] = {("inductive", ""): self.scores}
        if self.transductive is not None:
            found["transductive", ""] = self.transductive
        found |= {("gradient steps", k): scores for k, scores in self.by_step.items()}
        found |= {("shots", k): scores for k, scores in self.by_shot.items()}
        return found | {("instance", k): scores for k, scores in self.by_instance.items()}

    @cached_property
    def means(self) -> dict[Setting, Estimate]:
        """Mean scores, by setting."""
        return {setting: estimate(scores) for setting, scores in self.settings.items()}

    @property
    def mean(self) -> Estimate:
        """Mean inductive score."""
        return self.means["inductive", ""]

    @property
    def subject(self) -> str:
        """What was learned."""
        task = f"{self.shots}-shot, {self.queries} queries"
        if self.accuracy:
            task = f"{self.outputs}-way {task} per class"
        return f"{self.dataset}, {self.split}: {task} (n = {self.num_episodes:,} episodes)"

    @property
    def ranked_references(self) -> list["FewShotScores"]:
        """References from best to worst."""
        return sorted(self.references, key=lambda other: other.mean.value, reverse=self.accuracy)

    @cached_property
    def everyone(self) -> dict[str, "FewShotScores"]:
        """The learner, then its references from best to worst, by name."""
        return _named([self], [self.name], self.ranked_references)

    @property
    def num_learners(self) -> int:
        """As in the base class."""
        return 1

    def part(self, references: Sequence[str] = (), steps: Sequence[int] = (), shots: Sequence[int] = ()) -> "FewShotScores":
        """The same with no other references, numbers of gradient steps, and of shots, than these."""
        return dataclasses.replace(
            self,
            by_step={k: scores for k, scores in self.by_step.items() if k in steps},
            by_shot={k: scores for k, scores in self.by_shot.items() if k in shots},
            references=tuple(one.part((), steps, shots) for one in self.references if one.name in references),
        )

    def save_npz(self, path: str | Path) -> Path:
        """Write everything, scores of single episodes included, to an `.npz` file without pickles; return its path."""
        everyone = (self, *self.references)
        arrays = {f"{i}/{name}/{at}": a for i, one in enumerate(everyone) for (name, at), a in one.settings.items()}
        apart = {"scores", "transductive", "by_step", "by_shot", "by_instance", "references"}
        kept = {f.name for f in dataclasses.fields(self)} - apart
        header = [{name: getattr(one, name) for name in sorted(kept)} for one in everyone]
        return save_npz(path, header, arrays, default=dataclasses.asdict)

    @classmethod
    def load(cls, path: str | Path) -> "FewShotScores":
        """Read what `save_npz` wrote. Raises `ValueError` when the file is something else."""
        with reading_npz(path, "a file of scores written by FewShotScores.save_npz") as (header, arrays):
            everyone = []
            for i, fields in enumerate(header):
                own = {tuple(key.split("/")[1:]): a for key, a in arrays.items() if key.startswith(f"{i}/")}
                fields |= {"cost": fields["cost"] and FewShotCost(**fields["cost"])}
                everyone.append(
                    cls(
                        scores=own["inductive", ""],
                        transductive=own.get(("transductive", "")),
                        by_step={int(at): a for (name, at), a in own.items() if name == "gradient steps"},
                        by_shot={int(at): a for (name, at), a in own.items() if name == "shots"},
                        by_instance={int(at): a for (name, at), a in own.items() if name == "instance"},
                        **fields,
                    )
                )
            return dataclasses.replace(everyone[0], references=tuple(everyone[1:]))


@dataclass(frozen=True, eq=False)
class FewShotComparison(FewShotReport):
    """Scores of learners on the same episodes, under names that differ. Made by `compare_few_shot`."""

    scores: tuple[FewShotScores, ...]
    """The first is what the others are compared with."""
    names: tuple[str, ...]
    """One for each."""

    @cached_property
    def everyone(self) -> dict[str, FewShotScores]:
        """All by name, then the references of the first that has any, from best to worst."""
        references = next((one.ranked_references for one in self.scores if one.references), [])
        return _named(self.scores, self.names, references)

    @property
    def num_learners(self) -> int:
        """As in the base class."""
        return len(self.scores)


def compare_few_shot(scores: Sequence[FewShotScores], names: Sequence[str] | None = None) -> FewShotComparison:
    """Put learners side by side that were evaluated on the same episodes.

    Args:
        scores: at least two; the first is what the others are compared with.
        names: what to call them, by default their own names, numbered where they repeat.

    Raises:
        ValueError: when two were evaluated on different episodes, naming both.
    """
    scores = tuple(scores)
    if len(scores) < 2:
        raise ValueError(f"scores must be of at least 2 learners, got {len(scores)}")
    names = distinct([one.name for one in scores], names)
    for name, one in zip(names[1:], scores[1:], strict=True):
        _check_same_episodes(names[0], scores[0], name, one)
    return FewShotComparison(scores, names)


def _named(learners: Sequence[FewShotScores], names: Sequence[str], others: Sequence[FewShotScores]) -> dict:
    return dict(zip(distinct([*names, *(other.name for other in others)]), [*learners, *others], strict=True))


def _check_same_episodes(name: str, one: FewShotScores, other_name: str, other: FewShotScores) -> None:
    if other.episodes_hash != one.episodes_hash:
        raise ValueError(
            f"scores must be of the same episodes, but {name!r} has {_episodes(one)} and {other_name!r} {_episodes(other)}: "
            "evaluate both with the same source, split, num_episodes and seed"
        )


def _episodes(scores: FewShotScores) -> str:
    return f"{scores.subject}, seed {scores.seed}, hash {scores.episodes_hash[:12]}"
