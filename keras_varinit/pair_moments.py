"""Functions of correlated Gaussians: pair moments by Hermite series, maxima by quadrature.

For u = m + σs with s ~ N(0, 1), f(u) = Σ aₙ hₙ(s) with the normalized Hermite polynomials hₙ, and
two such variables of correlation ρ have E f(u) f(u') = Σ aₙ² ρⁿ (Mehler). The series is cut at
n = 40; what is left of E f² stands as one more power, so that ρ = 1 is exact.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
import numpy.typing as npt

from keras_varinit.moments import Activation, normal_density

Array = npt.NDArray[np.float64]

_LIMIT = 9.0
_STEP = 1 / 64
_TERMS = 40
TERMS = _TERMS + 1  # of a series, with what its cut leaves out
_JUMP = 8.0
_TABLE = np.linspace(-1.0, 1.0, 1025)


@functools.cache
def _grid() -> tuple[Array, Array, Array]:
    """Nodes, weights Σ w g ≈ E g(s), and the values of h₀ … at the nodes."""
    nodes = np.arange(-_LIMIT, _LIMIT + _STEP / 2, _STEP)
    weights = _STEP * normal_density(nodes)
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
    return _STEP * normal_density((nodes[1:] + nodes[:-1]) / 2)


@functools.cache
def _middle_polynomials() -> Array:
    """The values of h₀ … in the middle of the cells."""
    polynomials = _grid()[2]
    return np.asarray((polynomials[:, 1:] + polynomials[:, :-1]) / 2)


@dataclasses.dataclass(frozen=True)
class PointLaw:
    """What an activation makes of u of mean m and variance σ², on the grid.

    `values` f at the nodes, `slopes` f' in the cells between them, with respect to u; u is Gaussian
    but for its `skewness` γ, which enters to first order: density φ(s)·(1 + γ/6·(s³ - 3s)).
    """

    values: Array
    slopes: Array
    skewness: float = 0.0

    @functools.cached_property
    def _weights(self) -> Array:
        nodes, weights, _ = _grid()
        return weights * (1 + self.skewness / 6 * (nodes**3 - 3 * nodes))

    @functools.cached_property
    def _cells(self) -> Array:
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
        return float(np.sum(self._cells * self.slopes))

    @functools.cached_property
    def squared_slope(self) -> float:
        """E f'²."""
        return float(np.sum(self._cells * self.slopes**2))

    @functools.cached_property
    def products(self) -> Array:
        """E f(u) f(u') over the table of correlations; a Gaussian's, between (E f)² and E f²."""
        weights = _grid()[1]
        second = float(np.sum(weights * self.values**2))
        series = _products(self.series)
        if not self.skewness:
            return series
        independent = float(np.sum(weights * self.values)) ** 2
        share = (series - independent) / (second - independent) if second > independent else series
        return np.asarray(self.first**2 + (self.second - self.first**2) * share)

    @functools.cached_property
    def slope_products(self) -> Array:
        """E f'(u) f'(u') over the table of correlations."""
        return _products(self.slope_series)

    @functools.cached_property
    def series(self) -> Array:
        """aₙ of f(u), u Gaussian; the last power stands for what the cut leaves out."""
        _, weights, polynomials = _grid()
        total = float(np.sum(weights * self.values**2))
        return _completed(polynomials @ (weights * self.values), total)

    @functools.cached_property
    def slope_series(self) -> Array:
        """aₙ of f'(u), likewise."""
        return _completed(_middle_polynomials() @ (_middles() * self.slopes), self.squared_slope)

    def product(self, correlation: Array) -> Array:
        """E f(u) f(u') for pairs of that correlation."""
        return _read_off(self.products, correlation)

    def slope_product(self, correlation: float) -> float:
        """E f'(u) f'(u') for a pair of that correlation."""
        return float(np.interp(correlation, _TABLE, self.slope_products))


def _slopes(differences: Array, std: float) -> Array:
    """Slopes over steps of the grid; where the function jumps, those at its sides.

    A jump is one step many times as steep as those at its sides, or two where a node lies on it;
    backpropagation sees none of it.
    """
    if std == 0:
        return np.zeros_like(differences)
    slopes = differences / (std * _STEP)
    padded = np.pad(slopes, 2, mode="edge")
    count = len(slopes)
    pairs = [(padded[1 : count + 1], padded[:count]), (padded[3 : count + 3], padded[4:])]
    sides = np.stack([np.where(np.abs(a) <= np.abs(b), a, b) for a, b in pairs])
    jumps = np.abs(slopes) > _JUMP * np.abs(sides).max(axis=0)
    return np.where(jumps, sides.mean(axis=0), slopes)


def _completed(coefficients: Array, total: float) -> Array:
    """The coefficients aₙ and one more power, so that Σ aₙ² is `total`."""
    rest = max(total - float(np.sum(coefficients**2)), 0.0)
    # The rest of a kink's series is in every other power: even ones, as the cut is.
    return np.append(coefficients, math.sqrt(rest))


def _products(series: Array) -> Array:
    """Σ aₙ² ρⁿ over the table of correlations, exact at ρ = 1."""
    return np.asarray(np.polynomial.polynomial.polyval(_TABLE, series**2))


def _read_off(table: Array, correlation: Array) -> Array:
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
def point_law(activation: Activation, mean: float, std: float, skewness: float = 0.0) -> PointLaw:
    """The law of f(u), u ~ N(mean, std²), or with some skewness."""
    values = np.asarray(activation.function(mean + std * _grid()[0]), np.float64)
    return PointLaw(values, _slopes(np.diff(values), std), skewness)


@functools.lru_cache(maxsize=1024)
def joint_squared_slope(
    first: Activation,
    root: tuple[float, float],
    second: Activation,
    rest: tuple[float, float],
) -> float:
    """E f'(u)² g'(f(u) + y)² for independent u and y, each given by mean and standard deviation."""
    nodes = _grid()[0][::8]
    step = 8 * _STEP
    values = np.asarray(first.function(root[0] + root[1] * nodes), np.float64)
    slopes = np.diff(values) / (root[1] * step)
    middles = (nodes[1:] + nodes[:-1]) / 2
    weights = step * normal_density(middles) * slopes**2
    at = (values[1:] + values[:-1]) / 2
    reach = 8 * rest[1]
    grid = np.linspace(at.min() + rest[0] - reach, at.max() + rest[0] + reach, 801)
    gap = grid[1] - grid[0]
    other = (np.diff(np.asarray(second.function(grid), np.float64)) / gap) ** 2
    places = (grid[1:] + grid[:-1]) / 2
    density = normal_density((places[None, :] - at[:, None] - rest[0]) / rest[1]) * gap / rest[1]
    return float(weights @ (density @ other))


@functools.lru_cache(maxsize=256)
def is_homogeneous(activation: Activation) -> bool:
    """Whether f(cs) = c·f(s) for c > 0, so that scale passes through: identity, ReLU, its kin."""
    s = np.linspace(-3.0, 3.0, 61)
    values = np.asarray(activation.function(s), np.float64)
    return all(
        np.allclose(activation.function(c * s), c * values, rtol=1e-5, atol=1e-6)
        for c in (0.37, 4.1)
    )


@dataclasses.dataclass(frozen=True)
class MaximumLaw:
    """The maximum of f over equicorrelated Gaussians u.

    `first` and `second` moments of the maximum; `slope` E f' and `squared_slope` E f'² at the entry
    that wins; `products`: E M M' of two windows over a table of the correlation between their
    common parts.
    """

    first: float
    second: float
    slope: float
    squared_slope: float
    products: Array

    def product(self, correlation: Array) -> Array:
        """E M M' for windows whose common parts have that correlation."""
        return _read_off(self.products, correlation)


_COMMON_NODES, _COMMON_WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_COMMON_WEIGHTS = _COMMON_WEIGHTS / math.sqrt(2 * math.pi)
_COMMON_TERMS = 16


@functools.cache
def _common_polynomials() -> Array:
    values = np.empty((_COMMON_TERMS, len(_COMMON_NODES)))
    values[0], values[1] = 1.0, _COMMON_NODES
    for n in range(2, _COMMON_TERMS):
        values[n] = (_COMMON_NODES * values[n - 1] - math.sqrt(n - 1) * values[n - 2]) / math.sqrt(
            n
        )
    return values


@functools.lru_cache(maxsize=4096)
def maximum_law(
    activation: Activation, entries: tuple[tuple[float, float, float], ...], correlation: float
) -> MaximumLaw:
    """The law of max f(uᵢ) over variables uᵢ = meanᵢ + stdᵢ·(√ρ c + √(1-ρ) eᵢ).

    Given the common part c the entries are independent, so P(max ≤ v | c) = Π P(f(uᵢ) ≤ v | c): the
    nodes are put in the order of f, and the maximum's weight of a node is the growth of that
    product.

    Args:
        activation: f.
        entries: Mean, standard deviation and number of the variables of each kind.
        correlation: ρ.
    """
    nodes = _grid()[0][::2]
    rho = min(max(correlation, 0.0), 0.9999)
    centre, widest = entries[0][0], max(std for _, std, _ in entries)
    places = centre + widest * nodes
    values = np.asarray(activation.function(places), np.float64)
    edges = np.asarray(activation.function(places + widest * _STEP), np.float64)
    slopes = _slopes(edges - values, widest)
    order = np.argsort(values, kind="stable")
    below = np.ones((len(_COMMON_NODES), len(nodes)))
    for mean, std, count in entries:
        unit = nodes if std == widest and mean == centre else (places - mean) / max(std, 1e-300)
        own = (unit[None, :] - math.sqrt(rho) * _COMMON_NODES[:, None]) / math.sqrt(1 - rho)
        cumulated = np.cumsum(normal_density(own)[:, order], axis=1)
        below *= (cumulated / np.maximum(cumulated[:, -1:], 1e-300)) ** count
    share = np.diff(below, axis=1, prepend=0.0)
    given = share @ np.stack(
        [values[order], values[order] ** 2, slopes[order], slopes[order] ** 2], axis=1
    )
    first, second, slope, squared_slope = (_COMMON_WEIGHTS @ given).tolist()
    coefficients = _common_polynomials() @ (_COMMON_WEIGHTS * given[:, 0])
    total = float(_COMMON_WEIGHTS @ given[:, 0] ** 2)
    return MaximumLaw(
        first, second, slope, squared_slope, _products(_completed(coefficients, total))
    )


def maximum_over_positions(
    activation: Activation, mean: Array, std: Array, loadings: Array, count: Array
) -> tuple[float, float, float, float]:
    """The maximum of f(u_p) over a whole map, u_p = mean_p + Σ loading_kp·c_k + an own part.

    Given the common c ~ N(0, 1) the entries are independent, so P(M ≤ v | c) is a product over
    positions; c is integrated out by Gauss-Hermite quadrature.

    Args:
        activation: f.
        mean: Of u, by class of position.
        std: Standard deviation of u, by class; the own part has what `loadings` leave.
        loadings: Of at most three common parts, by part and class.
        count: Positions of each class.

    Returns:
        E M, E M², E f'² at the position that wins, and E M M' of two maps of the same c.
    """
    own = np.sqrt(np.maximum(std**2 - np.sum(loadings**2, axis=0), 1e-4 * std**2))
    reach = 7.0 * float(std.max())
    nodes = np.linspace(float(mean.min()) - reach, float(mean.max()) + reach, 401)
    values = np.asarray(activation.function(nodes), np.float64)
    step = 1e-3 * float(nodes[1] - nodes[0])
    slopes = (np.asarray(activation.function(nodes + step), np.float64) - values) / step
    order = np.argsort(values, kind="stable")
    rules = [np.polynomial.hermite_e.hermegauss(n) for n in (16, 6, 6)[: len(loadings)]]
    wanted = np.stack([values[order], values[order] ** 2, slopes[order] ** 2], axis=1)
    total, pair = np.zeros(3), 0.0
    for chosen in itertools.product(*(zip(*rule, strict=True) for rule in rules)):
        weight = math.prod(w / math.sqrt(2 * math.pi) for _, w in chosen)
        centres = mean + np.array([c for c, _ in chosen]) @ loadings
        density = normal_density((nodes[None, :] - centres[:, None]) / own[:, None])
        cumulated = np.cumsum(density[:, order], axis=1)
        cumulated /= np.maximum(cumulated[:, -1:], 1e-300)
        below = np.exp(count @ np.log(np.maximum(cumulated, 1e-300)))
        given = np.diff(below, prepend=0.0) @ wanted
        total += weight * given
        pair += weight * float(given[0]) ** 2
    return float(total[0]), float(total[1]), float(total[2]), pair
