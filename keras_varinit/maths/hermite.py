"""Pair moments of an activation by Hermite series (Mehler's formula; the dual activation).

For u = m + σs with s ~ N(0, 1), f(u) = Σ aₙ hₙ(s) in normalized Hermite polynomials hₙ, and two
such variables of correlation ρ have E f(u) f(u') = Σ aₙ² ρⁿ. The series is cut at n = 40; the
remainder of E f² enters as one more power, so that ρ = 1 is exact.

Reference: Daniely, Frostig and Singer (2016), arXiv:1602.05897 (dual activations).
"""

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.entry_laws import NODES, STEP, Shape, slopes_of
from keras_varinit.maths.quadrature import Activation, normal_density

Array = npt.NDArray[np.float64]

_TERMS = 40

TERMS = _TERMS + 1  # of a series, with its remainder

_JUMP = 8.0

TABLE = np.linspace(-1.0, 1.0, 1025)


@functools.cache
def _grid() -> tuple[Array, Array, Array]:
    """Nodes, weights with Σ w g ≈ E g(s): (nodes,) each; h₀ … at the nodes: (terms, nodes)."""
    nodes = NODES
    weights = STEP * normal_density(nodes)
    polynomials = np.empty((_TERMS, len(nodes)))
    polynomials[0], polynomials[1] = 1.0, nodes
    for n in range(2, _TERMS):
        polynomials[n] = (
            nodes * polynomials[n - 1] - math.sqrt(n - 1) * polynomials[n - 2]
        ) / math.sqrt(n)
    return nodes, weights, polynomials


@functools.cache
def _middles() -> Array:
    """Weights of the cells between nodes, where slopes are evaluated: (cells,)."""
    nodes = _grid()[0]
    return STEP * normal_density((nodes[1:] + nodes[:-1]) / 2)


@functools.cache
def _middle_polynomials() -> Array:
    """h₀ … at the cell centres: (terms, cells)."""
    polynomials = _grid()[2]
    return np.asarray((polynomials[:, 1:] + polynomials[:, :-1]) / 2)


@dataclasses.dataclass(frozen=True)
class PointLaw:
    """Moments of f(u) for u of mean m and variance σ², on the grid.

    `values` is f at the nodes, `slopes` df/du in the cells between them. A `skewness` γ of u enters
    to first order (Gram-Charlier): density φ(s)·(1 + γ/6·(s³ - 3s)). With a `shape`, u is
    m + σT(s), and `slopes` are those at the nodes, weighted by the shape's.
    """

    values: Array
    slopes: Array
    skewness: float = 0.0
    shape: Shape | None = None

    @functools.cached_property
    def _weights(self) -> Array:
        nodes, weights, _ = _grid()
        if not self.skewness:
            return weights
        return weights * (1 + self.skewness / 6 * (nodes**3 - 3 * nodes))

    @functools.cached_property
    def _cells(self) -> Array:
        if self.shape is not None:
            return _grid()[1]
        if not self.skewness:
            return _middles()
        middles = (_grid()[0][1:] + _grid()[0][:-1]) / 2
        return _middles() * (1 + self.skewness / 6 * (middles**3 - 3 * middles))

    @property
    def in_cells(self) -> tuple[Array, Array, Array]:
        """Values and slopes in the cells between nodes, and the cells' weights: (cells,) each.

        A law of `shape` has its slopes at the nodes themselves: (nodes,) each.
        """
        between = (self.values[1:] + self.values[:-1]) / 2
        return self.values if self.shape is not None else between, self.slopes, self._cells

    @functools.cached_property
    def first(self) -> float:
        """E f."""
        return float(np.sum(self._weights * self.values))

    @functools.cached_property
    def second(self) -> float:
        """E f²."""
        return float(np.sum(self._weights * self.values**2))

    @functools.cached_property
    def third(self) -> float:
        """E (f - E f)³; it adds up over sums of independent signals."""
        return float(np.sum(self._weights * (self.values - self.first) ** 3))

    @functools.cached_property
    def slope(self) -> float:
        """E f'."""
        roots = 1.0 if self.shape is None else self.shape.roots
        return float(np.sum(self._cells * self.slopes * roots))

    @functools.cached_property
    def squared_slope(self) -> float:
        """E f'²."""
        return float(np.sum(self._cells * self.slopes**2))

    @functools.cached_property
    def radial_slope(self) -> float:
        """E f'²s² for a Gaussian u = m + σs."""
        middles = (_grid()[0][1:] + _grid()[0][:-1]) / 2
        return float(np.sum(_middles() * (self.slopes * middles) ** 2))

    @functools.cached_property
    def products(self) -> Array:
        """E f(u) f(u') at `TABLE`; with skewness a Gaussian's, rescaled to (E f)² … E f²."""
        weights = _grid()[1]
        second = float(np.sum(weights * self.values**2))
        series = _by_correlation(products_of(self.series), self.shape)
        if not self.skewness:
            return series
        independent = float(np.sum(weights * self.values)) ** 2
        share = (series - independent) / (second - independent) if second > independent else series
        return np.asarray(self.first**2 + (self.second - self.first**2) * share)

    @functools.cached_property
    def slope_products(self) -> Array:
        """E f'(u) f'(u') at `TABLE`."""
        return _by_correlation(products_of(self.slope_series), self.shape)

    @functools.cached_property
    def series(self) -> Array:
        """aₙ of f(u) for a Gaussian u: (`TERMS`,); the last one is the remainder."""
        _, weights, polynomials = _grid()
        total = float(np.sum(weights * self.values**2))
        return completed(polynomials @ (weights * self.values), total)

    @functools.cached_property
    def slope_series(self) -> Array:
        """aₙ of f'(u), likewise."""
        if self.shape is not None:
            return completed(_grid()[2] @ (_grid()[1] * self.slopes), self.squared_slope)
        return completed(_middle_polynomials() @ (_middles() * self.slopes), self.squared_slope)

    def product(self, correlation: Array) -> Array:
        """E f(u) f(u') at correlations of any shape."""
        return read_off(self.products, correlation)

    def slope_product(self, correlation: float) -> float:
        """E f'(u) f'(u') at one correlation."""
        return float(np.interp(correlation, TABLE, self.slope_products))


def slopes_between(differences: Array, std: float) -> Array:
    """Slopes over steps of the grid, from `differences` (cells,); at a jump, the neighbours'.

    A jump is a cell many times as steep as its neighbours, or two cells where a node lies on it.
    Backpropagation does not see it.
    """
    if std == 0:
        return np.zeros_like(differences)
    slopes = differences / (std * STEP)
    padded = np.pad(slopes, 2, mode="edge")
    count = len(slopes)
    pairs = [(padded[1 : count + 1], padded[:count]), (padded[3 : count + 3], padded[4:])]
    sides = np.stack([np.where(np.abs(a) <= np.abs(b), a, b) for a, b in pairs])
    jumps = np.abs(slopes) > _JUMP * np.abs(sides).max(axis=0)
    return np.where(jumps, sides.mean(axis=0), slopes)


def completed(coefficients: Array, total: float) -> Array:
    """The coefficients aₙ and one more, so that Σ aₙ² = `total`: (terms,) to (terms + 1,)."""
    rest = max(total - float(np.sum(coefficients**2)), 0.0)
    # A kink's remainder is in the even powers, and so is the appended one.
    return np.append(coefficients, math.sqrt(rest))


def products_of(series: Array) -> Array:
    """Σ aₙ² ρⁿ at `TABLE`, exact at ρ = 1."""
    return np.asarray(np.polynomial.polynomial.polyval(TABLE, series**2))


def _by_correlation(products: Array, shape: Shape | None) -> Array:
    """Converts a table over the correlation of s and s' to one over that of T(s) and T(s')."""
    return correlations_behind(shape, TABLE, products)


def correlations_behind(shape: Shape | None, correlations: Array, of: Array | None = None) -> Array:
    """Correlations of s and s' for which T(s) and T(s') have `correlations`, of any shape.

    With `of`, values at `TABLE`, those interpolated at the correlations of s and s'.
    """
    if shape is not None:
        correlations = np.interp(correlations, TABLE, _behind(shape))
    return np.asarray(correlations if of is None else np.interp(correlations, TABLE, of))


@functools.lru_cache(maxsize=512)
def _behind(shape: Shape) -> Array:
    """The correlation of s and s' for which T(s) and T(s') have that of `TABLE`.

    T is non-decreasing, so one grows with the other.
    """
    _, weights, polynomials = _grid()
    total = float(np.sum(weights * shape.values**2))
    series = completed(polynomials @ (weights * shape.values), total)
    return np.interp(TABLE, np.maximum.accumulate(products_of(series)), TABLE)


def read_off(table: Array, correlation: Array) -> Array:
    """`np.interp` of values at equal steps over [-1, 1], many times as fast."""
    half = (len(table) - 1) / 2
    places = np.clip(correlation, -1.0, 1.0) * half
    places += half
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        steps = places.astype(np.int32)
    places -= steps
    slopes = np.append(table[1:] - table[:-1], 0.0)
    places *= slopes.take(steps, mode="clip")
    places += table.take(steps, mode="clip")
    return np.asarray(places)


def products_between(one: Array, others: Array, correlations: Array) -> Array:
    """E f(u) g(u') = Σ aₙ bₙ ρⁿ for one f and several g.

    Args:
        one: aₙ of f, (terms,).
        others: bₙ of each g, (rows, terms).
        correlations: ρ of each pair, (rows,).

    Returns:
        (rows,).
    """
    powers = correlations[:, None] ** np.arange(len(one))
    return np.asarray(np.sum(powers * others * one, axis=1))


@functools.lru_cache(maxsize=4096)
def point_law(
    activation: Activation,
    mean: float,
    std: float,
    skewness: float = 0.0,
    shape: Shape | None = None,
) -> PointLaw:
    """Moments of f(u) for u ~ N(mean, std²), with a skewness, or of the law `shape`."""
    if shape is not None:
        places = mean + std * shape.values
        values = np.asarray(activation.function(places), np.float64)
        slopes = slopes_of(activation.function, places, 1e-3 * std) if std else 0 * values
        return PointLaw(values, slopes * shape.roots, 0.0, shape)
    values = np.asarray(activation.function(mean + std * _grid()[0]), np.float64)
    return PointLaw(values, slopes_between(np.diff(values), std), skewness)


@functools.lru_cache(maxsize=256)
def is_homogeneous(activation: Activation) -> bool:
    """Whether f(cs) = c·f(s) for c > 0 (identity, ReLU, leaky ReLU): scale passes through f."""
    s = np.linspace(-3.0, 3.0, 61)
    values = np.asarray(activation.function(s), np.float64)
    return all(
        np.allclose(activation.function(c * s), c * values, rtol=1e-5, atol=1e-6)
        for c in (0.37, 4.1)
    )
