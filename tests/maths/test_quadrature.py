"""Gains of stages against closed forms, SciPy's adaptive integration and brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from keras_varinit.maths.quadrature import (
    FUNCTIONS,
    Activation,
    Pool,
    expectation,
    named_activation,
    second_moment,
    stage_gains,
)

pytestmark = pytest.mark.once

RELU = named_activation("relu")


def integral(g):
    """∫ g(s) φ(s) ds by adaptive quadrature, split where activations have kinks."""
    pieces = [-12, -3, -1, -0.5, 0, 0.5, 1, 3, 6, 12]
    return math.fsum(
        integrate.quad(lambda s: g(s) * stats.norm.pdf(s), a, b, epsabs=1e-13)[0]
        for a, b in itertools.pairwise(pieces)
    )


def slope(f, s, h=1e-5):
    return (f(np.array([s + h]))[0] - f(np.array([s - h]))[0]) / (2 * h)


def test_relu_has_its_closed_forms():
    assert stage_gains((RELU,)) == pytest.approx((0.5, 0.5), rel=1e-12)
    for size in (2, 4, 9, 49):
        tau, gamma = stage_gains((RELU, Pool("average", size)))
        assert tau == pytest.approx((1 + (size - 1) / math.pi) / (2 * size), rel=1e-12)
        assert gamma == pytest.approx(0.5 / size**2, rel=1e-12)
        _, gamma = stage_gains((RELU, Pool("max", size)))
        assert gamma == pytest.approx((1 - 2.0**-size) / size, rel=1e-12)


def test_no_activation_and_no_pooling_change_nothing():
    assert stage_gains(()) == pytest.approx((1, 1), rel=1e-12)
    assert stage_gains((Pool("max", 1),)) == pytest.approx((1, 1), rel=1e-12)
    assert stage_gains((Pool("average", 4),)) == pytest.approx((1 / 4, 1 / 16), rel=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gains_of_an_activation_match_adaptive_integration(name):
    f = FUNCTIONS[name]
    tau, gamma = stage_gains((named_activation(name),))
    assert tau == pytest.approx(integral(lambda s: f(np.array([s]))[0] ** 2), rel=1e-8)
    assert gamma == pytest.approx(integral(lambda s: slope(f, s) ** 2), rel=1e-5)


@pytest.mark.parametrize("size", [4, 9, 25])
@pytest.mark.parametrize("name", ["relu", "tanh", "selu", "sigmoid", "softplus"])
def test_max_pooling_of_an_increasing_activation_matches_the_order_statistic(name, size):
    """The maximum's density is T·φ·Φ^{T-1}; SciPy integrates it, with Beta(T, 1) for a check."""
    f = FUNCTIONS[name]
    tau, gamma = stage_gains((named_activation(name), Pool("max", size)))
    cdf = stats.norm.cdf
    want = integral(lambda s: size * f(np.array([s]))[0] ** 2 * cdf(s) ** (size - 1))
    assert tau == pytest.approx(want, rel=1e-8)
    want = integral(lambda s: slope(f, s) ** 2 * cdf(s) ** (size - 1))
    assert gamma == pytest.approx(want, rel=1e-5)
    uniform = integrate.quad(
        lambda p: f(special.ndtri(np.array([p])))[0] ** 2 * size * p ** (size - 1), 0, 1
    )
    assert tau == pytest.approx(uniform[0], rel=1e-4)


STAGES = {
    "gelu, max 4 (not monotone)": (("gelu",), "max", 4),
    "silu, max 9 (not monotone)": (("silu",), "max", 9),
    "mish, average 4": (("mish",), "average", 4),
    "tanh, average 9": (("tanh",), "average", 9),
    "elu, max 4": (("elu",), "max", 4),
}


@pytest.mark.parametrize("case", STAGES)
def test_gains_match_brute_force(case):
    """Simulated windows: second moment of the output, and squared gradient reaching one input."""
    names, kind, size = STAGES[case]
    activation = named_activation(names[0])
    tau, gamma = stage_gains((activation, Pool(kind, size)))
    rng = np.random.default_rng(0)
    u = rng.standard_normal((400_000, size))
    v, h = activation.function(u), 1e-5
    slopes = (activation.function(u + h) - activation.function(u - h)) / (2 * h)
    if kind == "max":
        out = v.max(axis=1)
        back = np.where(np.arange(size) == v.argmax(axis=1)[:, None], slopes, 0.0)[:, 0] ** 2
    else:
        out, back = v.mean(axis=1), (slopes[:, 0] / size) ** 2
    for values, want in ((out**2, tau), (back, gamma)):
        error = np.std(values) / math.sqrt(len(values))
        assert abs(np.mean(values) - want) < 4 * error
        assert error < 0.02 * want


def test_pooling_in_front_of_the_activation():
    """Average, then ReLU: a Gaussian of variance 1/T. Max, then ReLU: the same as the reverse."""
    tau, gamma = stage_gains((Pool("average", 4), RELU))
    assert (tau, gamma) == pytest.approx((1 / 8, 0.5 / 16), rel=1e-9)
    assert stage_gains((Pool("max", 4), RELU)) == pytest.approx(
        stage_gains((RELU, Pool("max", 4))), rel=1e-9
    )


def test_two_poolings_of_one_kind_are_one_of_the_product():
    once = stage_gains((RELU, Pool("average", 12)))
    assert stage_gains((RELU, Pool("average", 3), Pool("average", 4))) == pytest.approx(once)
    once = stage_gains((RELU, Pool("max", 12)))
    twice = stage_gains((RELU, Pool("max", 3), Pool("max", 4)))
    assert twice == pytest.approx(once, rel=1e-3)


def test_expectation_integrates_polynomials_exactly():
    for power, want in ((2, 1), (4, 3), (6, 15), (8, 105)):
        assert expectation(lambda s, p=power: s**p) == pytest.approx(want, rel=1e-12)
    assert second_moment(Activation("cube", lambda s: s**3)) == pytest.approx(15, rel=1e-12)
