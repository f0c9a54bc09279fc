"""Depth-scaled initialization: k = log_base(depth + offset) on the base initializer's variance."""

import math

import keras
import numpy as np
import pytest
from scipy import stats

import keras_varinit as kv

K = keras.initializers
DEPTH = 54


def context(depth=3, total_depth=7, shape=(64, 48), **fields):
    values = {
        "path": "net/dense/kernel",
        "layer": "dense",
        "stream": "dense/kernel#1",
        "kernel_shape": shape,
        "depth": depth,
        "total_depth": total_depth,
        "fan_in": math.prod(shape[:-1]),
        "fan_out": shape[-1],
        "filter_axes": (len(shape) - 1,),
    }
    return kv.LayerContext(**{**values, **fields})


def draw(initializer, shape=(64, 48)):
    return keras.ops.convert_to_numpy(initializer(shape, dtype="float32"))


class Recorded(K.HeNormal):
    """He normal that keeps what it drew: with a context the seed is the wrapper's to choose."""

    drawn = ()

    def __call__(self, shape, dtype=None):
        kernel = super().__call__(shape, dtype=dtype)
        Recorded.drawn = (*Recorded.drawn, keras.ops.convert_to_numpy(kernel))
        return kernel


BASES = {
    "he_normal": K.HeNormal,
    "he_uniform": K.HeUniform,
    "glorot_normal": K.GlorotNormal,
    "glorot_uniform": K.GlorotUniform,
    "random_normal": K.RandomNormal,
    "orthogonal": K.Orthogonal,
    "asv_backward": kv.ASVBackward,
    "enhanced_he_normal": kv.EnhancedHeNormal,
}


@pytest.mark.parametrize("name", BASES)
def test_without_context_it_is_the_base_bit_for_bit(name):
    base = draw(BASES[name](seed=9))
    for options in (
        {},
        {"base": 3.0},
        {"schedule": "decreasing"},
        {"network_variance": 22.0, "offset": 4},
    ):
        np.testing.assert_array_equal(draw(kv.DepthScaled(name, seed=9, **options)), base)
        np.testing.assert_array_equal(draw(kv.DepthScaled(BASES[name](seed=9), **options)), base)
        other = kv.DepthScaled(BASES[name](seed=9), seed=10, **options)
        assert not np.any(draw(other) == base)


@pytest.mark.parametrize(
    ("options", "depth"),
    [
        ({"base": 4.0, "offset": 1.0}, 3),
        ({"base": 7.5, "offset": 2.5}, 5),
        ({"base": 6.0, "offset": 1.0, "schedule": "decreasing"}, 3),  # counts as depth 8 - 3
    ],
)
def test_where_k_is_one_it_is_the_base_bit_for_bit(options, depth):
    Recorded.drawn = ()
    initializer = kv.DepthScaled(Recorded(), seed=9, context=context(depth), **options)
    assert initializer.scale(depth, 7) == 1.0
    kernel = draw(initializer)
    (base,) = Recorded.drawn
    np.testing.assert_array_equal(kernel, base)
    scaled = kv.DepthScaled(Recorded(), seed=9, context=context(depth), base=16.0)
    np.testing.assert_allclose(draw(scaled), base * math.sqrt(math.log(depth + 1, 16)), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "depth", "total_depth", "k"),
    [
        ({"base": 8.0}, 1, 5, 1 / 3),
        ({"base": 8.0}, 3, 5, 2 / 3),
        ({"base": 8.0}, 7, 7, 1.0),
        ({"base": 2.0}, 3, 5, 2.0),
        ({"base": 2.0}, 15, 15, 4.0),
        ({"base": 9.0, "offset": 2.0}, 1, 5, 0.5),
        ({"base": 8.0, "schedule": "decreasing"}, 5, 5, 1 / 3),
        ({"base": 8.0, "schedule": "decreasing"}, 3, 5, 2 / 3),
        ({"base": 2.0, "schedule": "constant"}, 1, 3, (1 * math.log2(3) * 2) ** (1 / 3)),
        ({"base": 2.0, "schedule": "constant"}, 3, 3, (1 * math.log2(3) * 2) ** (1 / 3)),
        # base=None is L/3 + offset.
        ({}, 18, 54, 1.0),
        ({}, 6, 54, math.log(7) / math.log(19)),
        ({"offset": 3.0}, 1, 54, math.log(4) / math.log(21)),
        ({"offset": 0.5}, 2, 3, math.log(2.5) / math.log(1.5)),
    ],
)
def test_k_is_the_logarithm_of_depth_plus_offset(options, depth, total_depth, k):
    assert kv.DepthScaled(**options).scale(depth, total_depth) == pytest.approx(k, rel=1e-12)


@pytest.mark.parametrize("schedule", ["increasing", "decreasing", "constant"])
@pytest.mark.parametrize(("variance", "offset"), [(22.0, 1.0), (1.0, 3.0), (1e-3, 0.2)])
def test_network_variance_is_the_product_of_the_scales(schedule, variance, offset):
    scaled = kv.DepthScaled(schedule=schedule, network_variance=variance, offset=offset)
    for total_depth in (1, 2, DEPTH):
        scales = [scaled.scale(l, total_depth) for l in range(1, total_depth + 1)]  # noqa: E741
        assert math.prod(scales) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"base": 5.0, "offset": 2.0}, {"network_variance": 22.0}])
def test_schedules_mirror_and_average_each_other(options):
    depths = range(1, DEPTH + 1)
    scales = {
        schedule: np.array(
            [kv.DepthScaled(schedule=schedule, **options).scale(d, DEPTH) for d in depths]
        )
        for schedule in ("increasing", "decreasing", "constant")
    }
    assert np.all(np.diff(scales["increasing"]) > 0)
    np.testing.assert_allclose(scales["decreasing"], scales["increasing"][::-1], rtol=1e-12)
    np.testing.assert_allclose(scales["constant"], stats.gmean(scales["increasing"]), rtol=1e-12)


@pytest.mark.parametrize(("variance", "offset"), [(22.0, 1.0), (1e-3, 0.2), (1.0, 3.0), (7.0, 0.0)])
def test_constant_is_the_root_of_the_network_variance_however_deep(variance, offset):
    """V^(1/L) in constant time: the sums over 10^12 depths would take days."""
    options = {"schedule": "constant", "network_variance": variance, "offset": offset}
    scaled = kv.DepthScaled(**options)
    for total_depth in (1, 2, DEPTH, 10**12):
        for depth in (1, total_depth):
            expected = variance ** (1 / total_depth)
            assert scaled.scale(depth, total_depth) == pytest.approx(expected, rel=1e-12)


def test_the_default_base_puts_a_third_of_the_layers_below_one():
    scales = [kv.DepthScaled().scale(depth, DEPTH) for depth in range(1, DEPTH + 1)]
    assert sum(k < 1 - 1e-12 for k in scales) == 17
    assert sum(abs(k - 1) < 1e-12 for k in scales) == 1


def deep_network(initializer):
    hidden = [
        keras.layers.Dense(64, activation="relu", kernel_initializer=initializer)
        for _ in range(DEPTH)
    ]
    return keras.Sequential([keras.Input((64,)), *hidden])


TRUNCATED_KURTOSIS = 3 + float(stats.truncnorm(-2, 2).stats("k"))


@pytest.mark.parametrize(
    ("base", "variance", "kurtosis"),
    [
        ("he_normal", 2 / 64, TRUNCATED_KURTOSIS),
        ("he_uniform", 2 / 64, 9 / 5),
        ("glorot_normal", 2 / 128, TRUNCATED_KURTOSIS),
        ("glorot_uniform", 2 / 128, 9 / 5),
        ("asv_forward", 2 / 64, 3),
    ],
)
@pytest.mark.parametrize("schedule", ["increasing", "decreasing"])
def test_the_54_layers_of_a_network_follow_the_schedule(base, variance, kurtosis, schedule):
    model = deep_network(kv.DepthScaled(base, base=19.0, schedule=schedule, seed=4))
    report = kv.inject(model)
    depths = range(1, DEPTH + 1) if schedule == "increasing" else range(DEPTH, 0, -1)
    expected = np.array([variance * math.log(depth + 1) / math.log(19) for depth in depths])
    if base == "asv_forward":
        expected[0] /= 2  # no ReLU in front of the first layer: τ = 1
    stated = [row.stddev for row in report]
    np.testing.assert_allclose(stated, np.sqrt(expected), rtol=1e-6)
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers]
    measured = np.array([np.mean(np.square(kernel, dtype=np.float64)) for kernel in kernels])
    # Relative standard error of a mean square of n entries: √((kurtosis - 1)/n), about 2 %.
    error = math.sqrt((kurtosis - 1) / 64**2)
    assert np.max(np.abs(measured / expected - 1)) < 4 * error
    assert abs(np.mean(measured / expected) - 1) < 4 * error / math.sqrt(DEPTH)


def test_a_target_variance_is_reached_in_a_built_network():
    for schedule in ("increasing", "constant"):
        model = deep_network(kv.DepthScaled(network_variance=22.0, schedule=schedule, seed=4))
        stated = [row.stddev for row in kv.inject(model)]
        assert math.prod(stddev**2 * 32 for stddev in stated) == pytest.approx(22, rel=1e-6)


def test_true_fans_replace_those_of_the_kernel_shape():
    transposed = keras.layers.Conv2DTranspose(
        100, 4, strides=2, kernel_initializer=kv.DepthScaled("he_normal", base=4.0, seed=0)
    )
    depthwise = keras.layers.DepthwiseConv2D(
        5, depthwise_initializer=kv.DepthScaled("he_uniform", base=4.0, seed=0)
    )
    model = keras.Sequential([keras.Input((9, 9, 40)), transposed, depthwise])
    kv.inject(model)
    # Fan-in 4·4·40/2² = 160 at depth 1, 25 at depth 2.
    for layer, variance, kurtosis in (
        (transposed, 2 / 160 * math.log(2, 4), TRUNCATED_KURTOSIS),
        (depthwise, 2 / 25 * math.log(3, 4), 9 / 5),
    ):
        kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)
        error = variance * math.sqrt((kurtosis - 1) / kernel.size)
        assert abs(np.mean(kernel**2) - variance) < 4 * error


def test_an_orthogonal_base_stays_orthogonal():
    scaled = kv.DepthScaled(K.Orthogonal(gain=2.0), base=16.0, seed=1, context=context(depth=3))
    kernel = draw(scaled)
    np.testing.assert_allclose(kernel.T @ kernel, 4 * 0.5 * np.eye(48), atol=1e-5)  # log_16 4 = ½
    # Each of the 64·48 entries: gain²/64 on average.
    assert scaled.stddev((64, 48)) == pytest.approx(math.sqrt(4 * 0.5 / 64))


@pytest.mark.parametrize("cls", [kv.DepthScaled, kv.Enhanced])
def test_an_orthogonal_base_draws_half_precision_kernels(cls):
    # Keras's own cannot: its decomposition has no half-precision form.
    for dtype in ("float16", "bfloat16"):
        kernel = cls("orthogonal", seed=1)((8, 4), dtype=dtype)
        assert keras.backend.standardize_dtype(kernel.dtype) == dtype


def test_our_own_initializers_as_bases_get_the_context_too():
    known = context(depth=3, forward_gain=0.25, shape=(2000, 300), fan_in=2000, fan_out=300)
    forward = kv.DepthScaled(kv.ASVForward(), base=16.0, context=known, seed=0)
    assert forward.stddev((2000, 300)) == pytest.approx(math.sqrt(0.5 / (0.25 * 2000)))
    enhanced = kv.DepthScaled("enhanced_he_normal", base=16.0, context=known, seed=0)
    variances = np.mean(np.square(draw(enhanced, (2000, 300)), dtype=np.float64), axis=0)
    assert stats.kstest(variances / (0.5 * 2 / 2000), stats.chi2(1).cdf).pvalue > 1e-3
    around = kv.Enhanced(kv.DepthScaled("he_normal", base=16.0), context=known, seed=0)
    assert around.stddev((2000, 300)) == pytest.approx(math.sqrt(0.5 * 2 / 2000))
    variances = np.mean(np.square(draw(around, (2000, 300)), dtype=np.float64), axis=0)
    assert stats.kstest(variances / (0.5 * 2 / 2000), stats.chi2(1).cdf).pvalue > 1e-3


def test_a_base_of_unknown_law_is_scaled_by_the_square_root_of_k():
    class Signs(K.Initializer):
        def __init__(self, seed=None):
            self.seed = seed

        def __call__(self, shape, dtype=None):
            signs = np.random.default_rng(self.seed).choice([-1.0, 1.0], shape)
            return keras.ops.convert_to_tensor(signs, dtype=dtype)

        def get_config(self):
            return {"seed": self.seed}

    scaled = kv.DepthScaled(Signs(), base=16.0, seed=1, context=context(depth=3))
    assert scaled.stddev((64, 48)) is None
    np.testing.assert_allclose(np.abs(draw(scaled)), math.sqrt(0.5), rtol=1e-6)
