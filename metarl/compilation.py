"""`torch.compile`, with products of matrices that are fast on the processor at hand (see `metarl.kernels`).

A module of its own, since importing PyTorch's compiler takes seconds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from metarl.kernels import MKL_IS_SLOW, is_shared

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether PyTorch has oneDNN's product, for which it has no public name."""
LONG, WIDE = 512, 16
"""Rows and columns from which a task's product gains from oneDNN, in compiled code: a call takes 10 microseconds more, and
in eager code derivatives that are written in Python take what is gained."""


def compiled(function: Callable, **options: Any) -> Callable:
    """`torch.compile(function, options=options)`, with products of matrices by oneDNN where they gain from it."""
    if MKL_IS_SLOW and ONEDNN:
        options["post_grad_custom_post_pass"] = ProductsByOneDNN()
    return torch.compile(function, options=options)


class ProductsByOneDNN(CustomGraphPass):
    """Puts oneDNN's products in place of MKL's, in graphs that hold all derivatives already."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change `graph`."""
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default):
            if _gains(*(factor.meta["val"] for factor in node.args)):
                node.target = torch.ops.metarl.bmm.default

    def uuid(self) -> str:
        """What compiled code is kept under: this file's contents."""
        return get_hash_for_files((__file__,))


def _gains(a: Tensor, b: Tensor) -> bool:
    """Whether the product of `a [N, M, I]` and `b [N, I, O]` is long enough."""
    num, rows, inner = a.shape
    sizes = (rows * num if is_shared(b) else rows, inner, b.shape[2])
    return a.device.type == "cpu" and a.dtype == torch.float32 and max(sizes) >= LONG and min(sizes) >= WIDE


@torch.library.custom_op("metarl::bmm", mutates_args=())
def _bmm(a: Tensor, b: Tensor) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise
    if is_shared(b):
        return multiply(a.flatten(0, 1), b[0].mT, None, "none", [], "").unflatten(0, a.shape[:2])
    pairs = zip(a.unbind(), b.mT.unbind(), strict=True)
    return torch.stack([multiply(*pair, None, "none", [], "") for pair in pairs])


@_bmm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:2], b.shape[2])
