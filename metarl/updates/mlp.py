"""The default learned optimizer: a small MLP for every number, on top of a hand-made rule.

Features as in the MLP optimizers of Metz et al. 2020 ("Tasks, stability, architecture, and compute") and Metz et al. 2022
("Practical tradeoffs between memory, compute, and performance in learned optimizers": small_fc_mlp): the gradient and its
averages over several time scales, divided by the root of the averaged square; the logarithm of that root; the number
itself; the time. To them come what OPEN (Goldie et al. 2024, "Can learned optimization make reinforcement learning less
difficult?") gives to its rule: how deep the layer lies, how far the training is, how dormant the neuron is.

Departures:

- It starts exactly from a hand-made rule (`base`), whose decays are learned too; the papers start from nothing.
- Features are not normalised over a tensor: no number looks at others.
- A move has three parts, see `LearnedMLP`; those of the papers are its free direction alone, and OPEN adds learned noise.
- OPEN's batch proportion and its recurrent layer are left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from metarl.plain import check_count
from metarl.updates.base import Coordinatewise, check_decay, check_positive, columns
from metarl.updates.hand_made import square
from metarl.updates.mlp_in_place import InPlace

BASES = ("adam", "nesterov", "momentum", "sgd")
"""Hand-made rules that the learned one may start from."""
TIMES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Steps `T` of the time features, `tanh(t / T - 1)` (Metz et al. 2020)."""


class Timed(NamedTuple):
    """What depends on the time only, for steps `t [N]`; `K` averages, `H` units in the first hidden layer."""

    newest: Tensor  # [N, K + 1]: weight of the newest gradient in the averages, and of its square in theirs
    hidden: Tensor  # [N, H]: added to the first hidden layer
    outputs: Tensor  # [N, 2]: added to the outputs
    mixture: Tensor  # [N, 1 + K]: weights of the gradient and its averages, in their own units


class LearnedMLP(Coordinatewise):
    """A hand-made rule, and what an MLP makes of it.

    With unbiased averages `m_k` of the gradients `g` and `v` of their squares, `r = sqrt(v)` and `d = r + eps`, a move is

        -(base + sum_k b_k m_k) exp(a) + (r / d) c

    - `base`: that of Adam, `m_0 / d`, or of another rule.
    - `b_k`: weights of `g` itself and of all `m_k`, in their own units, alike for all numbers: linear in the time features.
    - `c`: a free direction, in units of Adam's moves. `r / d` is 0 for numbers that never had a gradient: they stay.

    `a` and `c` are the MLP's outputs, plus what is linear in the time features. For every number it reads the depth of its
    layer from 0 to 1, `g / d` and all `m_k / d`, `log10 d`, the number itself, and, where the caller knows it, how dormant
    its neuron is (0 for not at all); and the time features. `a`, `b` and `c` are 0 at first, so it starts as `base`.

    State `(m, v, t)`: `[N, 1 + len(decays), P]`, `[N, P]`, steps taken `[N]`.

    Args:
        params: see `Coordinatewise`. Tensors of one module, by their names, are one layer.
        rate: see `Coordinatewise`.
        base: adam, nesterov, momentum, or sgd.
        momentum: decay of `m_0`, which the base rule uses; where it starts.
        decays: of the further averages; where they start.
        square_decay: of `v`; where it starts.
        hidden: units of the hidden layers.
        horizon: steps of a training, up to which the feature "how far it is" grows from 0 to 1; always 0 if None.
        eps: added to the divisor.
    """

    method = "MAML, learned optimizer"
    bound: ClassVar[float] = 8.0
    """On the size of a number, as a feature."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        rate: float,
        base: Literal["adam", "nesterov", "momentum", "sgd"] = "adam",
        momentum: float = 0.9,
        decays: Sequence[float] = (0.5, 0.99),
        square_decay: float = 0.999,
        hidden: Sequence[int] = (8,),
        horizon: float | None = None,
        eps: float = 1e-8,
    ):
        super().__init__(params, rate)
        if base not in BASES:
            raise ValueError(f"base must be one of {', '.join(BASES)}, got {base!r}")
        if not hidden:
            raise ValueError(f"hidden must be sizes of layers, got {hidden!r}")
        for size in hidden:
            check_count("hidden", size)
        kept = {"momentum": [momentum], "decays": decays, "square_decay": [square_decay]}
        for name, values in kept.items():
            for value in values:
                if check_decay(name, value) == 0:
                    raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
        self.base = base
        self.horizon = None if horizon is None else check_positive("horizon", horizon)
        self.eps = check_positive("eps", eps)
        self.averages = 1 + len(decays)
        odds = [math.log((1.0 - value) / value) for values in kept.values() for value in values]
        self.shares = nn.Parameter(self.rate.new_tensor(odds))
        """Of the newest gradient in the averages, `1 - decay = sigmoid(shares)`: those of `m_k`, then that of `v`."""
        sizes = [self.averages + 5, *hidden, 2]
        self.weights = nn.ParameterList(self._drawn(o, i) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(self.rate.new_zeros(size) for size in hidden[1:])
        self.from_time = self._drawn(hidden[0] + 2 + 1 + self.averages, len(TIMES) + 2)
        """What the time features add to the first hidden layer and to `a` and `c`, and what they make `b`."""
        with torch.no_grad():
            self.weights[-1].zero_()
            self.from_time[hidden[0] :].zero_()
        # the first time feature is tanh(20) = 1
        scales, shifts = self.rate.new_tensor([[math.inf, *TIMES], [20.0] + [-1.0] * len(TIMES)])
        self.register_buffer("time_scales", scales, persistent=False)
        self.register_buffer("time_shifts", shifts, persistent=False)
        depths = torch.cat(
            [p.new_full((p.numel(),), depth) for p, depth in zip(params.values(), depths_of(params), strict=True)]
        )
        self.register_buffer("places", torch.stack([torch.ones_like(depths), depths])[None], persistent=False)

    def _drawn(self, outputs: int, inputs: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(outputs, inputs).to(self.rate) / math.sqrt(inputs))

    def start(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Zeros."""
        means = params.new_zeros(len(params), self.averages, params.shape[1])
        return means, torch.zeros_like(params), params.new_zeros(len(params))

    def move(
        self,
        grads: Tensor,
        state: tuple[Tensor, Tensor, Tensor],
        params: Tensor,
        losses: Tensor | None,
        dormancy: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """As in the base class; `dormancy [N, P]` is that of each number's neuron, see `metarl.updates.dormancy`."""
        means, squares, step = state
        step = step + 1.0
        newest, hidden, outputs, mixture = self.timed(step)
        means = means.lerp(grads[:, None], newest[:, :-1, None])
        squares = squares.lerp(square(grads), newest[:, -1:])
        root = squares.sqrt()
        divisor = root + self.eps
        raw = torch.cat([grads[:, None], means], 1)
        scaled = raw / divisor[:, None]

        known = [] if dormancy is None else [dormancy[:, None]]
        places = self.places.expand(len(params), -1, -1)
        numbers = params.clamp(-self.bound, self.bound)[:, None]
        x = torch.cat([places, scaled, divisor.log10()[:, None], numbers, *known], 1)
        # the first input is 1: its weights are what time adds
        weight = self.weights[0][..., : x.shape[1] - 1].expand(len(x), -1, -1)
        x = torch.bmm(torch.cat([hidden[..., None], weight], 2), x).relu_()
        for weight, bias in zip(self.weights[1:-1], self.biases, strict=True):
            x = columns(x, weight, bias).relu_()
        x = columns(x, self.weights[-1], outputs)
        amount, free = x[:, 0], x[:, 1]

        linear = torch.bmm(mixture[:, None], raw)[:, 0]
        if self.base == "adam":
            linear = linear + scaled[:, 1]
        return torch.addcmul(root / divisor * free, linear, amount.exp(), value=-1.0), (means, squares, step)

    def timed(self, step: Tensor) -> Timed:
        """What depends on the time only, for the steps numbered `step [N]`, from 1."""
        # averages without their bias: the newest of t terms weighs (1 - decay) / (1 - decay^t)
        newest = -self.shares.sigmoid() / torch.expm1(-step[:, None] * softplus(self.shares))
        times, weight = (step[:, None] / self.time_scales + self.time_shifts).tanh(), self.from_time
        if self.horizon is None:
            weight = weight[..., :-1]
        else:
            times = torch.cat([times, (step / self.horizon).clamp_max(1.0)[:, None]], 1)
        sizes = [weight.shape[-2] - 3 - self.averages, 2, 1 + self.averages]
        hidden, outputs, mixture = columns(times[..., None], weight)[..., 0].split(sizes, 1)
        if self.base != "adam":
            mixture = mixture + self._of_base(newest)
        return Timed(newest, hidden, outputs, mixture)

    def _of_base(self, newest: Tensor) -> Tensor:
        """Minus the move of a base rule without divisors, as weights `[N, 1 + K]` of the gradient and its averages."""
        ones, zeros = torch.ones_like(newest[:, :1]), torch.zeros_like(newest[:, :1])
        summed = 1.0 / newest[:, :1]  # an unbiased average over the newest term's weight is the sum that torch keeps
        if self.base == "sgd":
            parts = [ones, zeros]
        elif self.base == "momentum":
            parts = [zeros, summed]
        else:
            parts = [ones, (-self.shares[..., :1]).sigmoid() * summed]
        return torch.cat([*parts, *[zeros] * (self.averages - 1)], 1)

    def in_place(self) -> Callable[..., tuple[Tensor, Any]]:
        """As in the base class, several times as fast as `move`."""
        return InPlace(self)


def depths_of(params: Mapping[str, Tensor]) -> list[float]:
    """Of every tensor, how deep its layer lies: 0 for the first, 1 for the last. A module's own tensors are one layer."""
    layers = [name.rpartition(".")[0] or name for name in params]
    order = list(dict.fromkeys(layers))
    return [order.index(layer) / max(1, len(order) - 1) for layer in layers]
