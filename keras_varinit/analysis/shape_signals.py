"""The engine's rules of padding and reshaping."""

import math
from collections.abc import Callable

import numpy as np

from keras_varinit.analysis.axes import Axis, Window
from keras_varinit.analysis.moment_maps import (
    Axes,
    Moments,
    uniform,
)
from keras_varinit.analysis.rules import Padding, layer_classes, per_dimension
from keras_varinit.analysis.signals import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    alike,
    layout,
    only_first,
    signal_rule,
)
from keras_varinit.analysis.weight_signals import channel_axis_of, in_layout, summed_back


def unknown(visit: Visit) -> Outcome:
    """Outputs of which nothing is known; no gradient comes back."""
    axis = visit.inputs[0].channel_axis if visit.inputs else -1
    outputs = tuple(alike(s, axis, math.nan, math.nan, math.nan) for s in visit.call.output_shapes)
    return Outcome(outputs, lambda _: [None] * len(visit.inputs))


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
        return reshaped(visit)
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


def reshaped(visit: Visit) -> Outcome:
    """The same entries in another shape: at equal channels, or averages where channels move."""
    signal = visit.inputs[0]
    before, after = visit.call.input_shapes[0], visit.output_shape
    if before == after:
        # Another tensor (a part, a flip, …): entries of the two are not each other's.
        output = signal.each(Moments.copied)
        return Outcome((output,) * len(visit.call.output_shapes), _first_of_many(len(visit.inputs)))
    axes, channels = layout(after, -1)
    kept = signal.channel_axis in (-1, len(before) - 1) and before[-1] == after[-1]

    def moved_moments(moments: Moments) -> Moments:
        if not axes:
            return moments.flattened().copied()
        if not moments.axes:
            mean = moments.average(moments.mean)
            return uniform(axes, mean, moments.second_moment, mean**2)
        return moments.spread_over(axes)

    if kept:
        output = Signal(signal.each(moved_moments).parts, -1)
    elif not axes and signal.channels and channels % signal.channels == 0:
        times = channels // signal.channels
        parts = tuple((n * times, m) for n, m in signal.each(moved_moments).parts)
        output = Signal(parts, -1)
    else:
        output = Signal(((channels, moved_moments(signal.merged)),), -1)

    def pullback(gradients: Gradients) -> Gradients:
        known = [g for g in gradients if g is not None]
        if not known:
            return only_first(None, len(visit.inputs))
        matched = len(output.parts) == len(signal.parts)
        whole = sum(g.second_moment(output) for g in known) / max(len(gradients), 1)
        parts = tuple(
            np.full_like(
                m.mean, float(np.mean(known[0].parts[i])) if matched and axes == () else whole
            )
            for i, (_, m) in enumerate(signal.parts)
        )
        coherence = known[0].coherence if axes and signal.axes else 0.0
        return only_first(Gradient(parts, coherence), len(visit.inputs))

    return Outcome((output,) * len(visit.call.output_shapes), pullback)


def _first_of_many(count: int) -> Callable[[Gradients], Gradients]:
    def pullback(gradients: Gradients) -> Gradients:
        known = [g for g in gradients if g is not None]
        return only_first(known[0] if known else None, count)

    return pullback
