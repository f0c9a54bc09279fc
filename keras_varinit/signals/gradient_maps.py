"""Gradients through linear maps: means, repetition, interpolation, and shared taps.

For y = A x with fixed A, the gradient of x is Aᵀ g. A share c (`coherence`) of g is common to all
positions. The remainder has the correlation `local` between neighbours along an axis and decays
linearly, as for means over windows: L(d) = max(1 - |d|·(1 - local), 0). With G = E g²,
E g_p g_q = √(G_p G_q)·(c + (1 - c)·Π L(p - q)).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.maths.covariance import outer, position_weights
from keras_varinit.maths.windows import (
    AnyWindow,
    Array,
    Window,
    apply,
    entries_read,
    grouped,
    members_of,
)
from keras_varinit.signals.outcome import Gradient

_FARTHEST = 4


@dataclasses.dataclass(frozen=True)
class BackMap:
    """Aᵀ along one axis, acting on second moments by class of position.

    Args:
        apart: (inputs, outputs), Σ_p A_pi Σ_q L(p - q) A_qi.
        together: (inputs, outputs²), the same for L = 1, by the classes of p and q.
        adjacent: Correlation between neighbours of the gradient that `apart` describes.
    """

    apart: Array
    together: Array
    adjacent: float


@functools.lru_cache(maxsize=1024)
def back_map(window: AnyWindow, local: float) -> BackMap:
    """The `BackMap` of a window, for gradients with the neighbour correlation `local`."""
    source, target = window.inputs, window.outputs
    outputs = members_of(window)
    if target.size is None:
        outputs = np.arange(3 * len(outputs))
    reads, valid = entries_read(window, outputs)
    shares = window.shares(valid, outputs)
    first = 0 if source.size is not None else int(reads.min())
    count = source.size if source.size is not None else int(reads.max()) - first + 1
    target_classes = target.classes(outputs)

    covers = np.zeros((count, target.count))
    apart = np.zeros((count, target.count))
    beside = np.zeros(count)
    for a in range(window.taps):
        ok = valid[a]
        np.add.at(covers, (reads[a][ok] - first, target_classes[ok]), shares[a][ok])
    reach = min(math.ceil(1 / (1 - local)) - 1, _FARTHEST) if local < 1 else _FARTHEST
    for offset in range(-reach, reach + 1):
        weight = 1 - abs(offset) * (1 - local)
        others = outputs + offset
        other_reads, other_valid = entries_read(window, others)
        other_shares = weight * window.shares(other_valid, others)
        if target.size is not None:
            other_shares = np.where((others >= 0) & (others < target.size), other_shares, 0.0)
        for a in range(window.taps):
            for b in range(window.taps):
                both = valid[a] & other_valid[b]
                product = shares[a] * other_shares[b]
                ok = both & (reads[a] == other_reads[b])
                np.add.at(apart, (reads[a][ok] - first, target_classes[ok]), product[ok])
                ok = both & (reads[a] + 1 == other_reads[b])
                np.add.at(beside, reads[a][ok] - first, product[ok])

    own = apart.sum(axis=1)
    if source.size is None:
        # One period of the stride, in the middle.
        start = int(np.median(reads)) - first
        inner = np.arange(start, start + max(round(window.stride), 1))
        classes = np.zeros(len(inner), np.int64)
    else:
        inner = np.arange(count)
        classes = source.classes(inner)
    sizes = np.bincount(classes, minlength=source.count)
    back = np.zeros((source.count, target.count))
    np.add.at(back, classes, apart[inner])
    members = [covers[inner[classes == c]] for c in range(source.count)]
    together = np.stack([each.T @ each for each in members])
    total = float(own[inner].sum())
    edges = inner if source.size is None else inner[:-1]
    adjacent = float(beside[edges].sum()) / total if total > 0 else 0.0
    if source.size is not None and source.size > 1:
        adjacent *= source.size / (source.size - 1)
    return BackMap(
        back / sizes[:, None],
        (together / sizes[:, None, None]).reshape(source.count, -1),
        min(max(adjacent, 0.0), 1.0),
    )


def through_linear(gradient: Gradient, windows: Sequence[AnyWindow]) -> Gradient:
    """The gradient at the inputs of a linear map with one window per position axis."""
    if not windows:
        return gradient
    maps = [back_map(w, float(f"{gradient.local:.4f}")) for w in windows]
    weights = position_weights(tuple(w.inputs for w in windows))
    coherence = gradient.coherence
    parts, shared, total = [], 0.0, 0.0
    for second in gradient.parts:
        apart = apply([m.apart for m in maps], second)
        together = apply([m.together for m in maps], grouped(outer(np.sqrt(second))))
        parts.append((1 - coherence) * apart + coherence * together)
        shared += coherence * float((weights * together).sum())
        total += float((weights * parts[-1]).sum())
    left = min(shared / total, 1.0) if total > 0 else 0.0
    return Gradient(tuple(parts), left, float(np.mean([m.adjacent for m in maps])))


def through_taps(gradient: Gradient, windows: Sequence[Window]) -> Gradient:
    """Reduces the coherence: gradients of two inputs correlate through the taps both have.

    If n_pq taps read both p and q, and n_p taps read p, the correlation is the mean of n_pq over
    the mean of √(n_p n_q), for p ≠ q.
    """
    shared = [_taps_in_common(window) for window in windows]
    own = math.prod(each.own for each in shared)
    pairs = math.prod(each.pairs for each in shared) - own
    scale = math.prod(each.scale for each in shared) - own
    far = pairs / scale if scale > 1e-9 else 1.0
    near = [each.adjacent for each in shared if each.adjacent is not None]
    return gradient.less_coherent(far, float(np.mean(near)) if near else 1.0)


@dataclasses.dataclass(frozen=True)
class _Shared:
    """Taps shared by pairs of inputs along one axis.

    Args:
        pairs: Mean over pairs of n_pq.
        scale: Mean over pairs of √(n_p n_q).
        own: Contribution of pairs of an input with itself.
        adjacent: Correlation of adjacent inputs; None for a single input.
    """

    pairs: float
    scale: float
    own: float
    adjacent: float | None


@functools.lru_cache(maxsize=1024)
def _taps_in_common(window: Window) -> _Shared:
    if window.kind == "transposed":
        return _Shared(1.0, 1.0, 0.0, 1.0)
    if window.inputs.size is None or window.outputs.size is None:
        # Inputs at different phases of a stride share no taps.
        return _Shared(1 / window.stride, 1.0, 0.0, float(window.stride == 1))
    inputs = window.inputs.size
    reads = window.reads(np.arange(window.outputs.size))
    reached = np.zeros((window.taps, inputs))
    taps, outputs = np.nonzero((reads >= 0) & (reads < inputs))
    reached[taps, reads[taps, outputs]] = 1
    roots = np.sqrt(reached.sum(axis=0))
    adjacent = float(np.sum(reached[:, 1:] * reached[:, :-1]))
    scale = float(np.sum(roots[1:] * roots[:-1]))
    return _Shared(
        float(np.sum(reached.mean(axis=1) ** 2)),
        float(np.mean(roots)) ** 2,
        float(np.mean(roots**2)) / inputs,
        (adjacent / scale if scale > 0 else 0.0) if inputs > 1 else None,
    )
