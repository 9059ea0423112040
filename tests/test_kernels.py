"""Matrix products and tanh by the ways of one processor, against PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jvp, vmap

from metarl import kernels
from metarl.kernels import Tanh, linear, tanh

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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, in forward mode
def test_tanh_under_functional_transforms(slow_mkl):
    x = torch.linspace(-2, 2, 12).view(3, 4)
    slopes = 1 - torch.tanh(x).square()
    torch.testing.assert_close(vmap(grad(lambda row: tanh(row).sum()))(x), slopes)
    torch.testing.assert_close(grad(lambda rows: vmap(tanh)(rows).sum())(x), slopes)
    rows = x.clone().requires_grad_()  # which does not show within
    torch.testing.assert_close(torch.autograd.grad(vmap(tanh)(rows).sum(), rows)[0], slopes)
    torch.testing.assert_close(jvp(tanh, (x,), (torch.full_like(x, 3.0),))[1], 3 * slopes)
    bends = hessian(lambda one: tanh(one).sum())(x[0]).diagonal()
    torch.testing.assert_close(bends, -2 * torch.tanh(x[0]) * slopes[0])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.int64])
def test_tanh_of_other_kinds_is_pytorchs(slow_mkl, kind):
    x = torch.arange(-2, 3).to(kind)
    assert tanh(x).equal(torch.tanh(x))


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
