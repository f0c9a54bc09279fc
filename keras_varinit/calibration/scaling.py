"""The second moment of a pre-activation as a function of its kernel's scale.

Let w be the kernel's output and c the bias. A kernel multiplied by s gives u = s·w + c, so

    E u² = s² E w² + 2 s E wc + E c².

The three moments are measured once; the scale for a target E u² is a root of this quadratic.
"""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.typing import AnyArray, ArrayLike, Tensor

Float32Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """E w², E wc and E c² of `count` entries; `is_finite` tells whether all entries are."""

    linear: float
    cross: float
    constant: float
    count: int
    is_finite: bool = True

    @property
    def moment(self) -> float:
        """E u² for the present kernel."""
        if not self.is_finite:
            return math.nan
        return self.linear + 2 * self.cross + self.constant

    def at(self, scale: float) -> "Scaling":
        """The moments for a kernel multiplied by `scale`."""
        linear, cross = self.linear * scale**2, self.cross * scale
        return dataclasses.replace(self, linear=linear, cross=cross)

    @property
    def correlation(self) -> float:
        """E wc / √(E w²), which does not depend on the kernel's scale; 0 if undefined."""
        usable = self.is_finite and self.linear > 0
        return self.cross / math.sqrt(self.linear) if usable else 0.0

    def plus(self, other: "Scaling | None") -> "Scaling":
        """The moments over both sets of entries, with this one's bias."""
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
        """The largest positive s with E u² = `target`; None if there is none."""
        if not self.linear > 0:
            return None
        excess = target - self.constant
        discriminant = self.cross**2 + self.linear * excess
        if discriminant < 0:
            return None
        root = math.sqrt(discriminant)
        if self.cross > 0:
            # The rationalized root, which avoids cancellation.
            scale = excess / (self.cross + root)
        else:
            scale = (root - self.cross) / self.linear
        return scale if scale > 0 and math.isfinite(scale) else None


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """How E w² and the correlation with the bias differ between the first batch and all data.

    Neither depends on the kernel's scale nor, without biases, on the scales of those before it.
    """

    ratio: float = 1.0
    shift: float = 0.0

    @classmethod
    def between(cls, first: Scaling, everything: Scaling) -> "Extrapolation":
        """The extrapolation that maps one to the other; the identity if it is undefined."""
        ratio = everything.linear / first.linear if first.linear > 0 else 0.0
        if not (math.isfinite(ratio) and ratio > 0 and first.is_finite and everything.is_finite):
            return cls()
        return cls(ratio, everything.correlation - first.correlation)

    def of(self, first: Scaling) -> Scaling:
        """The moments expected over all data, given those of the first batch."""
        linear = first.linear * self.ratio
        cross = math.sqrt(linear) * (first.correlation + self.shift)
        return dataclasses.replace(first, linear=linear, cross=cross)


def scaling_of(signal: Tensor, constant: Float32Array | None = None) -> Scaling:
    """Measures the moments of a pre-activation.

    Args:
        signal: The pre-activation u, (batch, ..., channels).
        constant: The bias c as a float32 array that broadcasts against it, or None.
    """
    count = math.prod(int(n) for n in signal.shape)
    if count == 0:
        return Scaling(0.0, 0.0, 0.0, 0)
    xp, u, c = _namespace(signal, constant)
    with np.errstate(invalid="ignore", over="ignore"):
        unit, squares, cross, finite = _sums(xp, u, c)
    unit, squares, cross = (np.asarray(_host(v), np.float64) for v in (unit, squares, cross))
    squared_bias = 0.0 if constant is None else float(np.mean(np.square(constant, dtype=float)))
    return Scaling(
        linear=float(squares.sum()) / count * float(unit) ** 2,
        cross=float(cross.sum()) / count * float(unit),
        constant=squared_bias,
        count=count,
        is_finite=bool(_host(finite)),
    )


def rescaled(signal: Tensor, constant: Float32Array | None, scale: float) -> Tensor:
    """The pre-activation after its kernel was multiplied by `scale`."""
    _, u, c = _namespace(signal, constant)
    scaled = scale * u if c is None else c + scale * (u - c)
    dtype = keras.backend.standardize_dtype(signal.dtype)
    tensor: Tensor = keras.ops.cast(keras.ops.convert_to_tensor(scaled), dtype)
    return tensor


def _sums(
    xp: Any, signal: ArrayLike, constant: ArrayLike
) -> tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]:
    """max|w|; Σ w² and Σ wc of w/max|w|, (batch, channels); whether all entries are finite."""
    finite = xp.all(xp.isfinite(signal))
    linear = signal if constant is None else signal - constant
    unit = xp.max(xp.abs(linear))
    unit = xp.where(unit > 0, unit, xp.ones_like(unit))
    linear = linear / unit
    inner = tuple(range(1, len(signal.shape) - 1))

    def add(values: ArrayLike) -> ArrayLike:
        return xp.sum(values, axis=inner) if inner else values

    cross = xp.zeros((1,)) if constant is None else add(linear * constant)
    return unit, add(xp.square(linear)), cross, finite


def _namespace(signal: Any, constant: ArrayLike) -> tuple[Any, ArrayLike, ArrayLike]:
    """The namespace to compute in (NumPy or `keras.ops`), and signal and bias in it as float32.

    NumPy is used for JAX on a CPU, where JAX would compile every operation for every shape.
    """
    if keras.backend.backend() == "jax" and all(d.platform == "cpu" for d in signal.devices()):
        return np, np.asarray(signal).astype(np.float32, copy=False), constant
    ops = keras.ops
    constant = None if constant is None else ops.convert_to_tensor(constant)
    return ops, ops.cast(signal, "float32"), constant


def _host(tensor: ArrayLike) -> AnyArray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))
