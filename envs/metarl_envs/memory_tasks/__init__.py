"""Families that a memory decides, batched: T-mazes and a dark room, POPGym's card games, bandits that come back."""

from metarl_envs.memory_tasks.barcode import BarcodeBandit
from metarl_envs.memory_tasks.cards import Autoencode, CountRecall, RepeatFirst, RepeatPrevious
from metarl_envs.memory_tasks.mazes import KeyToDoor, TMaze

__all__ = ["Autoencode", "BarcodeBandit", "CountRecall", "KeyToDoor", "RepeatFirst", "RepeatPrevious", "TMaze"]
