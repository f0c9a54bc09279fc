"""Gradients through linear maps: means, repetitions, interpolation, and what taps have in common.

With fixed coefficients an output y = A x gives x the gradient Aᵀ g. Of the gradients g of two
outputs p and q a share `coherence` is common to all positions; what is left correlates by `local`
between neighbours along an axis and by less farther apart, as means over windows do,
L(d) = max(1 - |d|·(1 - local), 0): E g_p g_q = √(G_p G_q)·(c + (1 - c)·Π L(p - q)), with G = E g².
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.analysis.axes import (
    AnyWindow,
    Array,
    Window,
    apply,
    entries_read,
    grouped,
    members_of,
)
from keras_varinit.analysis.moment_maps import outer, position_weights
from keras_varinit.analysis.signals import Gradient

_FARTHEST = 4


@dataclasses.dataclass(frozen=True)
class BackMap:
    """Aᵀ along one axis, on second moments by class of position.

    `apart` (inputs, outputs): Σ_p A_pi Σ_q L(p - q) A_qi. `together` (inputs, outputs²): the same
    for L = 1, by the classes of p and q. `adjacent`: the correlation that `apart` leaves between
    neighbours.
    """

    apart: Array
    together: Array
    adjacent: float


@functools.lru_cache(maxsize=1024)
def back_map(window: AnyWindow, local: float) -> BackMap:
    """The matrices of a map with one coefficient for each pair of an input and an output."""
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
        # Inputs in the middle, as many as until the windows lie the same way again.
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
    """The gradient at the inputs of a map along each axis."""
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
    """Gradients of two inputs are alike in the taps that both have.

    With n_pq of them, and n_p that p has, the correlation is the mean of n_pq over that of
    √(n_p n_q), for p ≠ q.
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
    """Means over pairs of inputs, along one axis, of the taps in common and of √(n_p n_q).

    `own` is the share of an input's pairs with itself. `adjacent` is None for a single input.
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
        # Those of different phases of a stride have none.
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
