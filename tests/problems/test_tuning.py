"""Tuning against every rate on its own."""

import numpy as np
import pytest
import torch

from metarl.problems import DigitClassifiers, Quadratics, tune, unroll
from metarl.problems.tuning import RATES, unroll_rates
from metarl.updates import HAND_MADE, RULES

PROBLEM = Quadratics("uniform", dimensions=4, horizon=12)


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize("problem", [PROBLEM, DigitClassifiers((5,), horizon=3)], ids=lambda p: p.name)
def test_rates_side_by_side_are_as_one_after_another(name, problem):
    rates, instances = (0.003, 0.01, 0.1), problem.sample(5, "train", np.random.default_rng(0))
    together = unroll_rates(problem, name, rates, instances, 12, 3)
    assert together.shape == (13, 3, 5)
    for k, rate in enumerate(rates):
        alone = unroll(problem, RULES[name](problem.template(), rate), instances, 12, np.random.default_rng(3))
        torch.testing.assert_close(together[:, k], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("measure", ["mean", "final"])
def test_the_best_is_found(measure):
    rates = (0.003, 0.01, 0.03, 0.1, 10.0)
    best = tune(PROBLEM, ["momentum", "adam"], np.random.default_rng(0), measure=measure, num=40, rates=rates)
    rng = np.random.default_rng(0)
    instances, seed = PROBLEM.sample(40, "train", rng), int(rng.integers(2**63))
    found = {}
    for momentum in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
        for rate in rates:
            rule = RULES["momentum"](PROBLEM.template(), rate, momentum=momentum)
            losses = unroll(PROBLEM, rule, instances, 12, np.random.default_rng(seed))
            mean, final = losses[1:].double().mean().item(), losses[-1].double().mean().item()
            found[rate, momentum] = (mean, final) if np.isfinite(mean) else (np.inf, np.inf)
    rate, momentum = min(found, key=lambda key: found[key][measure == "final"])
    ours = best["momentum"]
    assert (ours.rate, ours.options) == (rate, {"momentum": momentum})
    assert (ours.mean, ours.final) == pytest.approx(found[rate, momentum], rel=1e-4)
    assert best["adam"].options == {}
    assert list(best) == ["momentum", "adam"]


def test_the_edge_of_the_grid_is_told():
    for rates, edge in [((1e-4, 1e-3), True), ((1e-4, 0.03, 10.0), False)]:
        assert tune(PROBLEM, ["sgd"], np.random.default_rng(0), num=20, rates=rates)["sgd"].at_edge == edge


def test_the_grid():
    assert RATES[0] == 1e-4
    assert RATES[-1] == 100
    assert len(RATES) == 37


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"^measure must be one of mean, final, got 'median'$"):
        tune(PROBLEM, ["sgd"], np.random.default_rng(0), measure="median")
    with pytest.raises(
        ValueError, match=r"^sgd diverges on quadratics-uniform at all rates, of which the lowest is 1e\+30$"
    ):
        tune(PROBLEM, ["sgd"], np.random.default_rng(0), num=4, rates=(1e30, 1e35))
