"""A checker for vector environments: the contract that trainers lean on, tested from outside."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

Leaves = list[np.ndarray]
"""Arrays with leading axis `num_envs`."""


def check_vector_env(envs: VectorEnv, *, num_steps: int = 120, seed: int = 0) -> None:
    """Check a vector environment in autoreset mode `SAME_STEP` or `DISABLED`, playing random actions.

    - The batched spaces are the single spaces times `num_envs`; what `reset` and `step` return lies in them and has
      the right shapes and types.
    - Arrays that were returned are never written to again.
    - The same seed and actions give the same trajectory.
    - A slot is independent: what happens in it does not depend on what the other slots do.
    - `SAME_STEP`: where an episode ended, `infos["final_obs"]` holds its last observation and `infos["_final_obs"]`
      marks it.
    - `DISABLED`: `reset(options={"reset_mask": ...})` starts episodes in the marked slots only, draws nothing from the
      other slots' random streams, and leaves the caller's dictionary and mask as they were.

    Args:
        envs: the environment; it is reset several times and not closed.
        num_steps: steps per trajectory. What happens at ends of episodes is checked only where they come sooner.
        seed: seeds environment and actions.

    Raises:
        AssertionError: at the first broken rule, saying which.
    """
    mode = envs.metadata.get("autoreset_mode")
    _require(
        mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED),
        "metadata['autoreset_mode'] must be AutoresetMode.SAME_STEP or AutoresetMode.DISABLED, got {!r}",
        mode,
    )
    _check_spaces(envs)
    actions, others = _draw_actions(envs, num_steps, seed), _draw_actions(envs, num_steps, seed + 1)
    reference = _play(envs, actions, seed)
    everywhere = range(envs.num_envs)
    _check_same(reference, _play(envs, actions, seed), everywhere, "two runs with the same seed and actions must be equal")
    if envs.num_envs == 1:
        return
    for slot in (0, envs.num_envs - 1):
        mixed = [_keep_slot(ours, theirs, slot) for ours, theirs in zip(actions, others, strict=True)]
        message = f"slot {slot} must not depend on what its neighbours do"
        _check_same(reference, _play(envs, mixed, seed), [slot], message)
    if mode is AutoresetMode.DISABLED:
        for slot in (0, envs.num_envs - 1):
            disturbed = _play(envs, actions, seed, disturbed=slot)
            rest = [other for other in everywhere if other != slot]
            _check_same(reference, disturbed, rest, "reset_mask must leave the other slots as they were")


def _require(condition: Any, message: str, *values: Any) -> None:
    if not condition:
        raise AssertionError(message.format(*values))


def _leaves(tree: Any) -> Leaves:
    """The arrays of an observation: one, or several for dictionary and tuple spaces."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [np.asarray(tree)]


def _check_spaces(envs: VectorEnv) -> None:
    _require(envs.num_envs >= 1, "num_envs must be at least 1, got {}", envs.num_envs)
    for kind in ("observation", "action"):
        single, batched = getattr(envs, f"single_{kind}_space"), getattr(envs, f"{kind}_space")
        expected = batch_space(single, envs.num_envs)
        _require(batched == expected, "{}_space must be {} for {} slots, got {}", kind, expected, envs.num_envs, batched)


def _draw_actions(envs: VectorEnv, num_steps: int, seed: int) -> list[Any]:
    space = copy.deepcopy(envs.action_space)
    space.seed(seed)
    return [space.sample() for _ in range(num_steps)]


def _keep_slot(ours: Any, theirs: Any, slot: int) -> Any:
    """`theirs`, but `ours` in `slot`."""
    if isinstance(ours, dict):
        return {key: _keep_slot(ours[key], theirs[key], slot) for key in ours}
    if isinstance(ours, tuple):
        return tuple(_keep_slot(a, b, slot) for a, b in zip(ours, theirs, strict=True))
    mixed = theirs.copy()
    mixed[slot] = ours[slot]
    return mixed


class _Returned:
    """Everything that was returned, with copies made at once: a later difference means that an array was reused."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, np.ndarray, np.ndarray]] = []

    def add(self, name: str, tree: Any) -> Leaves:
        leaves = _leaves(tree)
        copies = [leaf.copy() for leaf in leaves]
        self.kept += [(name, leaf, saved) for leaf, saved in zip(leaves, copies, strict=True)]
        return copies

    def check(self) -> None:
        for name, leaf, saved in self.kept:
            _require(_equal(leaf, saved), "{} must be fresh arrays, but ones returned before were written to", name)


def _play(envs: VectorEnv, actions: Sequence[Any], seed: int, disturbed: int | None = None) -> list[Leaves]:
    """Play `actions`, checking form; returns what each step returned, always in the same order.

    Slot `disturbed` is reset at random times, although its episodes have not ended.
    """
    disturbances = np.random.default_rng(seed).random(len(actions)) < 0.1
    returned = _Returned()
    observations, infos = envs.reset(seed=seed)
    _check_observations(envs, observations, infos, "reset")
    record = [returned.add("observations", observations)]
    for action, disturb in zip(actions, disturbances, strict=True):
        if disturbed is not None and disturb:
            observations = _masked_reset(envs, np.arange(envs.num_envs) == disturbed, observations)
        observations, rewards, terminated, truncated, infos = envs.step(action)
        _check_observations(envs, observations, infos, "step")
        _check_vector(envs, "rewards", rewards, "f", "floats")
        _check_vector(envs, "terminated", terminated, "b", "booleans")
        _check_vector(envs, "truncated", truncated, "b", "booleans")
        _require(np.isfinite(rewards).all(), "rewards must be finite, got {}", rewards)
        row = returned.add("observations", observations) + returned.add("rewards", rewards)
        row += returned.add("terminated", terminated) + returned.add("truncated", truncated)
        done = terminated | truncated
        if envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            row.append(_final_observations(envs, infos, done))
        else:
            observations = _masked_reset(envs, done, observations) if done.any() else observations
            row += returned.add("observations", observations)
        record.append(row)
    returned.check()
    return record


def _check_observations(envs: VectorEnv, observations: Any, infos: Any, method: str) -> None:
    space = envs.observation_space
    _require(space.contains(observations), "{} must return observations in {}, got {!r}", method, space, observations)
    _require(isinstance(infos, dict), "{} must return infos as a dictionary, got {!r}", method, infos)


def _check_vector(envs: VectorEnv, name: str, values: Any, kind: str, what: str) -> None:
    _require(isinstance(values, np.ndarray), "{} must be a NumPy array, got {!r}", name, values)
    right = values.shape == (envs.num_envs,) and values.dtype.kind == kind
    message = "{} must be {} of shape ({},), got {} {}"
    _require(right, message, name, what, envs.num_envs, values.dtype, values.shape)


def _final_observations(envs: VectorEnv, infos: dict[str, Any], done: np.ndarray) -> np.ndarray:
    """The last observations of the episodes that `done` marks, as objects `[B]`."""
    finals = np.full(envs.num_envs, None, object)
    if not done.any():
        return finals
    _require("final_obs" in infos, "infos must hold 'final_obs' when an episode ends in autoreset mode SAME_STEP")
    marks = infos.get("_final_obs")
    _require(np.array_equal(marks, done), "infos['_final_obs'] must mark the slots that ended, {}, got {}", done, marks)
    space = envs.single_observation_space
    for slot in np.flatnonzero(done):
        finals[slot] = copy.deepcopy(_slot(infos["final_obs"], slot))
        inside = space.contains(finals[slot])
        _require(inside, "infos['final_obs'][{}] must lie in {}, got {!r}", slot, space, finals[slot])
    return finals


def _slot(tree: Any, slot: int) -> Any:
    if isinstance(tree, dict):
        return {key: _slot(value, slot) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_slot(part, slot) for part in tree)
    return tree[slot]


def _masked_reset(envs: VectorEnv, mask: np.ndarray, before: Any) -> Any:
    """Reset the slots in `mask`; `before` are the observations that the others must keep."""
    options = {"reset_mask": mask.copy()}
    observations, infos = envs.reset(options=options)
    _require(
        options.keys() == {"reset_mask"} and np.array_equal(options["reset_mask"], mask),
        "reset must leave the caller's options as they were",
    )
    _check_observations(envs, observations, infos, "reset")
    for old, new in zip(_leaves(before), _leaves(observations), strict=True):
        _require(_equal(old[~mask], new[~mask]), "reset_mask must leave the observations of the other slots as they were")
    return observations


def _check_same(first: list[Leaves], second: list[Leaves], slots: Sequence[int], message: str) -> None:
    """Compare two records in `slots`."""
    for step, rows in enumerate(zip(first, second, strict=True)):
        for ours, theirs in zip(*rows, strict=True):
            if ours.dtype != object and _equal(ours, theirs):
                continue
            for slot in slots:
                pairs = zip(_leaves(ours[slot]), _leaves(theirs[slot]), strict=True)
                same = all(_equal(a, b) for a, b in pairs)
                _require(same, "{}, but slot {} differs after {} steps", message, slot, step)


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind in "fc" and second.dtype.kind in "fc")
