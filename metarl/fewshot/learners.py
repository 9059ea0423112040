"""All few-shot learners by name."""

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch

from metarl.fewshot.baselines import FineTuning, FromScratch, MultiTaskAveraging, NearestNeighbour
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.hypernetwork import HyperNetwork
from metarl.fewshot.learned_update import LearnedUpdate, LSTMMetaLearner
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.leo import LEO
from metarl.fewshot.maml import ANIL, FOMAML, MAML, MetaSGD
from metarl.fewshot.mann import MANN
from metarl.fewshot.matching import MatchingNetwork
from metarl.fewshot.meta_networks import MetaNetwork
from metarl.fewshot.networks import embedding
from metarl.fewshot.options import checked
from metarl.fewshot.prototypes import PrototypicalNetwork
from metarl.fewshot.relation import RelationNetwork
from metarl.fewshot.reptile import Reptile
from metarl.fewshot.siamese import SiameseNetwork
from metarl.fewshot.snail import SNAIL
from metarl.plain import check_known

LEARNERS: dict[str, type[FewShotLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "anil": ANIL,
    "reptile": Reptile,
    "meta_sgd": MetaSGD,
    "leo": LEO,
    "lstm_meta_learner": LSTMMetaLearner,
    "learned_update": LearnedUpdate,
    "siamese": SiameseNetwork,
    "matching": MatchingNetwork,
    "protonet": PrototypicalNetwork,
    "relation": RelationNetwork,
    "mann": MANN,
    "snail": SNAIL,
    "meta_networks": MetaNetwork,
    "hypernetwork": HyperNetwork,
    "fine_tuning": FineTuning,
    "averaging": MultiTaskAveraging,
    "from_scratch": FromScratch,
    "nearest_neighbour": NearestNeighbour,
}
"""One of your own is put in here: `LEARNERS["mine"] = Mine`."""


def make_learner(name: str, spec: TaskSpec, options: Mapping[str, Any] | None = None, seed: int = 0) -> FewShotLearner:
    """The learner `name` for such tasks, its parameters drawn by `seed`.

    Raises:
        ValueError: in one line, at an unknown learner or option, or tasks that it cannot learn.
    """
    check_known(f"learner {name!r}", name, LEARNERS)
    if not isinstance(spec, TaskSpec):
        raise ValueError(f"spec must be a TaskSpec, such as the spec of a source, got {type(spec).__name__}")
    options = checked(f"{name}: learner_kwargs.", options or {}, _makers(LEARNERS[name]), given=("self", "spec", "past"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return LEARNERS[name](spec, **options)
        except TypeError as error:  # of a part that takes a mapping of its own
            raise ValueError(f"learner_kwargs do not fit {name}: {error}") from error


def _makers(learner: type[FewShotLearner]) -> Iterator[Callable]:
    """What takes a learner's options: its constructor; the next one, for `**options`; a network, for `**network`."""
    for base in learner.__mro__:
        if "__init__" in vars(base):
            yield base.__init__
            passed_on = {parameter.name for parameter in signature(base.__init__).parameters.values()}
            if "network" in passed_on:
                yield embedding
            if "options" not in passed_on:
                return
