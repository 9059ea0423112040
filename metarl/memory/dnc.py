"""Differentiable neural computer: an LSTM that writes to and reads from a matrix of slots.

Graves, Wayne, Reynolds, Harley, Danihelka, Grabska-Barwińska, Gómez Colmenarejo, Grefenstette, Ramalho, Agapiou, Badia,
Hermann, Zwols, Ostrovski, Cain, King, Summerfield, Blunsom, Kavukcuoglu & Hassabis 2016, "Hybrid computing using a neural
network with dynamic external memory" (Nature 538).

Departures:

- The controller is one LSTM layer of `output_size` units, with this package's initialisation.
- Usage enters the allocation as `eps + (1 - eps) u`, so that the cumulative product stays away from zero.
- Lengths of vectors are `sqrt(|v|^2 + eps)`, so that the similarity to an empty slot is zero and has a gradient.
- Linear layers have biases.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from metarl.memory.base import SPAN, State, StepCore, check_flag, name_heads
from metarl.memory.lstm import LSTMCore
from metarl.plain import check_count

EPSILON = 1e-6


class DNCCore(StepCore):
    """LSTM controller with `N` slots of size `W`, one write head and `R` read heads.

    One step, where `w` is the last write weights `[N]`, `r_k` the last read weights `[N]` of head `k`, `M [N, W]` the
    slots, `u [N]` their usage, `p [N]` the precedence, `L [N, N]` the links, primes are new values, and what has no
    definition comes from `h'` through one linear layer:

    - controller: `h', c' = LSTM([x, M^T r_1, ..., M^T r_R], h, c)`
    - usage: `u' = (u + w - u w) prod_k (1 - f_k r_k)`, with free gates `f_k = sigmoid(.)`
    - allocation: `a[j] = (1 - u'[j]) prod_i u'[i]` over all slots `i` that are used less than `j`
    - write: `w' = g (q a + (1 - q) C(M, key, strength))`, with gates `g, q = sigmoid(.)`
    - slots: `M' = M (1 - w' e^T) + w' v^T`, with `e = sigmoid(.)`
    - links: `L'[i, j] = (1 - w'[i] - w'[j]) L[i, j] + w'[i] p[j]`, zero where `i = j`; `p' = (1 - sum(w')) p + w'`
    - read: `r_k' = m_1 L'^T r_k + m_2 C(M', key_k, strength_k) + m_3 L' r_k`, with modes `m = softmax(.) [3]`
    - output: `y = linear([h', M'^T r_1', ..., M'^T r_R'])`

    `C(M, key, s) = softmax(s cos(M, key)) [N]`, with strengths `s = 1 + softplus(.)`. The linear layer's outputs are in
    the order of the paper: read keys `[R, W]`, read strengths `[R]`, write key `[W]`, write strength `[1]`, `e [W]`,
    `v [W]`, `f [R]`, `q [1]`, `g [1]`, modes `[R, 3]` (backward, content, forward).

    The order of slots by usage jumps where two are used equally. No gradient can tell of this: gradients pass through
    the sorted values only, as in the paper.

    State: `h, c [B, output_size]`, `M [B, N, W]`, `u [B, N]`, `L [B, N, N]`, `p [B, N]`, `w [B, N]`, `r [B, R, N]`, and
    what was read, `[B, R * W]`; zeros at the start.

    Args:
        input_size: features of `x`.
        output_size: features of `y`, and units of the controller.
        num_slots: `N`; time and memory grow with its square.
        slot_size: `W`, numbers in a slot.
        num_reads: `R`, read heads.
        span: steps that the slowest units of the controller remember for.
        compiled: see `StepCore`.
    """

    watched = "slots"

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_slots: int = 16,
        slot_size: int = 16,
        num_reads: int = 1,
        span: float = SPAN,
        compiled: bool = False,
    ):
        super().__init__()
        for name, value in {"num_slots": num_slots, "slot_size": slot_size, "num_reads": num_reads}.items():
            check_count(name, value)
        self.compiled = check_flag("compiled", compiled)
        self.input_size = input_size
        self.output_size = output_size
        self.num_slots = num_slots
        self.slot_size = slot_size
        self.num_reads = num_reads
        words_size = num_reads * slot_size
        self.sizes = [words_size, num_reads, slot_size, 1, slot_size, slot_size, num_reads, 1, 1, 3 * num_reads]
        self.controller = LSTMCore(input_size + words_size, output_size, span)
        self.interface = nn.Linear(output_size, sum(self.sizes))
        self.output = nn.Linear(output_size + words_size, output_size)

    def initial_state(self, batch_size: int) -> State:
        """Zeros, in the order of the class's description."""
        n, w, r = self.num_slots, self.slot_size, self.num_reads
        shapes = [(n, w), (n,), (n, n), (n,), (n,), (r, n), (r * w,)]
        weight = self.output.weight
        return *self.controller.initial_state(batch_size), *(weight.new_zeros(batch_size, *shape) for shape in shapes)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: controller, write, read."""
        h, c, slots, usage, link, precedence, write, read, words = state
        h, (_, c) = self.controller.step(torch.cat([x, words], -1), (h, c))
        keys, strengths, write_key, write_strength, erase, vector, free, allocate, gate, modes = self._commands(h)

        usage = (usage + write - usage * write) * (1 - free[..., None] * read).prod(1)
        content = content_weights(slots, write_key[:, None], write_strength)[:, 0]
        write = gate * (allocate * allocation_weights(usage) + (1 - allocate) * content)
        slots = slots * (1 - write[..., None] * erase[:, None]) + write[..., None] * vector[:, None]
        link = update_links(link, precedence, write)
        precedence = (1 - write.sum(-1, keepdim=True)) * precedence + write

        # L'^T r and L' r, for rows r.
        directions = torch.stack([read @ link, content_weights(slots, keys, strengths), read @ link.mT], -1)
        read = (directions * modes[:, :, None]).sum(-1)
        words = (read @ slots).flatten(1)
        y = self.output(torch.cat([h, words], -1))
        return y, (h, c, slots, usage, link, precedence, write, read, words)

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Weights over slots `[B, num_slots]`: "write", and "read" or "read 1", "read 2", ..."""
        *_, write, read, _ = self.step(x, state)[1]
        return {"write": write} | name_heads("read", read)

    def _commands(self, h: Tensor) -> tuple[Tensor, ...]:
        """What the controller asks of the memory, in the order of the class's description, within its bounds."""
        parts = self.interface(h).split(self.sizes, -1)
        keys, strengths, write_key, write_strength, erase, vector, free, allocate, gate, modes = parts
        return (
            keys.unflatten(-1, (self.num_reads, self.slot_size)),
            1 + softplus(strengths),
            write_key,
            1 + softplus(write_strength),
            erase.sigmoid(),
            vector,
            free.sigmoid(),
            allocate.sigmoid(),
            gate.sigmoid(),
            modes.unflatten(-1, (self.num_reads, 3)).softmax(-1),
        )


def content_weights(slots: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """`softmax(strength * cosine)` over `slots [B, N, W]` for `keys [B, K, W]` and `strengths [B, K]`: `[B, K, N]`."""
    cosines = (keys @ slots.mT) / (_length(keys)[..., None] * _length(slots)[:, None])
    return (strengths[..., None] * cosines).softmax(-1)


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(-1) + EPSILON).sqrt()


def allocation_weights(usage: Tensor) -> Tensor:
    """Where to write something new, `[B, N]`: the slot of least `usage [B, N]`, as far as it is free, then the next."""
    usage = EPSILON + (1 - EPSILON) * usage
    ascending, order = usage.sort(dim=-1, stable=True)
    less_used = torch.cat([torch.ones_like(usage[:, :1]), ascending[:, :-1].cumprod(-1)], -1)
    return torch.zeros_like(usage).scatter(-1, order, (1 - ascending) * less_used)


def update_links(link: Tensor, precedence: Tensor, write: Tensor) -> Tensor:
    """`link [B, N, N]` after a write: entry `(i, j)` tells how far slot `i` was written to right after slot `j`."""
    to, since = write[:, :, None], write[:, None]
    link = (1 - to - since) * link + to * precedence[:, None]
    return link.masked_fill(torch.eye(write.shape[-1], dtype=torch.bool, device=write.device), 0.0)
