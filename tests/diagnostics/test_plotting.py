"""Figures: what they draw, without a window, and what they say where matplotlib is missing."""

import sys

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests.models import cnn, data, fit

pytestmark = pytest.mark.once

L = keras.layers


def plain_network(depth=20):
    layers = [L.Dense(8, activation="tanh", name=f"layer_{n}") for n in range(depth)]
    return keras.Sequential([keras.Input((8,)), *layers, L.Dense(3, name="head")])


def test_report_draws_measured_and_predicted_moments_and_histograms(tmp_path):
    x = np.random.default_rng(0).standard_normal((16, 8)).astype("float32")
    report = kv.measure_signal(plain_network(), x)
    figure = report.plot(tmp_path / "signal.png")
    assert (tmp_path / "signal.png").stat().st_size > 10_000
    forward, backward, activations, gradients = figure.axes
    for axes, names in (
        (forward, ("second_moment", "predicted_second_moment")),
        (backward, ("gradient_second_moment", "predicted_gradient_second_moment")),
    ):
        drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
        assert axes.get_yscale() == "log"
        for label, name in zip(("measured", "predicted"), names, strict=True):
            entries = [np.prod(row.shape) if axes is backward else 1 for row in report]
            moments = [getattr(row, name) for row in report]
            np.testing.assert_allclose(drawn[label], np.multiply(moments, entries))
    assert [t.get_text() for t in forward.get_xticklabels()][:2] == ["layer_0", "layer_1"]
    assert len(activations.lines) == len(gradients.lines) == 10
    assert activations.lines[0].get_label() == "layer_0"


def test_reports_of_few_layers_dead_signals_and_infinities():
    model = plain_network(2)
    x = np.ones((4, 8), "float32")
    values = model.get_layer("layer_1").get_weights()
    model.get_layer("layer_1").set_weights([np.zeros_like(values[0]), values[1]])
    zero = kv.measure_signal(model, x).plot()
    assert "zero or not finite" in [line.get_label() for line in zero.axes[0].lines]
    model.get_layer("layer_1").set_weights([np.full_like(values[0], np.inf), values[1]])
    assert len(kv.measure_signal(model, x).plot().axes) == 4
    only = keras.Sequential([keras.Input((8,)), L.ReLU()])
    assert len(kv.measure_signal(only, x).plot().axes) == 4


def test_monitor_draws_layers_over_time(tmp_path):
    model = cnn("he_normal")
    model.compile("sgd", "mse")
    monitor = kv.SignalMonitor(data(), every=1)
    with pytest.raises(ValueError, match="nothing was measured yet"):
        monitor.plot()
    fit(model, [monitor], epochs=3)
    figure = monitor.plot(tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()
    activations, gradients = figure.axes
    assert len(activations.containers) == len(gradients.lines) == 2
    np.testing.assert_allclose(
        activations.containers[1].lines[0].get_ydata(), monitor.history["conv2d_1/output_mean"]
    )


def test_the_gradient_panel_does_not_fall_with_the_size_of_maps():
    """Linear layers that keep E u² and the gradient's norm: a copy, and a sum over 8×8 patches."""
    inputs = keras.Input((64, 64, 1))
    x = L.Conv2D(1, 1, kernel_initializer="ones", name="copy")(inputs)
    scale = keras.initializers.Constant(1 / 8)
    x = L.Conv2D(1, 8, 8, kernel_initializer=scale, name="patches")(x)
    model = keras.Model(inputs, L.Conv2D(1, 1, kernel_initializer="ones", name="end")(x))
    noise = np.random.default_rng(0).standard_normal((64, 64, 64, 1)).astype("float32")
    report = kv.measure_signal(model, noise, verbose=0)
    assert report["end"].gradient_second_moment > 50 * report["copy"].gradient_second_moment
    backward = report.plot().axes[1]
    norms = next(line.get_ydata() for line in backward.lines if line.get_label() == "measured")
    np.testing.assert_allclose(norms, norms[-1], rtol=1e-4)


def measured(epochs, **options):
    model = cnn("he_normal")
    model.compile("sgd", "mse")
    monitor = kv.SignalMonitor(data(), **options)
    fit(model, [monitor], epochs=epochs)
    return monitor


def whole(axes):
    """The ticks within the limits of the x axis, which are to be whole numbers."""
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert all(tick == round(tick) >= 0 for tick in ticks)
    return ticks


def test_a_single_measurement_is_drawn_layer_by_layer_and_says_when_it_was():
    figure = measured(1, every=9).plot()
    assert "16 examples, gradients of one example's loss" in figure.get_suptitle()
    assert "measured once, before training (every=1 measures" in figure.get_suptitle()
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["conv2d", "conv2d_1"]
    gradients = figure.axes[1]
    low, high = gradients.get_ylim()
    assert high >= 9.99 * low


@pytest.mark.parametrize(("epochs", "ticks"), [(1, [0, 1]), (2, [0, 1, 2])])
def test_short_runs_have_ticks_at_whole_epochs_from_the_first_measurement_on(epochs, ticks):
    figure = measured(epochs, every=1).plot()
    for axes in figure.axes:
        assert whole(axes) == ticks
        assert axes.get_xlim()[0] <= 0
        assert axes.lines[0].get_xdata()[0] == 0
        assert min(line.get_xdata()[0] for line in axes.lines) == 0
    widths = [line.get_linewidth() for line in figure.axes[1].lines]
    assert widths == sorted(set(widths), reverse=True)


def test_the_title_of_a_long_run_counts():
    figure = measured(5, every=2, unit="batch").plot()
    assert "measured 11 times, from batch 0 to 20" in figure.get_suptitle()
    figure = measured(2, every=1).plot()
    assert "measured before training and after epochs 1, 2" in figure.get_suptitle()


def test_gradients_that_are_zero_or_unknown_leave_an_empty_panel():
    monitor = measured(2, every=1)
    for name in ("conv2d", "conv2d_1"):
        monitor.history[f"{name}/gradient_second_moment"] = [None, 0.0, float("inf")]
    monitor.plot().canvas.draw()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    report = kv.measure_signal(plain_network(1), np.ones((2, 8), "float32"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"SignalReport\.plot draws with matplotlib.*\[plot\]"):
        report.plot()
