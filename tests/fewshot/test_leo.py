"""LEO: against the paper's equations, task by task and pair by pair; what is drawn when; and learning."""

import math

import pytest
import torch
from metric_checks import (
    NUMBERS,
    PICTURES,
    VECTORS,
    accuracy,
    check_tasks_queries_and_orders,
    episodes,
    moved,
    vectors_in_noise,
)
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy, mse_loss

from metarl.fewshot.datasets.curves import Sinusoids
from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.leo import LEO
from metarl.fewshot.training import FewShotTraining
from metarl.updates import Diverged

SPECS = {"pictures": PICTURES, "vectors": VECTORS, "regression": NUMBERS}
WEIGHTS = dict(kl=0.3, encoder_penalty=0.2, orthogonality=0.4)


def make(spec, **options):
    torch.manual_seed(0)
    network = {"width": 4} if spec is PICTURES else {"hidden": (6,)}
    return moved(LEO(spec, **{"codes": 5, "steps": 3, "tune_steps": 2, "tune_rate": 0.1, **network, **options}))


class Twin:
    """One task, with one loop for every sum."""

    def __init__(self, learner, data, draws):
        self.learner, self.data, self.draws = learner, data, draws
        self.features, self.stats = learner.network(data.support_x)

    def normal(self, mean, std):
        return mean + std * torch.randn(1, *mean.shape)[0] if self.draws else mean

    def codes(self):
        spec, y, f = self.learner.spec, self.data.support_y[0], self.features[0]
        if not spec.classification:
            f = torch.cat([f, y], 1)
        e = [self.learner.encoder.weight @ one for one in f]
        means = []
        for n in range(spec.outputs if spec.classification else 1):
            own = [i for i in range(len(f)) if not spec.classification or y[i] == n]
            total, first, second, third = 0.0, *(self.learner.relations[k].weight for k in (0, 2, 4))
            for i in own:
                for j in range(len(f)):
                    total = total + third @ (second @ (first @ torch.cat([e[i], e[j]])).relu()).relu()
            means.append(total / (len(own) * len(f)))
        return torch.stack(means).chunk(2, -1)

    def decode(self, code):
        mean, log_std = (self.learner.decoder.weight @ code.T).T.chunk(2, -1)
        spec, features = self.learner.spec, self.features.shape[-1] + (not self.learner.spec.classification)
        weights = self.normal(mean, math.sqrt(2.0 / (features + spec.outputs)) * log_std.exp())
        return weights.reshape(spec.outputs, features)

    def outputs(self, weights, f):
        if not self.learner.spec.classification:
            f = torch.cat([f, torch.ones(len(f), 1)], 1)
        return torch.stack([torch.stack([(w * one).sum() for w in weights]) for one in f])

    def error(self, weights, f, y):
        return (cross_entropy if self.learner.spec.classification else mse_loss)(self.outputs(weights, f), y)

    def run(self):
        f, y = self.features[0], self.data.support_y[0]
        self.mean, self.log_std = self.codes()
        self.start = z = self.normal(self.mean, self.log_std.exp())
        for _ in range(self.learner.steps):
            (gradient,) = torch.autograd.grad(self.error(self.decode(z), f, y), z, create_graph=True)
            z = z - self.learner.code_rule.rates["value"] * gradient
        w = self.decode(z)
        for _ in range(self.learner.tune_steps):
            (gradient,) = torch.autograd.grad(self.error(w, f, y), w, create_graph=True)
            w = w - self.learner.weight_rule.rates["value"] * gradient
        self.end, query = z, self.learner.network(self.data.query_x, stats=self.stats)[0][0]
        return self.outputs(w, query), self.error(w, query, self.data.query_y[0])


def alone(data, n):
    return Episodes(*(part[n : n + 1] for part in data))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_against_the_equations(spec):
    learner, data = make(spec), episodes(spec)
    outputs = learner(*data[:3])
    for n in range(3):
        torch.testing.assert_close(outputs[n], Twin(learner, alone(data, n), draws=False).run()[0])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_loss_and_its_gradients(spec):
    """Derivatives flow through the steps and the draws, and for the penalty not through where codes end."""
    learner, data = make(spec, **WEIGHTS), alone(episodes(spec), 0)
    parameters = dict(learner.named_parameters())
    torch.manual_seed(5)
    loss = learner.losses(data).sum()
    found = torch.autograd.grad(loss, parameters.values())
    torch.manual_seed(5)
    twin = Twin(learner, data, draws=True)
    expected = twin.run()[1]
    expected = expected + 0.3 * kl_divergence(Normal(twin.mean, twin.log_std.exp()), Normal(0.0, 1.0)).mean()
    expected = expected + 0.2 * (twin.end.detach() - twin.start).square().mean()
    rows = learner.decoder.weight.T
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            expected = expected + 0.4 / 25 * ((a @ b) / (a.norm() * b.norm()) - float(i == j)) ** 2
    torch.testing.assert_close(loss, expected)
    for name, one, other in zip(
        parameters, found, torch.autograd.grad(expected, parameters.values(), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(one, other, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_gradients_against_finite_differences(spec):
    learner, data = make(spec, encoder_penalty=0.0), episodes(spec)
    parameters = [*learner.parameters()]
    directions = [torch.randn_like(value) for value in parameters]

    def loss(size=None):
        torch.manual_seed(5)
        if size is None:
            return learner.losses(data).sum()
        with torch.no_grad():
            for value, direction in zip(parameters, directions, strict=True):
                value += size * direction
        result = loss()
        with torch.no_grad():
            for value, direction in zip(parameters, directions, strict=True):
                value -= size * direction
        return result.detach()

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    torch.testing.assert_close((loss(1e-6) - loss(-1e-6)) / 2e-6, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_nothing_is_drawn_after_meta_training(spec):
    learner, data = make(spec), episodes(spec)
    for training in (True, False):
        state = torch.random.get_rng_state()
        first = learner.train(training)(*data[:3])
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(first, learner(*data[:3]))
    assert not torch.equal(learner.losses(data), learner.losses(data))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tasks_queries_and_orders(spec):
    check_tasks_queries_and_orders(make(spec))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_gradients_of_both_kinds_are_the_same(spec):
    learner, data = make(spec), episodes(spec)
    results = []
    for learner.functional in (False, True):
        torch.manual_seed(5)
        losses = learner.losses(data)
        with torch.no_grad():
            answers = learner(*data[:3])
        torch.testing.assert_close(answers, learner(*data[:3]))
        results.append((losses, answers, *torch.autograd.grad(losses.sum(), [*learner.parameters()])))
    torch.testing.assert_close(*results)


def test_it_learns_to_classify():
    torch.manual_seed(0)
    source = vectors_in_noise()
    learner, test = LEO(source.spec), source.episodes("test", range(100))
    FewShotTraining(learner, source, learning_rate=3e-3).learn(1200)
    assert accuracy(learner.eval(), test) > 0.75


def test_it_learns_curves():
    torch.manual_seed(0)
    source = Sinusoids()
    learner, test = LEO(source.spec), source.episodes("test", range(100))
    FewShotTraining(learner, source, batch=8, learning_rate=3e-3).learn(2400)
    with torch.no_grad():
        assert learner.task_losses(learner(*test[:3]), test.query_y).mean() < 2.0  # the mean function: 3.4


def test_a_task_that_diverges_is_named():
    learner, data = make(NUMBERS, rate=10.0, steps=50), episodes(NUMBERS)
    data.support_y[1] *= 1e18
    with torch.no_grad(), pytest.raises(Diverged, match=r"^the inner loop diverged at gradient step \d+"):
        learner(*data[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(codes=0), "codes must be an integer of at least 1, got 0"),
        (dict(steps=0), "steps must be an integer of at least 1, got 0"),
        (dict(tune_steps=0), "tune_steps must be an integer of at least 1, got 0"),
        (dict(rate=0.0), "rate must be above 0, got 0.0"),
        (dict(tune_rate=-1.0), "tune_rate must be above 0, got -1.0"),
        (dict(kl=-1.0), "kl must be at least 0, got -1.0"),
        (dict(orthogonality=float("nan")), "orthogonality must be at least 0, got nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        LEO(TaskSpec(shape=(4,), outputs=3), **options)
