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
            np.testing.assert_allclose(drawn[label], [getattr(row, name) for row in report])
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


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    report = kv.measure_signal(plain_network(1), np.ones((2, 8), "float32"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"SignalReport\.plot draws with matplotlib.*\[plot\]"):
        report.plot()
