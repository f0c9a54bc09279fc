"""Sums and products of signals made by different weights."""

import numpy as np

from keras_varinit.analysis.moment_maps import Moments, columns, near_pairs, rows, widen


def added(first: Moments, second: Moments, sign: float = 1.0) -> Moments:
    """The sum of two signals made by different weights: they meet in their means alone."""
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
    """The product of two signals made by different weights."""
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
