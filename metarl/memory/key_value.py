"""Memory network: Sukhbaatar, Szlam, Weston and Fergus (2015), "End-to-end memory networks".

Departures from the paper:

- A memory's places are a trial's last steps instead of a story's sentences, and the question is the present step, which
  is in the memory too: the memory is never empty.
- Inputs are vectors of features, embedded by linear layers, instead of bags of words.
- Scores are divided by the square root of the embedding's size; the output is a tanh instead of a softmax over words.
"""

import torch
from torch import Tensor, nn

from metarl.memory.attention import WindowCore, attend, extend, keep, plan, steps_before
from metarl.memory.base import State
from metarl.plain import check_count


class KeyValueCore(WindowCore):
    """A window of keys and values, one of each per step, read by content and age in several hops.

    Step `j` writes the key `A x_j` and the value `C x_j`, `[output_size]` each. The question of step `t` starts as
    `u = B x_t`, and each hop makes it `u' = H u + o`, `o = sum_j w_j (C x_j + T_C[t - j])`,
    `w = softmax_j(u . (A x_j + T_A[t - j]) / sqrt(output_size))`, over the last `num_slots` steps with the present one.
    Then `y = tanh(W u + b)`. All hops share `A`, `C`, `H`, `T_A` and `T_C` (the paper's layer-wise tying).

    State: the counter of steps so far `[B, 1]` (at most `num_slots - 1`), and the keys and values of the last
    `num_slots - 1` steps, `[B, num_slots - 1, 2 output_size]`.

    Args:
        input_size: features of `x`.
        output_size: features of `y`, keys and values.
        num_slots: steps in the memory, the present one included.
        hops: times that the memory is read in each step.
    """

    def __init__(self, input_size: int, output_size: int, num_slots: int = 64, hops: int = 2):
        super().__init__()
        check_count("num_slots", num_slots, least=2)
        check_count("hops", hops)
        self.input_size = input_size
        self.output_size = output_size
        self.num_slots = num_slots
        self.hops = hops
        self.embeddings = nn.Linear(input_size, 3 * output_size, bias=False)  # B, A, C
        self.age_keys = nn.Parameter(0.1 * torch.randn(num_slots, output_size))  # T_A, oldest first
        self.age_values = nn.Parameter(0.1 * torch.randn(num_slots, output_size))  # T_C
        self.between_hops = nn.Linear(output_size, output_size, bias=False)  # H
        self.output = nn.Linear(output_size, output_size)

    def initial_state(self, batch_size: int) -> State:
        """Zeros: the counter, and the cache of keys and values."""
        new_zeros = self.output.weight.new_zeros
        cache = new_zeros(batch_size, self.num_slots - 1, 2 * self.output_size)
        return new_zeros(batch_size, 1, dtype=torch.float32), cache

    @property
    def places(self) -> int:
        """Past steps in the window."""
        return self.num_slots - 1

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Each hop's weights over the memory `[B, num_slots]`, oldest step first, the present one last."""
        weights = self.weights(x, state)
        return {f"hop {i}": w[:, 0, 0] for i, w in enumerate(weights, 1)}

    def _run(self, x: Tensor, state: State, reset: Tensor | None, used: int) -> tuple[Tensor, State, list[Tensor]]:
        """`x [B, T, I]` to `y [B, T, O]`, the next state and the weights, reading `used` places of the cache."""
        before = steps_before(state[0], x.shape[1], reset)
        spans = plan(before, used, self.num_slots)
        count = (before[:, -1:] + 1).clamp(max=self.num_slots - 1)
        question, new = self.embeddings(x)[:, None].split([self.output_size, 2 * self.output_size], -1)  # one head
        extended = extend(state[1], new[:, 0], used)
        keys, values = extended[:, None].chunk(2, -1)
        all_weights = []
        for _ in range(self.hops):
            scaled = question * self.output_size**-0.5
            read, weights = attend(scaled, keys, values, spans, scaled, self.age_keys[None], self.age_values[None])
            question = self.between_hops(question) + read
            all_weights.append(weights)
        cache = keep(extended, self.num_slots - 1, None if reset is None else count)
        return self.output(question[:, 0]).tanh(), (count, cache), all_weights
