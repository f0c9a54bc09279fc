"""Random factors that all channels of a position share, such as a gate with one channel.

If κ varies between examples, a sum over many channels of κ·z does not average κ out: a kernel's
output is κ times a Gaussian (a scale mixture). Normalization removes κ.
"""

import dataclasses
import functools
import math

import numpy as np

from keras_varinit.maths.activated import law_of
from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.entry_laws import NODES, Array, at
from keras_varinit.maths.laws import Law, OfFunction, OfRoots
from keras_varinit.maths.quadrature import Activation, normal_density

_WEIGHTS = normal_density(NODES) / normal_density(NODES).sum()

# Factors count as constant if Var(κ²)/(E κ²)² is below this.
_LEAST_VARIANCE = 0.02

_GRID_SIZE = 41

# Values of s beyond this are too rare to be seen in practice.
_LIMIT = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class Common:
    """A factor κ(s) with E κ² = 1 and s ~ N(0, 1); `values` at `NODES`: (nodes,)."""

    values: Array

    @functools.cached_property
    def law(self) -> Law:
        """The law of κ times a Gaussian; the squared slope that gradients meet is κ²."""
        unit = uniform((), 0.0, 1.0, 0.0)
        values = self.values

        def product(s: Array, n: Array) -> Array:
            return np.interp(s, NODES, values) * n

        def slopes(s: Array, n: Array) -> Array:
            return np.interp(s, NODES, values) ** 2

        return OfRoots((unit, dataclasses.replace(unit)), ("common", self), product, slopes)

    def mean(self, values: Array) -> float:
        """E g(κ) for `values` of g(κ(s)) at `NODES`: (nodes,)."""
        return float(_WEIGHTS @ values)

    def normalized(self, variance: float, epsilon: float) -> tuple[float, float, float]:
        """Effect of normalizing rows of mean square κ²·variance, relative to constant κ.

        Args:
            variance: Second moment of a row at κ = 1.
            epsilon: Added to the second moment by the normalization.

        Returns:
            Ratio of the outputs' second moments; ratio of squared gradients at the kernel just
            before, NaN if dominated by rare κ; share of the squared gradient left along a row.
        """
        squares = self.values**2 * variance
        kept = self.mean(squares / (squares + epsilon)) / (variance or 1.0)
        inverse = 1 / (squares + epsilon)
        whole, usual = self.mean(inverse), self.mean(inverse * (np.abs(NODES) < _LIMIT))
        here = whole / kept if kept > 0 and whole < 1.05 * usual else math.nan
        left = self.mean(squares * (epsilon / (squares + epsilon) ** 2) ** 2)
        before = self.mean(squares * inverse**2)
        return kept * (variance + epsilon), here, left / before if before > 0 else 1.0

    @property
    def varies(self) -> bool:
        """Whether κ² varies noticeably."""
        return self.mean(self.values**4) - 1 > _LEAST_VARIANCE


def common_of(factor: Moments) -> Common | None:
    """The common factor that a signal acts as; None if it hardly varies."""
    root, function = factor.pre or factor, factor.function
    mean, std = root.spread
    places = mean + std * at(root.shape, NODES)
    values = places if function is None else np.asarray(function.function(places), np.float64)
    return _normalized(values)


def bare_law(moments: Moments) -> Law | None:
    """The law of f(z) without the common factor; None if unknown."""
    if moments.pre is None or moments.function is None:
        return None
    return OfFunction(dataclasses.replace(moments.pre, law=None), moments.function)


def _normalized(values: Array) -> Common | None:
    total = float(_WEIGHTS @ values**2)
    if not (math.isfinite(total) and total > 0):
        return None
    common = Common(values / math.sqrt(total))
    return common if common.varies else None


def after(moments: Moments, activation: Activation) -> Common | None:
    """The common factor of f(κ·z), the square root of E[f(κz)² | κ]; None if there is none."""
    laws = _conditional_moments(moments, activation)
    return None if laws is None else _normalized(np.sqrt(laws[0]))


def around(moments: Moments, activation: Activation) -> tuple[float, float]:
    """Squared gradients through f(κ·z), over the E f'(κz)²κ² that arrives.

    Returns:
        E f'(κz)² at the kernel that makes z, and E f'(κz)²z²·(dκ/ds)²/E (dκ/ds)² at κ, both as
        ratios; 1 where there is no common factor.
    """
    laws = None if moments.pre is not None else _conditional_moments(moments, activation)
    if laws is None or moments.common is None:
        return 1.0, 1.0
    common, slopes, along = moments.common, laws[1], laws[2]
    weighted = common.mean(slopes * common.values**2)
    own = np.gradient(common.values, NODES) ** 2
    if not weighted > 0:
        return 1.0, 1.0
    to_factor = common.mean(along * own) / (common.mean(own) or 1.0)
    return common.mean(slopes) / weighted, to_factor / weighted


def _conditional_moments(
    moments: Moments, activation: Activation
) -> tuple[Array, Array, Array] | None:
    """E f(κz)², E f'(κz)² and E f'(κz)²z² given κ, at `NODES`: (nodes,) each."""
    if moments.common is None:
        return None
    bare = dataclasses.replace(moments.plain(), law=None, common=None)
    places = np.linspace(-5.0, 5.0, _GRID_SIZE)
    values = np.interp(places, NODES, moments.common.values)
    laws = [law_of(bare.scaled(value**2), activation) for value in values.tolist()]
    second, slopes, along = (
        np.interp(NODES, places, [getattr(law, name) for law in laws])
        for name in ("second", "squared_slope", "radial_slope")
    )
    return second, slopes, along
