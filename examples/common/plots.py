"""Learning curves of several initializers over seeds."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib import ticker

from common.results import Run, group

# The colours of Okabe and Ito stay apart for colour-blind readers; yellow is too pale for lines.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX<>*"


def style(index: int) -> dict[str, Any]:
    """Colour, dashes, marker and width of the line with that number.

    What is drawn first is wider, so that it is seen below the lines that cover it.
    """
    return {
        "linewidth": max(1.5, 3.1 - 0.4 * index),
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _STYLES[index % len(_STYLES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def save_learning_curves(
    runs: Sequence[Run], target_accuracy: float, title: str, path: pathlib.Path
) -> None:
    """Draws validation accuracy and training loss by epoch: the mean, and the range over seeds.

    Args:
        runs: Finished runs.
        target_accuracy: Marked by a line.
        title: The figure's title.
        path: The PNG file to write.
    """
    matplotlib.use("Agg")
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for index, (name, members) in enumerate(group(runs).items()):
        _draw(accuracy, members, "val_accuracy", name, style(index))
        _draw(loss, members, "loss", name, style(index))
    accuracy.axhline(target_accuracy, color="0.4", linewidth=1, linestyle=(0, (1, 2)))
    accuracy.annotate(
        f"{target_accuracy:.1%}",
        (1, target_accuracy),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        color="0.4",
        fontsize=8,
        ha="right",
        va="top",
    )
    accuracy.set_ylabel("validation accuracy")
    accuracy.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    loss.set_ylabel("training loss")
    log_scale(loss)
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch")
        whole_numbers(axes)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(wrapped(title, figure), fontsize=12)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def whole_numbers(axes: plt.Axes) -> None:
    """Ticks of the x axis at whole numbers only, as epochs and layers are."""
    axes.xaxis.set_major_locator(
        ticker.MaxNLocator(integer=True, steps=(1, 2, 5, 10), min_n_ticks=1)
    )
    low, high = axes.get_xlim()
    if high - low < 1:  # a single epoch
        axes.set_xlim((low + high) / 2 - 0.6, (low + high) / 2 + 0.6)


class _Numbers(ticker.LogFormatter):
    """Labels the ticks that its base does, and writes 0.6 for its 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def log_scale(axes: plt.Axes) -> None:
    """A logarithmic y axis, with numbers and grid lines also where it spans less than a decade."""
    if not np.isfinite(axes.dataLim.minposy):  # matplotlib fails on such an axis without data
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(_Numbers(minor_thresholds=(1, 0.5)))
    axes.grid(which="minor", axis="y", color="0.94", linewidth=0.6)


def wrapped(title: str, figure: plt.Figure) -> str:
    """A title in as few lines as fit a figure, and of about the same length."""
    # An inch holds about eleven characters of this size.
    most = int(11 * figure.get_figwidth())
    lines: list[str] = []
    for line in title.splitlines():
        count = len(textwrap.wrap(line, most))
        width = next(n for n in range(1, most + 1) if len(textwrap.wrap(line, n)) <= count)
        lines += textwrap.wrap(line, width)
    return "\n".join(lines)


def _draw(
    axes: plt.Axes, members: Sequence[Run], metric: str, label: str, style: dict[str, Any]
) -> None:
    values = np.array([run.history[metric] for run in members])
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(
        epochs,
        values.mean(axis=0),
        label=label,
        markersize=4,
        markevery=max(1, len(epochs) // 15),
        **style,
    )
    if len(members) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.13, linewidth=0)
