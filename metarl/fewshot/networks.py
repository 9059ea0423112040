"""Networks for few-shot learners: run for many tasks at once, with one set of parameters for all of them or one for each.

Everything runs on `x [N, M, ...]`, `N` tasks with `M` examples each, and no task sees another one: batch normalisation
takes its statistics from each task's own examples. So a task's result does not depend on its neighbours.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from metarl.batched import Params, call_batched, subset
from metarl.fewshot.episodes import TaskSpec
from metarl.plain import check_count

Stats = tuple[tuple[Tensor, ...], ...]
"""Mean and variance `[N, C]`, or `Past`, for each normalisation layer of a network."""


class Norm(nn.Module):
    """What `TaskNetwork` gives statistics to: `forward(x, stats, weight, bias)` gives outputs, and the statistics used."""

    def __init__(self, features: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.eps = eps


class BatchNorm(Norm):
    """Batch normalisation over each task's own examples (Ioffe & Szegedy 2015), without running averages.

    It is written from elementary operations: under `torch.func.vmap`, second derivatives of PyTorch's own are wrong (2.13).
    """

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance `[N, C]` of `x [N, M, C, ...]`, over all but tasks and channels."""
        axes = [1, *range(3, x.ndim)]
        mean = x.mean(axes, keepdim=True)
        variance = (x - mean).square().mean(axes)  # `torch.var_mean` over such axes takes ten times as long on a CPU (2.13)
        return mean.flatten(1), variance

    def forward(
        self, x: Tensor, stats: tuple[Tensor, Tensor] | None, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`x [N, M, C, ...]` by these statistics, by default its own, and they. `weight` and `bias`: `[C]` or `[N, C]`."""
        stats = self.statistics(x) if stats is None else stats
        mean, variance = stats
        scale = weight * (variance + self.eps).rsqrt()
        shift = bias - mean * scale
        shape = (len(x), 1, x.shape[2], *[1] * (x.ndim - 3))
        y = x * scale.view(shape) + shift.view(shape)  # its derivatives are faster than those of `torch.addcmul`
        return y, stats


class PastNorm(Norm):
    """Batch normalisation of a sequence: over each example and those before it, so that none sees a later one."""

    def forward(self, x: Tensor, past: "Past | None", weight: Tensor, bias: Tensor) -> tuple[Tensor, "Past"]:
        """`x [N, M, C, ...]`, and what was seen.

        `past`: that of a support set, after which each of the examples comes on its own; by default they are a sequence.
        """
        axes = [*range(3, x.ndim)]

        def mean(values: Tensor) -> Tensor:
            return values.mean(axes) if axes else values

        # from where moments are small: in float32, those of large numbers, or of blank pictures, are not accurate enough
        origin = mean(x[:, 0:1]).detach() if past is None else past.origin[:, None]
        x = x - origin.view(*origin.shape, *[1] * len(axes))
        means, squares = mean(x), mean(x.square())
        if past is None:
            count = torch.arange(1, x.shape[1] + 1).to(x).view(1, -1, 1)
            means, squares = means.cumsum(1), squares.cumsum(1)
            past = Past(origin[:, 0], count[:, -1].expand(len(x), 1), means[:, -1], squares[:, -1])
        else:
            count, means, squares = past.count[:, None] + 1, means + past.means[:, None], squares + past.squares[:, None]
        means = means / count
        scale = weight.unsqueeze(-2) * ((squares / count - means.square()).clamp(min=0.0) + self.eps).rsqrt()
        shift = bias.unsqueeze(-2) - means * scale
        shape = (*x.shape[:3], *[1] * len(axes))
        return x * scale.view(shape) + shift.view(shape), past


class Past(NamedTuple):
    """What `PastNorm` keeps of examples, whose means and mean squares are over pixels."""

    origin: Tensor  # what is taken off all of them first, [N, C]
    count: Tensor  # of examples, [N, 1]
    means: Tensor  # added up, [N, C]
    squares: Tensor  # added up, [N, C]


class TokenMean(nn.Module):
    """The direction of the mean of the vectors of a text's tokens, without those numbered 0: `[..., T]` to `[..., F]`.

    Its length is the same for all texts, and learned. At the start, when vectors are random, cosines are near those of the
    counts of tokens; with the mean itself, long texts are close together, and learners fell behind nearest neighbours.
    """

    def __init__(self, vocabulary: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocabulary, features) / math.sqrt(features))
        self.length = nn.Parameter(torch.full((1,), 3.0))  # squared distances up to 36: logits that can be sure

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to means."""
        return self._mean(nn.functional.embedding(x, self.weight), x, self.length)

    def forward_batched(self, params: Params, x: Tensor) -> Tensor:
        """The same for `x [N, M, T]`, each task with its own vectors."""
        rows = torch.arange(len(x)).to(x.device).view(-1, 1, 1)
        return self._mean(params["weight"][rows, x], x, params["length"].view(-1, 1, 1))

    @staticmethod
    def _mean(vectors: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
        return length * nn.functional.normalize((vectors * (tokens != 0).unsqueeze(-1)).sum(-2), dim=-1)


class TaskNetwork(nn.Module):
    """Layers one after another, on `x [N, M, ...]`.

    Args:
        layers: modules that work on a batch of examples, and a `Norm`.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def normalises(self) -> bool:
        """Whether it has statistics."""
        return any(isinstance(layer, Norm) for layer in self.layers)

    def initial_params(self) -> dict[str, Tensor]:
        """Its parameters by name, without an axis of tasks."""
        return dict(self.named_parameters())

    def forward(
        self, x: Tensor, params: Params | None = None, stats: Stats | None = None, layers: slice = slice(None)
    ) -> tuple[Tensor, Stats]:
        """`x [N, M, ...]` to outputs `[N, M, F]`.

        Args:
            x: examples, or what goes into the first of `layers`.
            params: one set for each task, `[N, ...]` by name; by default the network's own, for all.
            stats: what to normalise by; by default the statistics of `x` itself.
            layers: those to run; all by default.

        Returns:
            the outputs, and the statistics that were used.
        """
        used = []
        for number, layer in list(enumerate(self.layers))[layers]:
            own = None if params is None else subset(params, f"layers.{number}")
            if isinstance(layer, Norm):
                weight, bias = (layer.weight, layer.bias) if own is None else (own["weight"], own["bias"])
                x, seen = layer(x, None if stats is None else stats[len(used)], weight, bias)
                used.append(seen)
            elif own is None:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            else:
                x = call_batched(layer, own, x)
        return x, tuple(used)


NETWORK = ("kind", "width", "hidden", "normalise", "halvings")
"""Options of `embedding`, which most learners pass on."""

Kind = Literal["auto", "conv", "strided", "mlp"]


def embedding(
    spec: TaskSpec,
    kind: Kind = "auto",
    width: int | None = None,
    hidden: Sequence[int] | None = None,
    normalise: Literal["task", "none"] | None = None,
    halvings: int | None = None,
    past: bool = False,
) -> tuple[TaskNetwork, int]:
    """A network from examples to features, and their number.

    Args:
        spec: what the examples are like.
        kind: for pictures, "conv": up to four blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 pooling
            (Vinyals et al. 2016); or "strided": with strides of 2 in place of pooling (Finn et al. 2017), a quarter of the
            work. "mlp": fully connected layers, on text after the mean of its tokens' vectors. "auto": "strided" for
            pictures up to 32 x 32, "conv" for larger ones, otherwise "mlp".
        width: channels of the blocks, 64 by default; features of tokens, 512 by default.
        hidden: units of the layers of an "mlp": by default (40, 40) in regression (Finn et al. 2017), none after tokens,
            otherwise (64, 64).
        normalise: "task": blocks normalise over a task's examples (`BatchNorm`), the default; or "none".
        halvings: blocks that halve their pictures, 4 by default; those after them keep the size.
        past: normalise over a task's examples up to each one (`PastNorm`), for memories; not where pictures have come down
            to 1 x 1, as nothing would be left of the first.

    Raises:
        ValueError: in one line, at convolutions of what is no picture, and at arguments that the network has no use for.
    """
    if kind == "auto":
        kind = ("strided" if max(spec.shape[1:]) <= 32 else "conv") if spec.pictures else "mlp"
    if kind != "mlp" and not spec.pictures:
        raise ValueError(f"kind must be mlp for examples of shape {spec.shape}, which are no pictures, got {kind}")
    given = {"width": width, "hidden": hidden, "normalise": normalise, "halvings": halvings}
    useless = ("hidden",) if kind != "mlp" else ("normalise", "halvings") + ("width",) * (not spec.vocabulary)
    for name in useless:
        if given[name] is not None:
            raise ValueError(f"{name} must be left out for a network of kind {kind}, which has no use for it")
    width = check_count("width", (512 if spec.vocabulary else 64) if width is None else width)
    if kind == "mlp":
        if hidden is None:
            hidden = () if spec.vocabulary else (64, 64) if spec.classification else (40, 40)
        if min(hidden, default=int(bool(spec.vocabulary))) < 1:
            raise ValueError(f"hidden must be sizes of at least 1, got {hidden}")
        sizes = [width if spec.vocabulary else math.prod(spec.shape), *hidden]
        layers: list[Any] = [TokenMean(spec.vocabulary, width)] if spec.vocabulary else [nn.Flatten()]
        for i, o in pairwise(sizes):
            layers += [nn.Linear(i, o), nn.ReLU()]
        return TaskNetwork(layers), sizes[-1]
    halvings = check_count("halvings", 4 if halvings is None else halvings, least=0)
    channels, height, across = spec.shape
    layers = []
    for block in range(4):
        if min(height, across) < 2:
            break
        strides, pools = (block < halvings and kind == which for which in ("strided", "conv"))
        layers.append(nn.Conv2d(channels, width, 3, stride=2 if strides else 1, padding=1))
        if strides:
            height, across = (height + 1) // 2, (across + 1) // 2
        if normalise != "none" and not (past and height * across == 1):
            layers.append(PastNorm(width) if past else BatchNorm(width))
        layers.append(nn.ReLU())
        if pools:
            layers.append(nn.MaxPool2d(2))
            height, across = height // 2, across // 2
        channels = width
    return TaskNetwork([*layers, nn.Flatten()]), channels * height * across


def network_for(spec: TaskSpec, **options: Any) -> TaskNetwork:
    """A network from examples to logits or predictions: an embedding, with its `options`, and a linear layer."""
    layers, features = embedding(spec, **options)
    return TaskNetwork([*layers.layers, nn.Linear(features, spec.outputs)])
