"""`torch.compile`, with products of matrices that are fast on the processor at hand (see `metarl.kernels`).

A module of its own, since importing PyTorch's compiler takes seconds.
"""

from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from metarl.kernels import MKL_IS_SLOW, is_shared

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether PyTorch has oneDNN's product, for which it has no public name."""
LONG, WIDE = 512, 16
"""Rows and columns from which a task's product gains from oneDNN, whose calls take 10 microseconds more. In eager code,
derivatives written in Python take what is gained."""


def compiled(function: FunctionType, device: torch.device, what: str, **options: Any) -> Callable:
    """`torch.compile(function, options=options)`, for arguments that differ in their tensors only from call to call.

    What else it reads, the settings of an algorithm say, counts as it was in the first call: to look whether any of it has
    changed would take as long as the work itself in small networks.

    Args:
        function: a plain function.
        device: where its tensors are.
        what: is compiled, for the error.
        options: of Inductor, on top of those that suit small networks.

    Returns:
        The function, compiled at its first call. It raises a `ValueError` where PyTorch cannot compile it.
    """
    options = {"guard_filter_fn": lambda guards: [guard.guard_type == "TENSOR_MATCH" for guard in guards], **options}
    if device.type == "cpu":
        # calls from one kernel to the next in C++, too, since in small networks they cost as much; tanh in half the time
        options = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True, **options}
        if MKL_IS_SLOW and ONEDNN:
            options["post_grad_custom_post_pass"] = ProductsByOneDNN()
    # a copy of the code: PyTorch keeps by it what it compiled, and would take that for the next algorithm too
    own = FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)
    own.__defaults__, own.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    fast = torch.compile(own, dynamic=False, fullgraph=True, options=options)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return fast(*args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise ValueError(f"compile must be false: PyTorch cannot compile {what}") from error

    return run


class ProductsByOneDNN(CustomGraphPass):
    """Puts oneDNN's products in place of MKL's, in graphs that hold all derivatives already."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change `graph`."""
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default):
            if gains(*(factor.meta["val"] for factor in node.args)):
                node.target = torch.ops.metarl.bmm.default

    def uuid(self) -> str:
        """What compiled code is kept under: this file's contents."""
        return get_hash_for_files((__file__,))


def gains(a: Tensor, b: Tensor) -> bool:
    """Whether the product of `a [N, M, I]` and `b [N, I, O]` is long enough. Rows of `a` that lie across would be copied."""
    num, rows, inner = a.shape
    sizes = (rows * num if is_shared(b) else rows, inner, b.shape[2])
    fits = a.device.type == "cpu" and a.dtype == torch.float32 and a.stride(2) == 1
    return fits and max(sizes) >= LONG and min(sizes) >= WIDE


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise
    if is_shared(b):
        return multiply(a.flatten(0, 1), b[0].mT, None, "none", [], "").unflatten(0, a.shape[:2])
    pairs = zip(a.unbind(), b.mT.unbind(), strict=True)
    return torch.stack([multiply(*pair, None, "none", [], "") for pair in pairs])


def _shape_of_bmm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:2], b.shape[2])


if not hasattr(torch.ops.metarl, "bmm"):  # the module may be imported anew
    _library = torch.library.Library("metarl", "FRAGMENT")  # `custom_op` takes 50 microseconds per call
    _library.define("bmm(Tensor a, Tensor b) -> Tensor")
    _library.impl("bmm", _bmm, "CPU")
    torch.library.register_fake("metarl::bmm", _shape_of_bmm, lib=_library)
    torch.ops.metarl.library = _library  # its operators live as long as it does
