"""SNAIL: Mishra, Rohaninejad, Chen and Abbeel (2018), "A simple neural attentive meta-learner".

Departures from the paper:

- Attention sees the last `context` steps instead of the whole trial, so that a step costs the same at every time.
- The numbers of filters and of features of keys and values go with the size asked for; the paper fixes them per task.
- No layer before the first block: the policy's encoder does that. The paper's networks for few-shot learning begin with an
  attention, those for reinforcement learning with convolutions (its appendices): `attention_first` says which.
- Dilations are 1, 2, 4, ...; the paper's pseudo-code can be read as starting at 2.
"""

import torch
from torch import Tensor, nn

from metarl.memory.attention import WindowCore, attend, extend, keep, plan, steps_before
from metarl.memory.base import State, check_flag
from metarl.plain import check_count


class SNAILCore(WindowCore):
    """Dense blocks of dilated causal convolutions, alternating with causal attention; a linear layer at the end.

    A convolution with dilation `d` gives `a_t = tanh(f) sigmoid(g)`, `(f, g) = W x_t + V x_{t-d} + b`, and its block goes on
    with `[x, a]`; dilations 1, 2, 4, ... reach back over the context. Attention gives `o_t = sum_j w_j v_j`,
    `w = softmax_j(q_t . k_j / sqrt(key_size))` over the steps of the context, and the core goes on with `[x, o]`.

    State: the counter of steps so far `[B, 1]` (at most `context - 1`); then for each block the products `V x` that its
    convolutions still wait for, `[B, sum of dilations, 2 filters]`, and the keys and values of the last `context - 1`
    steps, `[B, context - 1, key_size + value_size]`. With `attention_first`, that attention's keys and values stand right
    after the counter. Products are kept instead of the inputs because they are smaller.

    Args:
        input_size: features of `x`.
        output_size: features of `y`.
        context: steps that attention sees, the present one included; the convolutions reach at least as far. A core
            that must remember a whole trial needs a trial's length.
        filters: features that each convolution adds; 0: an eighth of `output_size`, at least 4.
        key_size: features of queries and keys; 0: a quarter of `output_size`, at least 4.
        value_size: features that each attention adds; 0: likewise.
        num_blocks: blocks of convolutions, each with an attention behind it.
        attention_first: begin with one more attention, on the input itself.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        context: int = 128,
        filters: int = 0,
        key_size: int = 0,
        value_size: int = 0,
        num_blocks: int = 2,
        attention_first: bool = False,
    ):
        super().__init__()
        check_count("context", context, least=2)
        check_count("num_blocks", num_blocks)
        for name, value in {"filters": filters, "key_size": key_size, "value_size": value_size}.items():
            check_count(name, value, least=0)
        filters = filters or max(output_size // 8, 4)
        key_size, value_size = (size or max(output_size // 4, 4) for size in (key_size, value_size))
        self.input_size = input_size
        self.output_size = output_size
        self.context = context
        self.key_size = key_size
        self.value_size = value_size
        self.convolutions = nn.ModuleList()
        self.attentions = nn.ModuleList()
        size = input_size
        for number in range(0 if check_flag("attention_first", attention_first) else 1, num_blocks + 1):
            if number:
                self.convolutions.append(_Convolutions(size, filters, context))
                size = self.convolutions[-1].output_size
            self.attentions.append(nn.Linear(size, 2 * key_size + value_size))
            size += value_size
        self.output = nn.Linear(size, output_size)

    @property
    def blocks(self) -> list["tuple[_Convolutions | None, nn.Linear]"]:
        """Convolutions, and the attention behind them; none before an attention that comes first."""
        none = [None] * (len(self.attentions) - len(self.convolutions))
        return list(zip([*none, *self.convolutions], self.attentions, strict=True))

    def initial_state(self, batch_size: int) -> State:
        """Zeros: the counter, then the waiting products of each block and the cache of each attention."""
        new_zeros = self.output.weight.new_zeros
        state = [new_zeros(batch_size, 1, dtype=torch.float32)]
        for block, _ in self.blocks:
            if block is not None:
                state.append(new_zeros(batch_size, sum(block.dilations), 2 * block.filters))
            state.append(new_zeros(batch_size, self.context - 1, self.key_size + self.value_size))
        return tuple(state)

    @property
    def places(self) -> int:
        """Past steps in the window."""
        return self.context - 1

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Each attention's weights over the context `[B, context]`, oldest step first, the present one last."""
        weights = self.weights(x, state)
        return {f"attention {i}": w[:, 0, 0] for i, w in enumerate(weights, 1)}

    def _run(self, x: Tensor, state: State, reset: Tensor | None, used: int) -> tuple[Tensor, State, list[Tensor]]:
        """`x [B, T, I]` to `y [B, T, O]`, the next state and the weights, reading `used` places of the caches."""
        before = steps_before(state[0], x.shape[1], reset)
        spans = plan(before, used, self.context)
        count = (before[:, -1:] + 1).clamp(max=self.context - 1)
        kept = None if reset is None else count
        states, all_weights, parts = [count], [], iter(state[1:])
        for block, attention in self.blocks:
            if block is not None:
                x, waiting = block(x, next(parts), None if reset is None else before, kept)
                states.append(waiting)
            query, new = attention(x).split([self.key_size, self.key_size + self.value_size], -1)
            cache = extend(next(parts), new, used)
            key, value = cache[:, None].split([self.key_size, self.value_size], -1)
            read, weights = attend(query[:, None] * self.key_size**-0.5, key, value, spans)
            x = torch.cat([x, read[:, 0]], -1)
            states.append(keep(cache, self.context - 1, kept))
            all_weights.append(weights)
        return self.output(x), tuple(states), all_weights


class _Convolutions(nn.Module):
    """A dense block: convolutions of kernel 2, each reading the block's input and the activations before its own.

    The products of the block's input with all convolutions' weights are one matrix product.
    """

    def __init__(self, size: int, filters: int, context: int):
        super().__init__()
        self.filters = filters
        self.dilations = [2**i for i in range((context - 1).bit_length())]
        layers = len(self.dilations)
        self.output_size = size + layers * filters
        self.outer = nn.Linear(size, layers * 4 * filters, bias=False)
        self.inner = nn.ModuleList(nn.Linear(i * filters, 4 * filters, bias=False) for i in range(1, layers))
        self.bias = nn.Parameter(torch.zeros(layers, 2 * filters))
        with torch.no_grad():  # every convolution starts as if its weights were one matrix
            for i, outer in enumerate(self.outer.weight.chunk(layers)):
                bound = (2 * (size + i * filters)) ** -0.5
                for weight in (outer, *([self.inner[i - 1].weight] if i else [])):
                    weight.uniform_(-bound, bound)

    def forward(self, x: Tensor, waiting: Tensor, before: Tensor | None, count: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x [B, T, size]` to `[B, T, output_size]`, and the next `waiting`; no `before` and `count` without resets."""
        outer = self.outer(x).chunk(len(self.dilations), -1)
        lines = waiting.split(self.dilations, 1)
        activations, next_lines = [], []
        for i, (dilation, products, line) in enumerate(zip(self.dilations, outer, lines, strict=True)):
            if i:
                products = products + self.inner[i - 1](torch.cat(activations, -1))
            present, past = products.chunk(2, -1)
            line = extend(line, past)
            past = line[:, : x.shape[1]]
            if before is not None:
                past = torch.where((before >= dilation)[..., None], past, 0.0)
            f, g = (present + past + self.bias[i]).chunk(2, -1)
            activations.append(f.tanh() * g.sigmoid())
            next_lines.append(keep(line, dilation, count))
        return torch.cat([x, *activations], -1), torch.cat(next_lines, 1)
