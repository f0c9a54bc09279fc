"""Figures of reports and histories; matplotlib is imported only when one is drawn."""

import math
import os
import textwrap
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from keras_varinit.running.statistics import Histogram
from keras_varinit.typing import FloatArray

# Of matplotlib, which is imported late and untyped here.
Figure: TypeAlias = Any
Axes: TypeAlias = Any
Colormap: TypeAlias = Any

# Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart.
_FORWARD, _BACKWARD, _QUIET = "#0072B2", "#D55E00", "0.45"

_MOST_LABELS = 28  # names on an axis half as wide as the figure

_MOST_CURVES = 10

_TOO_NARROW = 40.0  # ratio of scales beyond which a linear axis does not resolve the smaller one


def matplotlib_modules(owner: str) -> Any:
    """The module `matplotlib` with the submodules that drawing without a window needs.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError(
            f"{owner} draws with matplotlib, which is not installed. Install it with the extra "
            "`plot`: python -m pip install 'keras-varinit[plot]'."
        ) from error
    return matplotlib


def plot_report(report: Any, path: str | os.PathLike[str] | None = None) -> Figure:
    """The figure of `SignalReport.plot`."""
    matplotlib = matplotlib_modules("SignalReport.plot")
    rows = report.weight_rows
    width = min(19.0, max(12.0, 6.0 + 0.36 * len(rows)))
    figure = matplotlib.figure.Figure(figsize=(width, 8.6), layout="constrained")
    (forward, backward), (activations, gradients) = figure.subplots(2, 2)
    names = [row.name for row in rows]
    forward.axhline(1.0, color=_QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    _draw_moments(
        forward,
        names,
        [row.second_moment for row in rows],
        [row.predicted_second_moment for row in rows],
        "forward: second moment of the signal",
        _FORWARD,
    )
    # Not the second moment: it falls with the size of a map, as the same gradient is spread out.
    sources = {"loss": "one example's loss", "noise": "unit white noise at the outputs"}
    _draw_moments(
        backward,
        names,
        [_norm(row, row.gradient_second_moment) for row in rows],
        [_norm(row, row.predicted_gradient_second_moment) for row in rows],
        "backward: squared norm of the gradient of one example",
        _BACKWARD,
        f"of {sources[report.gradients or 'noise']}",
    )
    active = [row for row in report.rows if row.has_units] or list(rows)
    colours = matplotlib.colormaps["viridis"], matplotlib.colormaps["plasma"]
    _draw_histograms(activations, active, "histogram", "activation", colours[0])
    _draw_histograms(gradients, rows, "gradient_histogram", "gradient", colours[1])
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def plot_history(
    history: dict[str, list[float | None]],
    names: Sequence[str],
    unit: str,
    caption: str,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """The figure of `SignalMonitor.plot`: layers over time, or one time over layers."""
    matplotlib = matplotlib_modules("SignalMonitor.plot")
    figure = matplotlib.figure.Figure(figsize=(13.0, 5.0), layout="constrained")
    activations, gradients = figure.subplots(1, 2)
    figure.suptitle("\n".join(textwrap.wrap(caption, 150)), fontsize=10.5, x=0.01, ha="left")
    once = len(history["time"]) == 1
    if once:
        _draw_profile(activations, gradients, history, names)
    else:
        _draw_over_time(matplotlib, activations, gradients, history, names)
    for axes, title in (
        (activations, "activations: mean ± standard deviation"),
        (gradients, "back-propagated gradients: root mean square"),
    ):
        _finish(axes, title)
        if not once:
            axes.set_xlabel(unit)
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
            axes.legend(
                frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0),
                labelspacing=0.3,
            )  # fmt: skip
    _log_scale(matplotlib, gradients)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _statistics(
    history: dict[str, list[float | None]], name: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, standard deviation and root mean square gradient of a layer over time, or NaN."""
    mean, variance, gradient = (
        np.array([math.nan if v is None else v for v in history[f"{name}/{statistic}"]], float)
        for statistic in ("output_mean", "output_variance", "gradient_second_moment")
    )
    return mean, np.sqrt(variance), np.where(gradient > 0, np.sqrt(np.abs(gradient)), np.nan)


def _draw_profile(
    activations: Axes,
    gradients: Axes,
    history: dict[str, list[float | None]],
    names: Sequence[str],
) -> None:
    """The only measurement, layer by layer."""
    values = np.array([[each[0] for each in _statistics(history, name)] for name in names])
    places = np.arange(len(names))
    activations.errorbar(
        places, values[:, 0], values[:, 1], fmt="o", color=_FORWARD, markersize=4, capsize=3
    )
    gradients.plot(places, values[:, 2], marker="o", color=_BACKWARD, markersize=4, linewidth=1.6)
    for axes in (activations, gradients):
        _name_layers(axes, names)


def _draw_over_time(
    matplotlib: Any,
    activations: Axes,
    gradients: Axes,
    history: dict[str, list[float | None]],
    names: Sequence[str],
) -> None:
    """A line for each of some layers, over epochs or batches; lines below others are wider."""
    chosen = sorted({round(n) for n in np.linspace(0, len(names) - 1, _MOST_CURVES)})
    times = np.array(history["time"], float)
    step = float(np.min(np.diff(times)))
    for number, n in enumerate(chosen):
        share = n / max(1, len(names) - 1)
        mean, deviation, gradient = _statistics(history, names[n])
        # Shifted to the right, so that the error bars of the layers do not hide each other.
        shift = 0.3 * step * number / max(1, len(chosen))
        colours = (matplotlib.colormaps[map_](0.92 * share) for map_ in ("viridis", "plasma"))
        activations.errorbar(
            times + shift, mean, deviation, label=names[n], linewidth=1.6, elinewidth=0.9,
            capsize=2, marker="o", markersize=3, color=next(colours),
        )  # fmt: skip
        gradients.plot(
            times, gradient, label=names[n], linewidth=_width(number, len(chosen)), marker="o",
            markersize=3, color=next(colours),
        )  # fmt: skip
    for axes in (activations, gradients):
        axes.set_xlim(times[0] - 0.02 * (times[-1] - times[0]), None)


def _width(number: int, of: int) -> float:
    """Width of a line: what is drawn first is wider, and so is seen below the others."""
    return 3.6 - 2.2 * number / max(1, of - 1)


def _log_scale(matplotlib: Any, axes: Axes) -> None:
    """A logarithmic y axis of at least a decade, with grid lines and numbers within decades."""
    values = [_positive(value) for line in axes.lines for value in line.get_ydata()]
    if not np.isfinite(values).any():  # matplotlib fails on a logarithmic axis without data
        axes.text(
            0.5, 0.5, "zero or not finite", ha="center", color=_QUIET, transform=axes.transAxes
        )
        return
    axes.set_yscale("log")
    low, high = (math.log10(value) for value in axes.get_ylim())
    short = max(0.0, 1.0 - (high - low)) / 2
    axes.set_ylim(10 ** (low - short), 10 ** (high + short))
    axes.grid(which="minor", color="0.95", linewidth=0.6)
    if high - low < 1.5:

        def label(value: float, place: int | None = None) -> str:
            leading = value / 10 ** math.floor(math.log10(value))
            return f"{value:g}" if round(leading, 3) in (2, 3, 5) else ""

        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=range(2, 10)))
        axes.yaxis.set_minor_formatter(label)


def _norm(row: Any, second_moment: float | None) -> float | None:
    """The squared norm of a gradient of this second moment."""
    return None if second_moment is None else second_moment * math.prod(row.shape)


def _draw_moments(
    axes: Axes,
    names: Sequence[str],
    measured: Sequence[float | None],
    predicted: Sequence[float | None],
    title: str,
    colour: str,
    caption: str | None = None,
) -> None:
    """Measured and predicted second moments or norms by layer, on a logarithmic axis."""
    places = np.arange(len(names))
    shown, expected = (np.array(list(map(_positive, each))) for each in (measured, predicted))
    if np.isfinite(expected).any():
        axes.plot(
            places, expected, color=_QUIET, linestyle="--", linewidth=1.6, marker="_",
            markersize=9, markeredgewidth=1.6, label="predicted", zorder=2,
        )  # fmt: skip
    axes.plot(
        places, shown, color=colour, marker="o", markersize=4.5, linewidth=1.8,
        label="measured", zorder=3,
    )  # fmt: skip
    lost = [
        n for n, value in enumerate(measured) if value is not None and not math.isfinite(shown[n])
    ]
    axes.set_yscale("log")
    _show_some_decades(axes, [*shown, *expected])
    if lost:
        axes.plot(
            lost, np.full(len(lost), 0.02), "x", color=colour, transform=axes.get_xaxis_transform(),
            label="zero or not finite", zorder=3,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=9, title=caption, title_fontsize=9, alignment="left")
    _name_layers(axes, names)
    _finish(axes, title)
    low, high = axes.get_ylim()
    if high < 1e5 * low:
        axes.grid(which="minor", axis="y", color="0.95", linewidth=0.6)


def _positive(value: float | None) -> float:
    return value if value is not None and value > 0 and math.isfinite(value) else math.nan


def _show_some_decades(axes: Axes, values: Sequence[float]) -> None:
    """Shows at least two decades and 1, so that noise around it does not look like a trend."""
    logarithms = [0.0, *(math.log10(v) for v in values if math.isfinite(v))]
    low, high = min(logarithms), max(logarithms)
    short = max(0.0, 2.0 - (high - low)) / 2
    margin = 0.06 * max(2.0, high - low)
    axes.set_ylim(10 ** (low - short - margin), 10 ** (high + short + margin))


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // _MOST_LABELS)
    places = range(0, len(names), step)
    axes.set_xticks(list(places), [names[n] for n in places])
    longest = max(map(len, names))
    if longest * len(places) > 32:
        axes.tick_params(axis="x", rotation=90 if len(places) > 12 else 45, labelsize=8)
        if len(places) <= 12:
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
                label.set_rotation_mode("anchor")
    axes.set_xlim(-0.6, len(names) - 0.4)


def _draw_histograms(
    axes: Axes, rows: Sequence[Any], attribute: str, name: str, colours: Colormap
) -> None:
    """Draws the normalized histograms of several layers, the first layer darkest.

    If their widths differ too much for a linear axis, it is linear around 0 and logarithmic
    farther out.
    """
    drawn = [row for row in rows if getattr(row, attribute) is not None]
    if not drawn:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=_QUIET)
        axes.set_axis_off()
        return
    chosen = sorted({round(n) for n in np.linspace(0, len(drawn) - 1, _MOST_CURVES)})
    histograms = [getattr(drawn[n], attribute) for n in chosen]
    for n, histogram in zip(chosen, histograms, strict=True):
        edges, density = _smoothed(histogram)
        axes.plot(
            (edges[:-1] + edges[1:]) / 2, np.where(density > 0, density, np.nan),
            color=colours(0.92 * n / max(1, len(drawn) - 1)), linewidth=1.5, marker=".",
            markersize=2.5, label=drawn[n].name,
        )  # fmt: skip
    reaches = sorted(_reach(histogram) for histogram in histograms)
    if reaches[-1] > _TOO_NARROW * reaches[0]:
        axes.set_xscale("symlog", linthresh=reaches[0] / 8, linscale=0.3)
        decades = math.ceil(math.log10(reaches[-1] / reaches[0]) / 3)
        powers = range(math.ceil(math.log10(reaches[0] / 2)), 39, max(1, decades))
        ticks = [10.0**p for p in powers if 10.0**p <= reaches[-1]]
        axes.set_xticks([*(-t for t in reversed(ticks)), 0.0, *ticks])
        axes.minorticks_off()
    axes.set_xlim(-reaches[-1] if _has_negatives(histograms) else 0.0, reaches[-1])
    axes.set_yscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel("density")
    axes.legend(
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelspacing=0.3
    )
    _finish(axes, f"normalized histograms of {name}s")


def _reach(histogram: Histogram) -> float:
    """The largest distance from 0 of a bin that is not empty."""
    used = np.flatnonzero(histogram.counts)
    if not len(used):
        return float(histogram.edges[-1])
    return float(max(-histogram.edges[used[0]], histogram.edges[used[-1] + 1]))


def _has_negatives(histograms: Sequence[Histogram]) -> bool:
    return any(h.below or h.counts[: len(h.counts) // 2].any() for h in histograms)


def _smoothed(histogram: Histogram) -> tuple[FloatArray, FloatArray]:
    """Edges and densities, with wider bins if there are few entries."""
    total = float(histogram.counts.sum())
    width = 1 if total > 20_000 else 3 if total > 1_000 else 9
    counts = histogram.counts.reshape(-1, width).sum(axis=1)
    edges = histogram.edges[::width]
    total += histogram.below + histogram.above
    return edges, counts / (max(total, 1.0) * np.diff(edges))


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
