"""The plots of the examples where there is little to draw: few epochs, lines that coincide."""

import numpy as np
import pytest
from matplotlib import pyplot

import tests.example_files  # noqa: F401 - makes the examples importable

# isort: split
from common import plots, study_plots

pytestmark = pytest.mark.once


@pytest.fixture
def axes():
    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


@pytest.mark.parametrize(
    ("epochs", "ticks"), [([1], [1]), ([1, 2], [1, 2]), ([1, 2, 3], [1, 2, 3])]
)
def test_epochs_are_whole_numbers(axes, epochs, ticks):
    axes.plot(epochs, epochs)
    plots.whole_numbers(axes)
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == ticks


def test_log_axes_within_a_decade_have_numbers_and_grid_lines(axes):
    axes.plot([1, 2], [2.3, 2.6])
    axes.grid(color="0.9")
    plots.log_scale(axes)
    axes.figure.canvas.draw()
    shown = [tick for tick in axes.yaxis.get_minor_ticks() if tick.gridline.get_visible()]
    low, high = axes.get_ylim()
    assert sum(low <= tick.get_loc() <= high for tick in shown) >= 3
    texts = [label.get_text() for label in axes.get_yticklabels(minor=True)]
    assert any(texts)
    assert not any("10^" in text for text in texts)


def test_titles_wrap_into_lines_of_about_the_same_length(axes):
    text = "ResNet-8 (shortcut A) with batch normalization on digits: mean and range over 2 seeds"
    axes.figure.set_size_inches(6.5, 4)
    lines = plots.wrapped(f"Ratios\n{text}", axes.figure).splitlines()
    assert lines[0] == "Ratios"
    assert " ".join(lines[1:]) == text
    lengths = list(map(len, lines[1:]))
    assert len(lengths) == 2
    assert max(lengths) <= 71
    assert min(lengths) > 0.7 * max(lengths)


def test_lines_below_others_are_wider(axes):
    values = np.array([[0.2, 0.9]])
    for number in range(4):
        study_plots.draw_range(axes, [1, 2], values, str(number), number)
    widths = [line.get_linewidth() for line in axes.lines]
    assert widths == sorted(set(widths), reverse=True)
    assert len({line.get_linestyle() for line in axes.lines}) == 4


def test_a_log_axis_without_data(axes):
    axes.plot([1, 2], [np.nan, np.nan])
    plots.whole_numbers(axes)
    plots.log_scale(axes)
    axes.figure.canvas.draw()
