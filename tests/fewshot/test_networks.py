"""Networks on many tasks: normalisation against PyTorch's, own parameters against shared ones, what `embedding` makes."""

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import batch_norm

from metarl.batched import for_tasks, of_task
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.networks import BatchNorm, PastNorm, TokenMean, embedding

pytestmark = pytest.mark.usefixtures("double")

N, M = 3, 4
SMALL = TaskSpec(shape=(2, 9, 12), outputs=3)
OMNIGLOT = TaskSpec(shape=(1, 28, 28), outputs=5)
IMAGENET = TaskSpec(shape=(3, 84, 84), outputs=5)
VECTORS = TaskSpec(shape=(5,), outputs=3)
TEXTS = TaskSpec(shape=(6,), outputs=3, vocabulary=11)
NUMBERS = TaskSpec(shape=(1,), outputs=1, classification=False)
NETWORKS = {
    "conv": (SMALL, dict(kind="conv", width=3)),
    "strided": (SMALL, dict(kind="strided", width=3)),
    "two halvings": (SMALL, dict(kind="conv", width=3, halvings=2)),
    "not normalised": (SMALL, dict(width=3, normalise=False)),
    "mlp": (VECTORS, {}),
    "mlp on pictures": (SMALL, dict(kind="mlp", hidden=(7,))),
    "text": (TEXTS, dict(width=4, hidden=(7,))),
}


def examples(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if spec.vocabulary:
        return torch.randint(0, spec.vocabulary, (N, M, *spec.shape), generator=generator)
    return torch.randn(N, M, *spec.shape, generator=generator)


def own_params(network, scale=0.3):
    """A set for each task, all different."""
    torch.manual_seed(1)
    shared = network.initial_params()
    return {name: (v + scale * torch.randn(N, *v.shape)).detach().requires_grad_() for name, v in shared.items()}


def norm(features=3):
    torch.manual_seed(0)
    layer = BatchNorm(features)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


# -- normalisation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("shape", [(), (4, 5)])
def test_batch_norm_against_pytorch(shape, per_task):
    layer, x = norm(), (3.0 + 2.0 * torch.randn(N, M, 3, *shape)).requires_grad_()
    weight, bias = layer.weight, layer.bias
    if per_task:
        weight, bias = (torch.randn(N, 3, requires_grad=True) for _ in range(2))
    stats = layer.statistics(x)
    assert [part.shape for part in stats] == [(N, 3)] * 2
    ours, _ = layer(x, None, weight, bias)
    parts = [(weight[n], bias[n]) if per_task else (weight, bias) for n in range(N)]
    theirs = torch.stack([batch_norm(x[n], None, None, *parts[n], training=True, eps=1e-5) for n in range(N)])
    torch.testing.assert_close(ours, theirs)
    variables = (x, weight, bias)
    slopes = [torch.autograd.grad(out.pow(3).sum(), variables, create_graph=True) for out in (ours, theirs)]
    torch.testing.assert_close(*slopes)
    curvatures = [torch.autograd.grad(sum(g.sin().sum() for g in slope), variables) for slope in slopes]
    torch.testing.assert_close(*curvatures)


def test_batch_norm_against_finite_differences():
    layer = norm(2)
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in [(2, 3, 2, 2, 1), (2, 2), (2, 2)])

    def call(x, weight, bias):
        return layer(x, None, weight, bias)[0]

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


def test_batch_norm_by_hand():
    """Mean 2 and variance 4; a channel that is constant becomes the bias."""
    layer = norm(2)
    x = torch.tensor([[[0.0, 7.0], [4.0, 7.0]]])
    mean, variance = layer.statistics(x)
    assert mean.tolist() == [[2, 7]]
    assert variance.tolist() == [[4, 0]]
    out, _ = layer(x, (mean, variance), torch.tensor([3.0, 3.0]), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(out, torch.tensor([[[-2.0, -1.0], [4.0, -1.0]]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("shape", [(), (4, 5)])
def test_past_norm_is_batch_norm_of_all_examples_so_far(shape, per_task):
    torch.manual_seed(0)
    layer, reference, x = PastNorm(3), norm(), 3.0 + 2.0 * torch.randn(N, M, 3, *shape)
    parameters = [torch.randn(*[N] * per_task, 3) for _ in range(2)]
    y, past = layer(x, None, *parameters)
    for m in range(M):
        theirs, _ = reference(x[:, : m + 1], None, *parameters)
        torch.testing.assert_close(y[:, m], theirs[:, m])
    queries = torch.randn(N, 2, 3, *shape)
    answers, again = layer(queries, past, *parameters)
    for q in range(2):
        theirs, _ = reference(torch.cat([x, queries[:, q : q + 1]], 1), None, *parameters)
        torch.testing.assert_close(answers[:, q], theirs[:, -1])
    assert all(torch.equal(one, other) for one, other in zip(past, again, strict=True))


@pytest.mark.parametrize("kind", ["strided", "conv"])
@pytest.mark.parametrize("size", [2, 3, 8, 28])
def test_the_first_picture_is_seen_by_networks_that_normalise_by_the_past(kind, size):
    """What is normalised by itself alone must be larger than 1 x 1, or nothing is left of it."""
    network, _ = embedding(TaskSpec((1, size, size), 5), kind, 6, past=True)
    features, _ = network(torch.rand(7, 1, 1, size, size))
    assert len(features.flatten(1).unique(dim=0)) == 7


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.0), (10.0, 0.1), (1000.0, 1.0)])
def test_past_norm_in_single_precision(mean, deviation):
    """Where the first pictures are blank, and where means are large against deviations."""
    torch.manual_seed(0)
    x = mean + deviation * torch.randn(N, 6, 3, 4, 5).float()
    if not deviation:
        x[:, 2:] = torch.randn(N, 4, 3, 4, 5)
    layer, weight = PastNorm(3), torch.randn(N, 6, 3, 4, 5)
    found = []
    for dtype in (torch.float32, torch.float64):
        values = x.to(dtype, copy=True).requires_grad_()
        y, _ = layer.to(dtype)(values, None, layer.weight, layer.bias)
        found.append((y.double(), torch.autograd.grad((y * weight.to(dtype)).sum(), values)[0].double()))
    (y, slopes), (exact, exact_slopes) = found
    torch.testing.assert_close(y, exact, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(slopes / exact_slopes.abs().max(), exact_slopes / exact_slopes.abs().max(), rtol=0, atol=2e-3)


# -- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_own_parameters_against_one_task_after_another(name):
    """Values and first and second derivatives."""
    spec, options = NETWORKS[name]
    network, _ = embedding(spec, **options)
    params, x = own_params(network), examples(spec)
    ours, _ = network(x, params)
    theirs = torch.cat([functional_call(network, of_task(params, n), (x[n : n + 1],))[0] for n in range(N)])
    torch.testing.assert_close(ours, theirs)
    variables = list(params.values())
    slopes = [torch.autograd.grad(out.square().sum(), variables, create_graph=True) for out in (ours, theirs)]
    torch.testing.assert_close(*slopes)
    curvatures = [torch.autograd.grad(sum(g.square().sum() for g in slope), variables) for slope in slopes]
    torch.testing.assert_close(*curvatures)


@pytest.mark.parametrize("name", NETWORKS)
def test_shared_parameters_are_the_same_for_every_task(name):
    spec, options = NETWORKS[name]
    network, features = embedding(spec, **options)
    x = examples(spec)
    shared, stats = network(x)
    assert shared.shape == (N, M, features)
    out, other_stats = network(x, for_tasks(network.initial_params(), N))
    torch.testing.assert_close((shared, stats), (out, other_stats))
    both = [torch.autograd.grad(y.square().sum(), network.initial_params().values()) for y in (shared, out)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("per_task", [False, True])
def test_statistics_are_of_a_task_or_given(name, per_task):
    spec, options = NETWORKS[name]
    network, _ = embedding(spec, **options)
    params, x = own_params(network) if per_task else None, examples(spec)
    out, stats = network(x, params)
    assert len(stats) == sum(isinstance(layer, BatchNorm) for layer in network.layers)
    assert network.normalises == bool(stats)
    for n in range(N):
        own = {name: value[n : n + 1] for name, value in params.items()} if per_task else None
        torch.testing.assert_close(network(x[n : n + 1], own)[0], out[n : n + 1])
    again, used = network(x, params, stats)
    torch.testing.assert_close(again, out)
    assert all(
        one is other for ours, theirs in zip(used, stats, strict=True) for one, other in zip(ours, theirs, strict=True)
    )
    one, _ = network(x[:, :1], params, stats)  # what is given does not depend on the other examples
    torch.testing.assert_close(one, out[:, :1])
    if stats:
        assert not torch.allclose(network(x[:, :2], params)[0], out[:, :2])


def test_means_of_tokens_by_hand():
    layer = TokenMean(4, 2)
    layer.weight.data = torch.tensor([[100.0, 100.0], [1.0, 2.0], [3.0, 6.0], [0.0, 1.0]])
    layer.length.data.fill_(5.0)
    layer.weight.data[3] = torch.tensor([0.5, 0.0])
    tokens = torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0], [3, 3, 3, 3], [3, 3, 3, 1]])
    expected = [[5**0.5, 2 * 5**0.5], [0, 0], [5, 0], [5 * 2.5 / 10.25**0.5, 5 * 2 / 10.25**0.5]]
    torch.testing.assert_close(layer(tokens), torch.tensor(expected))


# -- what there is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "options", "features"),
    [
        (OMNIGLOT, {}, 64 * 2 * 2),
        (OMNIGLOT, dict(kind="conv"), 64),
        (OMNIGLOT, dict(halvings=2), 64 * 7 * 7),
        (OMNIGLOT, dict(halvings=0, width=2), 2 * 28 * 28),
        (IMAGENET, dict(width=32), 32 * 5 * 5),
        (IMAGENET, dict(width=2, halvings=2), 2 * 21 * 21),
        (SMALL, dict(width=3), 3),
        (SMALL, dict(width=3, kind="conv"), 3 * 1 * 1),
        (VECTORS, {}, 64),
        (NUMBERS, {}, 40),
        (TEXTS, dict(hidden=(8, 9)), 9),
    ],
)
def test_features(spec, options, features):
    network, said = embedding(spec, **options)
    x = examples(spec)[:1, :1]
    assert said == network(x)[0].shape[-1] == features


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (VECTORS, dict(kind="conv"), r"kind must be mlp for examples of shape \(5,\), which are no pictures, got conv"),
        (TEXTS, dict(kind="strided"), r"kind must be mlp for examples of shape \(6,\), which are no pictures, got strided"),
        (SMALL, dict(width=0), "width must be an integer of at least 1, got 0"),
        (SMALL, dict(halvings=-1), "halvings must be an integer of at least 0, got -1"),
        (SMALL, dict(hidden=(7,)), "hidden must be left out for a network of kind strided, which has no use for it"),
        (VECTORS, dict(width=7), "width must be left out for a network of kind mlp, which has no use for it"),
        (TEXTS, dict(halvings=1), "halvings must be left out for a network of kind mlp, which has no use for it"),
        (VECTORS, dict(normalise="none"), "normalise must be left out for a network of kind mlp, which has no use for it"),
        (VECTORS, dict(hidden=()), r"hidden must be sizes of at least 1, got \(\)"),
        (VECTORS, dict(hidden=(4, 0)), r"hidden must be sizes of at least 1, got \(4, 0\)"),
    ],
)
def test_options_out_of_range(spec, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        embedding(spec, **options)
