"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000)."""

import torch
from torch import Tensor, nn

from metarl.memory.base import SPAN, MemoryCore, State, check_flag, check_span, scan_fused

SATURATE = 1e4
"""A gate's pre-activation at which the sigmoid is exactly 0 (negative) or 1 (positive) in float32."""


class LSTMCore(MemoryCore):
    """One LSTM layer; state `(h, c)`, each `[B, output_size]`.

    `i, f, o = sigmoid(.)`, `g = tanh(.)`, `c' = f c + i g`, `h' = o tanh(c')`. Recurrent weights start orthogonal. Gates
    start so that the units' memories last from 1 to `span` steps (chrono initialisation, Tallec & Ollivier 2018, eq.
    16): forget biases `log u` with `u` uniform in [1, span - 1], input biases their negative.

    Args:
        input_size: features of `x`.
        output_size: units.
        span: steps that the slowest units remember for.
        bfloat16: multiply in half precision within `scan`, and so while learning (on CPUs the cell's state stays in
            float32); `step`, and so acting, is in float32. Faster only on processors with units for it (AVX512-BF16, AMX).
    """

    ROWS_AT_ONCE = 32
    ROWS_AT_ONCE_IN_BFLOAT16 = 128

    def __init__(self, input_size: int, output_size: int, span: float = SPAN, bfloat16: bool = False):
        super().__init__()
        self.bfloat16 = check_flag("bfloat16", bfloat16)
        self.input_size = input_size
        self.output_size = output_size
        self.lstm = nn.LSTM(input_size, output_size)
        with torch.no_grad():
            for block in self.lstm.weight_hh_l0.chunk(4):
                nn.init.orthogonal_(block)
            self.lstm.bias_ih_l0.zero_()
            self.lstm.bias_hh_l0.zero_()
            input_bias, forget_bias, _, _ = self.lstm.bias_ih_l0.chunk(4)
            forget_bias.uniform_(1.0, check_span(span) - 1.0).log_()
            input_bias.copy_(-forget_bias)
        drive = torch.zeros(4, output_size, 2)
        drive[:, :, 0] = torch.tensor([-SATURATE, -SATURATE, 0.0, -SATURATE])[:, None]  # reset: c = h = 0
        drive[:, :, 1] = torch.tensor([-SATURATE, SATURATE, 0.0, 0.0])[:, None]  # hold: c stays
        self.register_buffer("token_weights", drive.reshape(4 * output_size, 2), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """Zeros `(h, c)`."""
        zeros = self.lstm.weight_hh_l0.new_zeros(batch_size, self.output_size)
        return zeros, zeros.clone()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of the cell."""
        lstm = self.lstm
        h, c = torch.lstm_cell(x, state, lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0)
        return h, (h, c)

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps in one fused call per chunk of rows."""
        rows = self.ROWS_AT_ONCE_IN_BFLOAT16 if self.bfloat16 else self.ROWS_AT_ONCE
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            y, state = scan_fused(self._kernel, x, state, self.initial_state(x.shape[1]), reset, rows)
        return y.to(x.dtype), tuple(part.to(x.dtype) for part in state)

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Output "h" and cell state "c", `[B, output_size]`."""
        return dict(zip("hc", self.step(x, state)[1], strict=True))

    def _kernel(self, x: Tensor, state: State, with_tokens: bool) -> tuple[Tensor, State]:
        lstm = self.lstm
        w_in = torch.cat([lstm.weight_ih_l0, self.token_weights], 1) if with_tokens else lstm.weight_ih_l0
        weights = [w_in, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0]
        y, h, c = torch.lstm(x, [s[None] for s in state], weights, True, 1, 0.0, self.training, False, False)
        return y, (h[0], c[0])
