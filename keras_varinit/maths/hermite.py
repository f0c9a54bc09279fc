"""Functions of correlated Gaussians: pair moments by Hermite series, maxima by quadrature.

For u = m + σs with s ~ N(0, 1), f(u) = Σ aₙ hₙ(s) with the normalized Hermite polynomials hₙ, and
two such variables of correlation ρ have E f(u) f(u') = Σ aₙ² ρⁿ (Mehler). The series is cut at
n = 40; what is left of E f² stands as one more power, so that ρ = 1 is exact.
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

TERMS = _TERMS + 1  # of a series, with what its cut leaves out

_JUMP = 8.0

TABLE = np.linspace(-1.0, 1.0, 1025)


@functools.cache
def _grid() -> tuple[Array, Array, Array]:
    """Nodes, weights Σ w g ≈ E g(s), and the values of h₀ … at the nodes."""
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
    """Weights of the cells between nodes, on which slopes are taken."""
    nodes = _grid()[0]
    return STEP * normal_density((nodes[1:] + nodes[:-1]) / 2)


@functools.cache
def _middle_polynomials() -> Array:
    """The values of h₀ … in the middle of the cells."""
    polynomials = _grid()[2]
    return np.asarray((polynomials[:, 1:] + polynomials[:, :-1]) / 2)


@dataclasses.dataclass(frozen=True)
class PointLaw:
    """What an activation makes of u of mean m and variance σ², on the grid.

    `values` f at the nodes, `slopes` f' in the cells between them, with respect to u; u is Gaussian
    but for its `skewness` γ, which enters to first order: density φ(s)·(1 + γ/6·(s³ - 3s)). With a
    `shape` u is m + σT(s) instead, and `slopes` are those at the nodes, weighed by the shape's.
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
        """The values and slopes in the cells between nodes, and the cells' weights."""
        return (self.values[1:] + self.values[:-1]) / 2, self.slopes, self._cells

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
        """E (f - E f)³, which a sum of it and of independent signals keeps."""
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
        """E f'²s², of a Gaussian u = m + σs."""
        middles = (_grid()[0][1:] + _grid()[0][:-1]) / 2
        return float(np.sum(_middles() * (self.slopes * middles) ** 2))

    @functools.cached_property
    def products(self) -> Array:
        """E f(u) f(u') over the table of correlations; a Gaussian's, between (E f)² and E f²."""
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
        """E f'(u) f'(u') over the table of correlations."""
        return _by_correlation(products_of(self.slope_series), self.shape)

    @functools.cached_property
    def series(self) -> Array:
        """aₙ of f(u), u Gaussian; the last power stands for what the cut leaves out."""
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
        """E f(u) f(u') for pairs of that correlation."""
        return read_off(self.products, correlation)

    def slope_product(self, correlation: float) -> float:
        """E f'(u) f'(u') for a pair of that correlation."""
        return float(np.interp(correlation, TABLE, self.slope_products))


def slopes_between(differences: Array, std: float) -> Array:
    """Slopes over steps of the grid; where the function jumps, those at its sides.

    A jump is one step many times as steep as those at its sides, or two where a node lies on it;
    backpropagation sees none of it.
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
    """The coefficients aₙ and one more power, so that Σ aₙ² is `total`."""
    rest = max(total - float(np.sum(coefficients**2)), 0.0)
    # The rest of a kink's series is in every other power: even ones, as the cut is.
    return np.append(coefficients, math.sqrt(rest))


def products_of(series: Array) -> Array:
    """Σ aₙ² ρⁿ over the table of correlations, exact at ρ = 1."""
    return np.asarray(np.polynomial.polynomial.polyval(TABLE, series**2))


def _by_correlation(products: Array, shape: Shape | None) -> Array:
    """A table over the correlation of s and s' as one over that of T(s) and T(s')."""
    return correlations_behind(shape, TABLE, products)


def correlations_behind(shape: Shape | None, correlations: Array, of: Array | None = None) -> Array:
    """The correlations of s and s' for which T(s) and T(s') have those; or a table over them."""
    if shape is not None:
        correlations = np.interp(correlations, TABLE, _behind(shape))
    return np.asarray(correlations if of is None else np.interp(correlations, TABLE, of))


@functools.lru_cache(maxsize=512)
def _behind(shape: Shape) -> Array:
    """The correlation of s and s' for which T(s) and T(s') have that of the table.

    T does not fall, so that one grows with the other.
    """
    _, weights, polynomials = _grid()
    total = float(np.sum(weights * shape.values**2))
    series = completed(polynomials @ (weights * shape.values), total)
    return np.interp(TABLE, np.maximum.accumulate(products_of(series)), TABLE)


def read_off(table: Array, correlation: Array) -> Array:
    """A table of correlations, interpolated: `np.interp` for equal steps, many times as fast."""
    half = (len(table) - 1) / 2
    places = np.clip(correlation, -1.0, 1.0) * half
    places += half
    with np.errstate(invalid="ignore"):  # of NaN, which the result keeps
        steps = places.astype(np.int32)
    places -= steps
    places *= np.diff(table, append=table[-1]).take(steps, mode="clip")
    places += table.take(steps, mode="clip")
    return np.asarray(places)


def products_between(one: Array, others: Array, correlations: Array) -> Array:
    """Σ aₙ bₙ ρⁿ = E f(u) g(u') for the series of f and, in rows, of the g, with a ρ for each."""
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
    """The law of f(u), u ~ N(mean, std²), or with some skewness or of another shape."""
    if shape is not None:
        places = mean + std * shape.values
        values = np.asarray(activation.function(places), np.float64)
        slopes = slopes_of(activation.function, places, 1e-3 * std) if std else 0 * values
        return PointLaw(values, slopes * shape.roots, 0.0, shape)
    values = np.asarray(activation.function(mean + std * _grid()[0]), np.float64)
    return PointLaw(values, slopes_between(np.diff(values), std), skewness)


@functools.lru_cache(maxsize=256)
def is_homogeneous(activation: Activation) -> bool:
    """Whether f(cs) = c·f(s) for c > 0, so that scale passes through: identity, ReLU, its kin."""
    s = np.linspace(-3.0, 3.0, 61)
    values = np.asarray(activation.function(s), np.float64)
    return all(
        np.allclose(activation.function(c * s), c * values, rtol=1e-5, atol=1e-6)
        for c in (0.37, 4.1)
    )
