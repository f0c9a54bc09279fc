"""The windows of pooling layers."""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import numpy as np

from keras_varinit.maths.borders import padding_windows
from keras_varinit.maths.covariance import Border
from keras_varinit.maths.fans import padding_and_outputs
from keras_varinit.maths.windows import (
    AnyWindow,
    Array,
    Axes,
    Axis,
    Linear,
    Window,
    apply,
    axis_map,
)
from keras_varinit.signals.outcome import Visit
from keras_varinit.signals.roles import per_dimension


def pool_windows(visit: Visit, source: Axes, target: Axes) -> list[Window]:
    """The window of a pooling layer along each position axis."""
    operation, rank = visit.operation, len(source)
    sizes = per_dimension(operation.pool_size, rank)
    strides = per_dimension(operation.strides or operation.pool_size, rank)
    axis_windows = []
    for axis in range(rank):
        size = source[axis].size or 10**6
        low, _ = padding_and_outputs(size, sizes[axis], strides[axis], 1, operation.padding)
        axis_windows.append(
            Window("pool", sizes[axis], strides[axis], 1, low, source[axis], target[axis])
        )
    return axis_windows


def without_border(windows: Sequence[Window], border: Border) -> list[Window]:
    """The same windows on the map without its border."""
    return [
        dataclasses.replace(window, low=window.low + low, inputs=axis)
        for window, (low, _), axis in zip(windows, border.pads, border.source.axes, strict=True)
    ]


def adaptive_windows(source: Axes, target: Axes) -> list[Linear] | None:
    """The windows of adaptive pooling; None if a size is unknown or Keras records a wrong rank."""
    if len(source) != len(target) or any(a.size is None for a in (*source, *target)):
        return None
    return [_adaptive_window(a, b) for a, b in zip(source, target, strict=True)]


@functools.lru_cache(maxsize=256)
def _adaptive_window(source: Axis, target: Axis) -> Linear:
    """Output i of m is the mean of the entries from ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉ of n."""
    n, m = source.size or 1, target.size or 1
    matrix = np.zeros((m, n))
    for i in range(m):
        first, last = i * n // m, -(-(i + 1) * n // m)
        matrix[i, first:last] = 1 / (last - first)
    return Linear.of(matrix, source, target)


def as_the_backend_pads(windows: Sequence[Window]) -> Sequence[AnyWindow]:
    """The windows that the backend uses: PyTorch replicates the border for uneven padding."""
    known = [w for w in windows if w.inputs.size is not None and w.outputs.size is not None]
    uneven = any(_zeros_behind(window) > window.low for window in known)
    if keras.backend.backend() != "torch" or not uneven or len(known) < len(windows):
        return windows
    return [_repeating_the_border(window) for window in windows]


def _zeros_behind(window: Window) -> int:
    outputs, inputs = window.outputs.size or 1, window.inputs.size or 1
    return max((outputs - 1) * window.stride + window.taps - inputs - window.low, 0)


def _repeating_the_border(window: Window) -> Linear:
    outputs, inputs = np.arange(window.outputs.size or 1), window.inputs.size or 1
    matrix = np.zeros((len(outputs), inputs))
    for places in np.clip(window.reads(outputs), 0, inputs - 1):
        matrix[outputs, places] += 1 / window.taps
    return Linear.of(matrix, window.inputs, window.outputs)


def in_border(inner: Array, border: Border | None) -> Array:
    """Extends E g² by class of position of a map to the map with its border."""
    if border is None:
        return inner
    windows = padding_windows(border.source.axes, border.pads)
    return apply([axis_map(w, 0).means for w in windows], inner)
