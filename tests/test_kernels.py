"""Matrix products and tanh by the ways of one processor, against PyTorch's own."""

import shutil

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from metarl import kernels
from metarl.kernels import Tanh, linear, product, tanh

N, M, INPUTS, OUTPUTS = 3, 520, 20, 17


@pytest.fixture
def slow_mkl(monkeypatch):
    """As on a processor where MKL is slow."""
    monkeypatch.setattr(kernels, "MKL_IS_SLOW", True)


def derivatives(function, *inputs):
    """Value, gradients, and the gradients of a function of these."""
    value = function(*inputs)
    first = torch.autograd.grad(value.pow(3).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(found.square().sum() for found in first), inputs)
    return [value, *first, *second]


def assert_as_close(found, expected, rate=1e-5):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rate, atol=rate * other.abs().max().item())


def test_tanh_by_sigmoid(slow_mkl):
    x = torch.cat([torch.linspace(-12, 12, 2401), torch.tensor([-100.0, 100.0])]).requires_grad_()
    assert tanh(x.detach()).tolist()[-2:] == [-1, 1]
    assert float((tanh(x.detach()) - torch.tanh(x.detach())).abs().max()) < 2e-7
    assert_as_close(derivatives(tanh, x), derivatives(torch.tanh, x))
    assert_as_close(derivatives(tanh, x.double()), derivatives(torch.tanh, x.double()), 1e-13)


def test_tanh_under_functional_transforms(slow_mkl):
    x = torch.linspace(-2, 2, 12).view(3, 4)
    found = vmap(grad(lambda row: tanh(row).sum()))(x)
    torch.testing.assert_close(found, 1 - torch.tanh(x).square())


def test_the_layer_is_pytorchs_to_those_who_ask():
    layer = Tanh()
    assert isinstance(layer, nn.Tanh)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(layer(x), torch.tanh(x))
    torch.testing.assert_close(layer.forward_batched({}, x), torch.tanh(x))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_without_derivatives(shared, with_bias):
    weight, bias = torch.randn(1 if shared else N, OUTPUTS, INPUTS), torch.randn(1 if shared else N, OUTPUTS)
    weight, bias = weight.expand(N, OUTPUTS, INPUTS), bias.expand(N, OUTPUTS)
    x = torch.randn(N, 7, INPUTS)
    expected = torch.einsum("nmi,noi->nmo", x, weight) + (bias[:, None] if with_bias else 0)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(linear(x, weight, bias if with_bias else None), expected, rtol=1e-4, atol=1e-5)


def test_tasks_that_share_parameters_have_gradients_of_their_own():
    x, weight, bias = (
        torch.randn(N, 7, INPUTS),
        torch.randn(OUTPUTS, INPUTS).expand(N, OUTPUTS, INPUTS),
        torch.randn(OUTPUTS).expand(N, OUTPUTS),
    )
    weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
    assert weight.stride(0) == bias.stride(0) == 0
    found = torch.autograd.grad(linear(x, weight, bias).square().sum(), (weight, bias))
    error = 2 * linear(x, weight, bias)
    torch.testing.assert_close(found[0], torch.einsum("nmo,nmi->noi", error, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], error.sum(1), rtol=1e-4, atol=1e-4)


def adapted_loss(theta, x, y):
    """Two layers, a gradient step for each task, and the loss after it: what MAML differentiates."""

    def loss(params):
        hidden = torch.tanh(linear(x, params["w"], params["b"]))
        return (product(hidden, params["v"]) - y).square().mean((1, 2)).sum()

    params = {name: value.expand(N, *value.shape) for name, value in theta.items()}
    slopes = torch.func.grad(loss)(params)
    return loss({name: value - 0.1 * slopes[name] for name, value in params.items()})


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it loads its compiler
@pytest.mark.parametrize("outputs", [2, 18])
def test_compiled_second_derivatives(monkeypatch, outputs):
    import torch._functorch.config
    import torch._inductor.config

    from metarl import compilation

    if not compilation.ONEDNN:
        pytest.skip("PyTorch has no oneDNN here")
    monkeypatch.setattr(compilation, "MKL_IS_SLOW", True)
    calls = []
    multiply = compilation.gains
    monkeypatch.setattr(compilation, "gains", lambda a, b: calls.append(multiply(a, b)) or calls[-1])
    theta = {"w": torch.randn(OUTPUTS, INPUTS) / 5, "b": torch.randn(OUTPUTS), "v": torch.randn(outputs, OUTPUTS) / 5}
    theta = {name: value.requires_grad_() for name, value in theta.items()}
    x, y = torch.randn(N, M, INPUTS), torch.randn(N, M, outputs)
    anew = torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False)
    with anew[0], anew[1]:  # what is kept from the last time would not be looked through
        found = torch.autograd.grad(compilation.compiled(adapted_loss)(theta, x, y), theta.values())
    expected = torch.autograd.grad(adapted_loss(theta, x, y), theta.values())
    assert any(calls)  # what comes below says something about oneDNN
    assert_as_close(found, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_products_by_onednn(shared):
    from metarl import compilation

    if not compilation.ONEDNN:
        pytest.skip("PyTorch has no oneDNN here")
    a, b = torch.randn(N, M, INPUTS), torch.randn(1 if shared else N, OUTPUTS, INPUTS).mT.expand(N, INPUTS, OUTPUTS)
    found = torch.ops.metarl.bmm(a, b)
    torch.testing.assert_close(found, torch.einsum("nmi,nio->nmo", a, b), rtol=1e-4, atol=1e-4)
    assert found.is_contiguous()
    torch.library.opcheck(torch.ops.metarl.bmm.default, (a, b), test_utils=("test_schema", "test_faketensor"))


def test_what_gains_from_onednn():
    from metarl.compilation import gains

    def factors(num, rows, inner, columns, shared=False):
        return torch.empty(num, rows, inner), torch.empty(1 if shared else num, inner, columns).expand(num, inner, columns)

    assert gains(*factors(2, 2000, 64, 64))
    assert not gains(*factors(20, 100, 64, 64))
    assert gains(*factors(20, 100, 64, 64, shared=True))  # one product of 2,000 rows
    assert not gains(*factors(2, 2000, 2, 64))
    assert not gains(*factors(2, 2000, 64, 2))
    assert not gains(*(factor.double() for factor in factors(2, 2000, 64, 64)))
    assert not gains(torch.empty(2, 2000, 64).mT, torch.empty(2, 2000, 64))  # it would be copied first
