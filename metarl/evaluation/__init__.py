"""Playing trials, adaptation curves with intervals, classical players for reference, pictures and reports."""

from metarl.evaluation.adaptation import evaluate
from metarl.evaluation.compare import Comparison, compare
from metarl.evaluation.curve import AdaptationCurve
from metarl.evaluation.memory_plots import plot_memory
from metarl.evaluation.optimization import OptimizationCurve, evaluate_optimizer
from metarl.evaluation.play import play_trials
from metarl.evaluation.plots import plot_adaptation, plot_recall, plot_splits
from metarl.evaluation.references import RandomPlayer, reference_players
from metarl.evaluation.remembering import Reach, Remembered, reach, remember
from metarl.evaluation.report import write_report
from metarl.evaluation.statistics import Estimate, estimate, interquartile_mean, paired_difference
from metarl.evaluation.video import film_trials

__all__ = [
    "AdaptationCurve",
    "Comparison",
    "Estimate",
    "OptimizationCurve",
    "RandomPlayer",
    "Reach",
    "Remembered",
    "compare",
    "estimate",
    "evaluate",
    "evaluate_optimizer",
    "film_trials",
    "interquartile_mean",
    "paired_difference",
    "play_trials",
    "plot_adaptation",
    "plot_memory",
    "plot_recall",
    "plot_splits",
    "reach",
    "reference_players",
    "remember",
    "write_report",
]
