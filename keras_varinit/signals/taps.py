"""The taps of convolutions: what they read, and gradients back through them."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.maths.covariance import Moments, axis_maps
from keras_varinit.maths.fans import padding_and_outputs, transposed_padding
from keras_varinit.maths.windows import AnyWindow, Array, Axes, Window, reads_in_place
from keras_varinit.signals.roles import Call, per_dimension


def windows(call: Call, source: Axes, target: Axes) -> list[Window]:
    """The window of a convolution layer along each position axis."""
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
    """The window of a convolution along each position axis."""
    axis_windows = []
    for k, s, d, before, after in zip(sizes, strides, dilation, source, target, strict=True):
        low, _ = padding_and_outputs(before.size or 10**6, k, s, d, padding)
        axis_windows.append(Window("conv", k, s, d, low, before, after))
    return axis_windows


def transposed_windows(call: Call, source: Axes, target: Axes) -> list[Window]:
    """The window of a transposed convolution layer along each position axis."""
    layer = call.operation
    rank = len(source)
    sizes = per_dimension(layer.kernel_size, rank)
    strides = per_dimension(layer.strides, rank)
    dilation = per_dimension(layer.dilation_rate, rank)
    axis_windows = []
    for axis in range(rank):
        n, m, low = source[axis].size, target[axis].size, 0
        k, s, d = sizes[axis], strides[axis], dilation[axis]
        if n is not None and m is not None:
            low = transposed_padding(n, m, k, s, d, layer.padding)
        axis_windows.append(Window("transposed", k, s, d, low, source[axis], target[axis]))
    return axis_windows


def at_centre(window: Window) -> Window:
    """A convolution's window without its taps, save for the central one, (n-1)//2 of n."""
    centre = (window.taps - 1) // 2 * window.dilation
    return dataclasses.replace(window, taps=1, dilation=1, low=window.low - centre)


def summed_back(windows: Sequence[AnyWindow], moments: Moments, gradient: Array) -> Array:
    """Σ E g² over the outputs that read an input, by class of the input's position.

    `gradient` is E g² by class of the output's position.
    """
    if all(reads_in_place(window) for window in windows):
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


def mean_inverse(moments: Moments, windows: Sequence[AnyWindow], fan_in: int) -> float:
    """E σ²·E 1/σ² over channels u = Σ w·z of `fan_in` inputs through windows; NaN if unbounded.

    For a fixed kernel, a channel's variance σ² over examples and positions is Σ w_a w_b C_ab, with
    C the covariance of the taps. It is a weighted χ² sum with the eigenvalues λ of C, each
    `fan_in` times, so E 1/σ² = ∫ Π (1 + 2tλ)^(-fan_in/2) dt.
    """
    kinds = [(w.taps, w.dilation) if isinstance(w, Window) else (1, 1) for w in windows]
    places = list(itertools.product(*(range(taps) for taps, _ in kinds)))
    if fan_in * len(places) > 200:
        return 1.0
    own = moments.average(moments.excess[moments.offset_of((0,) * len(kinds))])
    if not own > 0:
        return 1.0

    def shared(apart: tuple[int, ...]) -> float:
        offset = [n * dilation for n, (_, dilation) in zip(apart, kinds, strict=True)]
        if any(abs(o) > r for o, r in zip(offset, moments.radius, strict=True)):
            return 0.0
        return moments.average(moments.excess[moments.offset_of(offset)]) / own

    steps = [range(1 - taps, taps) for taps, _ in kinds]
    by_distance = np.array([shared(apart) for apart in itertools.product(*steps)])
    by_distance = by_distance.reshape([len(each) for each in steps])
    at = np.array(places, np.int64).reshape(len(places), len(kinds))
    apart = at[None, :] - at[:, None] + np.array([taps - 1 for taps, _ in kinds], np.int64)
    covariance = by_distance[tuple(np.moveaxis(apart, -1, 0))].reshape(len(places), len(places))
    values = np.maximum(np.linalg.eigvalsh(covariance), 0.0) / len(places)
    return _mean_inverse(tuple(values.tolist()), fan_in)


@functools.lru_cache(maxsize=1024)
def _mean_inverse(eigenvalues: tuple[float, ...], fan_in: int) -> float:
    values = np.array(eigenvalues)
    if fan_in * np.sum(values > 1e-3) < 4:
        return math.nan
    steps = np.linspace(-12.0, 12.0, 400)
    t = np.exp(steps) / fan_in
    logs = fan_in / 2 * np.log1p(2 * t[:, None] * values[None, :]).sum(axis=1)
    return float(np.sum(t * np.exp(-logs)) * (steps[1] - steps[0]) * fan_in)
