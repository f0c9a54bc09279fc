"""Moments of h(a, b), where a and b are functions of Gaussians, by two-dimensional quadrature.

a = f(u) and b = g(v) with u = m + σs, v = m' + σ't and independent s, t ~ N(0, 1). In normalized
Hermite polynomials h = Σ cᵢⱼ hᵢ(s) hⱼ(t), so two pairs whose roots have correlations ρ and ρ' have
E h h' = Σ cᵢⱼ² ρⁱ ρ'ʲ (Mehler). Both series are cut; the remainder of each enters as one more
power, so that ρ = ρ' = 1 is exact.

If s and t have correlation κ, at equal and at different positions, they are written as
√κ·c + √(1-κ)·(s or t). Conditional on the common part c they are independent; c is integrated out.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.entry_laws import Shape, at, slopes_at
from keras_varinit.maths.quadrature import Activation, normal_density

Array = npt.NDArray[np.float64]

_LIMIT = 8.0

_STEP = 1 / 32

_TERMS = 24

_JUMP = 8.0

_TAIL = 5.0

# E h² counts as unknown if roots beyond 5 σ, too rare to be sampled, contribute more than this.
_TAIL_SHARE = 0.02

_COMMON_NODES, _COMMON_WEIGHTS = np.polynomial.hermite_e.hermegauss(12)

_COMMON_WEIGHTS = _COMMON_WEIGHTS / math.sqrt(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class Combination:
    """A function of two numbers; equal names mean equal functions."""

    name: str
    function: Callable[[Array, Array], Array] = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Root:
    """A signal as a function of a Gaussian with this mean, standard deviation and skewness.

    With a `shape`, it is a function of mean + std·T(s).
    """

    function: Activation
    mean: float
    std: float
    skewness: float = 0.0
    shape: Shape | None = None

    def at(self, nodes: Array, move: float = 0.0) -> Array:
        """Values at the nodes, with the argument moved by `move` standard deviations: (nodes,)."""
        places = self.mean + self.std * (at(self.shape, nodes) + move)
        return np.asarray(self.function.function(places), np.float64)


@functools.cache
def _grid() -> tuple[Array, Array, Array]:
    """Nodes and weights, (nodes,) each, and h₀ … at the nodes: (terms, nodes)."""
    nodes = np.arange(-_LIMIT, _LIMIT + _STEP / 2, _STEP)
    polynomials = np.empty((_TERMS, len(nodes)))
    polynomials[0], polynomials[1] = 1.0, nodes
    for n in range(2, _TERMS):
        polynomials[n] = (
            nodes * polynomials[n - 1] - math.sqrt(n - 1) * polynomials[n - 2]
        ) / math.sqrt(n)
    return nodes, _STEP * normal_density(nodes), polynomials


@functools.cache
def _middles() -> tuple[Array, Array]:
    """Weights (cells,) and polynomials (terms, cells) at cell centres, for slopes."""
    nodes, _, polynomials = _grid()
    middles = (nodes[1:] + nodes[:-1]) / 2
    between = (polynomials[:, 1:] + polynomials[:, :-1]) / 2
    return _STEP * normal_density(middles), between


@dataclasses.dataclass(frozen=True)
class JointLaw:
    """The moments of h(a, b).

    `first` E h, `second` E h², `third` E (h - E h)³; `slopes`: E (∂h/∂u)² and E (∂h/∂v)², NaN if
    dominated by rare values. `powers` and `slope_powers`: squared coefficients of the series,
    (terms + 1, terms + 1), with the remainders in the last row and column.
    """

    first: float
    second: float
    third: float
    slopes: tuple[float, float]
    powers: Array
    slope_powers: tuple[Array, Array]

    def product(self, first: Array, second: Array) -> Array:
        """E h h' of pairs whose roots have these correlations, of any shape."""
        return _evaluated(self.powers, first, second)

    def slope_product(self, number: int, first: float, second: float) -> float:
        """E ∂h ∂h' with respect to root `number`, at correlations of both roots."""
        pair = np.array([first]), np.array([second])
        return float(_evaluated(self.slope_powers[number], *pair)[0])


def _evaluated(powers: Array, first: Array, second: Array) -> Array:
    exponents = np.arange(len(powers))
    left = np.power(first.reshape(-1, 1), exponents)
    right = np.power(second.reshape(-1, 1), exponents)
    return np.asarray(np.sum((left @ powers) * right, axis=1).reshape(first.shape))


_Side = tuple[Array, Array]  # weights and polynomials along one axis


def _powers(values: Array, squares: Array, first: _Side, second: _Side) -> Array:
    """The squared coefficients cᵢⱼ² and remainders: (terms + 1, terms + 1).

    Args:
        values: h or ∂h on a grid, (points of s, points of t).
        squares: Its mean squares on that grid, of the same shape.
        first: Weights and polynomials of s.
        second: Weights and polynomials of t.
    """
    left = first[1] * first[0]
    right = (second[1] * second[0]).T
    by_first, by_second = left @ values, values @ right  # (i, t) and (s, j)
    inner = (by_first @ right) ** 2
    rows = np.maximum(by_first**2 @ second[0] - inner.sum(axis=1), 0.0)
    columns = np.maximum(first[0] @ by_second**2 - inner.sum(axis=0), 0.0)
    total = float(first[0] @ squares @ second[0])
    rest = max(total - float(inner.sum() + rows.sum() + columns.sum()), 0.0)
    return np.block([[inner, rows[:, None]], [columns[None, :], np.array([[rest]])]])


def _slopes(values: Array, axis: int) -> tuple[Array, Array]:
    """Slopes along an axis in the cells of the grid, and their mean squares.

    At a jump they are the neighbours'. With a kink inside a cell, between slopes l and r, a mean
    slope m has the mean square m(l + r) - lr.
    """
    slopes = np.moveaxis(np.diff(values, axis=axis) / _STEP, axis, 0)
    before = np.concatenate([slopes[:1], slopes[:-1]])
    after = np.concatenate([slopes[1:], slopes[-1:]])
    jumps = np.abs(slopes) > _JUMP * np.maximum(np.abs(before), np.abs(after))
    slopes = np.where(jumps, (before + after) / 2, slopes)
    between = (slopes - before) * (after - slopes) > 0
    squares = np.where(between, slopes * (before + after) - before * after, slopes**2)
    return np.moveaxis(slopes, 0, axis), np.moveaxis(squares, 0, axis)


def _skewed(places: Array, weights: Array, skewness: float) -> Array:
    return weights * (1 + skewness / 6 * (places**3 - 3 * places))


def _seldom(weighted: Array, first: Array, second: Array) -> bool:
    """Whether a sum over the grid is dominated by its tails."""
    total = float(np.sum(weighted))
    far = (np.abs(first) > _TAIL)[:, None] | (np.abs(second) > _TAIL)[None, :]
    return not math.isfinite(total) or float(np.sum(weighted[far])) > _TAIL_SHARE * total


@functools.lru_cache(maxsize=512)
def joint_law(combination: Combination, first: Root, second: Root, common: float = 0.0) -> JointLaw:
    """The law of h(f(u), g(v)); `common` is the correlation κ of u and v."""
    alone = _law(combination, first, second)
    if common <= 0 or not math.isfinite(alone.second):
        return alone
    kappa = min(common, 0.999)
    laws = []
    for node in _COMMON_NODES.tolist():
        parts = [
            dataclasses.replace(
                root,
                mean=root.mean + root.std * math.sqrt(kappa) * node,
                std=root.std * math.sqrt(1 - kappa),
            )
            for root in (first, second)
        ]
        laws.append(_law(combination, *parts, checked=False))
    weights = _COMMON_WEIGHTS

    def mean(values: list[float]) -> float:
        return float(weights @ np.array(values))

    mean_first = mean([law.first for law in laws])
    third = [
        law.third
        + 3 * (law.first - mean_first) * (law.second - law.first**2)
        + (law.first - mean_first) ** 3
        for law in laws
    ]
    return JointLaw(
        mean_first,
        mean([law.second for law in laws]),
        mean(third),
        (mean([law.slopes[0] for law in laws]), mean([law.slopes[1] for law in laws])),
        np.tensordot(weights, np.stack([law.powers for law in laws]), axes=1),
        (
            np.tensordot(weights, np.stack([law.slope_powers[0] for law in laws]), axes=1),
            np.tensordot(weights, np.stack([law.slope_powers[1] for law in laws]), axes=1),
        ),
    )


def _law(combination: Combination, first: Root, second: Root, *, checked: bool = True) -> JointLaw:
    nodes, weights, polynomials = _grid()
    cells, between = _middles()
    values = _values(combination, first.at(nodes), second.at(nodes))
    own, other = (_skewed(nodes, weights, root.skewness) for root in (first, second))
    weighted = own[:, None] * values**2 * other[None, :]
    if checked and _seldom(weighted, nodes, nodes):
        return _UNKNOWN
    mean = float(own @ values @ other)
    points, inside = (weights, polynomials), (cells, between)
    if first.shape is None:
        slopes = [_slope_law(_slopes(values, 0), 0, first.std, inside, points, checked)]
    else:
        moved = _moved(combination, values, [first, second], 0)
        slopes = [_slope_law(moved, 0, first.std, points, points, checked)]
    if second.shape is None:
        slopes += [_slope_law(_slopes(values, 1), 1, second.std, points, inside, checked)]
    else:
        moved = _moved(combination, values, [first, second], 1)
        slopes += [_slope_law(moved, 1, second.std, points, points, checked)]
    return JointLaw(
        mean,
        float(weighted.sum()),
        float(own @ (values - mean) ** 3 @ other),
        (slopes[0][0], slopes[1][0]),
        _powers(values, values**2, points, points),
        (slopes[0][1], slopes[1][1]),
    )


_BLANK = np.full((_TERMS + 1, _TERMS + 1), math.nan)

_UNKNOWN = JointLaw(math.nan, math.nan, math.nan, (math.nan,) * 2, _BLANK, (_BLANK,) * 2)


def _values(combination: Combination, first: Array, second: Array) -> Array:
    values = np.asarray(combination.function(first[:, None], second[None, :]), np.float64)
    return np.broadcast_to(values, (len(first), len(second)))


def _moved(
    combination: Combination, values: Array, roots: Sequence[Root], number: int
) -> tuple[Array, Array]:
    """Slopes by a root with a shape, weighted by it, at the nodes; and their squares."""
    nodes, step = _grid()[0], 1e-3
    ends = []
    for move in (step, -step):
        parts = [root.at(nodes, move * (n == number)) for n, root in enumerate(roots)]
        ends.append((_values(combination, *parts) - values) / move)
    slopes = np.where(np.abs(ends[0]) <= np.abs(ends[1]), *ends)
    weights = np.expand_dims(np.sqrt(slopes_at(roots[number].shape, nodes)), 1 - number)
    slopes = slopes * weights
    return slopes, slopes**2


def _slope_law(
    derivative: tuple[Array, Array],
    axis: int,
    std: float,
    first: _Side,
    second: _Side,
    checked: bool,
) -> tuple[float, Array]:
    """E (∂h)² with respect to one root, and the squared coefficients of ∂h."""
    if std == 0:
        return 0.0, np.zeros_like(_BLANK)
    slopes, squares = derivative
    weighted = first[0][:, None] * squares * second[0][None, :]
    if checked and np.any(weighted) and _seldom(weighted, first[1][1], second[1][1]):
        return math.nan, _BLANK
    return float(weighted.sum()) / std**2, _powers(slopes, squares, first, second) / std**2


@functools.lru_cache(maxsize=4096)
def joint_point(combination: Combination, first: Root, second: Root) -> tuple[float, float]:
    """E h and E h² on a coarser grid, for ratios between positions."""
    nodes, weights, _ = _grid()
    nodes, weights = nodes[::4], weights[::4] * 4
    values = _values(combination, first.at(nodes), second.at(nodes))
    return float(weights @ values @ weights), float(weights @ values**2 @ weights)
