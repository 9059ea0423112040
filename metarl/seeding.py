"""Seeding: named independent random streams, and the state of every generator, so that a run can be continued exactly.

States hold only what a checkpoint holds. Each stream belongs to one purpose: drawing tasks never disturbs exploration.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


def spawn(seed: int, names: Iterable[str]) -> dict[str, np.random.Generator]:
    """One generator per name. A stream depends on `seed` and its own name only, so adding names changes no other.

    Raises:
        ValueError: when `seed` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    keys = {name: np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4").tolist() for name in names}
    return {name: np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)) for name, key in keys.items()}


def generator_state(generator: np.random.Generator | torch.Generator) -> Any:
    """The state of one generator. What NumPy's `Generator.spawn` would return next is not part of it."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.bit_generator.state


def restore_generator(generator: np.random.Generator | torch.Generator, state: Any) -> None:
    """Put a generator into a state from `generator_state`, in place.

    Raises:
        ValueError, TypeError or RuntimeError: when the state is of another kind of generator.
    """
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
