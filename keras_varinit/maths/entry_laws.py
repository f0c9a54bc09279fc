"""Laws of entries that are not Gaussian, as functions of a Gaussian that keep order.

An entry of mean m and standard deviation σ is m + σ·T(s), s ~ N(0, 1), in which T is the law's
quantile function at Φ(s). Two entries of one law correlate as T(s) and T(s') do.
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

# Grids over several roots: (limit, step) by their number; more roots are points of a lattice.
_GRIDS = {1: (LIMIT, STEP), 2: (8.0, 1 / 8)}

_POINTS = 16384

MOST_ROOTS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """T at `NODES`, of mean 0 and variance 1.

    Where the entry is a function of others, `slopes` is E of that function's squared slope given
    the entry, over its mean: what gradients that come back through the entry go on to count.
    """

    values: Array
    slopes: Array

    @functools.cached_property
    def roots(self) -> Array:
        """The square roots of `slopes`."""
        return np.asarray(np.sqrt(self.slopes))


def shape_of(values: Array, weights: Array, slopes: Array) -> Shape | None:
    """The law of weighted values, of any order and scale; None where they are all one number.

    What lies in a cell of the grid is averaged.
    """
    order = np.argsort(values, kind="stable")
    table = np.stack([np.ones_like(values), values, slopes]) * weights
    below = _by_cell(table[:, order])[:, : len(NODES) // 2 + 1]
    above = _by_cell(table[:, order[::-1]])[:, : len(NODES) // 2]
    cells = np.concatenate([below, above[:, ::-1]], axis=1)
    means, given = cells[1] / cells[0], np.maximum(cells[2] / cells[0], 0.0)
    mean = float(_WEIGHTS @ means)
    deviation = math.sqrt(max(float(_WEIGHTS @ (means - mean) ** 2), 0.0))
    total = float(_WEIGHTS @ given)
    if not deviation > 1e-9 * max(abs(mean), 1e-300):
        return None
    return Shape((means - mean) / deviation, given / total if total > 0 else np.ones_like(given))


def _by_cell(table: Array) -> Array:
    """Sums by the cells of the grid from its lower end, of columns in order."""
    cumulated = np.concatenate([np.zeros((len(table), 1)), np.cumsum(table, axis=1)], axis=1)
    cumulated /= cumulated[0, -1]
    sums = [np.interp(_edges(), cumulated[0], row) for row in cumulated]
    return np.maximum(np.diff(np.stack(sums), axis=1), [[1e-300], [-np.inf], [0.0]])


@functools.cache
def _edges() -> Array:
    """Φ at the borders of the cells; the outermost have all that is left."""
    found = normal_distribution(np.append(NODES, LIMIT + STEP) - STEP / 2)
    found[0], found[-1] = 0.0, 1.0
    return found


@functools.cache
def sample(count: int) -> tuple[Array, Array]:
    """Points (count, n) and weights with Σ w g ≈ E g(s₁, s₂, …) of independent s ~ N(0, 1)."""
    if count in _GRIDS:
        limit, step = _GRIDS[count]
        # Kinks are mostly at 0, which is where a cell ends.
        nodes = np.arange(-limit + step / 2, limit, step)
        grid = np.meshgrid(*[nodes] * count, indexing="ij")
        density = functools.reduce(np.multiply.outer, [step * normal_density(nodes)] * count)
        return np.stack([g.ravel() for g in grid]), np.asarray(density).ravel()
    # Kronecker's lattice: powers of the root of xⁿ⁺¹ = x + 1.
    base = 2.0
    for _ in range(60):
        base = (1 + base) ** (1 / (count + 1))
    steps = base ** -np.arange(1, count + 1)
    places = (0.5 + steps[:, None] * np.arange(1, _POINTS + 1)) % 1.0
    return np.interp(places, _edges()[1:-1], NODES[1:] - STEP / 2), np.full(_POINTS, 1 / _POINTS)


def at(shape: Shape | None, places: Array) -> Array:
    """T, which is s itself for a Gaussian."""
    return places if shape is None else np.interp(places, NODES, shape.values)


def slopes_at(shape: Shape | None, places: Array) -> Array:
    """`Shape.slopes` at other places than the nodes."""
    return np.ones_like(places) if shape is None else np.interp(places, NODES, shape.slopes)


def slopes_of(function: Function, places: Array, step: float) -> Array:
    """F' at any places: at a jump or a kink, the flatter side."""
    middle = np.asarray(function(places), np.float64)
    after = np.asarray(function(places + step), np.float64) - middle
    before = middle - np.asarray(function(places - step), np.float64)
    return np.asarray(np.where(np.abs(after) <= np.abs(before), after, before) / step)


EntryKind = tuple[float, Shape | None, float, float, float]


def mixed(kinds: Sequence[EntryKind]) -> Shape | None:
    """The law of entries of several kinds: (share, law, scale, shift, factor on squared slopes)."""
    columns = []
    for share, shape, scale, shift, factor in kinds:
        values = shift + scale * at(shape, NODES)
        columns.append(np.stack([values, share * _WEIGHTS, factor * slopes_at(shape, NODES)]))
    return shape_of(*np.concatenate(columns, axis=1))
