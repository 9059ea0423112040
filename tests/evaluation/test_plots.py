import dataclasses
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.text import Text

from metarl.evaluation import AdaptationCurve, plot_adaptation, plot_splits
from metarl.evaluation.plots import spread


def make_curve(episodes, name="RL²", num_tasks=20, ceiling=True, references=("random", "Thompson sampling")):
    rng = np.random.default_rng(len(name))
    levels = np.linspace(0, 1, episodes) if name == "RL²" else np.zeros(episodes)
    return AdaptationCurve(
        name=name,
        env_id="metarl/BernoulliBandit-v0",
        family_kwargs={},
        split="test",
        task_hash="hash",
        returns=levels + 0.1 * rng.normal(size=(num_tasks, episodes)),
        ceiling=np.full(num_tasks, 1.5) if ceiling else None,
        references=tuple(make_curve(episodes, other, num_tasks, ceiling, ()) for other in references),
    )


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def labelled(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


@pytest.mark.parametrize("episodes", [1, 4, 100])
def test_everyone_is_drawn_and_named(episodes):
    curve = make_curve(episodes)
    figure = plot_adaptation(curve)
    (axes,) = figure.axes
    assert set(texts(figure)) == {"RL²", "random", "Thompson sampling", "ceiling: task known", "before adaptation"}
    lines = labelled(axes)
    np.testing.assert_allclose(lines["RL²"].get_ydata(), curve.mean.value)
    np.testing.assert_array_equal(lines["RL²"].get_xdata(), np.arange(1, episodes + 1))
    assert lines["RL²"].get_linewidth() > lines["random"].get_linewidth()
    assert lines["ceiling: task known"].get_ydata()[0] == pytest.approx(1.5)
    assert axes.get_xlabel() == "episode in the trial"
    assert axes.get_ylabel() == "return per episode (mean, 95 % interval)"
    assert axes.get_xticks()[0] == 1


def test_intervals_are_bars_in_short_trials_and_bands_in_long_ones():
    short, long = make_curve(4), make_curve(100)
    (axes,) = plot_adaptation(short).axes
    assert len(axes.containers) == 3
    bars = axes.containers[-1].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], np.stack([short.mean.low, short.mean.high], -1))
    (axes,) = plot_adaptation(long).axes
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(bands) == 3
    heights = bands[-1].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((long.mean.low.min(), long.mean.high.max()))


def test_interquartile_means_go_without_ceiling():
    curve = make_curve(4)
    (axes,) = plot_adaptation(curve, statistic="iqm").axes
    assert "ceiling: task known" not in labelled(axes)
    np.testing.assert_allclose(labelled(axes)["RL²"].get_ydata(), curve.iqm.value)


def test_one_task_is_drawn_without_intervals():
    for episodes in (3, 40):
        (axes,) = plot_adaptation(make_curve(episodes, num_tasks=1, references=())).axes
        assert np.isfinite(axes.get_ylim()).all()


def test_several_curves_are_drawn_over_each_other():
    curves = [make_curve(4), make_curve(4, "SNAIL", references=())]
    figure = plot_adaptation(curves, names=["first", "second"])
    lines = labelled(figure.axes[0])
    assert set(lines) == {"first", "second", "random", "Thompson sampling", "ceiling: task known"}
    assert lines["first"].get_color() != lines["second"].get_color()


def test_returns_that_are_nearly_equal_are_read_off_the_axis():
    curve = make_curve(2, references=())
    figure = plot_adaptation(dataclasses.replace(curve, returns=200 + 0.001 * curve.returns, ceiling=None))
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert all(float(label.get_text()) > 199 for label in axes.get_yticklabels())


def test_splits_share_a_scale():
    curve = make_curve(4)
    figure = plot_splits({"test": curve, "ood": dataclasses.replace(curve, returns=curve.returns - 5)})
    assert [axes.get_title("left") for axes in figure.axes] == ["test", "ood"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ceiling: task known", "RL²", "Thompson sampling", "random"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_are_written(tmp_path, suffix):
    path = tmp_path / "run" / f"adaptation.{suffix}"
    make_curve(4).plot(path, dark=True)
    assert path.stat().st_size > 5000


def test_global_settings_stay_as_they_were(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_adaptation(make_curve(4), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_many_names_do_not_overlap():
    names = [f"player {i}" for i in range(9)]
    figure = plot_adaptation(make_curve(4, references=names))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(t) for t in figure.axes[0].texts if t.get_text() != "before adaptation"]
    boxes.sort(key=lambda box: box.y0)
    assert all(upper.y0 > lower.y0 + 0.75 * lower.height for lower, upper in itertools.pairwise(boxes))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.2, 0.8], [0.2, 0.8]),  # far enough
        ([0.5, 0.5], [0.45, 0.55]),  # moved apart by equal amounts
        ([0.0, 0.0, 1.0], [0.0, 0.1, 1.0]),  # kept inside
        ([1.0, 1.0, 1.0], [0.8, 0.9, 1.0]),
        ([0.3, 0.35, 0.36, 0.9], [0.71 / 3, 0.71 / 3 + 0.1, 0.71 / 3 + 0.2, 0.9]),
    ],
)
def test_spread(heights, expected):
    np.testing.assert_allclose(spread(np.array(heights), 0.1), expected, atol=1e-12)


def test_spread_shrinks_gaps_that_do_not_fit():
    np.testing.assert_allclose(spread(np.full(5, 0.5), 0.9), [0, 0.25, 0.5, 0.75, 1])
