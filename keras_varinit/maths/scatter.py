"""Depthwise and other kernels of few taps: positions of their outputs correlate at random.

For one kernel E u_p u_q is v·Σ w_a w_b over the taps a of p and b of q that read the same entry.
Its mean over kernels is 0 for p ≠ q, so it cancels in what is linear in u; but an activation adds
a₂²·E ρ² to E f(u_p) f(u_q). For a depthwise kernel with F inputs, of which p and q share n,
E ρ² = n/(F(F + 2)).
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from keras_varinit.maths.covariance import Moments, near_pairs, own_classes, widen
from keras_varinit.maths.hermite import PointLaw
from keras_varinit.maths.windows import LARGEST_OFFSET, AnyWindow, Array, Window, reads_in_place

# With more input channels, covariances are close to their mean over kernels.
_FEW = 16

_STEP = 1 / 32


def scattered(after: Moments, before: Moments, windows: Sequence[AnyWindow], fan: int) -> Moments:
    """The output of kernels of variance 1 on `fan` channels, with its `scatter`."""
    plain = all(isinstance(w, Window) and w.kind == "conv" for w in windows)
    if fan > _FEW or not windows or not plain or all(map(reads_in_place, windows)):
        return after
    if not after.is_known():
        return after
    tables = [_in_common(w) for w in windows if isinstance(w, Window)]
    radius = tuple(max(r, (t.shape[0] - 1) // 2) for r, t in zip(after.radius, tables, strict=True))
    after = widen(after, radius)
    common = np.ones(())
    for table, r in zip(tables, radius, strict=True):
        pad = r - (table.shape[0] - 1) // 2
        common = np.multiply.outer(common, np.pad(table, ((pad, pad), (0, 0))))
    middle = after.offset_of((0,) * len(radius))
    inputs = common[middle]
    place = before.offset_of((0,) * len(before.axes))
    own = before.average(before.excess[place])
    lengths = 1 + 2 / (fan * np.maximum(inputs, 1.0))
    scatter = np.array(common * fan * own**2) / lengths.ravel()[own_classes(after)]
    scatter[middle] = 0.0
    return dataclasses.replace(after, scatter=scatter)


@functools.lru_cache(maxsize=512)
def _in_common(window: Window) -> Array:
    """Number of inputs that outputs p and p + o share along an axis: (offsets, classes of p)."""
    target = window.outputs
    reach = min((window.taps - 1) * window.dilation // window.stride, LARGEST_OFFSET)
    if target.size is not None:
        reach = min(reach, target.size - 1)
    own = target.positions
    first = window.reads(own)
    table = np.zeros((2 * reach + 1, target.count))
    for offset in range(-reach, reach + 1):
        others = own + offset
        second = window.reads(others)
        exists = np.ones_like(own, bool)
        if target.size is not None:
            exists = (others >= 0) & (others < target.size)
        for number in range(len(own)):
            shared = np.intersect1d(first[:, number], second[:, number])
            if window.inputs.size is not None:
                shared = shared[(shared >= 0) & (shared < window.inputs.size)]
            table[offset + reach, number] = len(shared) * exists[number]
    return table


def added_by(moments: Moments, law: PointLaw, correlation: Array) -> Array | float:
    """The scatter's contribution to E f(u_p) f(u_q) at those correlations."""
    if moments.scatter is None:
        return 0.0
    own, (_, others, _) = own_classes(moments), near_pairs(moments)
    variance = moments.variance.ravel()
    scale = variance[own] * variance[others]
    spread = np.divide(moments.scatter, scale, out=np.zeros_like(scale), where=scale > 0)
    rho = np.clip(correlation, -0.9, 0.9)
    second = law.product(rho + _STEP) - 2 * law.product(rho) + law.product(rho - _STEP)
    return np.asarray(np.maximum(second, 0.0) / _STEP**2 / 2 * spread)
