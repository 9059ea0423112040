"""Memory cores: what an agent keeps while time passes. One protocol, one core per file."""

from metarl.memory.base import MemoryCore, State, clear
from metarl.memory.dnc import DNCCore
from metarl.memory.episodic import EpisodicLSTMCore
from metarl.memory.gru import GRUCore
from metarl.memory.gtrxl import GTrXLCore
from metarl.memory.identity import IdentityCore
from metarl.memory.key_value import KeyValueCore
from metarl.memory.lstm import LSTMCore
from metarl.memory.mann import MANNCore
from metarl.memory.min_gru import MinGRUCore
from metarl.memory.ntm import NTMCore
from metarl.memory.snail import SNAILCore

CORES: dict[str, type[MemoryCore]] = {
    "identity": IdentityCore,
    "lstm": LSTMCore,
    "gru": GRUCore,
    "min_gru": MinGRUCore,
    "ntm": NTMCore,
    "mann": MANNCore,
    "dnc": DNCCore,
    "episodic": EpisodicLSTMCore,
    "snail": SNAILCore,
    "gtrxl": GTrXLCore,
    "key_value": KeyValueCore,
}
"""Cores by the name they have in configurations."""

__all__ = [
    "CORES",
    "DNCCore",
    "EpisodicLSTMCore",
    "GRUCore",
    "IdentityCore",
    "LSTMCore",
    "MemoryCore",
    "MinGRUCore",
    "State",
    "clear",
]
