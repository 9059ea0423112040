"""Playing trials, adaptation curves with intervals, classical players for reference, pictures and reports."""

from metarl.evaluation.adaptation import AdaptationCurve, evaluate
from metarl.evaluation.compare import Comparison, compare
from metarl.evaluation.play import play_trials
from metarl.evaluation.plots import plot_adaptation, plot_splits
from metarl.evaluation.references import RandomPlayer, reference_players
from metarl.evaluation.report import write_report
from metarl.evaluation.statistics import Estimate, estimate, interquartile_mean, paired_difference
from metarl.evaluation.video import film_trials

__all__ = [
    "AdaptationCurve",
    "Comparison",
    "Estimate",
    "RandomPlayer",
    "compare",
    "estimate",
    "evaluate",
    "film_trials",
    "interquartile_mean",
    "paired_difference",
    "play_trials",
    "plot_adaptation",
    "plot_splits",
    "reference_players",
    "write_report",
]
