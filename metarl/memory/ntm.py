"""Neural Turing machine (Graves, Wayne & Danihelka 2014, "Neural Turing Machines").

Departures from the paper:

- All heads are addressed in the memory that the last step left, `M_{t-1}`; then the memory is written, then read. The paper
  writes `M_t` everywhere, which write heads cannot have seen.
- Memory starts constant at 1e-6 (Collier & Beel 2018, "Implementing neural Turing machines", found it to train best), the
  weightings of all heads on the first slot, read vectors and controller at zero. The paper does not say how it starts.
- Keys and add vectors go through tanh, and what the controller sends to the heads is clipped to [-20, 20] (both as Collier
  & Beel do), so that strengths and sharpening stay finite.
- Cosines have a small constant under their square roots: an unwritten slot is similar to nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from metarl.memory.base import State, StepCore, check_flag, name_heads
from metarl.plain import check_count

EMPTY = 1e-6
"""What every cell of the memory holds at the start."""
CLIP = 20.0
"""Largest size of what the controller sends to a head."""


class NTMCore(StepCore):
    """An LSTM controller with heads that read and write a memory of `num_slots` vectors.

    With `N` slots of size `W`, `R` read and `K` write heads, `H = R + K`, the state is `(h, c, r, w, M)`: controller `h, c`
    `[B, output_size]`, read vectors `r [B, R, W]`, weightings `w [B, H, N]` (read heads first), memory `M [B, N, W]`.

    The controller: `h', c' = LSTM([x, r]; h, c)`. A linear layer of `h'` gives each head a key `k [W]` (tanh), a strength
    `b >= 0` (softplus), a gate `g` (sigmoid), shifts `s [2 shift_range + 1]` (softmax) and a sharpness `p >= 1` (1 +
    softplus), and each write head an erase vector `e [W]` (sigmoid) and an add vector `a [W]` (tanh). Then, for each head:

    - content: `wc(i) = softmax_i(b cos(k, M(i)))` (eqs. 5, 6)
    - interpolation: `wg = g wc + (1 - g) w` (eq. 7)
    - circular shift: `ws(i) = sum_j wg(j) s(i - j)`, indices modulo `N` (eq. 8)
    - sharpening: `w'(i) = ws(i)^p / sum_j ws(j)^p` (eq. 9)

    Write heads all erase, then all add: `M'(i) = M(i) prod(1 - w'(i) e) + sum w'(i) a` (eqs. 3, 4). Read heads read the new
    memory: `r' = sum_i w'(i) M'(i)` (eq. 2). `y` is a linear layer of `[h', r']`.

    Args:
        input_size: features of `x`.
        output_size: features of `y`, and units of the controller.
        num_slots: vectors in the memory, `N`.
        slot_size: numbers in each of them, `W`.
        num_reads: read heads, `R`.
        num_writes: write heads, `K`.
        shift_range: slots that a head can move by in one step, in either direction; 0 is none.
        compiled: see `StepCore`.
    """

    watched = "slots"

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_slots: int = 32,
        slot_size: int = 16,
        num_reads: int = 1,
        num_writes: int = 1,
        shift_range: int = 1,
        compiled: bool = False,
    ):
        super().__init__()
        self.compiled = check_flag("compiled", compiled)
        self.input_size = input_size
        self.output_size = output_size
        self.num_slots = check_count("num_slots", num_slots)
        self.slot_size = check_count("slot_size", slot_size)
        self.num_reads = check_count("num_reads", num_reads)
        self.num_writes = check_count("num_writes", num_writes)
        shifts = 2 * check_count("shift_range", shift_range, least=0) + 1
        if shifts > num_slots:
            raise ValueError(
                f"shift_range must be at most (num_slots - 1) / 2 = {(num_slots - 1) // 2}, got {shift_range!r}"
            )
        self.controller = controller(input_size + num_reads * slot_size, output_size)
        self.parts = [slot_size, 1, 1, shifts, 1]  # of what a head is sent: key, strength, gate, shifts, sharpness
        self.num_heads = num_reads + num_writes
        self.to_heads = nn.Linear(output_size, self.num_heads * sum(self.parts) + num_writes * 2 * slot_size)
        self.to_output = nn.Linear(output_size + num_reads * slot_size, output_size)
        rolls = [torch.eye(num_slots).roll(s, 1) for s in range(-shift_range, shift_range + 1)]
        self.register_buffer("rolls", torch.cat(rolls, 1), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """An empty memory, all heads on its first slot."""
        zeros = self.to_output.weight.new_zeros
        weights = zeros(batch_size, self.num_heads, self.num_slots)
        weights[..., 0] = 1.0
        reads = zeros(batch_size, self.num_reads, self.slot_size)
        memory = zeros(batch_size, self.num_slots, self.slot_size) + EMPTY
        return zeros(batch_size, self.output_size), zeros(batch_size, self.output_size), reads, weights, memory

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: controller, addressing, writing, reading."""
        h, c, reads, weights, memory = state
        h, c = control(self.controller, x, reads, h, c)
        to_heads = self.to_heads(h).clamp(-CLIP, CLIP)
        addresses, contents = to_heads.split([self.num_heads * sum(self.parts), self.num_writes * 2 * self.slot_size], -1)
        weights = self._address(addresses.view(len(x), self.num_heads, -1), weights, memory)
        reading, writing = weights.split([self.num_reads, self.num_writes], 1)
        memory = self._write(contents.view(len(x), self.num_writes, -1), writing, memory)
        reads = reading @ memory
        y = self.to_output(torch.cat([h, reads.flatten(1)], 1))
        return y, (h, c, reads, weights, memory)

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """The weightings of all heads."""
        weights = self.step(x, state)[1][3]
        return name_heads("read", weights[:, : self.num_reads]) | name_heads("write", weights[:, self.num_reads :])

    def _address(self, sent: Tensor, weights: Tensor, memory: Tensor) -> Tensor:
        """Weightings `[B, H, N]` from what the heads were sent `[B, H, sum(parts)]` and their last weightings."""
        key, strength, gate, shifts, sharpness = sent.split(self.parts, -1)
        content = (softplus(strength) * cosine(key.tanh(), memory)).softmax(-1)
        gated = torch.lerp(weights, content, gate.sigmoid())
        # Every shift of a weighting is a product with a permutation: two small matrix products instead of many slices.
        shifted = (gated @ self.rolls).unflatten(-1, (-1, self.num_slots))
        shifted = (shifts.softmax(-1)[..., None, :] @ shifted).squeeze(-2)
        # The power is taken as exp(p log w): softmax divides by the sum without underflow. The constant is for log 0.
        return ((1.0 + softplus(sharpness)) * (shifted + 1e-12).log()).softmax(-1)

    def _write(self, sent: Tensor, weights: Tensor, memory: Tensor) -> Tensor:
        """Erase, then add; `sent [B, K, 2 W]`, `weights [B, K, N]`."""
        erase, add = sent.split(self.slot_size, -1)
        erase = erase.sigmoid()
        for head in range(self.num_writes):
            gone = weights[:, head, :, None] * erase[:, head, None, :]
            memory = torch.addcmul(memory, memory, gone, value=-1)
        return torch.baddbmm(memory, weights.mT, add.tanh())


def cosine(key: Tensor, memory: Tensor) -> Tensor:
    """Cosines of keys `[B, H, W]` and slots `[B, N, W]`, `[B, H, N]`; 0 where either is far smaller than 0.001."""
    key = key * ((key * key).sum(-1, keepdim=True) + 1e-6).rsqrt()
    return key @ memory.mT * ((memory * memory).sum(-1) + 1e-6).rsqrt()[:, None]


def controller(input_size: int, size: int) -> nn.LSTMCell:
    """An LSTM cell with orthogonal recurrent weights and forget gates that start open."""
    cell = nn.LSTMCell(input_size, size)
    with torch.no_grad():
        for block in cell.weight_hh.chunk(4):
            nn.init.orthogonal_(block)
        cell.bias_ih.zero_()
        cell.bias_hh.zero_()
        cell.bias_ih.chunk(4)[1].fill_(1.0)
    return cell


def control(cell: nn.LSTMCell, x: Tensor, reads: Tensor, h: Tensor, c: Tensor) -> State:
    """The controller's step on the input and on the vectors read last, `[B, R, W]`."""
    x = torch.cat([x, reads.flatten(1)], 1)
    return torch.lstm_cell(x, (h, c), cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
