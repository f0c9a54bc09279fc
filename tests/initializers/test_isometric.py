"""`Isometric`: all singular values are the gain, and lengths are kept."""

import math

import keras
import numpy as np
import pytest

import keras_varinit as kv

L = keras.layers
GAIN = 1.5


def injected(layer, shape):
    """The layer in a model, drawn with its context."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    report = kv.inject(model)
    assert len(report.drawn) == 1
    return model


def isometric(seed=3):
    return kv.Isometric(gain=GAIN, seed=seed)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize(("inputs", "units"), [(12, 12), (12, 20), (20, 12)])
def test_singular_values_of_a_dense_kernel(inputs, units):
    layer = L.Dense(units, kernel_initializer=isometric())
    injected(layer, (inputs,))
    values = np.linalg.svd(numpy(layer.kernel).astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(values, GAIN, rtol=1e-5)
    stddev = layer.kernel_initializer.stddev(layer.kernel.shape)
    assert math.isclose(stddev, np.sqrt(np.mean(np.square(numpy(layer.kernel)))), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **k: L.Conv2D(6, 3, padding="same", **k), (5, 4, 6)),
        (lambda **k: L.Conv2D(8, (3, 2), padding="same", **k), (4, 4, 6)),
        (lambda **k: L.Conv1D(8, 5, padding="same", groups=2, **k), (7, 8)),
        (lambda **k: L.Conv2DTranspose(6, 3, padding="same", **k), (4, 4, 6)),
    ],
)
def test_a_convolution_keeps_the_length_of_every_map(make, shape):
    """At the borders too, where independent taps lose what is padding."""
    model = injected(make(kernel_initializer=isometric(), use_bias=False), shape)
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype("float32")
    y = numpy(model(x))
    positions = tuple(range(1, x.ndim))
    lengths = [np.sqrt(np.sum(np.square(a, dtype=np.float64), axis=positions)) for a in (x, y)]
    np.testing.assert_allclose(lengths[1], GAIN * lengths[0], rtol=1e-5)


def test_depthwise_kernels_keep_each_channel():
    layer = L.DepthwiseConv2D(3, depthwise_initializer=isometric(), padding="same", use_bias=False)
    model = injected(layer, (4, 4, 5))
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 5)).astype("float32")
    np.testing.assert_allclose(np.abs(numpy(model(x))), GAIN * np.abs(x), rtol=1e-5)


def test_angles_through_many_linear_layers():
    layers = [L.Dense(24, use_bias=False, kernel_initializer="isometric") for _ in range(40)]
    model = keras.Sequential([keras.Input((24,)), *layers])
    kv.inject(model)
    x = np.random.default_rng(0).standard_normal((6, 24)).astype("float32")
    y = numpy(model(x)).astype(np.float64)
    np.testing.assert_allclose(y @ y.T, x @ x.T, rtol=1e-4, atol=1e-4)


def test_the_engine_predicts_what_is_measured():
    """Kernels drawn again and again, white noise in."""
    layers = [L.Dense(64, "tanh") for _ in range(6)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    noise = np.random.default_rng(0).standard_normal((1024, 64)).astype("float32")
    measured = []
    for seed in range(12):
        kv.initialize(model, kv.Isometric(), seed=seed)
        rows = kv.measure_signal(model, noise, verbose=0)
        measured.append([row.second_moment for row in rows])
    predicted = np.array([p.forward for p in kv.analyze(model).predicted.values()])
    mean, error = np.mean(measured, axis=0), np.std(measured, axis=0, ddof=1) / math.sqrt(12)
    # 4 standard errors, one of the noise's own second moment, √(2/(1024·64)), included.
    error = np.hypot(error, math.sqrt(2 / noise.size) * predicted)
    assert np.all(np.abs(mean / predicted - 1) < 4 * error / predicted + 0.02), (mean, predicted)
