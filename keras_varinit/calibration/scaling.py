"""The second moment of a pre-activation as a function of its kernel's scale.

A kernel multiplied by s puts out u = s·w + c, where c is the bias, so

    E u² = s² E w² + 2 s E wc + E c².

The three moments are measured once, and the scale that gives a wanted E u² is a root.
"""

import dataclasses
import math
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
    xp, values, constant_there = _namespace(signal, constant)
    with np.errstate(invalid="ignore", over="ignore"):
        unit, squares, cross, finite = _sums(xp, values, constant_there)
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
    _, values, constant = _namespace(signal, constant)
    scaled = scale * values if constant is None else constant + scale * (values - constant)
    dtype = keras.backend.standardize_dtype(signal.dtype)
    return keras.ops.cast(keras.ops.convert_to_tensor(scaled), dtype)


def _sums(xp: Any, signal: Any, constant: Any) -> Any:
    """max|w|; of w/max|w|, Σ w² and Σ wc per example and channel; whether all is finite."""
    finite = xp.all(xp.isfinite(signal))
    linear = signal if constant is None else signal - constant
    unit = xp.max(xp.abs(linear))
    unit = xp.where(unit > 0, unit, xp.ones_like(unit))
    linear = linear / unit
    inner = tuple(range(1, len(signal.shape) - 1))

    def add(values: Any) -> Any:
        return xp.sum(values, axis=inner) if inner else values

    cross = xp.zeros((1,)) if constant is None else add(linear * constant)
    return unit, add(xp.square(linear)), cross, finite


def _namespace(signal: Any, constant: Any) -> tuple[Any, Any, Any]:
    """What computes with a signal, and signal and bias as float32 for it.

    That is NumPy for JAX on a CPU, which would compile every step anew for every shape.
    """
    if keras.backend.backend() == "jax" and all(d.platform == "cpu" for d in signal.devices()):
        return np, np.asarray(signal).astype(np.float32, copy=False), constant
    ops = keras.ops
    there = None if constant is None else ops.convert_to_tensor(constant)
    return ops, ops.cast(signal, "float32"), there


def _host(tensor: Any) -> Any:
    return keras.ops.convert_to_numpy(tensor)
