"""`metarl train learned-optimizer`, `resume` and `evaluate`: from a command to a rule that anybody can use."""

import signal

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3.common.callbacks import BaseCallback

from metarl import cli
from metarl.config import OptimizerConfig, read_config
from metarl.plain import field_sentences
from metarl.problems import tune
from metarl.training import Interrupted, load_optimizer_run, load_run, resume, rule_file, train
from metarl.updates.weights import read_rule

TINY = {
    "problem_kwargs": {"dimensions": 3, "horizon": 10},
    "rate": 0.02,
    "total_timesteps": 240,
    "checkpoint_every": 80,
    "hyperparameters": {"num_problems": 8, "window": 5, "longest": 10},
}
OPTIONS = ["--problem-kwargs", "{dimensions: 3, horizon: 10}", "--num-problems", "8", "--window", "5"]


@pytest.fixture
def metarl(capfd):
    def run(*args):
        code = cli.main([str(arg) for arg in args])
        return code, *capfd.readouterr()

    return run


class Kill(BaseCallback):
    def _on_step(self):
        if self.n_calls == 3:
            signal.raise_signal(signal.SIGTERM)
        return True


def test_trains_interrupted_and_resumed_to_the_bit(tmp_path):
    whole = train(OptimizerConfig(**TINY), tmp_path / "whole", progress_bar=False)
    with pytest.raises(Interrupted, match=r"stopped and saved at step 160 of 240: go on with `metarl resume"):
        train(OptimizerConfig(**TINY), tmp_path / "cut", callback=Kill(), progress_bar=False)
    assert not rule_file(tmp_path / "cut").exists()
    again = resume(tmp_path / "cut", progress_bar=False)
    assert again.num_timesteps == whole.num_timesteps == 240
    ours, theirs = (read_rule(rule_file(tmp_path / name)).weights for name in ("cut", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_config(tmp_path / "cut" / "config.yaml") == OptimizerConfig(**TINY).resolved()
    assert load_optimizer_run(tmp_path / "cut").num_timesteps == 240
    with pytest.raises(ValueError, match=r"config.yaml: algorithm must be rl2, maml here, got learned-optimizer"):
        load_run(tmp_path / "cut")


def test_from_the_command_line(metarl, tmp_path):
    run = tmp_path / "run"
    command = ["train", "learned-optimizer", *OPTIONS, "--rule", "mlp", "--total-timesteps", "160", "--out", run]
    code, output, _ = metarl(*command, "--no-progress-bar")
    assert code == 0
    assert "Tuning the rate on training problems first" in output
    assert f": {run}/rule.safetensors" in output
    assert read_rule(run / "rule.safetensors").name == "mlp"
    rate = yaml.safe_load((run / "config.yaml").read_text())["rate"]
    assert read_rule(run / "rule.safetensors").rate == pytest.approx(rate)
    code, output, errors = metarl("evaluate", run, "--num-problems", "12")
    assert (code, errors) == (0, "")
    assert "quadratics-gaussian, test (n = 12)" in output
    for name in ("mlp", "nesterov", "adam"):
        assert f"\n{name}" in output
    for suffix in ("csv", "png", "html"):
        assert (run / f"optimization.{suffix}").stat().st_size > 500
    code, output, _ = metarl("evaluate", "--num-problems", "12", "--steps", "20", "--split", "train", run)
    assert code == 0
    assert (run / "optimization_train_20.csv").exists()
    (run / "rule.safetensors").unlink()
    code, output, _ = metarl("resume", run, "--no-progress-bar")
    assert (run / "rule.safetensors").exists()
    assert code == 0
    assert output.startswith("Done, at step 160.")


def test_a_saved_config_is_a_preset(metarl, tmp_path):
    train(OptimizerConfig(**TINY), tmp_path / "first", progress_bar=False)
    command = ["train", "learned-optimizer", "--preset", tmp_path / "first" / "config.yaml", "--seed", "5"]
    code, *_ = metarl(*command, "--out", tmp_path / "second", "--no-progress-bar")
    assert code == 0
    first, second = (read_config(tmp_path / name / "config.yaml").plain() for name in ("first", "second"))
    assert {name for name in first if first[name] != second[name]} == {"seed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "mpl"], "rule 'mpl' is unknown (did you mean mlp?)"),
        (["--rule", "adam"], "rule 'adam' is unknown"),
        (["--family", "quadratic"], "did you mean quadratics?"),
        (["--family", "metarl/Grid-v0"], "family must be quadratics, digits or a Gymnasium id, got 'metarl/Grid-v0'"),
        (["--rate", "0"], "rate must be above 0, got 0.0"),
        (["--windw", "3"], "unknown options: --windw, 3; did you mean --window?"),
        (["--window", "0", "--rate", "1"], "window must be at least 1, got 0"),
        (["--rule-kwargs", "{base: foo}"], "base must be one of"),
        (["--preset", "gridnavi"], "algorithm must be learned-optimizer here, got rl2"),
        (["--problem-kwargs", "{dimension: 3}"], "problem_kwargs.dimension is unknown (did you mean dimensions?)"),
        (["--preset", "nothing.yaml"], "--preset nothing.yaml: there is no such file"),
    ],
)
def test_bad_input_is_told_in_one_line(metarl, arguments, message, tmp_path):
    code, _, errors = metarl("train", "learned-optimizer", *arguments, "--out", tmp_path / "run", "--no-progress-bar")
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_every_option_has_a_sentence(metarl):
    code, output, _ = metarl("train", "learned-optimizer", "--help")
    assert code == 0
    for cls in (OptimizerConfig, type(OptimizerConfig().hyperparameters)):
        for name, sentence in field_sentences(cls).items():
            assert sentence, name
            if name not in ("algorithm", "hyperparameters"):
                assert f"--{name.replace('_', '-')}" in output
    _, output, _ = metarl("train", "--help")
    assert "learned-optimizer" in output


def test_bad_numbers_for_an_evaluation(metarl, tmp_path):
    train(OptimizerConfig(**TINY), tmp_path / "run", progress_bar=False)
    for option, value, least in (("--steps", "0", 1), ("--num-problems", "0", 1), ("--seed", "-1", 0)):
        code, _, errors = metarl("evaluate", tmp_path / "run", option, value)
        assert code == 2
        assert f"{option[2:].replace('-', '_')} must be at least {least}, got {value}" in errors


@pytest.mark.parametrize("rule", ["lstm", "optim4rl", "lstm_meta_learner"])
def test_rates_are_tuned_for_what_a_rule_starts_as(rule):
    config = OptimizerConfig(rule=rule, problem_kwargs={"dimensions": 3, "horizon": 10})
    rate = config.resolved().rate
    tuned = tune(config.problem, ["sgd" if rule == "lstm_meta_learner" else "adam"], np.random.default_rng(0), num=256)
    assert rate == next(iter(tuned.values())).rate


def test_options_that_are_given_narrow_the_tuning():
    options = {"base": "momentum", "momentum": 0.5}
    config = OptimizerConfig(rule_kwargs=options, problem_kwargs={"dimensions": 3, "horizon": 10})
    grid = {"momentum": {"momentum": (0.5,)}}
    tuned = tune(config.problem, ["momentum"], np.random.default_rng(0), num=256, options=grid)["momentum"]
    assert config.resolved().rate == tuned.rate
    assert config.resolved().rule_kwargs == options
