"""Overlapping pooling windows: entries that they share, and entries that win several maxima."""

import functools
import itertools
import math

import numpy as np

from keras_varinit.maths.windows import AnyWindow, Window, entries_read, members_of


@functools.lru_cache(maxsize=256)
def overlaps(window: AnyWindow) -> tuple[tuple[int, float, float], ...]:
    """For each offset of two windows, how they overlap.

    Returns:
        Tuples of the offset, the number of entries that both windows contain, and the number of
        (pair of windows, shared entry) over the number of inputs.
    """
    if window.kind != "linear":
        reach = (window.taps - 1) // window.stride
        return tuple(
            (o, window.taps - abs(o) * window.stride, _shared_entries(window, o))
            for o in range(-reach, reach + 1)
        )
    outputs = members_of(window)
    reads, valid = entries_read(window, outputs)
    used = valid & (window.shares(valid, outputs) != 0)
    by_offset = []
    for offset in range(1 - len(outputs), len(outputs)):
        first = outputs[(outputs + offset >= 0) & (outputs + offset < len(outputs))]
        equal = reads[:, None, first] == reads[None, :, first + offset]
        shared = (equal & used[:, None, first] & used[None, :, first + offset]).sum(axis=(0, 1))
        if np.any(shared):
            inputs = window.inputs.size or 1
            by_offset.append((offset, float(np.mean(shared)), float(np.sum(shared)) / inputs))
    return tuple(by_offset)


@functools.lru_cache(maxsize=256)
def wins_both(windows: tuple[AnyWindow, ...], size: float) -> float:
    """Σ over pairs of windows of P(an entry is the maximum of both), per entry.

    Each entry that two windows share is equally likely to be the maximum of their union.
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
    """Share of window pairs, one on each of two adjacent entries, where both contain both."""
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
    """Entries shared by windows `offset` apart, over the number of inputs."""
    if window.inputs.size is None or window.outputs.size is None:
        return (window.taps - abs(offset) * window.stride) / window.stride
    outputs = np.arange(window.outputs.size)
    outputs = outputs[(outputs + offset >= 0) & (outputs + offset < window.outputs.size)]
    reads = window.reads(outputs)
    first = max(offset * window.stride, 0)
    last = min(offset * window.stride, 0) + window.taps
    shared = reads[first:last]
    return float(np.sum((shared >= 0) & (shared < window.inputs.size)) / window.inputs.size)
