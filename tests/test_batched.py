"""Networks with one set of parameters per task equal the plain module, task after task, in values and derivatives."""

from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import nn
from torch.func import functional_call

from metarl.batched import call_batched, for_tasks, of_task, subset
from metarl.kernels import linear

N, M = 3, 5
HOW = ["auto", "batched", "loop"]
PRECISION = {torch.float64: dict(rtol=1e-6, atol=1e-9), torch.float32: dict(rtol=1e-4, atol=1e-5)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class OwnConvolutions(nn.Module):
    """A network that is no sequence, with a path around a layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.around = nn.Conv2d(3, 3, 1)
        self.out = nn.Linear(3 * 4 * 4, 2)

    def forward(self, x):
        x = torch.tanh(self.conv(x))
        return self.out((x + self.around(x)).flatten(1))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(nn.Module):
    """A constant and nothing to learn."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, x):
        return self.factor * x


class TwoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return torch.tanh(self.a(x["a"]) + self.b(x["b"]))


def with_a_shared_activation():
    tanh = nn.Tanh()
    return nn.Sequential(nn.Linear(4, 6), tanh, nn.Linear(6, 2), tanh)


def with_a_shared_layer():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


NETWORKS = {
    "linear": (lambda: nn.Linear(4, 2), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 2, bias=False), (4,)),
    "linear on a further axis": (lambda: nn.Linear(4, 2), (2, 4)),
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2), nn.Tanh()), (4,)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 2)), (4,)),
    "nothing in between": (lambda: nn.Sequential(nn.Sequential(), nn.Linear(4, 2)), (4,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh()), (4,)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)),
        (2, 6, 6),
    ),
    "own convolutions": (OwnConvolutions, (2, 6, 6)),
    "a shared activation": (with_a_shared_activation, (4,)),
    "a shared layer": (with_a_shared_layer, (4,)),
    "a sequence with its own forward": (lambda: Residual(nn.Linear(4, 4), nn.Tanh()), (4,)),
    "a linear layer with its own forward": (lambda: nn.Sequential(Doubled(4, 4), nn.Tanh()), (4,)),
    "a constant and nothing to learn": (lambda: nn.Sequential(Scaled(), nn.Linear(4, 2)), (4,)),
}


def own_params(module, dtype=torch.float64):
    """Different ones for each task, so large that tanh bends."""
    return {
        name: (0.6 * torch.randn(N, *value.shape, dtype=dtype)).requires_grad_() for name, value in module.named_parameters()
    }


def one_by_one(module, params, x):
    rows = range(N)
    if isinstance(x, dict):
        parts = [functional_call(module, of_task(params, n), ({key: value[n] for key, value in x.items()},)) for n in rows]
    else:
        parts = [functional_call(module, of_task(params, n), (x[n],)) for n in rows]
    return torch.stack(parts)


def derivatives(call, params):
    """Output, gradient of a nonlinear function of it, and that gradient's own derivative along a fixed direction."""
    out = call(params)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    first = torch.autograd.grad((weights * out.square()).sum() + out.sum(), params.values(), create_graph=True)
    along = [torch.linspace(1, -2, g.numel(), dtype=g.dtype).view(g.shape) for g in first]
    second = torch.autograd.grad(sum((a * g).sum() for a, g in zip(along, first, strict=True)), params.values())
    return out, first, second


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_equals_a_loop_over_the_plain_module(name, how, dtype):
    make, shape = NETWORKS[name]
    module = make().to(dtype)
    params, x = own_params(module, dtype), torch.randn(N, M, *shape, dtype=dtype)
    ours = derivatives(lambda p: call_batched(module, p, x, how), params)
    theirs = derivatives(lambda p: one_by_one(module, p, x), params)
    assert ours[0].shape[:2] == (N, M)
    torch.testing.assert_close(ours[0], theirs[0], **PRECISION[dtype])
    for order in (1, 2):
        for gradient, expected in zip(ours[order], theirs[order], strict=True):
            assert gradient.isfinite().all()
            torch.testing.assert_close(gradient, expected, **PRECISION[dtype])
    assert any(part.abs().max() > 0.1 for part in ours[2])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["tanh", "convolutions"])
def test_derivatives_flow_to_the_input(name, how):
    make, shape = NETWORKS[name]
    module = make().double()
    params, x = own_params(module), torch.randn(N, M, *shape, dtype=torch.float64, requires_grad=True)
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), x)[0]
        for out in (call_batched(module, params, x, how), one_by_one(module, params, x))
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("how", HOW)
def test_tasks_do_not_touch_each_other(how):
    make, shape = NETWORKS["convolutions"]
    module = make().double()
    params, x = own_params(module), torch.randn(N, M, *shape, dtype=torch.float64)
    out = call_batched(module, params, x, how)
    for gradient in torch.autograd.grad(out[1].sum(), params.values()):
        assert gradient[1].any()
        assert not gradient[[0, 2]].any()


@pytest.mark.parametrize("how", HOW)
def test_dictionaries_of_inputs(how):
    module, x = TwoMaps().double(), {key: torch.randn(N, M, n, dtype=torch.float64) for key, n in (("a", 2), ("b", 4))}
    params = own_params(module)
    ours = derivatives(lambda p: call_batched(module, p, x, how), params)
    theirs = derivatives(lambda p: one_by_one(module, p, x), params)
    torch.testing.assert_close(ours, theirs)


class Grey(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 3)
        self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("images", [False, True])
def test_combined_extractors(images, how):
    space = gym.spaces.Dict(place=gym.spaces.Box(-1, 1, (2,)), kind=gym.spaces.Box(0, 1, (3,)))
    x = {"place": torch.randn(N, M, 2), "kind": torch.rand(N, M, 3)}
    if images:
        space.spaces["camera"] = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)
        x["camera"] = torch.rand(N, M, 1, 36, 36)
    module = CombinedExtractor(space, cnn_output_dim=4)
    params = own_params(module, torch.float32)
    assert bool(params) == images
    out = call_batched(module, params, x, how)
    assert out.shape == (N, M, 5 + 4 * images)
    expected = one_by_one(module, params, x) if images else torch.cat([x[key] for key in module.extractors], -1)
    torch.testing.assert_close(out, expected, **PRECISION[torch.float32])


def test_extractors_of_images():
    space = gym.spaces.Box(0, 255, (1, 6, 6), np.uint8)
    for module, size in ((Grey(space), 6), (NatureCNN(gym.spaces.Box(0, 255, (1, 36, 36), np.uint8), 4), 36)):
        params, x = own_params(module, torch.float32), torch.rand(N, 2, 1, size, size)
        for how in HOW:
            expected = one_by_one(module, params, x)
            torch.testing.assert_close(call_batched(module, params, x, how), expected, rtol=1e-4, atol=1e-4)


# -- how it runs -------------------------------------------------------------------------------------------------


def runs_through_vmap(module, x, how):
    with mock.patch("metarl.batched.vmap", side_effect=torch.func.vmap) as vmap:
        call_batched(module, own_params(module, torch.float32), x, how)
    return vmap.called


def test_convolutions_on_a_cpu_take_the_loop():
    module, x = OwnConvolutions(), torch.randn(N, M, 2, 6, 6)
    assert not runs_through_vmap(module, x, "auto")
    assert not runs_through_vmap(module, x, "loop")
    assert runs_through_vmap(module, x, "batched")


def test_linear_layers_take_neither():
    module = NETWORKS["tanh"][0]()
    with mock.patch("metarl.batched.functional_call") as call:
        for how in HOW:
            call_batched(module, own_params(module, torch.float32), torch.randn(N, M, 4), how)
    assert not call.called


def test_other_layers_are_batched_by_themselves():
    assert runs_through_vmap(NETWORKS["layer norm"][0](), torch.randn(N, M, 4), "auto")
    assert not runs_through_vmap(NETWORKS["layer norm"][0](), torch.randn(N, M, 4), "loop")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("how", HOW)
def test_batch_normalisation_takes_the_loop(how, affine, training):
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.Tanh(), nn.Linear(6, 2)).double()
    module[1].running_mean.fill_(0.3)
    module.train(training)
    x = torch.randn(N, M, 4, dtype=torch.float64)
    assert not runs_through_vmap(module.float(), x.float(), how)
    module = module.double()
    params = own_params(module)
    ours = derivatives(lambda p: call_batched(module, p, x, how), params)  # statistics are of each task's own rows
    theirs = derivatives(lambda p: one_by_one(module, p, x), params)
    torch.testing.assert_close(ours, theirs)


def test_a_module_may_do_it_itself():
    class Own(nn.Module):
        def forward_batched(self, params, x):
            return x + params["shift"][:, None]

    shift = torch.tensor([[1.0], [2.0], [3.0]])
    out = call_batched(nn.Sequential(Own(), nn.Tanh()), {"0.shift": shift}, torch.zeros(N, M, 1))
    torch.testing.assert_close(out, shift[:, None].tanh().expand(N, M, 1))


# -- parameters --------------------------------------------------------------------------------------------------


def test_gradients_of_shared_parameters_sum_over_tasks():
    module = NETWORKS["tanh"][0]().double()
    x = torch.randn(N, M, 4, dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)[:, None, None]
    shared = dict(module.named_parameters())
    out = call_batched(module, for_tasks(shared, N), x)
    torch.testing.assert_close(out, module(x))
    ours = torch.autograd.grad((weights * out.square()).sum(), shared.values())
    parts = [torch.autograd.grad(module(x[n]).square().sum(), shared.values()) for n in range(N)]
    for i, gradient in enumerate(ours):
        torch.testing.assert_close(gradient, parts[0][i] - 2 * parts[1][i] + 5 * parts[2][i])


def test_parameters_by_task_and_by_part():
    params = {"a.weight": torch.arange(6.0).view(3, 2), "a.b.bias": torch.arange(3.0), "ab.weight": torch.zeros(3)}
    assert {name: value.tolist() for name, value in of_task(params, 1).items()} == {
        "a.weight": [2, 3],
        "a.b.bias": 1,
        "ab.weight": 0,
    }
    assert subset(params, "a").keys() == {"weight", "b.bias"}
    assert subset(params, "a.b").keys() == {"bias"}
    assert subset(params, "b") == {}
    many = for_tasks({"w": torch.tensor([1.0, 2.0]), "rate": torch.tensor(3.0)}, 2)
    assert {name: value.tolist() for name, value in many.items()} == {"w": [[1, 2], [1, 2]], "rate": [3, 3]}


def test_linear_by_hand():
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    weight = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, -1.0]]])
    assert linear(x, weight, None).tolist() == [[[1, 3]], [[6, -4]]]
    assert linear(x, weight, torch.tensor([[10.0, 20.0], [0.5, 0.0]])).tolist() == [[[11, 23]], [[6.5, -4]]]
