"""Sums, products and averages of signals made by independent weights."""

from collections.abc import Callable, Sequence

import numpy as np

from keras_varinit.maths.covariance import Moments, columns, near_pairs, rows, widen
from keras_varinit.maths.laws import Kind, Mixed
from keras_varinit.maths.windows import Array


def added(first: Moments, second: Moments, sign: float = 1.0) -> Moments:
    """The sum (difference if `sign` is -1) of two independent signals; only means interact."""
    radius = tuple(max(r) for r in zip(first.radius, second.radius, strict=True))
    first, second = widen(first, radius), widen(second, radius)
    far = first.far + second.far
    if np.any(first.mean) and np.any(second.mean):
        cross = rows(first.mean) * columns(second.mean) + columns(first.mean) * rows(second.mean)
        far = far + sign * cross
    mean = first.mean + sign * second.mean
    third = first.third + sign * second.third
    return Moments(first.axes, mean, far, first.excess + second.excess, radius, third=third)


def multiplied(first: Moments, second: Moments) -> Moments:
    """The product of two independent signals."""
    radius = tuple(max(r) for r in zip(first.radius, second.radius, strict=True))
    first, second = widen(first, radius), widen(second, radius)
    near_first, near_second = near_pairs(first)[0], near_pairs(second)[0]
    near = (near_first + first.excess) * (near_second + second.excess)
    return Moments(
        first.axes,
        first.mean * second.mean,
        first.far * second.far,
        near - near_first * near_second,
        radius,
    )


def combined(parts: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """Groups of channels side by side: averages, weighted by `weights`."""
    if len(parts) == 1:
        return parts[0]
    total = sum(weights)
    radius = tuple(max(r) for r in zip(*(p.radius for p in parts), strict=True))
    widened = [widen(p, radius) for p in parts]

    def mix(field: Callable[[Moments], Array]) -> Array:
        return np.asarray(sum(w / total * field(p) for w, p in zip(weights, widened, strict=True)))

    kinds = tuple(Kind(w / total, p) for w, p in zip(weights, parts, strict=True))
    law = Mixed(kinds, by_channel=True)
    common = parts[0].common if all(p.common is parts[0].common for p in parts) else None
    mean, far, excess = mix(lambda p: p.mean), mix(lambda p: p.far), mix(lambda p: p.excess)
    return Moments(parts[0].axes, mean, far, excess, radius, law=law, common=common)
