"""What networks spend their time on, by the way that is fastest on the processor at hand: matrix products and tanh.

PyTorch leaves both to Intel's MKL, which runs at half of its speed on AMD's processors: on an EPYC 26.2 a core multiplies
[2000, 64] by [64, 64] at 98 GFLOP/s where oneDNN, which PyTorch holds too, reaches 210; and a tanh takes 2.1 ns where a
sigmoid, which PyTorch computes itself, takes 0.2. Compiled code has its own costs. `docs/decisions.md` has the measurements.
All ways give the same numbers, within the rounding of numbers as large as the largest.
"""

from typing import Any

import torch
from torch import Tensor, nn

# PyTorch has not always told the processor's name: then it counts as one that MKL suits
CPU = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
MKL_IS_SLOW = torch.backends.mkl.is_available() and "AMD" in CPU
THIN = 4
"""Columns up to which compiled code adds up products of numbers itself, together with what comes before and after."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer for each of `N` tasks: `x [N, M, I]`, `weight [N, O, I]`, `bias [N, O]` -> `[N, M, O]`."""
    if bias is None:
        return product(x, weight)
    if torch.compiler.is_compiling():  # which fuses the bias with what comes next
        return product(x, weight) + bias[:, None]
    if is_shared(weight) and is_shared(bias) and not torch.is_grad_enabled():  # each task's derivative is its own
        return nn.functional.linear(x.flatten(0, 1), weight[0], bias[0]).unflatten(0, x.shape[:2])
    return torch.baddbmm(bias[:, None], x, weight.mT)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x [N, M, I]` times the transpose of `weight [N, O, I]`, `[N, M, O]`."""
    if torch.compiler.is_compiling() and weight.shape[1] <= THIN and x.device.type == "cpu":
        return torch.stack([(x * row[:, None]).sum(-1) for row in weight.unbind(1)], -1)
    return torch.bmm(x, weight.mT)


def is_shared(params: Tensor) -> bool:
    """Whether all tasks have the same, as they do before the first step (`metarl.batched.for_tasks`)."""
    return len(params) > 1 and params.stride(0) == 0


class Tanh(nn.Tanh):
    """The hyperbolic tangent, off by less than 2e-7 in single precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return tanh(x)

    def forward_batched(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same, for as many tasks as there are (see `metarl.batched`)."""
        return tanh(x)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, off by less than 2e-7 in single precision, by `tanh(x) = 2 sigmoid(2 x) - 1`."""
    suits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if not MKL_IS_SLOW or not suits or torch.compiler.is_compiling():  # for which see `metarl.compilation`
        return torch.tanh(x)
    return SigmoidTanh.apply(x) if x.requires_grad and torch.is_grad_enabled() else _by_sigmoid(x)


class SigmoidTanh(torch.autograd.Function):
    """`tanh`, with the derivative that PyTorch has for it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Elementwise."""
        return _by_sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep the result."""
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """`(1 - tanh^2) grad`"""
        return torch.ops.aten.tanh_backward(grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """The same in forward mode."""
        return torch.ops.aten.tanh_backward(tangent, *ctx.saved_tensors)


def _by_sigmoid(x: Tensor) -> Tensor:
    # the sigmoid is left as it is: `torch.func` may be taking derivatives of tensors that do not say so
    return (2 * x).sigmoid_().mul(2).sub_(1)
