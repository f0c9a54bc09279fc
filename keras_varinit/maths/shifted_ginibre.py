"""Singular values of Z + I, where Z is a large square matrix with entries N(0, 1/d).

Girko's Hermitization: the Stieltjes transform m(w) of the singular values and their negatives obeys
-1/m = w + m - 1/(w + m). With u = w + m this is w = u³/(u² - 1), and w is real on the curve
u = r·e^{iθ}, r² = 4cos²θ - 1, 0 <= θ <= π/3. There

    s = r³/(2·cos θ),    density of s = 2·Im(m)/π = 2·r·sin θ/π,

from the largest singular value, 3√3/2, down to 0. Z - I has the same law.
"""

import functools
import math

import numpy as np

from keras_varinit.typing import FloatArray

_EDGE = math.pi / 3
_NODES = 64


@functools.lru_cache(maxsize=256)
def mean_power_of_largest(fraction: float, power: float = 1.0) -> float:
    """The mean of s^power over the largest `fraction` of the singular values s, as d → ∞.

    Args:
        fraction: Greater than 0, at most 1.
        power: Greater than -4/3, below which the mean over all diverges.
    """
    start = _place(fraction)
    nodes, weights = _gauss(start)
    density, values = _law(nodes)
    return float(np.sum(weights * density * values**power) / fraction)


@functools.cache
def _legendre() -> tuple[FloatArray, FloatArray]:
    return np.polynomial.legendre.leggauss(_NODES)


def _gauss(start: float) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights from `start` to 1."""
    nodes, weights = _legendre()
    half = (1 - start) / 2
    return start + half * (nodes + 1), half * weights


def _law(t: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Density with respect to t, where θ = (1 - t²)·π/3, and s; both are smooth in t."""
    cosine = np.cos(_EDGE * (1 - t**2))
    radius = np.sqrt(np.maximum(4 * cosine**2 - 1, 0))
    per_angle = radius**2 * (8 * cosine**2 + 1) * (1 / cosine**2 - 1) / math.pi
    return per_angle * 2 * _EDGE * t, radius**3 / (2 * cosine)


def _place(fraction: float) -> float:
    """The t above which that fraction of the singular values is."""
    low, high = 0.0, 1.0
    if fraction >= 1:
        return low
    for _ in range(50):
        middle = (low + high) / 2
        nodes, weights = _gauss(middle)
        if np.sum(weights * _law(nodes)[0]) > fraction:
            low = middle
        else:
            high = middle
    return (low + high) / 2
