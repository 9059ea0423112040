"""Policies: those that adapt by a memory, and those whose parameters adapt by gradient steps."""

from metarl.policies.gradient import AdaptedPolicy, GradientPolicy
from metarl.policies.trial import Memory, TrialPolicy

__all__ = ["AdaptedPolicy", "GradientPolicy", "Memory", "TrialPolicy"]
