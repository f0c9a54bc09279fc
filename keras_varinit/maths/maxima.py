"""Moments of the maximum of f over correlated Gaussians: max pooling, local and global.

The dependence comes from common Gaussian parts; conditional on them the entries are independent and
distribution functions multiply. Common parts are integrated out by Gauss-Hermite quadrature.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.entry_laws import NODES, STEP, Shape, at, slopes_at, slopes_of
from keras_varinit.maths.hermite import (
    completed,
    correlations_behind,
    products_of,
    read_off,
    slopes_between,
)
from keras_varinit.maths.quadrature import Activation, normal_density
from keras_varinit.maths.steepness import steep

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class MaximumLaw:
    """The maximum M of f over equicorrelated Gaussians u.

    `first` E M; `second` E M²; `slope` E f' and `squared_slope` E f'² at the winning entry;
    `products` E M M' of two windows over the correlation of their common parts, at `hermite.TABLE`;
    `places` and `wins`: sorted values and P(an entry of that value is the maximum), (nodes,) each.
    """

    first: float
    second: float
    slope: float
    squared_slope: float
    products: Array
    places: Array
    wins: Array

    def product(self, correlation: Array) -> Array:
        """E M M' of windows whose common parts have these correlations, of any shape."""
        return read_off(self.products, correlation)


_COMMON_NODES, _COMMON_WEIGHTS = np.polynomial.hermite_e.hermegauss(24)

_COMMON_WEIGHTS = _COMMON_WEIGHTS / math.sqrt(2 * math.pi)

_COMMON_TERMS = 16


@functools.cache
def _common_polynomials() -> Array:
    """Normalized Hermite polynomials at the common nodes: (terms, common nodes)."""
    values = np.empty((_COMMON_TERMS, len(_COMMON_NODES)))
    values[0], values[1] = 1.0, _COMMON_NODES
    for n in range(2, _COMMON_TERMS):
        values[n] = (_COMMON_NODES * values[n - 1] - math.sqrt(n - 1) * values[n - 2]) / math.sqrt(
            n
        )
    return values


@functools.lru_cache(maxsize=4096)
def maximum_law(
    activation: Activation,
    entries: tuple[tuple[float, float, float], ...],
    correlation: float,
    shape: Shape | None = None,
) -> MaximumLaw:
    """The law of max f(uᵢ) over variables uᵢ = meanᵢ + stdᵢ·(√ρ c + √(1-ρ) eᵢ).

    Conditional on the common part c the entries are independent, so P(max ≤ v | c) is
    Π P(f(uᵢ) ≤ v | c). Nodes are sorted by f; a node's weight is the increment of that product.

    Args:
        activation: f.
        entries: Mean, standard deviation and number of the variables of each kind.
        correlation: ρ.
        shape: Law of the entries; with one, all entries count as of the first kind.
    """
    nodes = NODES[::2]
    behind = float(correlations_behind(shape, np.array(correlation)))
    rho = min(max(behind, 0.0), 0.9999)
    centre, widest = entries[0][0], max(std for _, std, _ in entries)
    places = centre + widest * nodes
    if shape is not None:
        entries = ((*entries[0][:2], sum(count for _, _, count in entries)),)
        places, widest = entries[0][0] + entries[0][1] * shape.values[::2], entries[0][1]
    values = np.asarray(activation.function(places), np.float64)
    if shape is None:
        edges = np.asarray(activation.function(places + widest * STEP), np.float64)
        slopes = slopes_between(edges - values, widest)
    else:
        slopes = slopes_of(activation.function, places, 1e-3 * widest) * shape.roots[::2]
    order = np.argsort(values, kind="stable")
    below = np.ones((len(_COMMON_NODES), len(nodes)))
    for mean, std, count in entries:
        unit = (
            nodes
            if shape or (std == widest and mean == centre)
            else (places - mean) / max(std, 1e-300)
        )
        own = (unit[None, :] - math.sqrt(rho) * _COMMON_NODES[:, None]) / math.sqrt(1 - rho)
        cumulated = np.cumsum(normal_density(own)[:, order], axis=1)
        below *= (cumulated / np.maximum(cumulated[:, -1:], 1e-300)) ** count
    share = np.diff(below, axis=1, prepend=0.0)
    conditional = share @ np.stack(
        [values[order], values[order] ** 2, slopes[order], slopes[order] ** 2], axis=1
    )
    first, second, slope, squared_slope = (_COMMON_WEIGHTS @ conditional).tolist()
    coefficients = _common_polynomials() @ (_COMMON_WEIGHTS * conditional[:, 0])
    total = float(_COMMON_WEIGHTS @ conditional[:, 0] ** 2)
    table = products_of(completed(coefficients, total))
    density = 2 * STEP * normal_density(nodes)[order] * sum(n for _, _, n in entries)
    wins = np.clip(_COMMON_WEIGHTS @ share / np.maximum(density, 1e-300), 0.0, 1.0)
    return MaximumLaw(first, second, slope, squared_slope, table, values[order], wins)


def steep_where_it_wins(law: MaximumLaw) -> Activation:
    """A function whose squared slope is P(an entry of that value is the maximum).

    To the layers before it, a maximum acts on each entry like this function.
    """
    return steep(law.places, law.wins)


def maximum_over_positions(
    activation: Activation,
    mean: Array,
    std: Array,
    loadings: Array,
    count: Array,
    shape: Shape | None = None,
) -> tuple[float, float, float, float]:
    """The maximum M of f(u_p) over a whole map, u_p = mean_p + Σ loading_kp·c_k + an own part.

    Conditional on the common c ~ N(0, 1) the entries are independent, so P(M ≤ v | c) is a product
    over positions; c is integrated out by Gauss-Hermite quadrature.

    Args:
        activation: f.
        mean: Mean of u, (classes,).
        std: Standard deviation of u, (classes,); own parts have the variance that `loadings` leave.
        loadings: Of at most three common parts, (parts, classes).
        count: Number of positions in each class, (classes,).
        shape: Law of u, if not Gaussian: T is applied to the Gaussian above.

    Returns:
        E M, E M², E f'² at the winning position, and E M M' of two maps with the same c.
    """
    own = np.sqrt(np.maximum(std**2 - np.sum(loadings**2, axis=0), 1e-4 * std**2))
    reach = 7.0 * float(std.max())
    nodes = np.linspace(float(mean.min()) - reach, float(mean.max()) + reach, 401)
    step = 1e-3 * float(nodes[1] - nodes[0])
    middle, width = float(count @ mean / count.sum()), float(count @ std / count.sum())
    unit = (nodes - middle) / (width or 1.0)
    places = nodes if shape is None else middle + width * at(shape, unit)
    values = np.asarray(activation.function(places), np.float64)
    slopes = (np.asarray(activation.function(places + step), np.float64) - values) / step
    slopes = slopes * np.sqrt(slopes_at(shape, unit))
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
        conditional = np.diff(below, prepend=0.0) @ wanted
        total += weight * conditional
        pair += weight * float(conditional[0]) ** 2
    return float(total[0]), float(total[1]), float(total[2]), pair
