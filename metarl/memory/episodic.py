"""Episodic LSTM: an LSTM that files its cell state away by context, and takes it back when the context returns.

Ritter, Wang, Kurth-Nelson, Jayakumar, Blundell, Pascanu & Botvinick 2018, "Been there, done that: meta-learning with
episodic recall" (ICML); the dictionary is that of Pritzel et al. 2017, "Neural episodic control" (ICML).

Departures:

- When to write. The paper writes at the end of each episode, which a core is not told of. Here an *event* lasts as long as
  the key stays similar to the one that the event began with. The first step with another key files the cell state that the
  event ended with under the key that it began with. With a key that names the episode's task, this is the paper's rule;
  within an event nothing of that event is read.
- Where to write. The entry of the most similar key is overwritten if it is similar enough to be the same context, else an
  empty entry, else the one written longest ago.
- What is written is `tanh(c)`, what the output gate sees of the cell state. The sum of gates `f + r` may be above one, and a
  cell state that is read, added and written again would grow without bounds.
- Keys are scaled to unit length, so that distance and cosine order them alike. Reading from an empty dictionary gives zeros.
- Gradients pass through the dictionary, keys and values; which entry is written, and when, are decisions without gradient.
- `h` and `c` go on from one event to the next; the paper's start anew in each episode. They are cleared at a reset.
- The dictionary is cleared with the rest of the state, unless `outlives_reset` is set.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from metarl.memory.base import SPAN, MemoryCore, State, check_flag, check_slice, check_span, clear
from metarl.plain import check_count

EPSILON = 1e-6

KERNELS = ("inverse", "cosine")

NEARNESS = 1e-3
"""The inverse kernel at distance zero is one over this, as in Pritzel et al."""


class EpisodicLSTMCore(MemoryCore):
    """LSTM with a reinstatement gate, and a dictionary of `N` keys `k_n [K]` and values `v_n [O]`, `O = output_size`.

    One step, where `q_0` is the key that the current event began with, primes are new values, and keys of unit length are
    as similar as `q ~ k = 1 - |q - k|^2 / 2`, their cosine:

    - key: `q = V x / |V x|`, or a part of `x` in place of `V x`
    - write, if `q ~ q_0 < same`: `k_n, v_n = q_0, tanh(c)`, and then `q_0' = q`; else `q_0' = q_0`. Entry `n` is the most
      similar one if `k_n ~ q_0 >= same`, else an empty one, else the one written longest ago.
    - read: `c_ep = sum_n a_n v_n`, weights `a [N]` over the `neighbours` entries most similar to `q` (entries that tie for
      the last place all count), proportional to `1 / (|q - k_n|^2 + 0.001)` (inverse) or to `exp(s (q ~ k_n))`, with one
      learned `s = softplus(.)` (cosine)
    - `i, f, o, r = sigmoid(.)`, `g = tanh(.)`, each `[O]`, linear in `x` and `h`
    - `c' = i g + f c + r c_ep`, `h' = o tanh(c')`, `y = h'`

    Recurrent weights and gates start as those of `LSTMCore`; the reinstatement gate starts as the input gate.

    State: `h, c [B, O]`, `q_0 [B, K]`, whether an event is going on `[B, 1]`, keys `[B, N, K]`, values `[B, N, O]`, and
    the order in which the entries were written, from 1, `[B, N]` (0: empty); zeros at the start.

    Args:
        input_size: features of `x`.
        output_size: units.
        num_slots: `N`, entries of the dictionary.
        key_size: `K`; not used with `context_slice`.
        context_slice: features `(start, stop)` of `x` that are the key, as when the environment gives a barcode; None for
            a learned projection of `x`.
        kernel: how similarity turns into weights, "inverse" or "cosine".
        neighbours: entries that are read at most, 1 to `num_slots`; None for all.
        same: cosine, in (0, 1], from which on two keys are the same context; by default 0.9 for learned keys, and 0.999 with
            `context_slice`: two barcodes that differ in one of six bits are as similar as .913.
        outlives_reset: at a reset, file the event away and keep the dictionary; clear the rest. As in the paper, where
            tasks return: states must then be cleared with `restart`. A collection begins with empty memories, and so does
            each trial of an evaluation; in training it shows where `num_steps` holds several trials, and tasks return.
        span: steps that the slowest units remember for.
    """

    watched = "slots"

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_slots: int = 32,
        key_size: int = 16,
        context_slice: Sequence[int] | None = None,
        kernel: str = "inverse",
        neighbours: int | None = None,
        same: float | None = None,
        outlives_reset: bool = False,
        span: float = SPAN,
    ):
        super().__init__()
        check_count("num_slots", num_slots)
        check_count("key_size", key_size)
        if neighbours is not None:
            check_count("neighbours", neighbours, num_slots)
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        if same is None:
            same = 0.9 if context_slice is None else 0.999
        if not isinstance(same, int | float) or isinstance(same, bool) or not 0 < same <= 1:
            raise ValueError(f"same must be above 0 and at most 1, got {same!r}")
        self.input_size = input_size
        self.output_size = output_size
        self.num_slots = num_slots
        self.context = None if context_slice is None else check_slice("context_slice", context_slice, input_size)
        self.key_size = key_size if self.context is None else self.context.stop - self.context.start
        self.neighbours = neighbours or num_slots
        self.same = same
        self.outlives_reset = check_flag("outlives_reset", outlives_reset)
        self.to_key = nn.Linear(input_size, self.key_size, bias=False) if self.context is None else None
        self.sharpness = nn.Parameter(torch.tensor(10.0)) if kernel == "cosine" else None
        self.from_input = nn.Linear(input_size, 5 * output_size)
        self.from_output = nn.Linear(output_size, 5 * output_size, bias=False)
        with torch.no_grad():
            for block in self.from_output.weight.chunk(5):
                nn.init.orthogonal_(block)
            self.from_input.bias.zero_()
            input_bias, forget_bias, reinstate_bias, _, _ = self.from_input.bias.chunk(5)
            forget_bias.uniform_(1.0, check_span(span) - 1.0).log_()
            input_bias.copy_(-forget_bias)
            reinstate_bias.copy_(-forget_bias)

    def initial_state(self, batch_size: int) -> State:
        """Zeros, in the order of the class's description."""
        n, k, o = self.num_slots, self.key_size, self.output_size
        zeros = [self.from_input.weight.new_zeros(batch_size, *shape) for shape in [(o,), (o,), (k,), (1,), (n, k), (n, o)]]
        order = zeros[0].new_zeros(batch_size, n, dtype=torch.promote_types(zeros[0].dtype, torch.float32))  # it counts
        return (*zeros, order)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: write what ended, read, and the cell."""
        return self._step(self.from_input(x), self._key(x), state)

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All products with `x` at once, then a loop over steps."""
        drives, keys = self.from_input(x).unbind(), self._key(x).unbind()  # the gradient of drives[t] is as large as drives
        some = [False] * len(x) if reset is None else reset.any(1).tolist()
        outputs = []
        for t, restarts in enumerate(some):
            if restarts:
                state = self.restart(state, reset[t])
            y, state = self._step(drives[t], keys[t], state)
            outputs.append(y)
        return torch.stack(outputs), state

    def restart(self, state: State, rows: Tensor) -> State:
        """`state` with `rows [B]` (bool) as at the start of a trial: cleared, but for a dictionary that outlives it."""
        fresh = self.initial_state(len(rows))
        if not self.outlives_reset:
            return clear(state, fresh, rows)
        _, c, context, going, *dictionary = state
        dictionary, _ = self._write(*dictionary, context, c, rows & (going[:, 0] > 0))
        return *clear(state[:4], fresh[:4], rows), *dictionary

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Weights over entries `[B, num_slots]`: "read", and "write", one where the step writes, if it does."""
        key = self._key(x)
        _, dictionary, place = self._end_event(key, state)
        return {"read": self._read_weights(*dictionary, key), "write": place.to(key.dtype)}

    def _key(self, x: Tensor) -> Tensor:
        """Keys of unit length `[..., K]` for `x [..., input_size]`."""
        key = x[..., self.context] if self.to_key is None else self.to_key(x)
        return key / (key.square().sum(-1, keepdim=True) + EPSILON).sqrt()

    def _step(self, drive: Tensor, key: Tensor, state: State) -> tuple[Tensor, State]:
        """One step, where `drive [B, 5 O]` is what `x` adds to the gates."""
        h, c, *_ = state
        event, dictionary, _ = self._end_event(key, state)
        reinstated = torch.bmm(self._read_weights(*dictionary, key)[:, None], dictionary[1])[:, 0]
        gates, candidate = (drive + linear(h, self.from_output.weight)).tensor_split([4 * self.output_size], -1)
        i, f, r, o = gates.sigmoid().chunk(4, -1)
        c = i * candidate.tanh() + f * c + r * reinstated
        h = o * c.tanh()
        return h, (h, c, *event, *dictionary)

    def _end_event(self, key: Tensor, state: State) -> tuple[State, State, Tensor]:
        """The event that `key [B, K]` belongs to, the dictionary with the one that it ended, and where that was written."""
        _, c, context, going, *dictionary = state
        going = going[:, 0] > 0
        differs = _similarity(key, context[:, None])[:, 0] < self.same
        dictionary, place = self._write(*dictionary, context, c, going & differs)
        context = torch.where((going & ~differs)[:, None], context, key)
        return (context, torch.ones_like(state[3])), dictionary, place

    def _write(
        self, keys: Tensor, values: Tensor, order: Tensor, context: Tensor, c: Tensor, rows: Tensor
    ) -> tuple[State, Tensor]:
        """The dictionary after `rows [B]` wrote `c [B, O]` under `context [B, K]`, and where, `[B, N]` (bool)."""
        place = torch.zeros_like(order, dtype=torch.bool)
        if not rows.any():  # as at most steps where keys are barcodes
            return (keys, values, order), place
        best, nearest = _similarity(context, keys).masked_fill(order == 0, -1.0).max(-1)
        slot = torch.where(best >= self.same, nearest, order.argmin(-1))
        place = place.scatter(-1, slot[:, None], rows[:, None])
        keys = torch.where(place[..., None], context[:, None], keys)
        values = torch.where(place[..., None], c.tanh()[:, None], values)
        return (keys, values, torch.where(place, order.amax(-1, keepdim=True) + 1, order)), place

    def _read_weights(self, keys: Tensor, values: Tensor, order: Tensor, key: Tensor) -> Tensor:
        """Weights over entries `[B, N]`: they sum to one, or to zero where nothing was written yet."""
        similarity = _similarity(key, keys)
        read = order > 0
        if self.neighbours < self.num_slots:
            ranked = similarity.detach().masked_fill(~read, -1.0)
            read = read & (ranked >= ranked.topk(self.neighbours, -1).values[:, -1:])
        if self.sharpness is not None:
            return (softplus(self.sharpness) * similarity).masked_fill(~read, -1e9).softmax(-1) * read
        nearness = read / (2 - 2 * similarity + NEARNESS)
        return nearness / nearness.sum(-1, keepdim=True).clamp_min(EPSILON)


def _similarity(key: Tensor, keys: Tensor) -> Tensor:
    """Cosines of unit vectors `key [B, K]` and `keys [B, N, K]`, `[B, N]`, from distances: exactly 1 for equal ones."""
    return 1 - (key[:, None] - keys).square().sum(-1) / 2
