"""Correlated squared slopes: gradients through an activation that follows a sum or product.

With y = h(a, b), a = f(r) and g applied to y, the squared gradient at r is g'(y)²·(∂h/∂a)²·f'(r)².
Its mean is not the product of the factors' means: y is large where the factors of a product are,
and entries that pass a ReLU are more often positive in the sum as well.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_varinit.maths.activated import law_of
from keras_varinit.maths.combining import FUNCTIONS, root_of
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.entry_laws import (
    MOST_ROOTS,
    NODES,
    Shape,
    at,
    sample,
    slopes_at,
    slopes_of,
)
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.steepness import steep
from keras_varinit.maths.windows import Array

_TABLE = 1024

Kept = tuple[float, Activation | None]


def kept_together(
    name: str, parts: Sequence[Moments], output: Moments, through: Activation
) -> list[Kept]:
    """The ratio E[g'(y)²(∂h/∂a)²f'²] / (E g'(y)²·E[(∂h/∂a)²f'²]) for each argument a.

    Args:
        name: h, a key of `combining.FUNCTIONS`.
        parts: Moments of the arguments; different roots count as independent.
        output: Moments of y.
        through: g.

    Returns:
        For each argument the ratio, 1 for more than `MOST_ROOTS` roots, and a function whose
        squared slope is E[g'(y)²(∂h/∂a)² | a]; None where that is unknown.
    """
    alone = law_of(output, through).squared_slope
    arguments = None if not alone > 0 else _arguments(parts)
    if arguments is None:
        return [(1.0, None)] * len(parts)
    return list(_kept(name, arguments, through, float(f"{alone:.8g}")))


@functools.lru_cache(maxsize=512)
def _kept(
    name: str, arguments: "tuple[_Argument, ...]", through: Activation, alone: float
) -> tuple[Kept, ...]:
    grid = _Grid.of(name, arguments)
    behind = _squared_slopes(through, grid.joint)
    ratios = [
        _ratio(float(grid.weights @ (o * behind)), float(grid.weights @ o) * alone)
        for o in grid.own
    ]
    return tuple((r, grid.behind(n, behind)) for n, r in enumerate(ratios))


def factors_of(name: str, parts: Sequence[Moments]) -> list[float] | None:
    """E (∂h/∂a)²f'² over E f'² for each argument a = f(r), where arguments share roots."""
    arguments = _arguments(parts)
    if arguments is None:
        return None
    grid = _Grid.of(name, arguments)
    means = [float(grid.weights @ s) for s in grid.squares]
    return [
        float(grid.weights @ own) / mean if mean > 0 else 0.0
        for own, mean in zip(grid.own, means, strict=True)
    ]


def _ratio(part: float, whole: float) -> float:
    ratio = part / whole if whole > 0 else 1.0
    return ratio if np.isfinite(ratio) else 1.0


class _Argument(NamedTuple):
    """A function of a root: the root's number and its law, rounded to eight digits."""

    root: int
    mean: float
    std: float
    shape: Shape | None
    function: Activation


def _arguments(parts: Sequence[Moments]) -> tuple[_Argument, ...] | None:
    """None for unknown moments or more than `MOST_ROOTS` roots."""
    pairs = [root_of(m) for m in parts]
    numbers = {key: n for n, key in enumerate(dict.fromkeys(id(root) for root, _ in pairs))}
    if len(numbers) > MOST_ROOTS or not all(m.is_known() for m in parts):
        return None
    return tuple(
        _Argument(
            numbers[id(root)],
            float(f"{root.spread[0]:.8g}"),
            float(f"{root.spread[1]:.8g}"),
            root.shape,
            function,
        )
        for root, function in pairs
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Grid:
    """Sample points of the roots; every array is (points,).

    `joint` is h; for each argument a = f(r), `values` is a, `squares` f'², `outer` (∂h/∂a)² and
    `own` (∂h/∂a)²f'².
    """

    weights: Array
    joint: Array
    values: list[Array]
    squares: list[Array]
    outer: list[Array]
    own: list[Array]

    @classmethod
    def of(cls, name: str, arguments: "Sequence[_Argument]") -> "_Grid":
        """The grid over all roots."""
        places, weights = sample(1 + max(each.root for each in arguments))
        values, squares, steps = [], [], []
        for root, mean, std, shape, function in arguments:
            nodes = mean + std * at(shape, NODES)
            line = np.asarray(function.function(nodes), np.float64)
            slopes = slopes_of(function.function, nodes, 1e-3 * std) if std else 0 * nodes
            s = places[root]
            values.append(np.interp(s, NODES, line))
            squares.append(np.interp(s, NODES, slopes**2) * slopes_at(shape, s))
            steps.append(1e-3 * (float(np.std(values[-1])) or 1.0))
        joint, outer = FUNCTIONS[name], []
        for number, step in enumerate(steps):
            ends = [
                np.asarray(joint(*(v + sign * step * (n == number) for n, v in enumerate(values))))
                for sign in (1.0, -1.0)
            ]
            outer.append(((ends[0] - ends[1]) / (2 * step)) ** 2)
        own = [o * s for o, s in zip(outer, squares, strict=True)]
        return cls(weights, np.asarray(joint(*values), np.float64), values, squares, outer, own)

    def behind(self, number: int, squares: Array) -> Activation | None:
        """A function of one of two arguments, with the mean squared slope of what follows it."""
        size = math.isqrt(len(self.weights))
        if len(self.outer) != 2 or size**2 != len(self.weights):
            return None
        table = self.weights * np.stack([np.ones_like(squares), squares * self.outer[number]])
        total, weighted = table.reshape(2, size, size).sum(axis=2 - number)
        places = np.take(self.values[number].reshape(size, size), size // 2, axis=1 - number)
        mean = float(weighted.sum() / total.sum())
        return steep(places, weighted / np.maximum(total, 1e-300), mean)


def _squared_slopes(function: Activation, places: Array) -> Array:
    """f'² at `places`, interpolated from a table."""
    low, high = float(places.min()), float(places.max())
    nodes = np.linspace(low, high, _TABLE)
    slopes = slopes_of(function.function, nodes, max(1e-4 * (high - low), 1e-300))
    return np.interp(places, nodes, slopes**2)


def share_no_root(parts: Sequence[Moments], dependent: Sequence[tuple[int, int]]) -> bool:
    """Whether every pair of `dependent` arguments consists of functions of one root."""
    roots = [root_of(m)[0] for m in parts]
    several = set(dependent)
    pairs = itertools.combinations(range(len(parts)), 2)
    return all(roots[i] is roots[j] for i, j in pairs if (i, j) in several)
