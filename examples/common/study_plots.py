"""Curves of a study's records: the mean over seeds, and their range."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib import ticker

from common.plots import log_scale, style, whole_numbers, wrapped
from common.summary import Record

METRICS = {"val_accuracy": "validation accuracy", "loss": "training loss"}


def curves(records: Sequence[Record], metric: str, epochs: int) -> np.ndarray:
    """A metric of several trainings, `(trainings, epochs)`.

    A training that ended early has diverged: accuracies keep their last value, losses are NaN.
    """
    rows = []
    for record in records:
        values = record["history"][metric][:epochs]
        fill = values[-1] if "accuracy" in metric else np.nan
        rows.append([*values, *[fill] * (epochs - len(values))])
    return np.array(rows)


def ratios(
    records: Sequence[Record], base: Sequence[Record], epochs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Validation accuracy ÷ that of the base with the same seed.

    An accuracy of zero in the base, as tiny data sets may have, makes a NaN.

    Returns:
        Those of the seeds, `(trainings, epochs)`, and that of the means, `(epochs,)`: the mean of
        ratios would be above 1 for accuracies that differ by nothing but noise.
    """
    of_seed = {record["settings"]["seed"]: record for record in base}
    pairs = [(r, of_seed[seed]) for r in records if (seed := r["settings"]["seed"]) in of_seed]
    above, below = (curves(half, "val_accuracy", epochs) for half in zip(*pairs, strict=True))
    means = above.mean(axis=0), below.mean(axis=0)
    return tuple(a / np.where(b > 0, b, np.nan) for a, b in ((above, below), means))


def draw_range(
    axes: plt.Axes,
    x: Sequence[float],
    values: np.ndarray,
    label: str,
    n: int,
    middle: np.ndarray | None = None,
) -> None:
    """Draws the mean of the rows as the `n`-th line, and their range.

    Args:
        axes: Where to.
        x: `(points,)`.
        values: `(rows, points)`; those that are not finite leave a gap.
        label: For the legend.
        n: The line's number, which decides its colour, dashes and marker.
        middle: `(points,)`, drawn in place of the mean.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    look = style(n)
    axes.plot(
        x,
        values.mean(axis=0) if middle is None else middle,
        label=label,
        markersize=4,
        markevery=max(1, len(x) // 12),
        **look,
    )
    if len(values) > 1:
        axes.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.13, linewidth=0
        )


def grid(
    rows: int,
    columns: int,
    titles: Sequence[str] = (),
    *,
    panel: tuple[float, float] = (4.9, 3.3),
    **shared: Any,
) -> tuple[plt.Figure, Any]:
    """A figure with an array of panels, titled row by row.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        titles: Of the first panels.
        panel: Width and height of one, in inches.
        **shared: `sharex` and `sharey`, as of `plt.subplots`.
    """
    matplotlib.use("Agg")
    size = (max(6.5, panel[0] * columns), panel[1] * rows + 0.8)
    figure, panels = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, **shared
    )
    for axes in panels.flat:
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    for axes, title in zip(panels.flat, titles, strict=False):
        axes.set_title(title, fontsize=11)
    return figure, panels


def axes_grid(panels: int, titles: Sequence[str] = ()) -> tuple[plt.Figure, list[plt.Axes]]:
    """A figure with panels side by side, at most three in a row."""
    columns = min(panels, 3)
    width = 5.6 if columns > 1 else 7.5
    figure, every = grid(-(-panels // columns), columns, titles, panel=(width, 4.2))
    for axes in every.flat[panels:]:
        axes.remove()
    return figure, list(every.flat)[:panels]


def by_epoch(axes: plt.Axes, label: str) -> None:
    """Labels an axis of epochs, and the other; shares are shown as percentages."""
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    whole_numbers(axes)
    if "accuracy" in label:
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))


def save(figure: plt.Figure, title: str, path: pathlib.Path) -> None:
    """Adds the title, wrapped to the figure, and a legend of all panels, and writes the file."""
    lines = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, handle)
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="outside lower center",
        ncols=_legend_columns(list(lines), figure.get_figwidth()),
        frameon=False,
    )
    figure.suptitle(wrapped(title, figure), fontsize=12)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many as fit into a width in inches, in rows of about the same length."""
    inches = 0.7 + 0.085 * max(map(len, labels), default=0)
    rows = math.ceil(len(labels) / max(1, int(width / inches)))
    return math.ceil(len(labels) / max(1, rows))


def learning_curves(
    groups: Mapping[Any, Sequence[Record]], epochs: int, title: str, path: pathlib.Path
) -> None:
    """Writes validation accuracy and training loss by epoch, a line for each group."""
    figure, panels = axes_grid(len(METRICS))
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        for number, (name, members) in enumerate(groups.items()):
            draw_range(
                axes, range(1, epochs + 1), curves(members, metric, epochs), str(name), number
            )
        by_epoch(axes, label)
        if metric == "loss":
            log_scale(axes)
    save(figure, title, path)
