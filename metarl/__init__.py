"""metarl: agents that learn to learn, on families of Gymnasium environments.

Importing it registers the environment families of `metarl_envs`. Names load what they need when first used, so that
`import metarl` stays light.
"""

import importlib
from typing import Any

import metarl_envs  # noqa: F401  (registers the families)

_HOME = {
    "AdaptationCurve": "metarl.evaluation",
    "LearnedOptimizer": "metarl.updates.torch_optimizer",
    "Learner": "metarl.algorithms.learner",
    "MAMLConfig": "metarl.algorithms.maml",
    "MAMLPPO": "metarl.algorithms.maml",
    "RL2Config": "metarl.algorithms.rl2",
    "RL2PPO": "metarl.algorithms.rl2",
    "compare": "metarl.evaluation",
    "evaluate": "metarl.evaluation",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metarl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
