"""Few-shot learning: classification and regression from a few examples, on the parts that RL uses too."""

import importlib
from typing import Any

_HOME = {
    "Classes": "metarl.fewshot.classes",
    "EpisodeSource": "metarl.fewshot.episodes",
    "Episodes": "metarl.fewshot.episodes",
    "FewShotConfig": "metarl.fewshot.config",
    "FewShotLearner": "metarl.fewshot.learner",
    "FewShotTraining": "metarl.fewshot.training",
    "NWayKShot": "metarl.fewshot.classes",
    "TaskSpec": "metarl.fewshot.episodes",
    "evaluate_learner": "metarl.fewshot.evaluate",
    "make_learner": "metarl.fewshot.learners",
    "make_source": "metarl.fewshot.datasets",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metarl.fewshot' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
