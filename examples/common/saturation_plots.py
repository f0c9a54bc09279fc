"""The figures of Glorot and Bengio (2010): saturation over training, and histograms by layer."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from common import study_plots
from common.summary import Record


def plot_saturation(records: Sequence[Record], path: pathlib.Path) -> None:
    """Activations' mean ± deviation by layer over training, of the first seed."""
    first = [record for record in records if record["settings"]["seed"] == 0]
    titles = [f"{r['settings']['activation']}, {r['settings']['initialization']}" for r in first]
    rows = -(-len(first) // 2)
    figure, grid = study_plots.grid(rows, min(2, len(first)), titles, sharex="all", sharey="row")
    most = max(len(record["signal"]["layers"]) for record in first)
    for axes, record in zip(grid.flat, first, strict=False):
        _draw_saturation(axes, record["signal"], most)
    study_plots.save(
        figure,
        "Activations of the same test pictures: mean (full) ± standard deviation (dashed)",
        path,
    )


def _draw_saturation(axes: Any, signal: Mapping[str, Any], most: int) -> None:
    """`most`: layers of the deepest network, so that a colour means one layer in all panels."""
    epochs = np.array(signal["epochs"])
    for number, (name, values) in enumerate(signal["layers"].items()):
        colour = _colour(number, most)
        mean, deviation = np.array(values["mean"]), np.array(values["deviation"])
        axes.plot(epochs, mean, color=colour, linewidth=2, label=name.replace("_", " "))
        for edge in (mean - deviation, mean + deviation):
            axes.plot(epochs, edge, color=colour, linewidth=1, linestyle=(0, (3, 2)))
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.06)
    study_plots.by_epoch(axes, "activation")
    axes.label_outer()


def plot_histograms(
    first: Record, records: Sequence[Record], activation: str, path: pathlib.Path
) -> None:
    """Above activations, below gradients, before training; a column for each initialization."""
    seed = first["settings"]["seed"]
    shown = [record for record in records if record["settings"]["seed"] == seed]
    titles = [record["settings"]["initialization"] for record in shown]
    figure, grid = study_plots.grid(2, len(shown), titles, sharex="row", sharey="row")
    for column, record in zip(grid.T, shown, strict=True):
        for axes, (what, layers) in zip(column, record["start"].items(), strict=True):
            hidden = {name: h for name, h in layers.items() if name.startswith("layer_")}
            for number, (name, histogram) in enumerate(hidden.items()):
                middles, density = _curve(histogram)
                axes.plot(
                    middles, density, color=_colour(number, len(hidden)), linewidth=1.6,
                    label=name.replace("_", " "),
                )  # fmt: skip
            study_plots.log_scale(axes)
            axes.set_xlabel({"activations": "activation", "gradients": "gradient"}[what])
    for axes in grid[:, 0]:
        axes.set_ylabel("density")
    study_plots.save(
        figure, f"{activation} before training: activations and back-propagated gradients", path
    )


def _curve(histogram: Mapping[str, Sequence[float]]) -> tuple[Any, Any]:
    """Middles and densities of threefold bins, without empty ones."""
    density = np.reshape(histogram["density"], (-1, 3)).mean(axis=1)
    edges = np.array(histogram["edges"])[::3]
    middles = (edges[1:] + edges[:-1]) / 2
    return middles[density > 0], density[density > 0]


def _colour(number: int, of: int) -> Any:
    """From dark (next to the input) to light."""
    return matplotlib.colormaps["viridis"](0.88 * number / max(1, of - 1))
