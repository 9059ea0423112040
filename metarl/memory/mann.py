"""Memory-augmented network with least recently used access (Santoro, Bartunov, Botvinick, Wierstra & Lillicrap 2016,
"Meta-learning with memory-augmented neural networks").

Departures from the paper:

- Each of the `n` heads that read also writes, with its own key and gate. The `n` least used slots are shared out among
  them, the least used one to the first head; the paper leaves open how several heads write.
- Keys go through tanh, so that what is added to a slot in a step is bounded.
- `strengths` is an addition, off by default: a softmax of bare cosines, as in the paper, cannot single out one slot (of 32
  slots it gives the best at most a fifth).
- `apart` is another one: what to recall comes a step before its label, so the label must be written where the step before
  has read. With half of the heads doing so from the start, and sharp reads, that is learned several times sooner.
- Memory starts constant at 1e-6, reads and controller at zero. Usage starts between 0 and 0.01, rising along the slots:
  they are filled in order, and no choice of the least used is left to rounding.
- Cosines have a small constant under their square roots: a cleared slot is similar to nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from metarl.memory.base import State, StepCore, check_flag, name_heads
from metarl.memory.ntm import EMPTY, control, controller, cosine
from metarl.plain import check_count

FIRST_USAGE = 0.01
"""Of the last slot, at the start."""
APART, SHARP = 3.0, 9.0
"""What gates and strengths start near, before sigmoid and softplus, where heads start apart."""


class MANNCore(StepCore):
    """An LSTM controller that writes to slots that it read last or that are least used, and reads by content.

    With `N` slots of size `W` and `n` heads, the state is `(h, c, r, wr, wu, M)`: controller `h, c` `[B, output_size]`, read
    vectors `r [B, n, W]`, read weights `wr [B, n, N]`, usage `wu [B, N]`, memory `M [B, N, W]`.

    The controller: `h', c' = LSTM([x, r]; h, c)`. A linear layer of `h'` gives head `j` a key `k_j [W]` (tanh) and a gate
    `g_j` (sigmoid). Then:

    - least used: `wl_j(i)` is 1 if slot `i` has the `j`-th smallest usage, else 0
    - write: `ww_j = g_j wr_j + (1 - g_j) wl_j`; the least used slot of all is cleared; `M'(i) = M(i) + sum_j ww_j(i) k_j`
    - read: `wr'_j(i) = softmax_i(cos(k_j, M'(i)))`, `r'_j = sum_i wr'_j(i) M'(i)`
    - usage: `wu' = decay wu + sum_j (wr'_j + ww_j)`

    `y` is a linear layer of `[h', r']`. No gradient passes through the choice of the least used slots.

    Args:
        input_size: features of `x`.
        output_size: features of `y`, and units of the controller.
        num_slots: vectors in the memory, `N` (128 in the paper).
        slot_size: numbers in each of them, `W` (40 in the paper).
        num_reads: heads, `n`; each reads and writes once per step.
        decay: what is left of a slot's usage after a step, from 0 to below 1.
        strengths: multiply each head's cosines by `1 + softplus(.)` of a number from the controller, so that a head can
            read from one slot alone.
        apart: start with every second head writing where it read last and the others where slots are least used, and
            with `strengths` of 10, so that slots unlike the key hardly count. It needs two heads.
        compiled: see `StepCore`.
    """

    watched = "slots"

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_slots: int = 32,
        slot_size: int = 16,
        num_reads: int = 4,
        decay: float = 0.95,
        strengths: bool = False,
        apart: bool = False,
        compiled: bool = False,
    ):
        super().__init__()
        self.compiled = check_flag("compiled", compiled)
        self.input_size = input_size
        self.output_size = output_size
        self.num_slots = check_count("num_slots", num_slots)
        self.slot_size = check_count("slot_size", slot_size)
        self.num_reads = check_count("num_reads", num_reads)
        if num_reads > num_slots:
            raise ValueError(f"num_reads must be at most num_slots = {num_slots}, got {num_reads!r}")
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")
        self.decay = float(decay)
        self.strengths = check_flag("strengths", strengths)
        self.controller = controller(input_size + num_reads * slot_size, output_size)
        self.to_heads = nn.Linear(output_size, num_reads * (slot_size + 1 + strengths))
        self.to_output = nn.Linear(output_size + num_reads * slot_size, output_size)
        if check_flag("apart", apart):
            if num_reads < 2:
                raise ValueError(f"num_reads must be at least 2 where heads start apart, got {num_reads}")
            with torch.no_grad():
                biases = self.to_heads.bias.view(num_reads, -1)
                biases[0::2, slot_size], biases[1::2, slot_size] = -APART, APART
                biases[:, slot_size + 1 :] = SHARP

    def initial_state(self, batch_size: int) -> State:
        """An empty memory of which nothing has been read."""
        zeros = self.to_output.weight.new_zeros
        h, c = zeros(batch_size, self.output_size), zeros(batch_size, self.output_size)
        reads = zeros(batch_size, self.num_reads, self.slot_size)
        weights = zeros(batch_size, self.num_reads, self.num_slots)
        usage = zeros(batch_size, self.num_slots) + torch.linspace(0.0, FIRST_USAGE, self.num_slots).to(h)
        memory = zeros(batch_size, self.num_slots, self.slot_size) + EMPTY
        return h, c, reads, weights, usage, memory

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: controller, writing, reading."""
        y, state, _ = self._advance(x, state)
        return y, state

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Read and write weights of all heads."""
        _, state, writing = self._advance(x, state)
        return name_heads("read", state[3]) | name_heads("write", writing)

    def _advance(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """`y`, the next state, and the write weights `[B, n, N]`."""
        h, c, reads, weights, usage, memory = state
        h, c = control(self.controller, x, reads, h, c)
        sent = self.to_heads(h).view(len(x), self.num_reads, -1)
        key, gate, strength = sent.split([self.slot_size, 1, int(self.strengths)], -1)
        key = key.tanh()
        least = self._least_used(usage)
        writing = torch.lerp(least, weights, gate.sigmoid())
        memory = torch.baddbmm(memory * (1.0 - least[:, 0, :, None]), writing.mT, key)
        similarity = cosine(key, memory)
        if self.strengths:
            similarity = (1.0 + softplus(strength)) * similarity
        weights = similarity.softmax(-1)
        reads = weights @ memory
        with torch.no_grad():  # usage only ranks the slots
            usage = self.decay * usage + (weights + writing).sum(1)
        y = self.to_output(torch.cat([h, reads.flatten(1)], 1))
        return y, (h, c, reads, weights, usage, memory), writing

    def _least_used(self, usage: Tensor) -> Tensor:
        """A slot per head, as weights `[B, n, N]`: to the first head the least used, and so on."""
        slots = usage.topk(self.num_reads, largest=False, sorted=True).indices
        return one_hot(slots, self.num_slots).to(usage)
