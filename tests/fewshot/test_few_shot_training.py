"""One loop trains every learner; it goes on to the bit, takes back what failed, and calls Stable-Baselines3's callbacks."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, ConvertCallback

from metarl.checkpoint import CheckpointError
from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets import make_source
from metarl.fewshot.episodes import EpisodeSource
from metarl.fewshot.learners import LEARNERS, make_learner
from metarl.fewshot.matching import MatchingNetwork
from metarl.fewshot.training import FewShotTraining, FewShotTrainingConfig

SMALL = {
    "hypernetwork": {"codes": 8},
    "leo": {"codes": 4},
    "mann": {"size": 8, "core_kwargs": {"num_slots": 8, "slot_size": 4}},
    "meta_networks": {"size": 4},
    "reptile": {"batch_size": 2},
    "snail": {"size": 8, "core_kwargs": {"filters": 4, "key_size": 4, "value_size": 4}},
}
TRAINED = {name: made for name, made in LEARNERS.items() if made.trained}
EVERY = [(name, kind) for kind in ("classification", "regression") for name, made in TRAINED.items() if kind in made.kinds]
DRAWING = [name for name, made in TRAINED.items() if made.draws]


def source(kind):
    if kind == "regression":
        return make_source("sinusoids", shots=3, queries=3)
    x = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    return NWayKShot("noise", {"train": Classes.from_labels(x, np.arange(24) % 4)}, ways=3, shots=2, queries=2)


def vectors():
    x = np.random.default_rng(0).normal(size=(24, 5))
    return NWayKShot("points", {"train": Classes.from_labels(x, np.arange(24) % 4)}, ways=3, shots=2, queries=2)


def training(name="protonet", kind="classification", learner_seed=0, data=None, **options):
    data = data or source(kind)
    network = {"width": 4} if data.spec.pictures else {"hidden": [6]}
    learner = make_learner(name, data.spec, {**SMALL.get(name, {}), **network}, learner_seed)
    return FewShotTraining(learner, data, **{"batch": 2, **options})


def same(one, other):
    ours, theirs = one.learner.state_dict(), other.learner.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


class StopAt(BaseCallback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        return self.num_timesteps < self.at


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_goes_on_to_the_bit(name, kind, tmp_path):
    whole = training(name, kind).learn(8)
    half = training(name, kind).learn(8, StopAt(4))
    half.save(tmp_path / "half")
    torch.manual_seed(99)  # what others draw is of no account
    fresh = training(name, kind, learner_seed=5)
    again = FewShotTraining.load(tmp_path / "half", learner=fresh.learner, source=source(kind), batch=2)
    assert same(again, half)
    assert not same(again, whole)
    again.learn(4, reset_num_timesteps=False)
    assert again.num_timesteps == 8
    assert same(again, whole)


@pytest.mark.parametrize("name", [*DRAWING, "protonet"])
def test_workers_change_nothing(name):
    alone = training(name).learn(6)
    state = torch.get_rng_state()
    two = training(name, workers=2).learn(6)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(two, alone)
    assert two._stream is None  # its processes have ended


@pytest.mark.parametrize("name", DRAWING)
def test_draws_depend_on_the_seed(name):
    one, other = (training(name, seed=seed).learn(2) for seed in (0, 1))
    assert not same(one, other)


class FailsOnce(EpisodeSource):
    """The episodes of another source, but the first time that one of them is asked for, there is an error."""

    name = "own"

    def __init__(self, source, index):
        self.source, self.index, self.failed, self.spec_ = source, index, False, source.spec

    spec = property(lambda self: self.spec_)

    def stream(self, split, size, seed=0, start=0, workers=0, stop=None):
        for episodes in self.source.stream(split, size, seed, start, workers, stop):
            start += size
            if start > self.index and not self.failed:
                self.failed = True
                raise ValueError("a picture cannot be read")
            yield episodes


@pytest.mark.parametrize("name", ["protonet", "reptile"])
def test_an_iteration_that_fails_leaves_all_as_it_was(name):
    whole = training(name).learn(8)
    cut = training(name, data=FailsOnce(source("classification"), 5))
    with pytest.raises(ValueError, match="a picture cannot be read"):
        cut.learn(8)
    assert cut.num_timesteps == 4
    assert same(cut, training(name).learn(8, StopAt(4)))
    cut.learn(4, reset_num_timesteps=False)
    assert same(cut, whole)


def test_a_loss_that_is_not_finite_is_told_and_costs_nothing():
    whole, cut = training().learn(8), training()
    cut.learn(8, StopAt(4))
    before = {name: value.clone() for name, value in cut.learner.state_dict().items()}
    losses = cut.learner.losses
    cut.learner.losses = lambda *given: losses(*given) * torch.tensor([1.0, float("nan")])
    with pytest.raises(ValueError, match=r"^the loss is not finite in episode 5: try a smaller learning_rate, or [^\n]*$"):
        cut.learn(4, reset_num_timesteps=False)
    del cut.learner.losses
    assert cut.num_timesteps == 4
    assert all(torch.equal(value, before[name]) for name, value in cut.learner.state_dict().items())
    assert same(cut.learn(4, reset_num_timesteps=False), whole)


def test_gradients_that_are_not_finite_are_passed_over():
    model = training()
    before = {name: value.clone() for name, value in model.learner.state_dict().items()}
    losses = type(model.learner).losses

    def steep(episodes, transductive):  # the derivative of a square root at 0
        return losses(model.learner, episodes) + sum((0.0 * p).square().sum().sqrt() for p in model.learner.parameters())

    model.learner.losses = steep
    model.learn(2)
    assert model.num_timesteps == 2
    assert all(torch.equal(value, before[name]) for name, value in model.learner.state_dict().items())
    with pytest.raises(ValueError, match=r"^gradients were not finite 100 times, up to episode 196: try a smaller [^\n]*$"):
        model.learn(1_000)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it loads its compiler
def test_compiled_equals_eager_also_for_the_second_learner(tmp_path):
    for name in ("maml", "reptile", "fomaml"):  # the same parameters: PyTorch must not take one for the other
        eager, compiled = (training(name, "regression", compile=on).learn(8) for on in (False, True))
        theirs = compiled.learner.state_dict()
        for key, value in eager.learner.state_dict().items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-6)
    compiled = training("maml", "regression", compile=True)
    half = training("maml", "regression", compile=True).learn(8, StopAt(4))
    compiled.set_state(half.state())
    assert same(compiled.learn(4, reset_num_timesteps=False), training("maml", "regression", compile=True).learn(8))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_equals_eager_where_classes_are_counted_and_weights_frozen():
    def trained(compiled):
        torch.manual_seed(0)
        learner = MatchingNetwork(vectors().spec, hidden=(4,), learn_temperature=False)
        before = learner.log_scale.clone()
        FewShotTraining(learner, vectors(), batch=2, compile=compiled, max_grad_norm=0.1).learn(6)
        assert torch.equal(learner.log_scale, before)
        return learner

    for ours, theirs in zip(trained(True).parameters(), trained(False).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_compiled_is_told():
    model = training(compile=True)
    model.learner.losses = lambda *_: torch._dynamo.graph_break() or model.learner.network(torch.zeros(1, 1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"^compile must be false: PyTorch cannot compile PrototypicalNetwork$"):
        model.learn(2)


def test_callbacks_and_logs_of_stable_baselines3(tmp_path):
    seen = []
    model = training("protonet", tensorboard_log=str(tmp_path / "log"))
    saving = CheckpointCallback(2, str(tmp_path / "saved"))
    noting = ConvertCallback(lambda locals, _: seen.append(locals["metrics"]) or True)
    assert model.learn(8, [saving, noting], progress_bar=True) is model
    assert len(seen) == 4
    assert seen[0].keys() == {"train/loss", "train/learning_rate", "train/grad_norm"}
    assert [values["train/learning_rate"] for values in seen] == pytest.approx(1e-3 * 0.1 ** (np.arange(4) / 4))
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {"rl_model_4_steps.zip", "rl_model_8_steps.zip"}
    assert any((tmp_path / "log").glob("FewShotTraining_1/events*"))
    assert model.logger is not None
    stopping = training().learn(100, lambda *_: False)
    assert stopping.num_timesteps == 2
    model.learn(2)  # counts anew
    assert model.num_timesteps == 2


def test_rates_move_geometrically():
    rates = []
    training(learning_rate=1e-2, final_learning_rate=1e-4).learn(
        8, lambda locals, _: rates.append(locals["metrics"]["train/learning_rate"]) or True
    )
    assert rates == pytest.approx(1e-2 * 0.01 ** (np.arange(4) / 4))


def test_seed_and_transductive_matter_and_runs_repeat():
    first = training().learn(4)
    assert same(first, training().learn(4))
    assert not same(first, training(seed=1).learn(4))
    assert not same(first, training(transductive=True).learn(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"final_learning_rate": -1.0}, "final_learning_rate must be above 0, got -1.0"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be above 0, got inf"),
    ],
)
def test_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        FewShotTrainingConfig(**options)


def test_bad_input(tmp_path):
    data = source("classification")
    for name in ("from_scratch", "nearest_neighbour"):
        with pytest.raises(ValueError, match=r"^learner must be one that is trained over tasks, but \w+ is not$"):
            FewShotTraining(make_learner(name, data.spec), data)
    for name, spec, message in (
        ("maml", vectors().spec, r"shape of the episodes must be that of MAML's tasks, \(5,\), got \(1, 8, 8\)"),
        ("maml", source("regression").spec, "classification of the episodes must be that of MAML's tasks, False, got True"),
        ("protonet", dataclasses.replace(data.spec, outputs=5), "outputs of .* PrototypicalNetwork's tasks, 5, got 3"),
        ("fine_tuning", dataclasses.replace(data.spec, train_classes=3), "train_classes of .* FineTuning's tasks, 3, got 4"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            FewShotTraining(make_learner(name, spec), data)
    with pytest.raises(ValueError, match=r"^total_timesteps must be at least 1, got 0$"):
        training().learn(0)
    training().learn(2).save(tmp_path / "protonet")
    with pytest.raises(CheckpointError, match=r"^checkpoint must be of MAML, got PrototypicalNetwork$"):
        FewShotTraining.load(tmp_path / "protonet", learner=make_learner("maml", data.spec), source=data)
    refused = r"^checkpoint must be of this learner and version of metarl, made for such tasks: [^\n]{1,204}$"
    with pytest.raises(CheckpointError, match=refused):
        FewShotTraining.load(tmp_path / "protonet", learner=make_learner("protonet", data.spec), source=data)
    with pytest.raises(CheckpointError, match=r"^checkpoint must be of FewShotTraining, got 'PPO'$"):
        FewShotTraining.from_state({"algorithm": "PPO"}, learner=make_learner("protonet", data.spec), source=data)
