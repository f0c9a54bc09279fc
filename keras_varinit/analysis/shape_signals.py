"""The engine's rules of padding, reshaping and merging."""

import math
from collections.abc import Callable

import numpy as np

from keras_varinit.analysis.axes import Axis, Window
from keras_varinit.analysis.moment_maps import (
    Axes,
)
from keras_varinit.analysis.rules import Padding, layer_classes, per_dimension
from keras_varinit.analysis.signals import (
    Gradients,
    Outcome,
    Visit,
    layout,
    only_first,
    signal_rule,
    unknown,
)
from keras_varinit.analysis.weight_signals import channel_axis_of, in_layout, summed_back


def number_of_positions(axes: Axes) -> float:
    """Entries of a channel; infinite where a size is unknown."""
    return math.prod(math.inf if a.size is None else a.size for a in axes)


def moved(visit: Visit, windows_of: Callable[[Axis, Axis, int], Window]) -> Outcome:
    """Entries at other positions, some repeated or left out."""
    channel_axis = channel_axis_of(visit.operation, visit.inputs[0].channel_axis)
    signal = in_layout(visit, channel_axis)
    target, _ = layout(visit.output_shape, channel_axis)
    windows = [
        windows_of(source, axis, number)
        for number, (source, axis) in enumerate(zip(signal.axes, target, strict=True))
    ]

    output = signal.each(lambda m: m.mapped(windows))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        parts = []
        repeats = math.prod(w.stride for w in windows)
        for (_, moments), g in zip(signal.parts, gradient.parts, strict=True):
            back = summed_back(windows, moments, g)
            parts.append(back * (1 + gradient.coherence * (repeats - 1)))
        return only_first(gradient.with_parts(tuple(parts)), len(visit.inputs))

    return Outcome((output,), pullback)


@signal_rule(*layer_classes("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"), "Pad")
def _zero_padding(visit: Visit) -> Outcome:
    role = visit.role
    if not isinstance(role, Padding):
        return unknown(visit, "only zeros around positions are modelled")
    return moved(visit, lambda a, b, n: Window("conv", 1, 1, 1, role.pads[n][0], a, b))


@signal_rule(*layer_classes("Cropping1D", "Cropping2D", "Cropping3D"))
def _cropping(visit: Visit) -> Outcome:
    cropping = visit.operation.cropping
    pairs = [(c, c) if isinstance(c, int) else tuple(c) for c in np.atleast_1d(cropping).tolist()]
    if len(pairs) == 2 and len(visit.inputs[0].axes) == 1:
        pairs = [(pairs[0][0], pairs[1][0])]
    return moved(visit, lambda a, b, n: Window("conv", 1, 1, 1, -pairs[n][0], a, b))


@signal_rule(*layer_classes("UpSampling1D", "UpSampling2D", "UpSampling3D"))
def _up_sampling(visit: Visit) -> Outcome:
    size = per_dimension(visit.operation.size, len(visit.call.input_shapes[0]) - 2)
    if getattr(visit.operation, "interpolation", "nearest") != "nearest":
        visit.note(f"{visit.operation.name}: its interpolation counts as repeating entries")
    return moved(visit, lambda a, b, n: Window("repeat", 1, size[n], 1, 0, a, b))
