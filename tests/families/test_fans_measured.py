"""Fans and connection counts, measured on real built layers: no formula of the library is used.

White noise of unit variance goes in. The kernel's variance follows from the counts under test, so
the mean second moment of the output is 1 exactly when the counts are right. The standard error is
taken from the spread over independent kernels and inputs.
"""

import keras
import numpy as np
import pytest

import keras_varinit as kv

pytestmark = pytest.mark.once

L = keras.layers
RUNS = 40
TOLERANCE = 4.0  # standard errors


def conv(rank, **options):
    return lambda init: getattr(L, f"Conv{rank}D")(16, 3, kernel_initializer=init, **options)


def transpose(rank, size=3, **options):
    cls = getattr(L, f"Conv{rank}DTranspose")
    return lambda init: cls(16, size, kernel_initializer=init, **options)


def depthwise(rank, multiplier=2, **options):
    cls = getattr(L, f"DepthwiseConv{rank}D")
    return lambda init: cls(3, depth_multiplier=multiplier, depthwise_initializer=init, **options)


def padded(rank, padding, make):
    pad = getattr(L, f"ZeroPadding{rank}D")(padding)
    return lambda init: keras.Sequential([pad, make(init)])


CASES = {
    "dense": ((24,), lambda init: L.Dense(32, kernel_initializer=init)),
    "dense on positions": ((5, 24), lambda init: L.Dense(32, kernel_initializer=init)),
    "einsum": (
        (5, 24),
        lambda init: L.EinsumDense("abc,cde->abde", (None, 4, 8), kernel_initializer=init),
    ),
    "conv1d valid": ((12, 8), conv(1)),
    "conv1d same, stride 2": ((12, 8), conv(1, padding="same", strides=2)),
    "conv1d causal, dilated": ((12, 8), conv(1, padding="causal", dilation_rate=3)),
    "conv1d causal, strided": ((11, 8), conv(1, padding="causal", strides=2)),
    "conv2d valid": ((7, 6, 8), conv(2)),
    "conv2d same": ((4, 4, 8), conv(2, padding="same")),
    "conv2d same on a 2x2 map": ((2, 2, 8), conv(2, padding="same")),
    "conv2d same on a 1x1 map": ((1, 1, 8), conv(2, padding="same")),
    "conv2d same, stride 2, even map": ((8, 8, 8), conv(2, padding="same", strides=2)),
    "conv2d same, stride 2, odd map": ((7, 9, 8), conv(2, padding="same", strides=2)),
    "conv2d same, stride 3": ((7, 7, 8), conv(2, padding="same", strides=3)),
    "conv2d dilated": ((8, 8, 8), conv(2, padding="same", dilation_rate=2)),
    "conv2d grouped": ((5, 5, 8), conv(2, padding="same", groups=4)),
    "conv2d explicit zeros": ((6, 6, 8), padded(2, 1, conv(2, strides=2))),
    "conv2d one-sided zeros": ((6, 6, 8), padded(2, ((0, 1), (2, 1)), conv(2, strides=2))),
    "conv2d zeros and same": ((5, 5, 8), padded(2, 2, conv(2, padding="same"))),
    "conv3d same": ((3, 4, 3, 4), conv(3, padding="same")),
    "conv3d strided": ((5, 4, 5, 4), conv(3, strides=2)),
    "depthwise1d": ((9, 8), depthwise(1, padding="same")),
    "depthwise2d same": ((4, 4, 8), depthwise(2, padding="same")),
    "depthwise2d strided": ((7, 7, 8), depthwise(2, strides=2)),
    "depthwise2d explicit zeros": ((5, 5, 8), padded(2, 1, depthwise(2, strides=2))),
    "transpose1d same": ((7, 8), transpose(1, padding="same", strides=2)),
    "transpose1d valid": ((7, 8), transpose(1, strides=2)),
    "transpose2d valid": ((4, 4, 8), transpose(2)),
    "transpose2d valid, stride 2": ((4, 4, 8), transpose(2, strides=2)),
    "transpose2d same, stride 2": ((4, 4, 8), transpose(2, padding="same", strides=2)),
    "transpose2d same, stride 2, size 4": ((4, 5, 8), transpose(2, 4, padding="same", strides=2)),
    "transpose2d same, stride 3, size 2": ((4, 4, 8), transpose(2, 2, padding="same", strides=3)),
    "transpose2d same, size 5": ((3, 3, 8), transpose(2, 5, padding="same", strides=2)),
    "transpose3d same": ((3, 3, 2, 4), transpose(3, padding="same", strides=2)),
}


def build(shape, make, init):
    return keras.Sequential([keras.Input(shape), make(init)])


def measured(shape, make, cls):
    """Mean over runs of the output's second moment, and of its size relative to the input's."""
    model = build(shape, make, cls(seed=0))
    rng = np.random.default_rng(0)
    moments, ratio = [], None
    report = kv.inject(model)
    variable = next(v for v in model.weights if v.path == report.rows[0].path)
    for seed in range(RUNS):
        initializer = cls(seed=seed).with_context(report.rows[0].context)
        variable.assign(initializer(variable.shape))
        x = rng.standard_normal((16, *shape)).astype("float32")
        u = keras.ops.convert_to_numpy(model(x))
        moments.append(np.mean(u.astype(np.float64) ** 2))
        ratio = u.size / x.size
    return np.array(moments), ratio


def assert_one(values):
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert error < 0.05, f"the measurement is too coarse to say anything: {error:.3f}"
    assert abs(np.mean(values) - 1) < TOLERANCE * error, (np.mean(values), error)


@pytest.mark.parametrize("case", CASES)
def test_asv_forward_gives_the_first_layer_unit_second_moment(case):
    shape, make = CASES[case]
    values, _ = measured(shape, make, kv.ASVForward)
    assert_one(values)


@pytest.mark.parametrize("case", CASES)
def test_asv_backward_gives_a_linear_layer_unit_gradient(case):
    """For a linear map A, E|Aᵀg|² = |A|² = E|Ax|² with white g and x: the gradient, measured."""
    shape, make = CASES[case]
    values, outputs_per_input = measured(shape, make, kv.ASVBackward)
    assert_one(values * outputs_per_input)


@pytest.mark.parametrize("case", ["conv2d same", "conv2d same, stride 2, odd map"])
def test_the_measurement_would_notice_ignored_padding(case):
    """He's count of nine taps everywhere is off by more than the tolerance on these maps."""
    shape, make = CASES[case]
    model = build(shape, make, kv.ASVForward(seed=0))
    context = kv.inject(model).rows[0].context
    assert context.fan_in / context.mean_fan_in > 1.1


def test_separable_convolution_passes_unit_variance_through_both_kernels():
    rng = np.random.default_rng(0)
    values = []
    for seed in range(RUNS):
        layer = L.SeparableConv2D(
            16,
            3,
            padding="same",
            strides=2,
            depth_multiplier=2,
            depthwise_initializer=kv.ASVForward(seed=seed),
            pointwise_initializer=kv.ASVForward(seed=seed),
        )
        model = keras.Sequential([keras.Input((7, 7, 8)), layer])
        kv.inject(model)
        x = rng.standard_normal((16, 7, 7, 8)).astype("float32")
        values.append(np.mean(keras.ops.convert_to_numpy(model(x)) ** 2))
    assert_one(np.array(values))


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow's CPU kernels are channels_last"
)
@pytest.mark.parametrize("kind", ["conv", "depthwise", "transpose"])
def test_channels_first_counts_are_the_same(kind):
    options = {"padding": "same", "strides": 2, "data_format": "channels_first"}
    make = {"conv": conv, "depthwise": depthwise, "transpose": transpose}[kind](2, **options)
    values, _ = measured((8, 5, 7), make, kv.ASVForward)
    assert_one(values)


def test_channels_first_context_equals_channels_last():
    """Counts do not depend on the order of axes; analysis alone also runs on TensorFlow."""

    def context(data_format, shape):
        layer = L.Conv2D(16, 3, strides=2, padding="same", data_format=data_format, name="conv")
        model = keras.Sequential([keras.Input(shape), layer])
        found = next(iter(kv.analyze(model).contexts.values()))
        return found.connections, found.input_size, found.output_size

    assert context("channels_first", (8, 5, 7)) == context("channels_last", (5, 7, 8))


def test_unknown_sizes_use_the_interior_limit_and_say_so():
    def context(shape):
        model = keras.Sequential(
            [
                keras.Input(shape),
                L.Conv2D(16, 3, strides=2, padding="same", kernel_initializer="asv_backward"),
            ]
        )
        analysis = kv.analyze(model)
        return next(iter(analysis.contexts.values())), analysis.notes

    unknown, notes = context((None, None, 8))
    assert unknown.connections is unknown.input_size is unknown.output_size is None
    assert any("spatial size is unknown" in note for note in notes)
    large, notes = context((2000, 2000, 8))
    assert notes == ()
    assert unknown.mean_fan_in == pytest.approx(large.mean_fan_in, rel=2e-3)
    assert unknown.mean_fan_out == pytest.approx(large.mean_fan_out, rel=2e-3)
