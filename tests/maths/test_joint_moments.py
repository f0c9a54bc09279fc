"""Moments of h(f(u), g(v)) against draws of the four Gaussians, and where they are exact."""

import math

import numpy as np
import pytest

from keras_varinit.maths.joint_moments import Combination, Root, joint_law, joint_point
from keras_varinit.maths.quadrature import named_activation

pytestmark = pytest.mark.once

COMBINATIONS = {
    "product": lambda a, b: a * b,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "distance": lambda a, b: np.abs(a - b),
    "hypot": np.hypot,
    "logaddexp": np.logaddexp,
}
LINEAR, RELU, SIGMOID = (named_activation(n) for n in ("linear", "relu", "sigmoid"))
PAIRS = {
    "two Gaussians": (Root(LINEAR, 0.3, 0.8), Root(LINEAR, -0.2, 1.3)),
    "relu and sigmoid": (Root(RELU, -0.4, 1.1), Root(SIGMOID, 0.5, 2.0)),
}
CORRELATIONS = ((0.0, 0.0), (0.5, -0.3), (0.9, 0.2), (0.95, 0.99))
DRAWS = 400_000


def combination(name):
    return Combination(name, COMBINATIONS[name])


def correlated(rng, rho, count):
    """Two standard Gaussians."""
    s, e = rng.standard_normal((2, count))
    return s, rho * s + math.sqrt(1 - rho**2) * e


def values_of(root, s):
    return root.function.function(root.mean + root.std * s)


def assert_mean(samples, predicted, what):
    """Within 4.5 standard errors, and a quadrature's 1e-3 of the size."""
    error = np.std(samples) / math.sqrt(len(samples))
    size = math.sqrt(np.mean(samples**2))
    assert abs(np.mean(samples) - predicted) < 4.5 * error + 1e-3 * size, (
        what, np.mean(samples), predicted, error,
    )  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_moments_and_pairs_against_draws(name, pair):
    first, second = PAIRS[pair]
    h, law = COMBINATIONS[name], joint_law(combination(name), first, second)
    rng = np.random.default_rng(5)
    for rho, other in CORRELATIONS:
        s, s2 = correlated(rng, rho, DRAWS)
        t, t2 = correlated(rng, other, DRAWS)
        one = h(values_of(first, s), values_of(second, t))
        two = h(values_of(first, s2), values_of(second, t2))
        predicted = float(law.product(np.array([rho]), np.array([other]))[0])
        assert_mean(one * two, predicted, (rho, other))
    assert_mean(one, law.first, "first")
    assert_mean(one**2, law.second, "second")
    assert_mean((one - law.first) ** 3, law.third, "third")
    one_one = float(law.product(np.ones(1), np.ones(1))[0])
    assert one_one == pytest.approx(law.second, rel=1e-9)
    assert joint_point(combination(name), first, second) == pytest.approx(
        (law.first, law.second), rel=5e-3
    )


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_slopes_against_differences(name, pair):
    first, second = PAIRS[pair]
    h, law = COMBINATIONS[name], joint_law(combination(name), first, second)
    rng = np.random.default_rng(6)
    step = 1e-6
    for number, root in enumerate((first, second)):
        rho = (0.7, 0.4)
        drawn = [correlated(rng, r, DRAWS) for r in rho]
        slopes = []
        for k in range(2):
            s, t = drawn[0][k], drawn[1][k]
            moved = [s, t]
            moved[number] = moved[number] + step / root.std
            before = h(values_of(first, s), values_of(second, t))
            after = h(values_of(first, moved[0]), values_of(second, moved[1]))
            slopes.append((after - before) / step)
        assert_mean(slopes[0] ** 2, law.slopes[number], (number, "squared"))
        assert_mean(slopes[0] * slopes[1], law.slope_product(number, *rho), (number, "pair"))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_roots_with_a_common_part(name):
    """Twins: the same weights on two inputs."""
    root, kappa, rho = Root(RELU, 0.2, 1.2), 0.45, 0.7
    h, law = COMBINATIONS[name], joint_law(combination(name), root, root, kappa)
    rng = np.random.default_rng(7)
    common = math.sqrt(kappa) * rng.standard_normal(DRAWS)
    own = [correlated(rng, (rho - kappa) / (1 - kappa), DRAWS) for _ in range(2)]
    left = math.sqrt(1 - kappa)
    one, two = (
        h(*(values_of(root, common + left * own[side][k]) for side in range(2))) for k in range(2)
    )
    inner = np.array([(rho - kappa) / (1 - kappa)])
    assert_mean(one, law.first, "first")
    assert_mean(one**2, law.second, "second")
    assert_mean((one - law.first) ** 3, law.third, "third")
    assert_mean(one * two, float(law.product(inner, inner)[0]), "pair")


def test_a_product_is_exact():
    """E a²b² = E a²·E b², and E ab a'b' of pairs is a product as well."""
    first, second = PAIRS["two Gaussians"]
    law = joint_law(combination("product"), first, second)
    a, b = 0.3**2 + 0.8**2, 0.2**2 + 1.3**2
    assert law.second == pytest.approx(a * b, rel=1e-6)
    assert law.slopes == pytest.approx((b, a), rel=1e-6)
    pair = (0.3**2 + 0.5 * 0.8**2) * (0.2**2 - 0.1 * 1.3**2)
    assert float(law.product(np.array([0.5]), np.array([-0.1]))[0]) == pytest.approx(pair, rel=1e-6)


def test_a_quotient_is_known_where_its_denominator_stays_off_zero():
    quotient = Combination("quotient", lambda a, b: a / b)
    law = joint_law(quotient, Root(LINEAR, 0.0, 1.0), Root(LINEAR, 4.0, 0.2))
    assert law.second == pytest.approx(1 / 16 * (1 + 3 * 0.05**2), rel=1e-3)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = joint_law(quotient, Root(LINEAR, 0.0, 1.0), Root(LINEAR, 1.0, 0.5))
    assert math.isnan(crossing.second)
    assert math.isnan(crossing.slopes[0])


def test_a_deterministic_signal():
    law = joint_law(combination("maximum"), Root(LINEAR, 0.0, 1.0), Root(LINEAR, 0.0, 0.0))
    assert law.second == pytest.approx(0.5, rel=1e-3)
    assert law.slopes == pytest.approx((0.5, 0.0), abs=1e-3)
