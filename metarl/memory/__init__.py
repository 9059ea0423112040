"""Memory cores: what an agent keeps while time passes. One protocol, one core per file."""

from metarl.memory.base import MemoryCore, State, clear
from metarl.memory.gru import GRUCore
from metarl.memory.identity import IdentityCore
from metarl.memory.lstm import LSTMCore
from metarl.memory.min_gru import MinGRUCore

CORES: dict[str, type[MemoryCore]] = {
    "identity": IdentityCore,
    "lstm": LSTMCore,
    "gru": GRUCore,
    "min_gru": MinGRUCore,
}
"""Cores by the name they have in configurations."""

__all__ = ["CORES", "GRUCore", "IdentityCore", "LSTMCore", "MemoryCore", "MinGRUCore", "State", "clear"]
