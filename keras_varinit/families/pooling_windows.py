"""The windows of pooling layers."""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import numpy as np

from keras_varinit.maths.borders import padding_windows
from keras_varinit.maths.covariance import Border, Moments
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
from keras_varinit.signals.layouts import channel_axis_of, in_layout
from keras_varinit.signals.outcome import Signal, Visit
from keras_varinit.signals.roles import per_dimension


def pooled_signal(visit: Visit) -> Signal:
    """The first input with its channels where the layer or operation expects them."""
    first = keras.config.image_data_format() == "channels_first"
    return in_layout(visit, channel_axis_of(visit.operation, 1 if first else -1))


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


_CHAIN = "maximum over windows"


def in_chain(maximum: Moments, of: tuple[Moments, tuple[AnyWindow, ...]]) -> Moments:
    """Remembers the map and the windows that a maximum is of."""
    maximum.elsewhere[_CHAIN] = of
    return maximum


def chain_of(
    moments: Moments, windows: Sequence[AnyWindow]
) -> tuple[Moments, tuple[AnyWindow, ...]] | None:
    """The map and the windows of a maximum over maxima, which is one over larger windows.

    None if the moments are no maximum, or one with strides.
    """
    source, first = moments.elsewhere.get(_CHAIN, (None, ()))
    if source is None or moments.border is not None or source.border is not None:
        return None
    joined: list[AnyWindow] = []
    for one, two in zip(first, windows, strict=True):
        if not isinstance(one, Window) or not isinstance(two, Window) or one.stride > 1:
            return None
        taps, low = one.taps + two.taps - 1, one.low + two.low
        joined.append(dataclasses.replace(two, taps=taps, low=low, inputs=one.inputs))
    return source, tuple(joined)


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
