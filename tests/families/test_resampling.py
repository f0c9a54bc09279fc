"""Padding, interpolation and gradients through fixed linear maps, against explicit matrices."""

import math

import keras
import numpy as np
import pytest

from keras_varinit.families.pooling_windows import as_the_backend_pads
from keras_varinit.families.resampling import resizing
from keras_varinit.maths.activated import activated, max_pooled
from keras_varinit.maths.borders import bordered
from keras_varinit.maths.covariance import uniform
from keras_varinit.maths.quadrature import named_activation
from keras_varinit.maths.windows import Axis, Linear, Window, axes_of, axis_map
from keras_varinit.signals.gradient_maps import back_map, through_linear, through_taps
from keras_varinit.signals.outcome import Gradient
from tests.maths.test_covariance import Full, assert_agree, op, walked

pytestmark = pytest.mark.not_on("jax", reason="JAX would compile every draw again")


def linear(matrix):
    rows, columns = matrix.shape
    (target,), (source,) = axes_of((rows,)), axes_of((columns,))
    return Linear.of(matrix, source, target)


def correlated(size):
    """A rectified map of one axis whose positions differ, in both forms."""
    start = Full.noise((size,), 0.3, 1.2), uniform(axes_of((size,)), 0.3, 1.29, 0.09)
    return walked(*start, op("conv", k=3, padding="same"), "relu", op("pool", k=3, stride=1))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("wanted", [3, 7, 12])
def test_interpolation_is_exact_on_small_maps(interpolation, wanted):
    full, compressed = correlated(8)
    matrix = resizing(6, wanted, interpolation, False)
    result = compressed.mapped([linear(matrix)])
    oracle = full.through([matrix], (wanted,))
    assert result.second == pytest.approx(oracle.same.diagonal(), rel=2e-3)
    if max(result.radius) < 4 or wanted <= 5:
        assert_agree(result, oracle, 2e-3)


def test_the_matrix_of_resizing_is_what_keras_does():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 9, 5, 3)).astype("float32")
    for antialias in (False, True):
        options = {"interpolation": "bilinear", "antialias": antialias}
        resized = keras.ops.convert_to_numpy(keras.ops.image.resize(images, (4, 11), **options))
        rows, columns = (
            resizing(9, 4, "bilinear", antialias),
            resizing(5, 11, "bilinear", antialias),
        )
        want = np.einsum("ph,qw,bhwc->bpqc", rows, columns, images)
        np.testing.assert_allclose(resized, want, rtol=1e-4, atol=1e-5)


def test_classes_that_mix_positions_keep_the_mean_square():
    """Five classes for six positions: a far pair of a class is no entry with itself."""
    source, target = Axis(4, 5), Axis(6, 5)
    deviations = np.array([1.0, 2.0, 3.0, 0.5])
    moments = uniform((source,), 0.0, 1.0, 0.8).scaled(deviations**2)
    padded = moments.mapped([Window("conv", 1, 1, 1, 0, source, target)])
    assert padded.second_moment == pytest.approx(np.sum(deviations**2) / 6)


@pytest.mark.parametrize("value", [0.0, -0.7])
def test_numbers_around_a_map_are_exact_on_small_maps(value):
    full, compressed = correlated(6)
    matrix = np.eye(7, 4, -1)  # one before and two behind
    oracle = full.through([matrix], (7,))
    outside = value * (1 - matrix.sum(axis=1))
    cross = np.outer(outside, oracle.mean) + np.outer(oracle.mean, outside)
    oracle.same, oracle.two = (
        pairs + cross + np.outer(outside, outside) for pairs in (oracle.same, oracle.two)
    )
    oracle.mean = oracle.mean + outside
    assert_agree(bordered(compressed, ((1, 2),), value), oracle, 2e-3)
    twice = bordered(bordered(compressed, ((1, 0),), value), ((0, 2),), value)
    assert_agree(twice, oracle, 2e-3)
    assert twice.border.pads == ((1, 2),)


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("value", [0.0, 0.4])
def test_a_maximum_takes_the_border_in(activation, value):
    """Independent entries, 40 000 maps: within 5 standard errors at each window."""
    function, rng = named_activation(activation), np.random.default_rng(0)
    source = activated(uniform(axes_of((4, 4)), 0.0, 1.3**2, 0.0), function)
    pads = ((1, 2), (0, 1))
    padded = bordered(source, pads, value)
    outputs = axes_of((3, 2))
    windows = [
        Window("pool", 3, 2, 1, low, axis, out)
        for axis, out, (low, _) in zip(source.axes, outputs, pads, strict=True)
    ]
    result, passed, _ = max_pooled(source, windows, padded.border)
    maps = np.asarray(function.function(1.3 * rng.standard_normal((40_000, 4, 4))))
    maps = np.pad(maps, ((0, 0), *pads), constant_values=value)
    for p, q in np.ndindex(3, 2):
        window = maps[:, 2 * p : 2 * p + 3, 2 * q : 2 * q + 3].reshape(len(maps), -1)
        largest = window.max(axis=1)
        for want, samples in ((result.mean, largest), (result.second, largest**2)):
            error = np.std(samples) / math.sqrt(len(samples))
            assert abs(samples.mean() - want[p, q]) < 5 * error + 2e-3, (p, q)
    assert np.all(passed > 0)


@pytest.mark.parametrize("coherence", [0.0, 0.6])
@pytest.mark.parametrize("local", [0.0, 0.5, 0.7])
def test_gradients_of_means_and_interpolation(coherence, local):
    """Aᵀ C A with the whole matrix C of correlations that a `Gradient` stands for."""
    for size, matrix in {
        "interpolation": (5, resizing(5, 10, "bilinear", False)),
        "cubic": (6, resizing(6, 9, "bicubic", False)),
        "smaller": (10, resizing(10, 4, "bilinear", True)),
    }.values():
        check_gradient([linear(matrix)] * 2, [matrix] * 2, (size, size), coherence, local)
    for k, stride, low, size, outputs in ((3, 2, 1, 7, 4), (3, 1, 1, 5, 5), (2, 2, 0, 6, 3)):
        matrix = np.zeros((outputs, size))
        for p in range(outputs):
            inside = [i for i in range(p * stride - low, p * stride - low + k) if 0 <= i < size]
            matrix[p, inside] = 1 / len(inside)
        (source,), (target,) = axes_of((size,)), axes_of((outputs,))
        window = Window("pool", k, stride, 1, low, source, target)
        check_gradient([window], [matrix], (size,), coherence, local)


def check_gradient(windows, matrices, sizes, coherence, local):
    outputs = [len(matrix) for matrix in matrices]
    whole, alike = np.ones((1, 1)), np.ones((1, 1))
    for matrix, count in zip(matrices, outputs, strict=True):
        whole = np.kron(whole, matrix)
        apart = np.abs(np.arange(count)[:, None] - np.arange(count))
        near = np.maximum(1 - apart * (1 - local), 0.0)
        alike = np.kron(alike, near)
    covariance = 1.7 * (coherence + (1 - coherence) * alike)
    back = whole.T @ covariance @ whole
    gradient = Gradient((np.full(outputs, 1.7),), coherence, local)
    found = through_linear(gradient, windows)
    np.testing.assert_allclose(found.parts[0], back.diagonal().reshape(sizes), rtol=1e-6)


def test_unknown_sizes_have_the_interior_of_large_maps():
    for local in (0.0, 0.5):
        for k, stride in ((2, 2), (3, 2), (3, 1)):
            known, unknown = (
                back_map(Window("pool", k, stride, 1, 0, Axis(n, 15), Axis(m, 15)), local)
                for n, m in ((600, (600 - k) // stride + 1), (None, None))
            )
            middle = known.apart.sum(axis=1)[7]
            assert unknown.apart.sum() == pytest.approx(middle, rel=0.02)
            assert unknown.adjacent == pytest.approx(known.adjacent, rel=0.02, abs=1e-9)


def test_interpolation_of_an_unknown_size_is_that_of_a_large_map():
    matrix = resizing(24, 48, "bilinear", False)
    unknown = Linear.periodic(matrix[24:26], 12, Axis(None, 11), Axis(None, 11))
    known = axis_map(Linear.of(matrix, Axis(24, 11), Axis(48, 11)), 0)
    found = axis_map(unknown, 0)
    middle = found.radius * 1  # offset 0
    assert found.means == pytest.approx(np.ones((1, 1)))
    at = known.radius * 11 + 5
    assert found.excess[middle, 0] == pytest.approx(known.excess[at].sum(), rel=1e-6)


@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (2, 2, 0), (5, 1, 2)])
def test_two_inputs_share_the_taps_that_both_have(k, stride, padding):
    """One gradient at all outputs of a 4×4 map: pairs of inputs by counting."""
    size = 4 if stride == 1 else 8
    outputs = 4
    (source,), (target,) = axes_of((size,)), axes_of((outputs,))
    window = Window("conv", k, stride, 1, padding, source, target)
    taps = np.zeros((k, size))
    for a in range(k):
        for p in range(outputs):
            if 0 <= p * stride + a - padding < size:
                taps[a, p * stride + a - padding] = 1
    taken = np.kron(taps, taps)
    common = taken.T @ taken
    scale = np.sqrt(np.outer(common.diagonal(), common.diagonal()))
    off = ~np.eye(size**2, dtype=bool)
    passed = through_taps(Gradient((np.ones((4, 4)),), 1.0), [window] * 2)
    assert passed.coherence == pytest.approx(common[off].sum() / scale[off].sum())
    places = np.arange(size**2).reshape(size, size)
    first, second = places[:, :-1].ravel(), places[:, 1:].ravel()
    near = common[first, second].sum() / scale[first, second].sum()
    assert passed.adjacent == pytest.approx(max(near, passed.coherence))


def test_average_pooling_is_padded_as_the_backend_does():
    """Uneven zeros: PyTorch repeats the border; the others leave it out."""
    layer = keras.layers.AveragePooling2D(3, 2, padding="same")
    units = np.eye(8, dtype="float32").reshape(8, 8, 1, 1) * np.ones((1, 1, 8, 1), "float32")
    pooled = keras.ops.convert_to_numpy(layer(units))[:, :, 1, 0].T
    (source,), (target,) = axes_of((8,)), axes_of((4,))
    window = Window("pool", 3, 2, 1, 0, source, target)
    (along, _) = as_the_backend_pads([window, window])
    np.testing.assert_allclose(axis_map(along, 0).means, pooled, rtol=1e-5, atol=1e-6)
