"""The law of the singular values of Z + I, against matrices."""

import numpy as np
import pytest

from keras_varinit.maths.shifted_ginibre import mean_power_of_largest

pytestmark = pytest.mark.once


def test_density_integrates_to_one():
    assert mean_power_of_largest(1.0, 0.0) == pytest.approx(1, rel=1e-12)


def test_mean_square_is_that_of_the_entries():
    # E tr (Z + I)(Z + I)ᵀ = d·1 + d.
    assert mean_power_of_largest(1.0, 2.0) == pytest.approx(2, rel=1e-12)


# The mean of 1/s over all s of real matrices diverges, through their smallest singular values.
CASES = [(f, p) for f in (0.05, 0.25, 0.7, 1.0) for p in (-1.0, 1.0, 4.0) if (f, p) != (1.0, -1.0)]


@pytest.mark.parametrize(("fraction", "power"), CASES)
def test_means_are_those_of_large_matrices(fraction, power):
    rng, d, count = np.random.default_rng(0), 400, 8
    means = []
    for _ in range(count):
        matrix = rng.standard_normal((d, d)) / np.sqrt(d) + np.eye(d)
        values = np.linalg.svd(matrix, compute_uv=False)[: int(fraction * d)]
        means.append(np.mean(values**power))
    error = np.std(means, ddof=1) / np.sqrt(count)
    # Five standard errors, and the law's own error of the order of 1/d.
    expected = mean_power_of_largest(fraction, power)
    assert abs(np.mean(means) - expected) < 5 * error + abs(power) * expected / d
