"""Learning curves of several initializers over seeds."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib import ticker

from common.results import Run, group

# The colours of Okabe and Ito stay apart for colour-blind readers; yellow is too pale for lines.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX<>*"


def style(index: int) -> dict[str, str]:
    """Colour, dashes and marker of the line with that number."""
    return {
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
    loss.set_yscale("log")
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(
    axes: plt.Axes, members: Sequence[Run], metric: str, label: str, style: dict[str, str]
) -> None:
    values = np.array([run.history[metric] for run in members])
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(
        epochs,
        values.mean(axis=0),
        label=label,
        linewidth=1.8,
        markersize=4,
        markevery=max(1, len(epochs) // 15),
        **style,
    )
    if len(members) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.13, linewidth=0)
