"""Patches: `ops.image.extract_patches`, `ops.nn.space_to_depth` and `depth_to_space`."""

import dataclasses
import math

import numpy as np

from keras_varinit.maths.covariance import Moments, axis_maps, outer
from keras_varinit.maths.fans import padding_and_outputs
from keras_varinit.maths.windows import Window, apply
from keras_varinit.signals.gradient_maps import through_taps
from keras_varinit.signals.layouts import channel_axis_of, in_layout
from keras_varinit.signals.outcome import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    layout,
    not_modelled,
    only_first,
)
from keras_varinit.signals.registry import constant_role, signal_rule
from keras_varinit.signals.roles import Transparent, per_dimension
from keras_varinit.signals.taps import summed_back


@signal_rule("SpaceToDepth", "ExtractPatches")
def _patches(visit: Visit) -> Outcome:
    """Turns the entries of each window into channels of one position.

    Moments are averaged over these channels. Gradients of different channels are independent.
    """
    operation = visit.operation
    signal = in_layout(visit, channel_axis_of(operation))
    rank = len(signal.axes)
    target, _ = layout(visit.output_shape, signal.channel_axis)
    block = getattr(operation, "block_size", None)
    size = per_dimension(block or operation.size, rank)
    # Without strides patches do not overlap; older versions of Keras leave that to the backend.
    strides = size if block else per_dimension(operation.strides or operation.size, rank)
    dilation = (1,) * rank if block else per_dimension(operation.dilation_rate, rank)
    padding = "valid" if block else operation.padding
    if len(visit.output_shape) != rank + 2 or len(target) != rank or len(size) != rank:
        return not_modelled(visit, "a single image without a batch")
    windows = []
    for axis in range(rank):
        k, s, d = size[axis], strides[axis], dilation[axis]
        low, _ = padding_and_outputs(signal.axes[axis].size or 10**6, k, s, d, padding)
        windows.append(Window("conv", k, s, d, low, signal.axes[axis], target[axis]))
    count = math.prod(size)

    def averaged(moments: Moments) -> Moments:
        total = moments.mapped(windows)
        return dataclasses.replace(
            total, mean=total.mean / count, far=total.far / count, excess=total.excess / count
        )

    taken = signal.each(averaged)
    output = dataclasses.replace(signal, parts=tuple((n * count, m) for n, m in taken.parts))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        parts = tuple(
            summed_back(windows, m, g)
            for (_, m), g in zip(signal.parts, gradient.parts, strict=True)
        )
        return only_first(through_taps(gradient, windows).with_parts(parts), len(visit.inputs))

    return Outcome((output,), pullback)


@signal_rule("DepthToSpace")
def _depth_to_space(visit: Visit) -> Outcome:
    """Turns channels into blocks of positions.

    Positions of one block come from different channels, so their pair moment is the product of
    their means. Covariances between positions of one channel spread as in a transposed
    convolution with independent taps.
    """
    operation = visit.operation
    signal = in_layout(visit, channel_axis_of(operation))
    target, channels = layout(visit.output_shape, signal.channel_axis)
    block = int(operation.block_size)
    merged = signal.merged
    windows = [
        Window("transposed", block, block, 1, 0, a, b)
        for a, b in zip(signal.axes, target, strict=True)
    ]
    centred = dataclasses.replace(
        merged.plain(), mean=np.zeros_like(merged.mean), far=merged.far - outer(merged.mean)
    )
    spread = centred.mapped(windows)
    mean = apply([m.means for m in axis_maps(merged, windows)], merged.mean)
    moments = dataclasses.replace(spread, mean=mean, far=spread.far + outer(mean))
    output = Signal(((channels, moments),), signal.channel_axis)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        back = summed_back(windows, merged, gradient.parts[0]) / block ** len(windows)
        passed = Gradient((back,) * len(signal.parts), gradient.coherence)
        return only_first(passed, len(visit.inputs))

    return Outcome((output,), pullback)


constant_role(Transparent(), "DepthToSpace", "ExtractPatches", "SpaceToDepth")
