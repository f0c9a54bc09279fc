"""Enhanced initialization: the laws of the filters' variances, on bare kernels and real layers.

Kolmogorov-Smirnov tests reject at ALPHA, other tolerances are 4 standard errors; seeds are fixed.
"""

import math

import keras
import numpy as np
import pytest
from scipy import stats

import keras_varinit as kv

pytestmark = pytest.mark.once

ALPHA = 1e-3
CHI2 = stats.chi2(1).cdf
# Distribution function of 3v², v ~ U(0, 1): the filter U(-√3|t|, √3|t|) has variance t².
SQUARED_UNIFORM = lambda g: np.sqrt(np.clip(g / 3, 0, 1))  # noqa: E731
PRESETS = {
    kv.EnhancedHeNormal: (lambda i, o: 2 / i, CHI2),
    kv.EnhancedHeUniform: (lambda i, o: 2 / i, SQUARED_UNIFORM),
    kv.EnhancedGlorotNormal: (lambda i, o: 2 / (i + o), CHI2),
    kv.EnhancedGlorotUniform: (lambda i, o: 2 / (i + o), SQUARED_UNIFORM),
    kv.EnhancedLecunNormal: (lambda i, o: 1 / i, CHI2),
    kv.EnhancedLecunUniform: (lambda i, o: 1 / i, SQUARED_UNIFORM),
}


def draw(initializer, shape):
    return keras.ops.convert_to_numpy(initializer(shape, dtype="float32"))


def group_variances(kernel, axes):
    """Mean square of the entries that share an index along `axes`: the mean is zero by design."""
    others = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
    return np.mean(np.square(kernel, dtype=np.float64), axis=others).ravel()


def p_value(samples, law):
    return stats.kstest(samples, law).pvalue


def assert_mean(samples, expected):
    """Independent samples average to the expected value within 4 standard errors."""
    error = np.std(samples) / math.sqrt(len(samples))
    assert abs(np.mean(samples) - expected) < 4 * error, (np.mean(samples), expected, error)
    assert error < 0.0125 * expected, "too few samples to notice that 5 % are missing"


def test_filter_variances_follow_chi_squared_and_he_normal_does_not():
    shape = (4096, 3000)
    enhanced = draw(kv.EnhancedHeNormal(seed=0), shape)
    plain = draw(keras.initializers.HeNormal(seed=0), shape)
    assert p_value(group_variances(enhanced, {1}) * 4096 / 2, CHI2) > ALPHA
    assert p_value(group_variances(plain, {1}) * 4096 / 2, CHI2) < 1e-100


@pytest.mark.parametrize("cls", PRESETS)
def test_each_preset_has_its_law_of_filter_variances(cls):
    shape, (variance, law) = (1500, 800), PRESETS[cls]
    ratios = group_variances(draw(cls(seed=0), shape), {1}) / variance(*shape)
    assert p_value(ratios, law) > ALPHA
    other = CHI2 if law is SQUARED_UNIFORM else SQUARED_UNIFORM
    assert p_value(ratios, other) < 1e-5


@pytest.mark.parametrize(
    ("base", "options", "law"),
    [
        ("he_normal", {"concentration": 2.0}, stats.gamma(2, scale=1 / 2).cdf),
        ("he_normal", {"concentration": 0.25}, stats.gamma(0.25, scale=4).cdf),
        ("he_normal", {"concentration": 8}, stats.gamma(8, scale=1 / 8).cdf),
        # v ~ U(0, 1) makes ((k+1)/k)·v^(1/k) a Beta(k, 1) stretched to the mean 1.
        ("he_uniform", {"concentration": 2.0}, stats.beta(2, 1, scale=3 / 2).cdf),
        ("he_uniform", {"concentration": 0.25}, stats.beta(0.25, 1, scale=5).cdf),
        ("he_normal", {"delta": 0.6}, stats.uniform(0.4, 1.2).cdf),
        ("he_uniform", {"delta": 1.0}, stats.uniform(0, 2).cdf),
        ("orthogonal", {"delta": 0.6}, stats.uniform(0.4, 1.2).cdf),
    ],
)
def test_concentration_and_delta_pick_the_law(base, options, law):
    rows = 1000 if base == "orthogonal" else 4000
    kernel = draw(kv.Enhanced(base, seed=2, **options), (rows, 500))
    variance = (1 if base == "orthogonal" else 2) / rows
    ratios = group_variances(kernel, {1}) / variance
    assert p_value(ratios, law) > ALPHA
    default = CHI2 if base != "he_uniform" else SQUARED_UNIFORM
    assert p_value(ratios, default) < 1e-5


def test_a_large_concentration_approaches_the_base():
    for base in ("he_normal", "he_uniform"):
        kernel = draw(kv.Enhanced(base, concentration=1e6, seed=0), (2000, 300))
        spread = np.std(group_variances(kernel, {1}) * 2000 / 2)
        # Spread of a mean square of n entries: √((kurtosis - 1)/n), kurtosis 3 or 9/5.
        expected = math.sqrt((2 if base == "he_normal" else 0.8) / 2000)
        # and its relative standard error is 1/√(2·300) = 4 %.
        assert abs(spread / expected - 1) < 4 * 0.041


@pytest.mark.parametrize(
    ("base", "expected"),
    [("he_normal", "normal"), ("truncated_normal", "normal"), ("he_uniform", "uniform")],
)
def test_a_filter_is_normal_or_uniform_within(base, expected):
    kernel = draw(kv.Enhanced(base, seed=0), (5000, 20))
    entries = (kernel / np.sqrt(group_variances(kernel, {1}))).ravel()
    laws = {
        "normal": stats.norm.cdf,
        "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)).cdf,
        "truncated": stats.truncnorm(-2, 2, scale=1 / stats.truncnorm.std(-2, 2)).cdf,
    }
    accepted = [name for name, law in laws.items() if p_value(entries, law) > ALPHA]
    assert accepted == [expected]


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        *((cls, {}) for cls in PRESETS),
        (kv.EnhancedHeNormal, {"granularity": "position"}),
        (kv.EnhancedHeUniform, {"granularity": "position"}),
        (kv.EnhancedHeNormal, {"concentration": 3.0}),
        (kv.EnhancedHeUniform, {"concentration": 3.0}),
        (kv.EnhancedHeNormal, {"delta": 1.0}),
        (kv.EnhancedHeUniform, {"delta": 0.3}),
    ],
)
def test_the_mean_variance_of_a_layer_is_the_bases(cls, options):
    # 50 layers of 400 filters; the mean square of each filter is one independent sample.
    shape, variance = (3, 3, 8, 400), PRESETS[cls][0]
    kernels = [draw(cls(seed=seed, **options), shape) for seed in range(50)]
    samples = np.concatenate([group_variances(kernel, {3}) for kernel in kernels])
    assert_mean(samples, variance(72, 3600))


def test_position_granularity_draws_one_variance_per_filter_and_window_position():
    shape = (3, 3, 600, 120)
    fan_in = 9 * 600
    per_filter = draw(kv.EnhancedHeNormal(seed=0), shape)
    per_position = draw(kv.EnhancedHeNormal(granularity="position", seed=0), shape)
    ratios = group_variances(per_position, {0, 1, 3}) * fan_in / 2
    assert ratios.size == 9 * 120
    assert p_value(ratios, CHI2) > ALPHA
    # Positions of one filter are unrelated; with one draw per filter they agree up to √(2/600).
    correlations = {}
    for name, kernel in (("filter", per_filter), ("position", per_position)):
        table = np.log(group_variances(kernel, {0, 1, 3}).reshape(9, 120))
        correlations[name] = np.corrcoef(table)[np.triu_indices(9, 1)]
    assert np.min(correlations["filter"]) > 0.99
    # Standard error of a correlation of 120 pairs: 1/√119; the largest of 36 is below 4 of them.
    assert np.max(np.abs(correlations["position"])) < 4 / math.sqrt(119)
    assert p_value(group_variances(per_filter, {3}) * fan_in / 2, CHI2) > ALPHA


class Laplace(keras.initializers.Initializer):
    """A user's own zero-mean initializer: it knows nothing of this library."""

    def __init__(self, scale=0.2, seed=None):
        self.scale, self.seed = scale, seed

    def __call__(self, shape, dtype=None):
        values = np.random.default_rng(self.seed).laplace(scale=self.scale, size=shape)
        return keras.ops.convert_to_tensor(values, dtype=dtype)

    def get_config(self):
        return {"scale": self.scale, "seed": self.seed}


K = keras.initializers
# Base, and its variance for a kernel with 40 rows and 25000 columns.
BASES = {
    "normal": (K.RandomNormal(stddev=0.3), 0.09),
    "truncated": (K.TruncatedNormal(stddev=0.3), 0.09 * stats.truncnorm.var(-2, 2)),
    "uniform": (K.RandomUniform(-0.3, 0.3), 0.03),
    "scaling": (K.VarianceScaling(3.0, "fan_in", "untruncated_normal"), 3 / 40),
    "scaling out": (K.VarianceScaling(0.5, "fan_out", "truncated_normal"), 0.5 / 25000),
    "scaling avg": (K.VarianceScaling(2.0, "fan_avg", "uniform"), 4 / 25040),
    "lecun": ("LecunUniform", 1 / 40),
    "orthogonal": (K.Orthogonal(gain=3.0), 9 / 25000),
    "forward": (kv.ASVForward(), 2 / 40),
    "backward uniform": (kv.ASVBackward(distribution="uniform"), 2 / 25000),
    "depth": (kv.DepthScaled(), 2 / 40),
    "depth uniform": (kv.DepthScaled("glorot_uniform"), 2 / 25040),
    "own": (Laplace(), 2 * 0.2**2),
}
UNIFORM_BASES = {"uniform", "scaling avg", "lecun", "backward uniform", "depth uniform"}


@pytest.mark.parametrize("name", BASES)
def test_any_zero_mean_base_keeps_its_mean_variance(name):
    base, variance = BASES[name]
    enhanced = kv.Enhanced(base, seed=1)
    assert_mean(group_variances(draw(enhanced, (40, 25000)), {1}), variance)
    stated = None if name == "own" else pytest.approx(math.sqrt(variance))
    assert enhanced.stddev((40, 25000)) == stated


@pytest.mark.parametrize("name", BASES)
def test_any_zero_mean_base_gets_its_law_of_filter_variances(name):
    kernel = draw(kv.Enhanced(BASES[name][0], seed=1), (1200, 400))
    # The mean variance is shown above, so only the shape of the law is left: scale it away.
    variance = draw(kv.Enhanced(BASES[name][0], concentration=1e9, seed=2), (1200, 400)).var()
    law = SQUARED_UNIFORM if name in UNIFORM_BASES else CHI2
    assert p_value(group_variances(kernel, {1}) / variance, law) > ALPHA


def test_the_base_lends_its_seed():
    base = keras.initializers.HeNormal(seed=5)
    named = draw(kv.Enhanced("he_normal", seed=5), (6, 4))
    np.testing.assert_array_equal(draw(kv.Enhanced(base), (6, 4)), named)
    np.testing.assert_array_equal(draw(kv.EnhancedHeNormal(seed=5), (6, 4)), named)
    assert not np.any(draw(kv.Enhanced(base, seed=6), (6, 4)) == named)


def test_a_nested_base_takes_the_context_of_the_wrapper():
    # Average pooling of 4: γ = 1/32, capped at 3 times the standard deviation of γ = ½.
    layer = keras.layers.Conv2D(
        16, 1, activation="relu", kernel_initializer=kv.Enhanced(kv.ASVBackward(), seed=0)
    )
    model = keras.Sequential([keras.Input((8, 8, 5)), layer, keras.layers.AveragePooling2D(2)])
    report = kv.inject(model)
    assert report[layer.kernel.path].stddev == pytest.approx(3 * math.sqrt(2 / 16))


L = keras.layers
# Layer with its initializer, input shape, axes that tell filters apart, and the true fan-in. Every
# filter has at least 400 entries, so that its measured variance is its own up to 7 %.
REAL_LAYERS = {
    "Dense": (lambda i: L.Dense(1000, kernel_initializer=i), (600,), {1}, 600),
    "Conv2D": (
        lambda i: L.Conv2D(600, 3, strides=2, padding="same", kernel_initializer=i),
        (9, 9, 64),
        {3},
        9 * 64,
    ),
    "grouped": (lambda i: L.Conv2D(600, 3, groups=4, kernel_initializer=i), (9, 9, 256), {3}, 576),
    "depthwise": (
        lambda i: L.DepthwiseConv2D(21, depth_multiplier=4, depthwise_initializer=i),
        (30, 30, 150),
        {2, 3},
        441,
    ),
    "transposed": (
        lambda i: L.Conv2DTranspose(600, 4, strides=2, kernel_initializer=i),
        (5, 5, 32),
        {2},
        16 * 32 / 4,
    ),
    "einsum": (
        lambda i: L.EinsumDense("abc,cde->abde", (None, 20, 30), kernel_initializer=i),
        (3, 500),
        {1, 2},
        500,
    ),
    "embedding": (lambda i: L.Embedding(600, 500, embeddings_initializer=i), (3,), {0}, 1),
}


@pytest.mark.parametrize("base", ["he_normal", "he_uniform"])
@pytest.mark.parametrize("name", REAL_LAYERS)
def test_filters_and_fan_in_are_the_real_layers(name, base):
    make_layer, shape, axes, fan_in = REAL_LAYERS[name]
    layer = make_layer(f"enhanced_{base}")
    model = keras.Sequential([keras.Input(shape), layer])
    row = next(iter(kv.inject(model)))
    (variable,) = [w for w in layer.trainable_variables if "bias" not in w.path]
    kernel = keras.ops.convert_to_numpy(variable)
    assert row.stddev == pytest.approx(math.sqrt(2 / fan_in))
    ratios = group_variances(kernel, axes) * fan_in / 2
    law = CHI2 if base == "he_normal" else SQUARED_UNIFORM
    assert p_value(ratios, law) > ALPHA
    # No other axis tells filters apart: along it, variances do not follow the law.
    for axis in set(range(kernel.ndim)) - axes:
        if kernel.shape[axis] > 20:
            assert p_value(group_variances(kernel, {axis}) * fan_in / 2, law) < 1e-5


def test_position_granularity_of_a_real_transposed_layer():
    layer = L.Conv2DTranspose(
        60, 4, strides=2, kernel_initializer=kv.EnhancedHeNormal("position", seed=3)
    )
    kv.inject(keras.Sequential([keras.Input((5, 5, 500)), layer]))
    ratios = group_variances(keras.ops.convert_to_numpy(layer.kernel), {0, 1, 2}) * 2000 / 2
    assert ratios.size == 16 * 60
    assert p_value(ratios, CHI2) > ALPHA
