"""The second moment of a pre-activation as a function of its kernel's scale.

A kernel multiplied by s puts out u = s·w + c, where c is the bias, so

    E u² = s² E w² + 2 s E wc + E c².

The three moments are measured once, and the scale that gives a wanted E u² is a root.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
    """E w², E wc and E c² of `count` entries; `is_finite` says that all of them are numbers."""

    linear: float
    cross: float
    constant: float
    count: int
    is_finite: bool = True

    @property
    def moment(self) -> float:
        """E u² for the kernel as it is."""
        if not self.is_finite:
            return math.nan
        return self.linear + 2 * self.cross + self.constant

    def at(self, scale: float) -> "Scaling":
        """The same of the scaled kernel."""
        linear, cross = self.linear * scale**2, self.cross * scale
        return dataclasses.replace(self, linear=linear, cross=cross)

    @property
    def correlation(self) -> float:
        """E wc / √(E w²), which scaling the kernel does not change; 0 where it is not known."""
        usable = self.is_finite and self.linear > 0
        return self.cross / math.sqrt(self.linear) if usable else 0.0

    def plus(self, other: "Scaling | None") -> "Scaling":
        """Both sets of entries together; the bias is that of this one."""
        if other is None or other.count == 0:
            return self
        count = self.count + other.count
        share = self.count / count if count else 0.0
        return Scaling(
            share * self.linear + (1 - share) * other.linear,
            share * self.cross + (1 - share) * other.cross,
            self.constant,
            count,
            self.is_finite and other.is_finite,
        )

    def scale_for(self, target: float) -> float | None:
        """The positive scale with E u² = `target`, the larger of two; None if there is none."""
        if not self.linear > 0:
            return None
        missing = target - self.constant
        discriminant = self.cross**2 + self.linear * missing
        if discriminant < 0:
            return None
        root = math.sqrt(discriminant)
        if self.cross > 0:
            # The other form of the root, which does not subtract two numbers of one size.
            scale = missing / (self.cross + root)
        else:
            scale = (root - self.cross) / self.linear
        return scale if scale > 0 and math.isfinite(scale) else None


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """From the first batch to all data: how E w² and the correlation with the bias differ.

    Neither depends on the scale of the kernel, nor, without biases, on those before it.
    """

    ratio: float = 1.0
    shift: float = 0.0

    @classmethod
    def between(cls, first: Scaling, everything: Scaling) -> "Extrapolation":
        """What makes one out of the other."""
        ratio = everything.linear / first.linear if first.linear > 0 else 0.0
        if not (math.isfinite(ratio) and ratio > 0 and first.is_finite and everything.is_finite):
            return cls()
        return cls(ratio, everything.correlation - first.correlation)

    def of(self, first: Scaling) -> Scaling:
        """What is to be expected over all data."""
        linear = first.linear * self.ratio
        cross = math.sqrt(linear) * (first.correlation + self.shift)
        return dataclasses.replace(first, linear=linear, cross=cross)


def scaling_of(signal: Any, constant: Any = None) -> Scaling:
    """Measures the moments of a pre-activation.

    Args:
        signal: The pre-activation u.
        constant: The bias c as a float32 array that broadcasts against it, or None.
    """
    count = math.prod(int(n) for n in signal.shape)
    if count == 0:
        return Scaling(0.0, 0.0, 0.0, 0)
    unit, squares, cross, finite = _compiled(_sums)(signal, constant)
    unit, squares, cross = (np.asarray(_host(v), np.float64) for v in (unit, squares, cross))
    squared_bias = 0.0 if constant is None else float(np.mean(np.square(constant, dtype=float)))
    return Scaling(
        linear=float(squares.sum()) / count * float(unit) ** 2,
        cross=float(cross.sum()) / count * float(unit),
        constant=squared_bias,
        count=count,
        is_finite=bool(_host(finite)),
    )


def rescaled(signal: Any, constant: Any, scale: float) -> Any:
    """The pre-activation that the kernel times `scale` puts out."""
    return _compiled(_rescaled)(signal, constant, float(scale))


def _sums(signal: Any, constant: Any) -> Any:
    """max|w|; of w/max|w|, Σ w² and Σ wc per example and channel; whether all is finite."""
    ops = keras.ops
    signal = ops.cast(signal, "float32")
    finite = ops.all(ops.isfinite(signal))
    linear = signal
    if constant is not None:
        constant = ops.convert_to_tensor(constant)
        linear = signal - constant
    unit = ops.max(ops.abs(linear))
    unit = ops.where(unit > 0, unit, ops.ones_like(unit))
    linear = linear / unit
    inner = tuple(range(1, len(signal.shape) - 1))

    def add(values: Any) -> Any:
        return ops.sum(values, axis=inner) if inner else values

    cross = ops.zeros((1,)) if constant is None else add(linear * constant)
    return unit, add(ops.square(linear)), cross, finite


def _rescaled(signal: Any, constant: Any, scale: Any) -> Any:
    ops = keras.ops
    values = ops.cast(signal, "float32")
    if constant is None:
        return ops.cast(scale * values, signal.dtype)
    constant = ops.convert_to_tensor(constant)
    return ops.cast(constant + scale * (values - constant), signal.dtype)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """On JAX compiled, so that small steps do not each compile alone."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    compiled: Callable[..., Any] = jax.jit(function)
    return compiled


def _host(tensor: Any) -> Any:
    return keras.ops.convert_to_numpy(tensor)
