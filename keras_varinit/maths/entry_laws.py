"""Non-Gaussian entries as monotone functions of a Gaussian (quantile transform, Gaussian copula).

An entry of mean m and standard deviation σ is m + σ·T(s), s ~ N(0, 1), where T(s) is the
standardized law's quantile function at Φ(s). Two entries of one law are T(s) and T(s') with
correlated s and s'.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.quadrature import normal_density, normal_distribution

Array = npt.NDArray[np.float64]

Function = Callable[[Array], Array]

LIMIT, STEP = 9.0, 1 / 64

NODES = np.arange(-LIMIT, LIMIT + STEP / 2, STEP)

_WEIGHTS = STEP * normal_density(NODES)

# (limit, step) of product grids by number of roots; more roots use a lattice of `_POINTS`.
_GRIDS = {1: (LIMIT, STEP), 2: (8.0, 1 / 8)}

_POINTS = 16384

MOST_ROOTS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """The transform T at `NODES`, of mean 0 and variance 1.

    `values` and `slopes` are (nodes,). If the entry is a function of other signals, `slopes` is the
    squared slope of that function conditional on the entry, over its mean: the weight of the entry
    in gradients that go on through it.
    """

    values: Array
    slopes: Array

    @functools.cached_property
    def roots(self) -> Array:
        """The square roots of `slopes`."""
        return np.asarray(np.sqrt(self.slopes))


def shape_of(values: Array, weights: Array, slopes: Array) -> Shape | None:
    """The law of weighted samples of any order and scale; None if they are constant.

    Samples within a cell of the grid are averaged.

    Args:
        values: Samples, (points,).
        weights: Their weights up to a factor, (points,).
        slopes: Squared slopes at the samples, (points,).
    """
    order = np.argsort(values, kind="stable")
    table = np.stack([np.ones_like(values), values, slopes]) * weights
    below = _by_cell(table[:, order])[:, : len(NODES) // 2 + 1]
    above = _by_cell(table[:, order[::-1]])[:, : len(NODES) // 2]
    cells = np.concatenate([below, above[:, ::-1]], axis=1)
    means, squares = cells[1] / cells[0], np.maximum(cells[2] / cells[0], 0.0)
    mean = float(_WEIGHTS @ means)
    deviation = math.sqrt(max(float(_WEIGHTS @ (means - mean) ** 2), 0.0))
    total = float(_WEIGHTS @ squares)
    if not deviation > 1e-9 * max(abs(mean), 1e-300):
        return None
    squares = squares / total if total > 0 else np.ones_like(squares)
    return Shape((means - mean) / deviation, squares)


def _by_cell(table: Array) -> Array:
    """Sums of sorted columns over the cells of the grid, from its lower end.

    Args:
        table: (rows, points), with the weights in row 0.

    Returns:
        (rows, cells), over the total weight.
    """
    cumulated = np.concatenate([np.zeros((len(table), 1)), np.cumsum(table, axis=1)], axis=1)
    cumulated /= cumulated[0, -1]
    sums = [np.interp(_edges(), cumulated[0], row) for row in cumulated]
    return np.maximum(np.diff(np.stack(sums), axis=1), [[1e-300], [-np.inf], [0.0]])


@functools.cache
def _edges() -> Array:
    """Φ at the cell borders; the outermost cells include the tails."""
    edges = normal_distribution(np.append(NODES, LIMIT + STEP) - STEP / 2)
    edges[0], edges[-1] = 0.0, 1.0
    return edges


@functools.cache
def sample(count: int) -> tuple[Array, Array]:
    """Points (count, n) and weights (n,): Σ w g ≈ E g(s₁, s₂, …), independent s ~ N(0, 1)."""
    if count in _GRIDS:
        limit, step = _GRIDS[count]
        # A cell ends at 0, where most kinks are.
        nodes = np.arange(-limit + step / 2, limit, step)
        grid = np.meshgrid(*[nodes] * count, indexing="ij")
        density = functools.reduce(np.multiply.outer, [step * normal_density(nodes)] * count)
        return np.stack([g.ravel() for g in grid]), np.asarray(density).ravel()
    # Kronecker lattice: powers of the root of xⁿ⁺¹ = x + 1.
    base = 2.0
    for _ in range(60):
        base = (1 + base) ** (1 / (count + 1))
    steps = base ** -np.arange(1, count + 1)
    places = (0.5 + steps[:, None] * np.arange(1, _POINTS + 1)) % 1.0
    return np.interp(places, _edges()[1:-1], NODES[1:] - STEP / 2), np.full(_POINTS, 1 / _POINTS)


def at(shape: Shape | None, places: Array) -> Array:
    """T(s) at `places`; s itself for a Gaussian."""
    return places if shape is None else np.interp(places, NODES, shape.values)


def slopes_at(shape: Shape | None, places: Array) -> Array:
    """`Shape.slopes` interpolated at `places`; 1 for a Gaussian."""
    return np.ones_like(places) if shape is None else np.interp(places, NODES, shape.slopes)


def slopes_of(function: Function, places: Array, step: float) -> Array:
    """One-sided finite differences of a function; at a jump or kink, the flatter side's."""
    middle = np.asarray(function(places), np.float64)
    after = np.asarray(function(places + step), np.float64) - middle
    before = middle - np.asarray(function(places - step), np.float64)
    return np.asarray(np.where(np.abs(after) <= np.abs(before), after, before) / step)


EntryKind = tuple[float, Shape | None, float, float, float]


def mixed(kinds: Sequence[EntryKind]) -> Shape | None:
    """The law of a mixture of kinds: (share, law, scale, shift, factor on squared slopes)."""
    columns = []
    for share, shape, scale, shift, factor in kinds:
        values = shift + scale * at(shape, NODES)
        columns.append(np.stack([values, share * _WEIGHTS, factor * slopes_at(shape, NODES)]))
    return shape_of(*np.concatenate(columns, axis=1))
