"""Evaluating few-shot learners: scores per episode, beside other learners on the same episodes, and what they cost."""

import dataclasses
import hashlib
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from metarl.allocator import keep_freed_memory
from metarl.evaluation.few_shot import FewShotCost, FewShotScores
from metarl.evaluation.few_shot_report import Setting
from metarl.fewshot.episodes import Episodes, EpisodeSource, add_to_hash
from metarl.fewshot.gradient import GradientLearner
from metarl.fewshot.learner import FewShotLearner, check_answers
from metarl.fewshot.networks import BatchNorm
from metarl.fewshot.recurrent import MemoryLearner, accuracy_by_instance
from metarl.plain import check_count
from metarl.updates import Diverged


def evaluate_learner(
    learner: FewShotLearner,
    source: EpisodeSource,
    *,
    name: str | None = None,
    split: str = "test",
    num_episodes: int = 600,
    seed: int = 0,
    references: Mapping[str, FewShotLearner] | None = None,
    steps: Sequence[int] = (),
    shots: Sequence[int] = (),
    batch: int = 20,
    training_episodes: int | None = None,
    progress_bar: bool = False,
) -> FewShotScores:
    """Let a learner adapt to many episodes, and score its answers: accuracy, or mean squared error, of each episode.

    Learners that normalise are scored inductively and transductively; memories that are told labels late, in classification,
    also by instance: see `accuracy_by_instance`. Episodes are drawn once for all learners.

    Args:
        learner: what to evaluate.
        source: where episodes come from.
        name: what tables call the learner; its class by default.
        split: of the episodes.
        num_episodes: how many.
        seed: of the episodes.
        references: other learners to score on the same episodes, by name.
        steps: numbers of gradient steps after which gradient learners are scored too; for each they adapt anew.
        shots: numbers of shots with which all are scored too. These are other episodes, drawn by the same seed.
        batch: episodes side by side; scores are the same, the time taken is not.
        training_episodes: how many the learner was trained for, to be shown.
        progress_bar: show one.

    Raises:
        ValueError: in one line, at episodes that a learner was not made for; `Diverged`, naming learner and episode, where
            parameters or answers do not stay finite.
    """
    learners = {name or type(learner).__name__: learner, **(references or {})}
    if len(learners) <= len(references or {}):
        raise ValueError(f"references must have other names than the learner, got {', '.join(references)}")
    for argument, least, values in (
        ("num_episodes", 1, [num_episodes]),
        ("batch", 1, [batch]),
        ("steps", 0, steps),
        ("shots", 1, shots),
    ):
        if min(values, default=least) < least:
            raise ValueError(f"{argument} must be at least {least}, got {min(values)}")
    if steps and not any(isinstance(one, GradientLearner) for one in learners.values()):
        raise ValueError(f"steps must be empty for learners that take no gradient steps, got {tuple(steps)}")
    for one in learners.values():
        one.check_fits(source.spec)
    check_count("num_episodes", num_episodes)
    check_count("batch", batch)
    keep_freed_memory()
    source = source.unaugmented()
    others = {k: source.resized(shots=k) for k in sorted(set(shots))}

    first = source.episodes(split, [0], seed)
    first.check(source.spec, f"{split} episode 0 of {source.name}")
    steps, seconds, digest = sorted(set(steps)), dict.fromkeys(learners, 0.0), hashlib.sha256()
    found: dict[str, dict[Setting, list[Tensor]]] = {who: defaultdict(list) for who in learners}
    orders = {who: torch.Generator().manual_seed(seed) for who in learners}

    total = num_episodes * len(learners) * (1 + len(others))
    bar = tqdm(total=total, unit=" episodes", disable=not progress_bar)
    with bar, _asked(learners.values()):
        for k, other in others.items():  # learners refuse what they cannot take before the work begins
            episodes = other.episodes(split, [0], seed)
            for who, one in learners.items():
                _Trial(f"{who} ({k} shots)", one, episodes).score()
        costs = {who: _cost(who, one, first) for who, one in learners.items()}  # and the first time, which is slow, is over
        for number, episodes in enumerate(source.stream(split, batch, seed, stop=num_episodes)):
            add_to_hash(digest, episodes)
            for who, one in learners.items():
                trial = _Trial(who, one, episodes, number * batch)
                start = time.perf_counter()
                scores = {("inductive", ""): trial.score()}
                seconds[who] += time.perf_counter() - start
                if any(isinstance(part, BatchNorm) for part in one.modules()):
                    scores["transductive", ""] = trial.score(transductive=True)
                for k in steps if isinstance(one, GradientLearner) else ():
                    again = _Trial(f"{who} ({k} gradient steps)", one, trial.episodes, trial.first)
                    scores["gradient steps", k] = again.adapt(steps=k).score()
                if isinstance(one, MemoryLearner) and one.late_labels and one.spec.classification:
                    by_instance = trial.by_instance(orders[who])
                    scores |= {("instance", k): values for k, values in enumerate(by_instance.T, 1)}
                for setting, values in scores.items():
                    found[who][setting].append(values)
                bar.update(len(episodes.query_x))
        for k, other in others.items():
            for number, episodes in enumerate(other.stream(split, batch, seed, stop=num_episodes)):
                for who, one in learners.items():
                    trial = _Trial(f"{who} ({k} shots)", one, episodes, number * batch)
                    found[who]["shots", k].append(trial.score())
                    bar.update(len(episodes.query_x))

    each = source.spec.outputs if source.spec.classification else 1
    evaluated = []
    for who, one in learners.items():
        scores = {setting: torch.cat(parts).numpy() for setting, parts in found[who].items()}
        for setting in [setting for setting, values in scores.items() if setting[0] == "instance"]:
            if len(scores[setting]) < num_episodes or np.isnan(scores[setting]).any():
                del scores[setting]  # not all episodes have a class of so many
        evaluated.append(
            FewShotScores(
                name=who,
                dataset=source.name,
                split=split,
                seed=seed,
                episodes_hash=digest.hexdigest(),
                outputs=source.spec.outputs,
                shots=first.support_x.shape[1] // each,
                queries=first.query_x.shape[1] // each,
                accuracy=source.spec.classification,
                scores=scores["inductive", ""],
                transductive=scores.get(("transductive", "")),
                by_step={k: values for (setting, k), values in scores.items() if setting == "gradient steps"},
                by_shot={k: values for (setting, k), values in scores.items() if setting == "shots"},
                by_instance={k: values for (setting, k), values in scores.items() if setting == "instance"},
                cost=FewShotCost(seconds[who] / num_episodes, batch, torch.get_num_threads(), *costs[who]),
                training_episodes=training_episodes if one is learner else None,
            )
        )
    return dataclasses.replace(evaluated[0], references=tuple(evaluated[1:]))


class _Trial:
    """A learner with some episodes, the first of which has the number `first`. `Diverged` says whose answers, and where."""

    def __init__(self, who: str, learner: FewShotLearner, episodes: Episodes, first: int = 0):
        self.who, self.learner, self.first = who, learner, first
        self.episodes = episodes.to(learner.like)
        self.kept: Any = None

    def adapt(self, **options: Any) -> Self:
        """Learn the support sets."""
        with self._named(self.who):
            self.kept = self.learner.condition(self.episodes.support_x, self.episodes.support_y, **options)
        return self

    def score(self, transductive: bool = False) -> Tensor:
        """The share of right answers, or the mean squared error, of each episode `[N]`; adapts where that was not done."""
        kept = self.adapt().kept if self.kept is None else self.kept
        outputs = self.learner.answer(kept, self.episodes.query_x, transductive)
        classification = self.learner.spec.classification
        with self._named(f"{self.who} (transductive)" if transductive else self.who):
            check_answers(outputs, classification)
        if classification:
            return (outputs.argmax(-1) == self.episodes.query_y).double().mean(1).cpu()
        return (outputs.double() - self.episodes.query_y).square().mean((1, 2)).cpu()

    def by_instance(self, order: torch.Generator) -> Tensor:
        """`accuracy_by_instance`, `[N, K]`."""
        with self._named(f"{self.who} (by instance)"):
            return accuracy_by_instance(self.learner, self.episodes, order).cpu()

    @contextmanager
    def _named(self, who: str) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            at = self.first + error.task
            raise Diverged(at, f"{who} in episode {at}: {error}") from error


@contextmanager
def _asked(learners: Iterable[FewShotLearner]) -> Iterator[None]:
    """Learners in evaluation mode and without gradients, except for those that they take themselves."""
    were = {learner: learner.training for learner in learners}
    try:
        for learner in were:
            learner.eval()
        with torch.no_grad():
            yield
    finally:
        for learner, training in were.items():
            learner.train(training)


def _cost(who: str, learner: FewShotLearner, episode: Episodes) -> tuple[int, int, int]:
    """Bytes, gradients and parameters, as `FewShotCost` has them."""
    with _Memory() as memory, _Gradients() as gradients:
        _Trial(who, learner, episode).score()
    return memory.peak, gradients.count, sum(parameter.numel() for parameter in learner.parameters())


class _Memory(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations return, as long as they live; not what one needs inside itself."""

    def __init__(self):
        super().__init__()
        self.held: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        results = func(*args, **(kwargs or {}))
        given = {_place(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(results):
            if isinstance(value, Tensor) and (place := _place(value)) not in given and place not in self.held:
                storage = value.untyped_storage()
                self.held[place] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, place)
        self.peak = max(self.peak, sum(self.held.values()))
        return results


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


class _Gradients(TorchFunctionMode):
    """Counts how often a gradient is taken."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        return func(*args, **(kwargs or {}))
