"""Inner trainings side by side, on a problem with minibatches whose steps can be followed by hand."""

import numpy as np
import pytest
import torch

from metarl.problems import Problem, Run, instances_hash, restart, unroll
from metarl.problems.base import repeat, split_stream, with_tensors
from metarl.updates import RULES


class Targets(Problem):
    """`(p - b)^2 / 2` for a number `b` drawn around `t` at every step; so a rate of `r` gives `p - r (p - b)`."""

    name, horizon = "targets", 5

    def sample(self, num, split, rng):
        return {"t": torch.from_numpy(split_stream(self, num, split, rng).standard_normal(num))}

    def start(self, instances, rng):
        return {"p": torch.from_numpy(rng.standard_normal(len(instances["t"])))}

    def template(self):
        return {"p": torch.zeros((), dtype=torch.float64)}

    def draw(self, instances, rng):
        return instances["t"] + torch.from_numpy(rng.standard_normal(len(instances["t"])))

    def losses(self, params, instances, batch):
        return (params["p"] - batch).square() / 2


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_unroll_against_steps_by_hand():
    problem = Targets()
    instances = problem.sample(3, "train", np.random.default_rng(0))
    losses = unroll(problem, RULES["sgd"](problem.template(), 0.25), instances, 4, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    p, t = rng.standard_normal(3), instances["t"].numpy()
    for step in range(5):
        b = t + rng.standard_normal(3)
        np.testing.assert_allclose(losses[step], (p - b) ** 2 / 2, rtol=1e-12)
        p = p - 0.25 * (p - b)
    assert losses.shape == (5, 3)
    assert not losses.requires_grad


def test_gradients_are_each_rows_own_and_constants():
    problem = Targets()
    params = {"p": numbers(1, 2).requires_grad_()}
    gradients, losses = problem.gradients(params, {}, numbers(0, 5))
    assert gradients["p"].tolist() == [1, -3]
    assert losses.tolist() == [0.5, 4.5]
    assert not gradients["p"].requires_grad
    assert not losses.requires_grad


def test_copies_share_instance_start_and_minibatches():
    problem, rng = Targets(), np.random.default_rng(0)
    rule = RULES["momentum"](problem.template(), 0.1)
    instances = problem.sample(4, "train", rng)
    run = problem.begin(rule, instances, rng, copies=3)
    assert torch.equal(run.instances["t"], instances["t"].repeat(3))
    assert run.age.tolist() == [0] * 12
    for _ in range(3):
        run, before = problem.advance(run, rule, rng, copies=3)
        blocks = before.view(3, 4)
        assert torch.equal(blocks[0], blocks[1])
        assert torch.equal(blocks[0], blocks[2])
        assert len(set(blocks[0].tolist())) == 4  # within a block all differ
    assert run.age.tolist() == [3] * 12
    assert torch.equal(*problem.measure(run, rng, copies=3)[:8].chunk(2))
    run, _ = problem.advance(run, rule, rng)  # without copies each row has its own
    assert len(set(run.params["p"].tolist())) == 12


def test_rows_with_tensors_of_their_own():
    problem = Targets()
    instances = problem.sample(2, "train", np.random.default_rng(0))
    rule = RULES["nesterov"](problem.template(), 7.0)
    rates = {"rate": numbers(0.125, 0.125, 0.25, 0.25)[:, None]}
    both = with_tensors(rule, rates, lambda r: unroll(problem, r, instances, 3, np.random.default_rng(1), copies=2))
    assert rule.rate.item() == 7.0  # put back
    for row, rate in enumerate((0.125, 0.25)):
        rule = RULES["nesterov"](problem.template(), rate).double()
        alone = unroll(problem, rule, instances, 3, np.random.default_rng(1))
        torch.testing.assert_close(both[:, 2 * row : 2 * row + 2], alone, rtol=1e-12, atol=0)


def test_restart_of_rows():
    def run(number):
        params = {"a": torch.full((3, 2, 2), number), "b": torch.full((3,), number)}
        state = (torch.full((3, 1), number), {"m": torch.full((3,), number)}, ())
        return Run(params, state, {"t": torch.full((3,), number)}, torch.full((3,), int(number)))

    old = run(1.0)
    old.params["a"][1] = float("nan")
    mixed = restart(old, torch.tensor([False, True, False]), run(2.0))
    assert mixed.params["a"].flatten(1).tolist() == [[1] * 4, [2] * 4, [1] * 4]
    assert mixed.params["b"].tolist() == mixed.state[1]["m"].tolist() == mixed.instances["t"].tolist() == [1, 2, 1]
    assert mixed.state[0].tolist() == [[1], [2], [1]]
    assert mixed.age.tolist() == [1, 2, 1]


def test_repeat_keeps_blocks_together():
    repeated = repeat(({"a": torch.tensor([[1, 2], [3, 4]])}, torch.tensor([5, 6])), 2)
    assert repeated[0]["a"].tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert repeated[1].tolist() == [5, 6, 5, 6]


def test_splits_never_coincide_even_for_equal_generators():
    problem = Targets()
    train, again, test = (problem.sample(50, split, np.random.default_rng(0))["t"] for split in ("train", "train", "test"))
    assert torch.equal(train, again)
    assert not set(train.tolist()) & set(test.tolist())
    rng = np.random.default_rng(0)
    assert not set(train.tolist()) & set(
        (problem.sample(50, "train", rng), problem.sample(50, "train", rng))[1]["t"].tolist()
    )


def test_hash_of_instances():
    instances = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3, 4])}
    same = instances_hash({"b": torch.tensor([3, 4]), "a": torch.tensor([1.0, 2.0])})
    assert instances_hash(instances) == same
    for other in (
        {**instances, "b": torch.tensor([4, 3])},
        {**instances, "b": torch.tensor([3.0, 4.0])},
        {**instances, "a": torch.tensor([[1.0], [2.0]])},
        {"a": instances["a"], "c": instances["b"]},
    ):
        assert instances_hash(other) != same


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"^split must be one of train, test for targets, got 'ood'$"):
        Targets().sample(2, "ood", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^num must be at least 1, got 0$"):
        Targets().sample(0, "test", np.random.default_rng(0))
