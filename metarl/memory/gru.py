"""Gated recurrent unit (Cho et al. 2014), in cuDNN's form, where the reset gate acts after the recurrent product."""

import torch
from torch import Tensor, nn

from metarl.memory.base import SPAN, MemoryCore, State, check_span, scan_fused
from metarl.memory.lstm import SATURATE


class GRUCore(MemoryCore):
    """One GRU layer; state `(h,)`, `[B, output_size]`.

    `r, z = sigmoid(.)`, `n = tanh(W x + b + r (U h + d))`, `h' = (1 - z) n + z h`. Recurrent weights start orthogonal.
    Update biases are `log u` with `u` uniform in [1, span - 1], so that the units' memories last from 1 to `span` steps
    (chrono initialisation, Tallec & Ollivier 2018).
    """

    ROWS_AT_ONCE = 64

    def __init__(self, input_size: int, output_size: int, span: float = SPAN):
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.gru = nn.GRU(input_size, output_size)
        with torch.no_grad():
            for block in self.gru.weight_hh_l0.chunk(3):
                nn.init.orthogonal_(block)
            self.gru.bias_ih_l0.zero_()
            self.gru.bias_hh_l0.zero_()
            self.gru.bias_ih_l0.chunk(3)[1].uniform_(1.0, check_span(span) - 1.0).log_()
        drive = torch.zeros(3, output_size, 2)
        drive[:2, :, 0] = -SATURATE  # reset: r = z = 0, so h = n = tanh(b), and the channel's weight -b makes that 0
        drive[1, :, 1] = SATURATE  # hold: z = 1
        self.register_buffer("token_weights", drive.reshape(3 * output_size, 2), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """Zeros `(h,)`."""
        return (self.gru.weight_hh_l0.new_zeros(batch_size, self.output_size),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of the cell."""
        gru = self.gru
        h = torch.gru_cell(x, state[0], gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
        return h, (h,)

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps in one fused call per chunk of rows."""
        return scan_fused(self._kernel, x, state, self.initial_state(x.shape[1]), reset, self.ROWS_AT_ONCE)

    def _kernel(self, x: Tensor, state: State, with_tokens: bool) -> tuple[Tensor, State]:
        gru = self.gru
        w_in = gru.weight_ih_l0
        if with_tokens:
            drive = self.token_weights.clone()
            drive[-self.output_size :, 0] = -gru.bias_ih_l0[-self.output_size :]
            w_in = torch.cat([w_in, drive], 1)
        weights = [w_in, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0]
        y, h = torch.gru(x, state[0][None], weights, True, 1, 0.0, self.training, False, False)
        return y, (h[0],)
