"""Moments of f(u) for correlated Gaussians, and of maxima, against integrals over the plane."""

import functools
import itertools
import math

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats

from keras_varinit.families.activations import activation_of
from keras_varinit.maths.hermite import is_homogeneous, point_law
from keras_varinit.maths.maxima import maximum_law, maximum_over_positions
from keras_varinit.maths.quadrature import Activation, Pool, named_activation, stage_gains

pytestmark = pytest.mark.once

# Where some activation has a kink: panels of the oracle's quadrature end there.
KINKS = (-6.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0)
LAWS = ((0.0, 1.0), (0.3, 0.7), (-0.8, 2.5))
CORRELATIONS = (-0.6, 0.25, 0.8, 0.95)
CALLABLES = {
    "abs": keras.ops.abs,
    "square": keras.ops.square,
    "erf": keras.ops.erf,
    "sine": lambda s: keras.ops.sin(2 * s),
    "leaky": keras.layers.LeakyReLU(0.3),
    "capped": keras.layers.ReLU(max_value=1, negative_slope=0.1),
}


def is_elementwise(function):
    """The rest are no functions of one number, do nothing, or jump and so have no slope."""
    name = function.__name__
    return name.islower() and name not in (
        *("get", "serialize", "deserialize", "glu", "softmax", "log_softmax", "sparsemax"),
        *("linear", "threshold", "hard_shrink"),
    )


ACTIVATIONS = {
    **{n: f for n, f in vars(keras.activations).items() if callable(f) and is_elementwise(f)},
    **CALLABLES,
}


def computed(function, values):
    """What Keras itself makes of the values, in float32."""
    return np.asarray(keras.ops.convert_to_numpy(function(values.astype("float32"))), np.float64)


@functools.cache
def panels(mean, std):
    """Nodes s and weights of a Gauss-Legendre rule with no kink of f(mean + std·s) inside."""
    kinks = [(k - mean) / std for k in KINKS]
    edges = sorted({*np.arange(-9, 9.01, 0.25).tolist(), *(k for k in kinks if abs(k) < 9)})
    x, w = np.polynomial.legendre.leggauss(6)
    pieces = [((a + b) / 2, (b - a) / 2) for a, b in itertools.pairwise(edges)]
    nodes = np.concatenate([middle + half * x for middle, half in pieces])
    weights = np.concatenate([half * w for _, half in pieces])
    return nodes, weights * stats.norm.pdf(nodes)


@functools.cache
def joint(mean, std, rho):
    """Weights of pairs of nodes under the bivariate normal density."""
    s, w = panels(mean, std)
    exponent = (2 * rho * np.outer(s, s) - rho**2 * np.add.outer(s**2, s**2)) / (2 * (1 - rho**2))
    return np.outer(w, w) * np.exp(exponent) / math.sqrt(1 - rho**2)


def pair(f, mean, std, rho):
    """E f(u) f(u'), integrated over the plane."""
    return float(f @ joint(mean, std, rho) @ f)


@pytest.mark.parametrize(("mean", "std"), LAWS)
def test_activations_of_a_gaussian_match_integration(mean, std):
    for name, function in ACTIVATIONS.items():
        check_law(name, function, mean, std)


def check_law(name, function, mean, std):
    """Slopes by Stein's lemma, E f' = E (u-m) f/σ², and Price's theorem, d E ff'/dρ = σ² E f'f'."""
    law = point_law(activation_of(function), mean, std)
    s, w = panels(mean, std)
    f = computed(function, mean + std * s)
    # A kink between two nodes costs the law's grid 2e-5, Keras's float32 costs less.
    scale = max(math.sqrt(w @ f**2), 1e-3)
    assert law.first == pytest.approx(w @ f, rel=2e-4, abs=1e-4 * scale), name
    assert law.second == pytest.approx(w @ f**2, rel=2e-4), name
    slope = w @ (s * f) / std
    assert law.slope == pytest.approx(slope, rel=2e-4, abs=1e-4 * scale / std), name
    for rho in CORRELATIONS:
        want = pair(f, mean, std, rho)
        assert law.product(rho) == pytest.approx(want, rel=1e-3, abs=1e-3 * scale**2), (name, rho)
        steps = [pair(f, mean, std, rho + h) for h in (0.02, 0.01, -0.01, -0.02)]
        price = (8 * (steps[1] - steps[2]) - (steps[0] - steps[3])) / 0.12 / std**2
        # The slope of a kink is a jump: a few percent of its series lie beyond the cut.
        allowance = (0.03 if rho > 0.9 else 0.005) * law.squared_slope
        assert law.slope_product(rho) == pytest.approx(price, abs=allowance), (name, rho)
    assert law.product(1.0) == pytest.approx(law.second, rel=1e-6), name
    assert law.slope_product(1.0) == pytest.approx(law.squared_slope, rel=1e-3), name
    assert law.product(0.0) == pytest.approx(law.first**2, abs=1e-6 * scale**2), name


@pytest.mark.parametrize(("mean", "std"), LAWS)
def test_the_squared_slope_matches_integration(mean, std):
    for name in ("relu", "tanh", "gelu", "silu", "selu", "softplus", "hard_tanh"):
        f = named_activation(name).function
        s, w = panels(mean, std)
        u = mean + std * s
        slope = (f(u + 1e-6) - f(u - 1e-6)) / 2e-6
        # A kink inside a cell of width 1/64 mixes its two slopes there.
        law = point_law(named_activation(name), mean, std)
        assert law.squared_slope == pytest.approx(w @ slope**2, rel=5e-3), name


def test_relu_has_the_arc_cosine_kernel():
    for rho in (-1.0, -0.9, -0.3, 0.0, 0.4, 0.9, 0.99, 1.0):
        law = point_law(named_activation("relu"), 0.0, 3.0)
        angle = math.acos(rho)
        kernel = 9 * (math.sin(angle) + (math.pi - angle) * rho) / (2 * math.pi)
        assert law.product(rho) == pytest.approx(kernel, abs=2e-3)
        # At the ends the jump's series shows where it was cut.
        want = (math.pi - angle) / (2 * math.pi)
        assert law.slope_product(rho) == pytest.approx(want, abs=0.05 if abs(rho) > 0.95 else 0.01)


def test_erf_linear_and_abs_have_their_closed_forms():
    for rho in (-0.9, -0.3, 0.0, 0.4, 0.9, 1.0):
        erf = Activation("erf", special.erf)
        want = 2 / math.pi * math.asin(2 * 1.5**2 * rho / (1 + 2 * 1.5**2))
        assert point_law(erf, 0.0, 1.5).product(rho) == pytest.approx(want, abs=1e-4)
        linear = point_law(Activation("linear", lambda s: s), 0.7, 1.5)
        assert linear.product(rho) == pytest.approx(0.49 + 2.25 * rho, rel=1e-6)
        assert linear.slope_product(rho) == pytest.approx(1.0, rel=1e-6)
        absolute = point_law(Activation("abs", np.abs), 0.0, 1.0)
        want = 2 / math.pi * (math.sqrt(1 - rho**2) + rho * math.asin(rho))
        assert absolute.product(rho) == pytest.approx(want, abs=1e-3)


def test_a_constant_signal_stays_one():
    for name in ("relu", "tanh", "sigmoid", "exponential"):
        law = point_law(named_activation(name), 0.4, 0.0)
        f = named_activation(name).function(np.array([0.4]))[0]
        assert (law.first, law.second) == pytest.approx((f, f**2), rel=1e-9)
        assert law.product(0.5) == pytest.approx(f**2, rel=1e-9)


def test_a_jump_has_the_slope_of_its_sides():
    """Backpropagation knows nothing of a jump: hard shrink passes gradients where |u| > 1/2."""
    shrink = Activation("hard_shrink", lambda s: np.where(np.abs(s) > 0.5, s, 0.0))
    for std in (1.0, 0.93):
        outside = 2 * stats.norm.cdf(-0.5 / std)
        assert point_law(shrink, 0.0, std).squared_slope == pytest.approx(outside, rel=0.02)
        assert maximum_law(shrink, ((0.0, std, 1),), 0.0).squared_slope == pytest.approx(
            outside, rel=0.03
        )


def test_tables_are_interpolated_as_numpy_does_it():
    law = point_law(named_activation("relu"), 0.3, 1.2)
    rng = np.random.default_rng(0)
    ends = np.array([-1.0, 1.0, 1.5, -2.0, math.nan])
    for correlation in (rng.uniform(-1, 1, (5, 7)), ends, np.asarray(0.5)):
        table = np.interp(correlation, np.linspace(-1, 1, len(law.products)), law.products)
        np.testing.assert_allclose(law.product(correlation), table, rtol=1e-12)


def test_what_lets_scale_through():
    for name in ("linear", "relu", "leaky_relu"):
        assert is_homogeneous(named_activation(name)), name
    for name in ("relu6", "elu", "gelu", "tanh", "softplus", "exponential"):
        assert not is_homogeneous(named_activation(name)), name
    assert is_homogeneous(Activation("abs", np.abs))


def order_statistic(f, mean, std, rho, count):
    """E max and E max² of increasing f over equicorrelated Gaussians, by adaptive quadrature."""

    def given(common, power):
        shift, spread = mean + std * math.sqrt(rho) * common, std * math.sqrt(1 - rho)
        return integrate.quad(
            lambda s: (
                f(np.array([shift + spread * s]))[0] ** power
                * count
                * stats.norm.pdf(s)
                * special.ndtr(s) ** (count - 1)
            ),
            -8,
            8,
            points=[min(max(-shift / spread, -7.9), 7.9)],
            limit=200,
        )[0]

    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / math.sqrt(2 * math.pi)
    return [
        float(sum(w * given(c, p) for c, w in zip(nodes, weights, strict=True))) for p in (1, 2)
    ]


def test_the_maximum_of_independent_entries_matches_the_stage_gains():
    """For ReLU the gradient's share is (1 - 2^-T)/T of an entry, 1 - 2^-T of the window."""
    for name, count in itertools.product(("relu", "tanh", "linear"), (2, 4, 9, 49)):
        activation = named_activation(name)
        law = maximum_law(activation, ((0.0, 1.0, count),), 0.0)
        tau, gamma = stage_gains((activation, Pool("max", count)))
        # Nodes 1/32 apart, each with the slope behind it.
        assert law.second == pytest.approx(tau, rel=0.01), (name, count)
        assert law.squared_slope == pytest.approx(gamma * count, rel=0.03), (name, count)
        if name == "relu":
            assert law.squared_slope == pytest.approx(1 - 2.0**-count, rel=0.02)


def test_the_maximum_of_correlated_entries_matches_integration():
    cases = (("relu", 0.0), ("relu", -0.5), ("tanh", 0.4))
    for (name, mean), count, rho in itertools.product(cases, (2, 9), (0.3, 0.8)):
        activation = named_activation(name)
        law = maximum_law(activation, ((mean, 1.3, count),), rho)
        want = order_statistic(activation.function, mean, 1.3, rho, count)
        assert (law.first, law.second) == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("name", ["relu", "gelu", "abs"])
def test_the_maximum_matches_simulation(name):
    """Also functions that do not increase. Tolerance: 4 standard errors, and 1 % of the grid's."""
    for count, rho in itertools.product((2, 4, 9, 49), (0.0, 0.3, 0.8)):
        known = named_activation(name)
        activation = Activation("abs", np.abs) if known is None else known
        mean, std = 0.2, 1.2
        law = maximum_law(activation, ((mean, std, count),), rho)
        rng = np.random.default_rng(count)
        draws = 40_000
        common = rng.standard_normal(draws)[:, None]
        u = mean + std * (
            math.sqrt(rho) * common + math.sqrt(1 - rho) * rng.standard_normal((draws, count))
        )
        values = activation.function(u)
        winner = np.take_along_axis(u, values.argmax(axis=1)[:, None], axis=1)[:, 0]
        slope = (activation.function(winner + 1e-5) - activation.function(winner - 1e-5)) / 2e-5
        maxima = values.max(axis=1)
        for samples, want in (
            (maxima, law.first),
            (maxima**2, law.second),
            (slope**2, law.squared_slope),
        ):
            error = np.std(samples) / math.sqrt(draws)
            assert abs(np.mean(samples) - want) < 4 * error + 0.01 * abs(want) + 0.005


def test_two_windows_whose_common_parts_are_correlated():
    for alike in (0.0, 0.5, 1.0):
        law = maximum_law(named_activation("relu"), ((0.0, 1.0, 4),), 0.5)
        rng = np.random.default_rng(0)
        draws = 100_000
        common = rng.standard_normal((2, draws))
        common[1] = alike * common[0] + math.sqrt(1 - alike**2) * common[1]
        own = rng.standard_normal((2, draws, 4))
        maxima = np.maximum(math.sqrt(0.5) * (common[..., None] + own), 0).max(axis=2)
        samples = maxima[0] * maxima[1]
        error = np.std(samples) / math.sqrt(draws)
        assert law.product(alike) == pytest.approx(samples.mean(), abs=4 * error + 0.005)


def test_entries_that_are_all_the_same_are_one_entry():
    law = maximum_law(named_activation("relu"), ((0.0, 2.0, 9),), 1.0)
    assert law.second == pytest.approx(2.0, rel=0.03)
    assert law.first == pytest.approx(2 / math.sqrt(2 * math.pi), rel=0.03)


def test_a_maximum_over_unequal_positions_matches_simulation():
    """Unequal scales, two common parts: 4 standard errors, 1 % for 16 × 6 nodes of quadrature."""
    rng = np.random.default_rng(3)
    mean, std = np.array([0.0, 0.3, -0.2]), np.array([0.5, 1.0, 1.6])
    loadings = np.array([[0.3, 0.8, 1.2], [0.2, 0.0, -0.6]])
    count = np.array([4, 3, 2])
    found = maximum_over_positions(
        named_activation("relu"), mean, std, loadings, count.astype(float)
    )
    common = rng.standard_normal((200_000, 2)) @ loadings
    own = np.sqrt(std**2 - np.sum(loadings**2, axis=0))

    def drawn():
        columns = [
            mean[k] + common[:, k] + own[k] * rng.standard_normal(len(common))
            for k in range(3)
            for _ in range(count[k])
        ]
        return np.maximum(np.max(columns, axis=0), 0)

    one, other = drawn(), drawn()
    for got, sample in zip(found, (one, one**2, one > 0, one * other), strict=True):
        error = np.std(sample) / np.sqrt(len(sample))
        assert abs(np.mean(sample) - got) < 4 * error + 0.01 * got
