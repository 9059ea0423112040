"""The core that remembers nothing: a feed-forward policy."""

from torch import Tensor, nn

from metarl.kernels import Tanh
from metarl.memory.base import MemoryCore, State


class IdentityCore(MemoryCore):
    """A linear layer with tanh and no state, so that a feed-forward policy is one more choice of core."""

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.layer = nn.Sequential(nn.Linear(input_size, output_size), Tanh())

    def initial_state(self, batch_size: int) -> State:
        """No tensors."""
        return ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`y` depends on `x` alone."""
        return self.layer(x), state

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps at once; there is nothing to reset."""
        return self.layer(x), state
