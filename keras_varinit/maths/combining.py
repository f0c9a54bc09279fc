"""Elementwise functions of several signals (`Add`, `Multiply`, `Where`, …) and their moments."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from keras_varinit.maths.activated import IDENTITY, activated, law_of
from keras_varinit.maths.covariance import Moments, near_pairs, outer, own_classes, widen
from keras_varinit.maths.hermite import correlations_behind
from keras_varinit.maths.joint_moments import Combination, JointLaw, Root, joint_law, joint_point
from keras_varinit.maths.laws import OfRoots
from keras_varinit.maths.quadrature import Activation, normal_density
from keras_varinit.maths.windows import Array

Function = Callable[..., Array]


def _product(*values: Array) -> Array:
    return functools.reduce(np.multiply, values)


def _total(*values: Array) -> Array:
    return functools.reduce(np.add, values)


def _average(*values: Array) -> Array:
    return np.asarray(_total(*values) / len(values))


def _chosen(mask: Array, first: Array, second: Array) -> Array:
    return np.where(mask > 0.5, first, second)


def _quotient_or_zero(first: Array, second: Array) -> Array:
    return np.where(second == 0, 0.0, first / np.where(second == 0, 1.0, second))


def _compared(compare: Callable[[Array, Array], Array]) -> Function:
    return lambda first, second: np.asarray(compare(first, second), np.float64)


def _folded(function: Function) -> Function:
    return lambda *values: functools.reduce(function, values)


# Keyed by class name of a layer or of a `keras.ops` operation.
FUNCTIONS: dict[str, Function] = {
    "Add": _total,
    "Subtract": np.subtract,
    "Multiply": _product,
    "Average": _average,
    "Maximum": _folded(np.maximum),
    "Minimum": _folded(np.minimum),
    "Fmax": np.fmax,
    "Fmin": np.fmin,
    "Divide": np.divide,
    "TrueDivide": np.divide,
    "DivideNoNan": _quotient_or_zero,
    "Power": np.power,
    "Hypot": np.hypot,
    "Logaddexp": np.logaddexp,
    "Logaddexp2": np.logaddexp2,
    "Arctan2": np.arctan2,
    "Where": _chosen,
    "Equal": _compared(np.equal),
    "Greater": _compared(np.greater),
    "GreaterEqual": _compared(np.greater_equal),
    "Less": _compared(np.less),
    "LessEqual": _compared(np.less_equal),
    "NotEqual": _compared(np.not_equal),
    "LogicalAnd": lambda a, b: np.where((a > 0.5) & (b > 0.5), 1.0, 0.0),
    "LogicalOr": lambda a, b: np.where((a > 0.5) | (b > 0.5), 1.0, 0.0),
    "LogicalXor": lambda a, b: np.where((a > 0.5) != (b > 0.5), 1.0, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Joined:
    """The result of a function h of several signals.

    `factors`: E (∂h)² with respect to each signal, a number or by class of position. `kept`: share
    of a gradient's coherence that each signal retains. `slopes`: E ∂h, 0 if the signals' gradients
    are not distinguished. `function`: h, if all arguments are one signal.
    """

    moments: Moments
    factors: tuple[float | Array, ...]
    kept: tuple[float, ...]
    slopes: tuple[float, ...]
    function: Activation | None = None


def root_of(moments: Moments) -> tuple[Moments, Activation]:
    """The underlying signal, and the function of it that the signal is."""
    if moments.pre is None or moments.function is None:
        return moments, IDENTITY
    return moments.pre, moments.function


def of_one_root(name: str, parts: Sequence[Moments]) -> Joined:
    """A function of functions of one signal, which is a function of it as well.

    The gradient of the whole is h'; each argument passes back its share of that.
    """
    root = root_of(parts[0])[0]
    functions = [root_of(m)[1] for m in parts]

    def whole(s: Array) -> Array:
        values = [f.function(s) for f in functions]
        return np.asarray(FUNCTIONS[name](*values), np.float64)

    joint = Activation(f"{name} of one signal", whole, (name, *functions))
    moments = activated(root, joint)
    total = law_of(root, joint).squared_slope
    shares = _shares(name, functions, *root.spread)
    factors = []
    for share, function in zip(shares, functions, strict=True):
        own = law_of(root, function).squared_slope
        factors.append(share * total / own if own > 0 else 0.0)
    same = joint if all(f.name == "linear" for f in functions) else None
    return Joined(moments, tuple(factors), (1.0,) * len(parts), (0.0,) * len(parts), same)


def _shares(name: str, functions: Sequence[Activation], mean: float, std: float) -> list[float]:
    """Each function's share of Σ E (∂h/∂fᵢ·fᵢ')²."""
    middles = np.arange(-8.0, 8.0, 1 / 64) + 1 / 128
    step = 1 / 4096
    values = [np.asarray(f.function(mean + std * middles), np.float64) for f in functions]
    before = FUNCTIONS[name](*values)
    sizes = []
    for number, function in enumerate(functions):
        after = list(values)
        after[number] = np.asarray(function.function(mean + std * (middles + step)), np.float64)
        slopes = np.abs(np.asarray(FUNCTIONS[name](*after) - before, np.float64)) / step
        sides = np.maximum(np.append(slopes[0], slopes[:-1]), np.append(slopes[1:], slopes[-1]))
        slopes = np.where(slopes > 8 * sides + 1e-6, sides, slopes)
        sizes.append(float(np.sum(normal_density(middles) * slopes**2)))
    total = sum(sizes)
    return [size / total if total > 0 else 0.0 for size in sizes]


def of_two(name: str, first: Moments, second: Moments, *, twins: bool = False) -> Joined | None:
    """h(a, b) of two independent signals; None if it has no second moment.

    With `twins` the two are one signal of two examples, as in a siamese network.
    """
    combination = Combination(name, FUNCTIONS[name])
    pairs = [root_of(first), root_of(second)]
    common = min(max(pairs[0][0].correlation, 0.0), 0.999) if twins else 0.0
    if common and pairs[0][0].shape is not None:
        return None
    roots = [_as_root(m, function) for m, function in pairs]
    law = joint_law(combination, roots[0], roots[1], float(f"{common:.6f}"))
    if not math.isfinite(law.second):
        return None
    moments = _spread_out(combination, law, [m for m, _ in pairs], roots, common)
    if not twins:
        moments = dataclasses.replace(moments, law=_law_of_two(name, pairs))
    factors, kept = [], []
    for number, (root, function) in enumerate(pairs):
        own = law_of(root, function)
        slope = law.slopes[number]
        factors.append(slope / own.squared_slope if own.squared_slope > 0 else 0.0)
        alike = [
            float(correlations_behind(m.shape, np.array(max(m.correlation - common, 0.0))))
            / (1 - common)
            for m, _ in pairs
        ]
        before = own.slope_product(root.correlation)
        after = law.slope_product(number, alike[0], alike[1])
        share = after * own.squared_slope / (slope * before) if slope * before > 0 else 0.0
        kept.append(min(max(share, 0.0), 1.0))
    return Joined(moments, tuple(factors), tuple(kept), (0.0, 0.0))


def _law_of_two(name: str, pairs: Sequence[tuple[Moments, Activation]]) -> OfRoots:
    functions = [function for _, function in pairs]

    def function(*values: Array) -> Array:
        arguments = [f.function(v) for f, v in zip(functions, values, strict=True)]
        return np.asarray(FUNCTIONS[name](*arguments), np.float64)

    return OfRoots(tuple(root for root, _ in pairs), (name, *functions), function)


def _as_root(moments: Moments, function: Activation) -> Root:
    mean, std = moments.spread
    shape = moments.shape
    skewness = 0.0 if shape else float(f"{moments.skewness:.4f}")
    return Root(function, float(f"{mean:.6g}"), float(f"{std:.6g}"), skewness, shape)


def _spread_out(
    combination: Combination,
    law: JointLaw,
    signals: Sequence[Moments],
    roots: Sequence[Root],
    common: float,
) -> Moments:
    """Moments of h at all positions and between them."""
    radius = tuple(max(r) for r in zip(*(m.radius for m in signals), strict=True))
    signals = [widen(m, radius) for m in signals]
    first, second = _by_position(combination, law, signals, roots)
    scale = np.sqrt(second / law.second) if law.second > 0 else np.zeros_like(second)
    far = law.product(*(_far_correlation(m, common) for m in signals)) * outer(scale)
    own, (_, others, inside) = own_classes(signals[0]), near_pairs(signals[0])
    flat = scale.ravel()
    near = law.product(*(_near_correlation(m, common) for m in signals)) * flat[own] * flat[others]
    plain = Moments(signals[0].axes, first, far, near, radius)
    excess = np.where(inside, near - near_pairs(plain)[0], 0.0)
    result = Moments(plain.axes, first, far, excess, radius).with_second(second)
    return dataclasses.replace(result, third=law.third)


def _far_correlation(moments: Moments, common: float) -> Array:
    covariance = moments.far - outer(moments.mean)
    rho = _beyond(covariance, outer(np.sqrt(moments.variance)), common)
    return correlations_behind(moments.shape, rho)


def _near_correlation(moments: Moments, common: float) -> Array:
    own, (far, others, _) = own_classes(moments), near_pairs(moments)
    mean, std = moments.mean.ravel(), np.sqrt(moments.variance).ravel()
    covariance = far + moments.excess - mean[own] * mean[others]
    rho = _beyond(covariance, std[own] * std[others], common)
    return correlations_behind(moments.shape, rho)


def _beyond(covariance: Array, scale: Array, common: float) -> Array:
    """Correlations that remain without a common part of correlation `common`."""
    rho = np.where(scale > 0, covariance / np.where(scale > 0, scale, 1.0), 0.0)
    return np.clip((rho - common) / (1 - common), -1.0, 1.0)


def _by_position(
    combination: Combination, law: JointLaw, signals: Sequence[Moments], roots: Sequence[Root]
) -> tuple[Array, Array]:
    """E h and E h² at each position: typical values, corrected by a coarser quadrature."""
    table = np.stack(
        [values.ravel() for m in signals for values in (m.mean, np.sqrt(m.variance))],
        axis=1,
    )
    shape = signals[0].mean.shape
    size = max(float(np.abs(table).max()), 1e-300)
    if np.all(np.ptp(table, axis=0) <= 1e-6 * size):
        return np.full(shape, law.first), np.full(shape, law.second)
    typical = joint_point(combination, *roots)
    rounded = np.round(table / size, 4) * size
    points: dict[tuple[float, ...], tuple[float, float]] = {}
    rows = []
    for row in map(tuple, rounded.tolist()):
        if row not in points:
            here = [
                dataclasses.replace(root, mean=row[2 * n], std=row[2 * n + 1], skewness=0.0)
                for n, root in enumerate(roots)
            ]
            points[row] = joint_point(combination, *here)
        rows.append(points[row])
    values = np.array(rows)
    ratio = values[:, 1] / typical[1] if typical[1] > 0 else np.ones(len(values))
    first = law.first + values[:, 0] - typical[0]
    return first.reshape(shape), (law.second * ratio).reshape(shape)
