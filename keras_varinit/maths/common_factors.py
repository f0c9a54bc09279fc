"""Factors that all channels of a position share, such as a gate of one channel.

κ·z with κ random from example to example: sums over many channels do not average κ out. What a
kernel makes of it is κ times a Gaussian, and a normalization takes κ away again.
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

# Factors whose squares vary less than that, relative to their mean, count as constant.
_LEAST = 0.02

_SOME = 41

_OFTEN = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class Common:
    """A factor of mean square 1, as a function of s ~ N(0, 1) at `NODES`."""

    values: Array

    @functools.cached_property
    def law(self) -> Law:
        """The law of the factor times a Gaussian; gradients through it go on to meet its square."""
        unit = uniform((), 0.0, 1.0, 0.0)
        values = self.values

        def product(s: Array, n: Array) -> Array:
            return np.interp(s, NODES, values) * n

        def slopes(s: Array, n: Array) -> Array:
            return np.interp(s, NODES, values) ** 2

        return OfRoots((unit, dataclasses.replace(unit)), ("common", self), product, slopes)

    def mean(self, values: Array) -> float:
        """E of a function of the factor, given at `NODES`."""
        return float(_WEIGHTS @ values)

    def normalized(self, variance: float, epsilon: float) -> tuple[float, float, float]:
        """What a normalization of rows κ²·variance has over that of rows of one size.

        On second moments; then on the gradient's at the kernel in front alone, NaN where that is
        made by factors that hardly ever occur; and what is left of it along a row.
        """
        squares = self.values**2 * variance
        kept = self.mean(squares / (squares + epsilon)) / (variance or 1.0)
        inverse = 1 / (squares + epsilon)
        whole, often = self.mean(inverse), self.mean(inverse * (np.abs(NODES) < _OFTEN))
        here = whole / kept if kept > 0 and whole < 1.05 * often else math.nan
        left = self.mean(squares * (epsilon / (squares + epsilon) ** 2) ** 2)
        before = self.mean(squares * inverse**2)
        return kept * (variance + epsilon), here, left / before if before > 0 else 1.0

    @property
    def varies(self) -> bool:
        """Whether its square varies at all."""
        return self.mean(self.values**4) - 1 > _LEAST


def common_of(factor: Moments) -> Common | None:
    """A signal as a factor."""
    root, function = factor.pre or factor, factor.function
    mean, std = root.spread
    places = mean + std * at(root.shape, NODES)
    values = places if function is None else np.asarray(function.function(places), np.float64)
    return _normalized(values)


def bare_law(moments: Moments) -> Law | None:
    """The law without the factor, as far as it is known."""
    if moments.pre is None or moments.function is None:
        return None
    return OfFunction(dataclasses.replace(moments.pre, law=None), moments.function)


def _normalized(values: Array) -> Common | None:
    total = float(_WEIGHTS @ values**2)
    if not (math.isfinite(total) and total > 0):
        return None
    found = Common(values / math.sqrt(total))
    return found if found.varies else None


def after(moments: Moments, activation: Activation) -> Common | None:
    """What rows of f(κ·z) have in common: the square root of E f² given κ."""
    laws = _given(moments, activation)
    return None if laws is None else _normalized(np.sqrt(laws[0]))


def around(moments: Moments, activation: Activation) -> tuple[float, float]:
    """E f'(κz)² and E f'(κz)²·z²·(dκ/ds)²/E (dκ/ds)², over E f'(κz)²·κ², which is what comes back.

    The first is at the kernel in front, and the second what goes to κ itself.
    """
    laws = None if moments.pre is not None else _given(moments, activation)
    if laws is None or moments.common is None:
        return 1.0, 1.0
    common, slopes, along = moments.common, laws[1], laws[2]
    weighed = common.mean(slopes * common.values**2)
    own = np.gradient(common.values, NODES) ** 2
    if not weighed > 0:
        return 1.0, 1.0
    to_factor = common.mean(along * own) / (common.mean(own) or 1.0)
    return common.mean(slopes) / weighed, to_factor / weighed


def _given(moments: Moments, activation: Activation) -> tuple[Array, Array, Array] | None:
    """E f(κz)², E f'(κz)² and E f'(κz)²z² given κ, at `NODES`."""
    if moments.common is None:
        return None
    bare = dataclasses.replace(moments.plain(), law=None, common=None)
    places = np.linspace(-5.0, 5.0, _SOME)
    values = np.interp(places, NODES, moments.common.values)
    laws = [law_of(bare.scaled(value**2), activation) for value in values.tolist()]
    second, slopes, along = (
        np.interp(NODES, places, [getattr(law, name) for law in laws])
        for name in ("second", "squared_slope", "radial_slope")
    )
    return second, slopes, along
