"""Training update rules: one seed gives one rule, whatever interrupts it; callbacks work; errors say what is wrong."""

import numpy as np
import pytest
import torch
from small_models import assert_same
from stable_baselines3.common.callbacks import BaseCallback

from metarl.algorithms.learned_optimizer import OptimizerTraining, OptimizerTrainingConfig, make_problem
from metarl.checkpoint import CheckpointError
from metarl.problems import unroll
from metarl.updates.weights import read_rule

SMALL = {"num_problems": 8, "window": 5, "problem_kwargs": {"dimensions": 3}, "longest": 20, "learning_rate": 1e-3}
AGENTS = {
    "family": "metarl/BernoulliBandit-v0",
    "family_kwargs": {"num_arms": 2, "num_pulls": 4},
    "problem_kwargs": {"slots": 8, "num_steps": 8, "hidden": (4,), "epochs": 2, "minibatches": 2, "horizon": 4},
    "num_problems": 4,
    "window": 2,
}
CONSTANT = {"final_learning_rate": 1e-3}


def make(**kwargs):
    options = {"family": "quadratics", "rule": "mlp", "rate": 0.02, **SMALL, **kwargs}
    return OptimizerTraining(**options)


def assert_same_training(a, b):
    ours, theirs = a.state(), b.state()
    ours.pop("total_timesteps")
    theirs.pop("total_timesteps")
    assert_same(ours, theirs)


@pytest.mark.parametrize("estimator", ["tbptt", "pes"])
@pytest.mark.parametrize("rule", ["mlp", "lstm"])
def test_n_and_n_equal_2n(rule, estimator, tmp_path):
    options = {"rule": rule, "estimator": estimator, "seed": 3, **CONSTANT}
    n = 3 * 8 * 5
    whole = make(**options).learn(2 * n)
    half = make(**options).learn(n)
    half.save(tmp_path / "half.zip")
    torch.manual_seed(9)
    loaded = OptimizerTraining.load(tmp_path / "half.zip")
    assert_same_training(loaded, half)
    assert loaded.learn(n, reset_num_timesteps=False).num_timesteps == 2 * n
    assert_same_training(loaded, whole)
    assert_same_training(half.learn(n, reset_num_timesteps=False), whole)
    other = make(**{**options, "seed": 4}).learn(2 * n)
    assert not all(torch.equal(v, other.rule.state_dict()[k]) for k, v in whole.rule.state_dict().items())


def test_agents_of_a_family_go_on_to_the_bit():
    options = {**AGENTS, "learning_rate": 1e-3, "longest": None, "sigma": 0.3, **CONSTANT}
    whole = make(**options, rate=0.1).learn(64)
    half = make(**options, rate=0.1).learn(32)
    assert half.config.estimator == "pes"
    loaded = OptimizerTraining.from_state(half.state()).learn(32, reset_num_timesteps=False)
    assert_same_training(loaded, whole)
    assert not torch.equal(loaded.rule.weights[-1], make(**options).rule.weights[-1])


class Raising(BaseCallback):
    def _on_step(self):
        return self.n_calls < 2


def test_a_callback_stops_it_between_iterations():
    model = make(**CONSTANT).learn(10 * 40, callback=Raising())
    assert model.num_timesteps == 2 * 40
    assert_same_training(model, make(**CONSTANT).learn(2 * 40))


def test_what_an_exception_interrupts_is_taken_back(monkeypatch):
    model = make(**CONSTANT).learn(40)
    step = torch.optim.Adam.step

    def broken(self, *args):
        step(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        model.learn(40, reset_num_timesteps=False)
    monkeypatch.undo()
    assert_same_training(model, make(**CONSTANT).learn(40))
    assert_same_training(model.learn(40, reset_num_timesteps=False), make(**CONSTANT).learn(80))


def test_learns_and_what_it_exports_is_what_it_learned(tmp_path):
    """From a rate that is far too low, on problems that it was not trained on."""
    model = make(rate=1e-3, num_problems=32, objective="log", learning_rate=3e-2, rule_kwargs={"base": "sgd"})
    problem = model.problem
    instances = problem.sample(64, "test", np.random.default_rng(0))

    def loss(rule):
        return unroll(problem, rule, instances, 20, np.random.default_rng(1))[1:].mean(0).median().item()

    before = loss(model.rule)
    model.learn(150 * 32 * 5)
    after = loss(model.rule)
    assert after < 0.7 * before
    saved = read_rule(model.export(tmp_path / "rule.safetensors"))
    assert (saved.name, saved.options, saved.rate) == ("mlp", {"base": "sgd"}, pytest.approx(1e-3))
    assert loss(saved.make(problem.template())) == after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "quadratic"}, "family 'quadratic' is no Gymnasium id and is unknown (did you mean quadratics?)"),
        ({"problem_kwargs": {"dimension": 3}}, "problem_kwargs.dimension is unknown (did you mean dimensions?)"),
        ({"family_kwargs": {"num_arms": 3}}, "family_kwargs go with an environment's id, but family is quadratics"),
        ({"rule": "mpl"}, "rule 'mpl' is unknown (did you mean mlp?)"),
        ({"rule": "adam"}, "rule 'adam' is unknown: known are mlp, learned, lstm, lstm_meta_learner, optim4rl"),
        ({"rule": "meta_sgd"}, "rule 'meta_sgd' is unknown"),
        ({"rate": -1.0}, "rate must be above 0, got -1.0"),
        ({"rule_kwargs": {"hidden": {4}}}, "rule_kwargs must be what JSON can hold"),
        ({**AGENTS, "objective": "log"}, "objective must be loss, deviation or rank for returns"),
        ({"rule_kwargs": {"bas": "adam"}}, "rule_kwargs do not fit mlp"),
        (
            {**AGENTS, "problem_kwargs": {**AGENTS["problem_kwargs"], "dormancy": True}, "rule": "lstm"},
            "problem_kwargs.dormancy must be false with lstm, which does not read it, got true",
        ),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": "ten"}, "window must be an integer, got 'ten'"),
        ({"sigma": 0.0}, "sigma must be above 0 and finite, got 0.0"),
        ({"max_row_norm": -1.0}, "max_row_norm must be above 0 and finite, got -1.0"),
        (
            {"estimator": "pes", "max_row_norm": 1.0},
            "first_order and max_row_norm are for tbptt, and must be left out with pes",
        ),
        ({**AGENTS, "first_order": False}, "first_order and max_row_norm are for tbptt, and must be left out with pes"),
        ({"estimator": "pes", "num_problems": 7}, "num_problems must be even with pes"),
        ({"estimator": "tbptt", "objective": "rank"}, "objective must be loss, relative or log with tbptt, got rank"),
        ({"shortest": 30}, "shortest must be at most longest (20), got 30"),
        ({**AGENTS, "estimator": "tbptt"}, "estimator must be pes for ppo of metarl/BernoulliBandit-v0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widow": 10}, "unknown hyperparameter 'widow': OptimizerTrainingConfig has estimator, num_problems, "),
        ({"config": {"window": 10}}, "config must be OptimizerTrainingConfig, got dict"),
    ],
)
def test_hyperparameters_of_something_else(arguments, message):
    with pytest.raises(TypeError) as error:
        make(**arguments)
    assert message in str(error.value)


def test_a_checkpoint_of_something_else_is_refused():
    state = make().state()
    with pytest.raises(CheckpointError, match="checkpoint must be of OptimizerTraining, got 'RL2PPO'"):
        OptimizerTraining.from_state({**state, "algorithm": "RL2PPO"})
    with pytest.raises(CheckpointError, match="checkpoint must be of this rule and version"):
        OptimizerTraining.from_state({**state, "rule_kwargs": {"hidden": [5]}})


def test_what_none_stands_for():
    config = OptimizerTrainingConfig()
    smooth = config.resolved_for(make_problem("quadratics"))
    assert (smooth.estimator, smooth.objective, smooth.shortest, smooth.longest) == ("tbptt", "relative", 100, 100)
    rough = config.resolved_for(make_problem(AGENTS["family"], AGENTS["family_kwargs"], AGENTS["problem_kwargs"]))
    assert (rough.estimator, rough.objective, rough.shortest, rough.longest) == ("pes", "deviation", 5, 5)


def test_losses_that_overflow_leave_the_rule_as_it_is():
    """Finite losses whose mean, or whose gradient's norm, is not."""
    model = make(rule="lstm_meta_learner", rate=0.5, estimator="pes", objective="loss", num_problems=16, window=10)
    for _ in range(8):
        model._iterate()
    assert all(value.isfinite().all() for value in model.rule.state_dict().values())
