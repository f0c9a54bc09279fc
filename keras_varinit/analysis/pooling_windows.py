"""The windows of pooling, and how they overlap."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.analysis.axes import AnyWindow, Axis, Linear, Window, entries_read, members_of
from keras_varinit.analysis.moment_maps import Axes, Border
from keras_varinit.analysis.rules import per_dimension
from keras_varinit.analysis.signals import Visit
from keras_varinit.fans import padding_and_outputs


def pool_windows(visit: Visit, source: Axes, target: Axes) -> list[Window]:
    """The windows along each axis."""
    operation, rank = visit.operation, len(source)
    sizes = per_dimension(operation.pool_size, rank)
    strides = per_dimension(operation.strides or operation.pool_size, rank)
    found = []
    for axis in range(rank):
        size = source[axis].size or 10**6
        low, _ = padding_and_outputs(size, sizes[axis], strides[axis], 1, operation.padding)
        found.append(Window("pool", sizes[axis], strides[axis], 1, low, source[axis], target[axis]))
    return found


def without_border(windows: Sequence[Window], border: Border) -> list[Window]:
    """The same windows on the map inside the border."""
    return [
        dataclasses.replace(window, low=window.low + low, inputs=axis)
        for window, (low, _), axis in zip(windows, border.pads, border.source.axes, strict=True)
    ]


def adaptive_windows(source: Axes, target: Axes) -> list[Linear] | None:
    """None where a size is unknown, and where Keras records another rank than it computes."""
    if len(source) != len(target) or any(a.size is None for a in (*source, *target)):
        return None
    return [_adaptive_window(a, b) for a, b in zip(source, target, strict=True)]


@functools.lru_cache(maxsize=256)
def _adaptive_window(source: Axis, target: Axis) -> Linear:
    """Output i is the mean of the entries from ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉."""
    n, m = source.size or 1, target.size or 1
    matrix = np.zeros((m, n))
    for i in range(m):
        first, last = i * n // m, -(-(i + 1) * n // m)
        matrix[i, first:last] = 1 / (last - first)
    return Linear.of(matrix, source, target)


@functools.lru_cache(maxsize=256)
def overlaps(window: AnyWindow) -> tuple[tuple[int, float, float], ...]:
    """By the offset of two windows: entries that they share, and how many pairs share an entry."""
    if window.kind != "linear":
        reach = (window.taps - 1) // window.stride
        return tuple(
            (o, window.taps - abs(o) * window.stride, _shared_entries(window, o))
            for o in range(-reach, reach + 1)
        )
    outputs = members_of(window)
    reads, valid = entries_read(window, outputs)
    used = valid & (window.shares(valid, outputs) != 0)
    found = []
    for offset in range(1 - len(outputs), len(outputs)):
        first = outputs[(outputs + offset >= 0) & (outputs + offset < len(outputs))]
        equal = reads[:, None, first] == reads[None, :, first + offset]
        shared = (equal & used[:, None, first] & used[None, :, first + offset]).sum(axis=(0, 1))
        if np.any(shared):
            inputs = window.inputs.size or 1
            found.append((offset, float(np.mean(shared)), float(np.sum(shared)) / inputs))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def wins_both(windows: tuple[AnyWindow, ...], size: float) -> float:
    """Σ over pairs of windows of P(an entry is the maximum of both), per entry.

    Of the entries that two windows share each is the maximum of their union equally often.
    """
    total = 0.0
    for chosen in itertools.product(*(overlaps(w) for w in windows)):
        if not any(offset for offset, _, _ in chosen):
            continue
        shared = math.prod(entries for _, entries, _ in chosen)
        total += math.prod(pairs for _, _, pairs in chosen) / max(2 * size - shared, shared)
    return total


@functools.lru_cache(maxsize=256)
def contested(window: AnyWindow) -> float:
    """Share of the pairs of windows of two adjacent entries in which each holds both entries."""
    outputs = members_of(window)
    reads, valid = entries_read(window, outputs)
    used = valid & (window.shares(valid, outputs) != 0)
    first = int(reads[used].min())
    holds = np.zeros((int(reads[used].max()) - first + 1, len(outputs)))
    taps, places = np.nonzero(used)
    holds[reads[taps, places] - first, places] = 1
    both = (holds[1:] * holds[:-1]).sum(axis=1)
    pairs = holds[1:].sum(axis=1) * holds[:-1].sum(axis=1)
    return float(np.sum(both**2) / np.sum(pairs)) if np.any(pairs) else 0.0


def _shared_entries(window: Window, offset: int) -> float:
    """Entries that windows share with those `offset` further, over the number of entries."""
    if window.inputs.size is None or window.outputs.size is None:
        return (window.taps - abs(offset) * window.stride) / window.stride
    outputs = np.arange(window.outputs.size)
    outputs = outputs[(outputs + offset >= 0) & (outputs + offset < window.outputs.size)]
    reads = window.reads(outputs)
    first = max(offset * window.stride, 0)
    last = min(offset * window.stride, 0) + window.taps
    met = reads[first:last]
    return float(np.sum((met >= 0) & (met < window.inputs.size)) / window.inputs.size)
