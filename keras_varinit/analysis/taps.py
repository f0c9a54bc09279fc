"""What the taps of a convolution read, and how gradients come back through them."""

from collections.abc import Sequence

import numpy as np

from keras_varinit.analysis.axes import AnyWindow, Array, Window
from keras_varinit.analysis.moment_maps import Axes, Moments, axis_maps, in_place
from keras_varinit.analysis.rules import Call, per_dimension
from keras_varinit.fans import padding_and_outputs


def windows(call: Call, source: Axes, target: Axes) -> list[Window]:
    """The windows of a convolution layer."""
    layer, rank = call.operation, len(source)
    sizes = per_dimension(layer.kernel_size, rank)
    strides = per_dimension(layer.strides, rank)
    dilation = per_dimension(layer.dilation_rate, rank)
    return windows_of(sizes, strides, dilation, layer.padding, source, target)


def windows_of(
    sizes: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str,
    source: Axes,
    target: Axes,
) -> list[Window]:
    """The windows of a convolution, axis by axis."""
    found = []
    for k, s, d, before, after in zip(sizes, strides, dilation, source, target, strict=True):
        low, _ = padding_and_outputs(before.size or 10**6, k, s, d, padding)
        found.append(Window("conv", k, s, d, low, before, after))
    return found


def transposed_windows(call: Call, source: Axes, target: Axes) -> list[Window]:
    """The windows of a transposed convolution layer."""
    layer = call.operation
    rank = len(source)
    sizes = per_dimension(layer.kernel_size, rank)
    strides = per_dimension(layer.strides, rank)
    dilation = per_dimension(layer.dilation_rate, rank)
    found = []
    for axis in range(rank):
        n, m, low = source[axis].size, target[axis].size, 0
        k, s, d = sizes[axis], strides[axis], dilation[axis]
        if layer.padding == "same" and n is not None and m is not None:
            low = max((n - 1) * s + (k - 1) * d + 1 - m, 0) // 2
        found.append(Window("transposed", k, s, d, low, source[axis], target[axis]))
    return found


def summed_back(windows: Sequence[AnyWindow], moments: Moments, gradient: Array) -> Array:
    """Σ over the outputs that read an input of E g², by class of the input's position."""
    if all(in_place(window) for window in windows):
        return gradient
    for axis, (window, each) in enumerate(zip(windows, axis_maps(moments, windows), strict=True)):
        source, target = window.inputs, window.outputs
        if source.size is None or target.size is None:
            ratio = float(window.stride) if window.kind == "transposed" else 1 / window.stride
        else:
            ratio = target.size / source.size
        matrix = each.means.T * target.weights[None, :] / source.weights[:, None] * ratio
        gradient = np.moveaxis(np.tensordot(matrix, gradient, axes=(1, axis)), 0, axis)
    return gradient
