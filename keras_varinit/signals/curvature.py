"""Gradients through kernels with few inputs, which depend on the kernel via the next activation.

u_p = Σ_a w_a z_{p+a} and dL/dz_q = Σ_a w_a g_{q-a} f'(u_{q-a}), in which f' depends on w_a z_q.
These dependences add up where outputs share a gradient: by Stein's lemma
E w_a w_b f'(u) f'(u') = σ_w⁴ z_q² E f''(u) f''(u') to leading order. For T taps on c channels this
is bend·(T - 1)/(Tc)·z_q²/E z² times what an independent kernel passes back: large for depthwise
kernels, negligible for wide ones.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.maths.activated import IDENTITY, law_of
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.hermite import PointLaw
from keras_varinit.maths.windows import AnyWindow, Array, Window
from keras_varinit.signals.outcome import Gradient

_STEP = 1 / 64

_LARGEST = 0.9

_MANY = 64  # channels from which on the effect is at most 1 %


@dataclasses.dataclass(frozen=True)
class Bend:
    """How the gradient at an activation depends on pre-activations u at distant positions.

    Args:
        size: Var u·E f''(u) f''(u') / E f'², times the gradient's coherence.
        fall: `size` is proportional to (Var u)^-fall.
        normalized: Whether u is the output of batch normalization.
    """

    size: float
    fall: float
    normalized: bool = False


def bend_of(coherence: float, law: PointLaw, wider: PointLaw, correlation: float) -> Bend | None:
    """The bend of an activation, or None if there is none.

    By Price's theorem, E f''(u) f''(u') is the derivative of E f'(u) f'(u') with respect to the
    correlation of u and u'.

    Args:
        coherence: Coherence of the gradient.
        law: The activation's law.
        wider: Its law for u of twice the variance.
        correlation: Correlation of u at distant positions.
    """
    rho = min(max(correlation, -_LARGEST), _LARGEST)
    rise = law.slope_product(rho + _STEP) - law.slope_product(rho - _STEP)
    size = coherence * rise / (2 * _STEP) / law.squared_slope
    if size <= 0:
        return None
    one, two = float(law.slope_series[1]) ** 2, float(wider.slope_series[1]) ** 2
    fall = 1 + math.log2(one / two) if min(one, two) > 0 else 1.0
    return Bend(size, min(max(fall, 0.0), 2.0))


@dataclasses.dataclass(frozen=True)
class Own:
    """The share of the gradient at z that depends on z: size·y·V^-fall, y = a·z² + b·z + c.

    V = (y + F - 1)/F is the variance of the outputs that read z, relative to its mean, where z is
    one of F = `fan` inputs.
    """

    size: float
    fall: float
    fan: float
    a: float
    b: float
    c: float

    def of(self, z: Array) -> Array:
        """The share at each value of an array of z."""
        y = np.maximum((self.a * z + self.b) * z + self.c, 0.0)
        variance = (y + max(self.fan - 1, 1e-9)) / self.fan
        return np.asarray(self.size * y * variance**-self.fall)


def with_own(
    gradient: Gradient, came: Gradient, windows: Sequence[AnyWindow], moments: Moments, inputs: int
) -> Gradient:
    """Adds the dependence on z itself to the gradient at the inputs z of a kernel.

    With batch normalization after the kernel, z counts without its mean and all kernels have the
    same norm. Otherwise the mean that outputs share contributes too, as after ReLU.

    Args:
        gradient: The gradient at z, for an independent kernel.
        came: The gradient at the kernel's output.
        windows: The kernel's window along each position axis.
        moments: Moments of z.
        inputs: Number of channels that an output reads.
    """
    bend = came.bend
    if bend is None or inputs > _MANY or not moments.is_known():
        return gradient
    readers, fan = 1.0, float(inputs)
    for window in windows:
        one, other = _connections(window)
        readers, fan = readers * one, fan * other
    size = bend.size * max(readers - 1, 0.0) / fan
    mean, second = moments.average(moments.mean), moments.second_moment
    if size <= 0 or second <= 0:
        return gradient
    if bend.normalized:
        variance = max(second - mean**2, 1e-300)
        line = (1 / variance, -2 * mean / variance, mean**2 / variance)
        own = Own(size * fan / (fan + 2), bend.fall, fan, *line)
    else:
        rho = min(max(moments.pair_moment / second, 0.0), 1.0)
        own = Own(size, bend.fall, fan, 1 / second, -2 * rho * mean / second, rho)
    root, function = moments.pre or moments, moments.function or IDENTITY
    values, _, weights = law_of(root, function).in_cells
    total = 1 + float(np.sum(weights * own.of(values)))
    parts = tuple(g * total for g in gradient.parts)
    own = dataclasses.replace(own, size=own.size / total)
    return dataclasses.replace(gradient, parts=parts, own=own)


@functools.lru_cache(maxsize=512)
def _connections(window: AnyWindow) -> tuple[float, float]:
    """Mean over connections of the outputs per input; mean number of inputs per output."""
    if not isinstance(window, Window) or window.kind != "conv":
        return 1.0, 1.0
    if window.inputs.size is None or window.outputs.size is None:
        return window.taps / window.stride, float(window.taps)
    reads = window.reads(np.arange(window.outputs.size))
    inside = reads[(reads >= 0) & (reads < window.inputs.size)]
    counts = np.bincount(inside, minlength=window.inputs.size).astype(float)
    total = max(float(counts.sum()), 1.0)
    return float(np.sum(counts**2)) / total, total / window.outputs.size


@dataclasses.dataclass(frozen=True)
class OwnPart:
    """The effect of an activation on a gradient that depends on its output z.

    `factor` multiplies E f'²; `coherent` is the share of the result that distant positions share.
    """

    factor: float
    coherent: float


def through_activation(own: Own | None, law: PointLaw) -> OwnPart:
    """The effect of f, with the given law, on the gradient at z = f(u)."""
    values, slopes, weights = law.in_cells
    squares = float(np.sum(weights * slopes**2))
    if squares <= 0 or own is None:
        return OwnPart(1.0, 0.0)
    shares = own.of(values)
    factor = 1 + float(np.sum(weights * shares * (slopes**2 / squares - 1)))
    signs = np.sign(values + own.b / (2 * own.a))
    common = float(np.sum(weights * signs * np.sqrt(shares) * slopes)) ** 2
    return OwnPart(factor, min(common / (squares * factor), 1.0))
