"""Gated Transformer-XL: Parisotto et al. (2020), "Stabilizing transformers for reinforcement learning".

Relative positions are those of Dai et al. (2019), "Transformer-XL: attentive language models beyond a fixed-length
context".

Departures from the papers:

- Keys and values of past steps are cached, not the layers' inputs from which they could be computed again. Gradients
  reach into the past as far as one `scan` does; the papers stop them at a segment's first step.
- Every step sees exactly `context` steps before it; in Transformer-XL's segments the later ones see more.
- Much smaller (the paper: 12 layers, 8 heads of 64 features).
"""

import torch
from torch import Tensor, nn

from metarl.memory.attention import Span, WindowCore, attend, extend, keep, plan, steps_before
from metarl.memory.base import State
from metarl.plain import check_count


class GTrXLCore(WindowCore):
    """A transformer over a sliding window of steps, with gates in place of residual connections.

    After a linear embedding, each layer is `u = gate(x, relu(attention(norm(x))))`,
    `x' = gate(u, relu(mlp(norm(u))))`; layer norms stand on the inputs, so that the way from input to output starts
    close to the identity. The gate is a GRU's: `r = sigmoid(W_r y + U_r x)`, `z = sigmoid(W_z y + U_z x - b_g)`,
    `h = tanh(W_g y + U_g (r x))`, `gate(x, y) = (1 - z) x + z h`.

    Attention, per head of size `D`: `w = softmax_j((q_t + u) . k_j + (q_t + v) . W_R s_{t-j})`, `q` divided by `sqrt(D)`,
    `s` sinusoids, over the present step and the `context` before it.

    State: the counter of steps so far `[B, 1]` (at most `context`), then for each layer the keys and values of the last
    `context` steps, `[B, num_heads, context, 2 D]`.

    Args:
        input_size: features of `x`.
        output_size: features of `y`, of every layer and of all heads together.
        num_layers: layers.
        num_heads: heads of each attention; must divide `output_size`.
        context: past steps that each layer sees. What reached an earlier layer's past reaches further back.
        mlp_size: hidden features of each layer's perceptron, in multiples of `output_size`.
        gate_bias: `b_g` at the start: the larger, the closer to the identity.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_layers: int = 2,
        num_heads: int = 2,
        context: int = 64,
        mlp_size: int = 1,
        gate_bias: float = 2.0,
    ):
        super().__init__()
        sizes = {"num_layers": num_layers, "num_heads": num_heads, "context": context, "mlp_size": mlp_size}
        for name, value in sizes.items():
            check_count(name, value)
        if output_size % num_heads:
            raise ValueError(f"num_heads must divide output_size, which is {output_size}, got {num_heads}")
        if not isinstance(gate_bias, int | float) or not 0 <= gate_bias < torch.inf:
            raise ValueError(f"gate_bias must be at least 0 and finite, got {gate_bias!r}")
        self.input_size = input_size
        self.output_size = output_size
        self.num_heads = num_heads
        self.context = context
        self.embedding = nn.Linear(input_size, output_size)
        self.layers = nn.ModuleList(_Layer(output_size, num_heads, mlp_size, gate_bias) for _ in range(num_layers))
        self.register_buffer("sinusoids", sinusoids(context + 1, output_size), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """Zeros: the counter, and each layer's cache of keys and values."""
        new_zeros = self.embedding.weight.new_zeros
        shape = (batch_size, self.num_heads, self.context, 2 * self.output_size // self.num_heads)
        caches = (new_zeros(shape) for _ in self.layers)
        return new_zeros(batch_size, 1, dtype=torch.float32), *caches

    @property
    def places(self) -> int:
        """Past steps in the window."""
        return self.context

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Each head's weights over the window `[B, context + 1]`, oldest step first, the present one last."""
        weights = self.weights(x, state)
        return {
            f"layer {i} head {j}": head[:, 0]
            for i, layer in enumerate(weights, 1)
            for j, head in enumerate(layer.unbind(1), 1)
        }

    def _run(self, x: Tensor, state: State, reset: Tensor | None, used: int) -> tuple[Tensor, State, list[Tensor]]:
        """`x [B, T, I]` to `y [B, T, O]`, the next state and the weights, reading `used` places of the caches."""
        before = steps_before(state[0], x.shape[1], reset)
        spans = plan(before, used, self.context + 1)
        count = (before[:, -1:] + 1).clamp(max=self.context)
        x = self.embedding(x)
        states, all_weights = [count], []
        for layer, cache in zip(self.layers, state[1:], strict=True):
            x, extended, weights = layer(x, cache, spans, self.sinusoids, used)
            states.append(keep(extended, self.context, None if reset is None else count))
            all_weights.append(weights)
        return x, tuple(states), all_weights


def sinusoids(window: int, size: int) -> Tensor:
    """Sines and cosines of the ages `window - 1, ..., 0`, `[window, size]`: periods from 2 pi up to 10,000 times that."""
    age = torch.arange(window - 1, -1, -1.0)
    angle = age[:, None] / 10000 ** (torch.arange(0.0, size, 2.0) / size)
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :size]


class _Layer(nn.Module):
    """Attention and a perceptron, each behind a layer norm and followed by a gate."""

    def __init__(self, size: int, num_heads: int, mlp_size: int, gate_bias: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(size)
        self.project = nn.Linear(size, 3 * size, bias=False)
        self.project_age = nn.Linear(size, size, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, size // num_heads))  # u
        self.age_bias = nn.Parameter(torch.zeros(num_heads, 1, size // num_heads))  # v
        self.merge = nn.Linear(size, size)
        self.gate = _Gate(size, gate_bias)
        hidden = mlp_size * size
        self.mlp = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.mlp_gate = _Gate(size, gate_bias)

    def forward(
        self, x: Tensor, cache: Tensor, spans: list[Span], sinusoids: Tensor, used: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x [B, T, size]` to the same shape, the extended cache and the weights."""
        size = x.shape[-1] // self.num_heads
        query, new = self._heads(self.project(self.norm(x))).split([size, 2 * size], -1)
        query = query.contiguous() * size**-0.5
        cache = extend(cache, new, used)
        k_age = self._heads(self.project_age(sinusoids))
        key, value = cache.chunk(2, -1)
        read, weights = attend(query + self.content_bias, key, value, spans, query + self.age_bias, k_age)
        x = self.gate(x, self.merge(read.transpose(1, 2).flatten(2)).relu())
        return self.mlp_gate(x, self.mlp(x).relu()), cache, weights

    def _heads(self, x: Tensor) -> Tensor:
        """`[..., S, heads * F]` to `[..., heads, S, F]`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


class _Gate(nn.Module):
    """A GRU's update of the stream `x` by what a sublayer computed, `y`; `b_g` is in the bias of `U`, sign turned."""

    def __init__(self, size: int, gate_bias: float):
        super().__init__()
        self.w = nn.Linear(size, 3 * size, bias=False)
        self.u = nn.Linear(size, 2 * size)
        self.u_candidate = nn.Linear(size, size, bias=False)
        with torch.no_grad():
            self.u.bias.zero_()
            self.u.bias[size:] = -gate_bias

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` and `y [..., size]` to the same shape."""
        size = x.shape[-1]
        gates, candidate = self.w(y).split([2 * size, size], -1)
        r, z = (gates + self.u(x)).sigmoid().chunk(2, -1)
        return torch.lerp(x, (candidate + self.u_candidate(r * x)).tanh(), z)
