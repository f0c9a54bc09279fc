"""The engine's rules of pooling."""

import dataclasses
import functools
import itertools
import math

import numpy as np

from keras_varinit.analysis.axes import Array, Window
from keras_varinit.analysis.moment_maps import Axes, Moments, axis_maps, position_weights, uniform
from keras_varinit.analysis.nonlinear import IDENTITY, law_of, max_pooled
from keras_varinit.analysis.rules import layer_classes, per_dimension
from keras_varinit.analysis.shape_signals import number_of_positions
from keras_varinit.analysis.signals import (
    Gradient,
    Gradients,
    Outcome,
    Visit,
    layout,
    only_first,
    signal_rule,
    unknown,
)
from keras_varinit.analysis.weight_signals import channel_axis_of, in_layout, summed_back
from keras_varinit.fans import padding_and_outputs
from keras_varinit.pair_moments import maximum_over_positions


def _pool_windows(visit: Visit, source: Axes, target: Axes) -> list[Window]:
    layer, rank = visit.operation, len(source)
    sizes = per_dimension(layer.pool_size, rank)
    strides = per_dimension(layer.strides or layer.pool_size, rank)
    found = []
    for axis in range(rank):
        size = source[axis].size or 10**6
        low, _ = padding_and_outputs(size, sizes[axis], strides[axis], 1, layer.padding)
        found.append(Window("pool", sizes[axis], strides[axis], 1, low, source[axis], target[axis]))
    return found


@functools.lru_cache(maxsize=256)
def _wins_both(windows: tuple[Window, ...], size: float) -> float:
    """Σ over pairs of windows of P(an entry is the maximum of both), per entry.

    Of the entries that two windows share each is the maximum of their union equally often.
    """
    reach = [(w.taps - 1) // w.stride for w in windows]
    total = 0.0
    for offset in itertools.product(*(range(-r, r + 1) for r in reach)):
        if not any(offset):
            continue
        shared = math.prod(w.taps - abs(o) * w.stride for w, o in zip(windows, offset, strict=True))
        pairs = math.prod(_shared_entries(w, o) for w, o in zip(windows, offset, strict=True))
        total += pairs / max(2 * size - shared, shared)
    return total


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


@functools.lru_cache(maxsize=256)
def _meeting(taps: int, stride: int, local: float) -> tuple[float, float]:
    """Along one axis, what entries get from windows whose neighbours correlate by `local`.

    The factor on E g² against uncorrelated windows, and the correlation of adjacent entries.
    """
    count = 2 * (taps // stride + 3)
    covers = np.zeros((count, count * stride + taps))
    for window in range(count):
        covers[window, window * stride : window * stride + taps] = 1
    correlation = np.eye(count) + local * (np.eye(count, k=1) + np.eye(count, k=-1))
    together = covers.T @ correlation @ covers
    middle = np.arange(stride) + (count // 2) * stride
    own = float(np.mean(together[middle, middle]))
    apart = float(np.mean((covers.T @ covers)[middle, middle]))
    return own / apart if apart else 1.0, float(np.mean(together[middle, middle + 1])) / own


@signal_rule(*layer_classes("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"), "MaxPool")
def _max_pooling(visit: Visit) -> Outcome:
    channel_axis = channel_axis_of(visit.operation)
    signal = in_layout(visit, channel_axis)
    target, _ = layout(visit.output_shape, channel_axis)
    if not all(m.is_known() for _, m in signal.parts):
        return unknown(visit)
    windows = _pool_windows(visit, signal.axes, target)
    shares: dict[int, Array] = {}
    sizes: dict[int, float] = {}

    def pooled(moments: Moments) -> Moments:
        result, passed, size = max_pooled(moments, windows)
        before = law_of(moments.pre or moments, moments.function or IDENTITY)
        slope = before.squared_slope
        shares[id(moments)] = passed / slope if slope > 0 else np.zeros_like(passed)
        sizes[id(moments)] = size
        return result

    output = signal.each(pooled)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return (None,)
        parts = []
        for (_, moments), g in zip(signal.parts, gradient.parts, strict=True):
            given = g * shares[id(moments)]
            # Two windows give an entry their gradients together if it wins in both.
            both = gradient.adjacent * _wins_both(tuple(windows), sizes[id(moments)])
            parts.append(summed_back(windows, moments, given) + both * float(np.mean(given)))
        # Two entries get a gradient each only if both win.
        won = math.prod(w.taps / w.stride for w in windows) / sizes[id(signal.parts[0][1])]
        passed = gradient.less_coherent(min(won, 1.0), min(won, 1.0))
        return (passed.with_parts(tuple(parts)),)

    return Outcome((output,), pullback)


@signal_rule(*layer_classes("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"))
@signal_rule("AveragePool")
def _average_pooling(visit: Visit) -> Outcome:
    channel_axis = channel_axis_of(visit.operation)
    signal = in_layout(visit, channel_axis)
    target, _ = layout(visit.output_shape, channel_axis)
    windows = _pool_windows(visit, signal.axes, target)
    output = signal.each(lambda m: m.mapped(windows))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return (None,)
        met = [_meeting(w.taps, w.stride, gradient.local) for w in windows]
        growth = math.prod(grown for grown, _ in met)
        local = float(np.mean([adjacent for _, adjacent in met]))
        shared = 0.0
        parts = []
        for (_, moments), g in zip(signal.parts, gradient.parts, strict=True):
            sizes = np.ones(())
            for each in axis_maps(moments, windows):
                sizes = sizes[..., None] * np.maximum(each.counts, 1e-9)
            apart = summed_back(windows, moments, g / sizes) * growth
            together = summed_back(windows, moments, np.sqrt(g)) ** 2
            parts.append((1 - gradient.coherence) * apart + gradient.coherence * together)
            shared += gradient.coherence * float(np.mean(together)) / len(signal.parts)
        total = float(np.mean([np.mean(part) for part in parts]))
        coherence = min(shared / total, 1.0) if total > 0 else 0.0
        passed = dataclasses.replace(gradient, coherence=coherence, local=local)
        return (passed.with_parts(tuple(parts)),)

    return Outcome((output,), pullback)


@signal_rule(
    *layer_classes("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D")
)
def global_average(visit: Visit) -> Outcome:
    """The mean over all positions: pairs of positions, and what near ones have beyond that."""
    signal = in_layout(visit, channel_axis_of(visit.operation, visit.inputs[0].channel_axis))
    count = number_of_positions(signal.axes)
    target, _ = layout(visit.output_shape, signal.channel_axis)
    rank = len(signal.axes)

    def averaged(moments: Moments) -> Moments:
        beyond = moments.excess.sum(axis=tuple(range(0, 2 * rank, 2)))
        second = moments.pair_moment + moments.average(beyond) / count
        return uniform(target, moments.average(moments.mean), second, moments.pair_moment)

    output = signal.each(averaged)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        parts = tuple(
            np.full_like(m.mean, float(np.mean(g)) / count**2)
            for (_, m), g in zip(signal.parts, gradient.parts, strict=True)
        )
        return only_first(Gradient(parts, 1.0), len(visit.inputs))

    return Outcome((output,), pullback)


@signal_rule(*layer_classes("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"))
def global_max(visit: Visit) -> Outcome:
    """The maximum over all positions."""
    signal = in_layout(visit, channel_axis_of(visit.operation, visit.inputs[0].channel_axis))
    count = number_of_positions(signal.axes)
    target, _ = layout(visit.output_shape, signal.channel_axis)
    if not math.isfinite(count) or not all(m.is_known() for _, m in signal.parts):
        visit.note(f"{visit.operation.name}: the maximum over a map of unknown size is not known")
        return unknown(visit)
    shares: dict[int, float] = {}

    def pooled(moments: Moments) -> Moments:
        root, function = moments.pre or moments, moments.function or IDENTITY
        weights = position_weights(root.axes)
        first, second, passed, pair = maximum_over_positions(
            function,
            root.mean.ravel(),
            np.sqrt(root.variance).ravel(),
            root.loadings,
            (count * weights).ravel(),
        )
        slope = law_of(root, function).squared_slope
        shares[id(moments)] = passed / slope if slope > 0 else 0.0
        # The common part is the same in every example.
        return uniform(target, first, second, min(pair, second))

    output = signal.each(pooled)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        parts = tuple(
            np.full_like(m.mean, float(np.mean(g)) / count * shares[id(m)])
            for (_, m), g in zip(signal.parts, gradient.parts, strict=True)
        )
        return only_first(Gradient(parts, 0.0), len(visit.inputs))

    return Outcome((output,), pullback)
