"""Linear maps along the axes of a signal's positions, and gradients back through them."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.mean_laws import ratio_of, with_mean_law
from keras_varinit.maths.windows import AnyWindow, Axis, Linear, Window
from keras_varinit.signals.gradient_maps import through_linear
from keras_varinit.signals.layouts import channel_axis_of, in_layout
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, layout, only_first


def moved(visit: Visit, windows_of: Callable[[Axis, Axis, int], AnyWindow]) -> Outcome:
    """A linear map along each position axis: moves, repeats, drops or mixes entries."""
    signal = in_layout(visit, channel_axis_of(visit.operation, visit.inputs[0].channel_axis))
    target, _ = layout(visit.output_shape, signal.channel_axis)
    windows = [
        windows_of(source, axis, number)
        for number, (source, axis) in enumerate(zip(signal.axes, target, strict=True))
    ]
    return along_axes(visit, signal, windows)


def along_axes(visit: Visit, signal: Signal, windows: Sequence[AnyWindow]) -> Outcome:
    """Applies one window per position axis to a signal, with the pullback of gradients."""
    output = signal.each(lambda m: _mapped(m, windows))
    back = back_through(visit, windows)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is not None and gradient.through is not None:
            ratios = [ratio_of(m, gradient.through) for _, m in output.parts]
            parts = zip(gradient.parts, ratios, strict=True)
            gradient = gradient.with_parts(tuple(g * r for g, r in parts))
        return back([gradient, *gradients[1:]])

    return Outcome((output,), pullback)


def _mapped(moments: Moments, windows: Sequence[AnyWindow]) -> Moments:
    """Maps the moments; outputs that are single inputs stay functions of a Gaussian root."""
    result = moments.mapped(windows)
    if not all(_picks(window) for window in windows):
        if all(isinstance(w, Window) and w.kind == "pool" for w in windows):
            return with_mean_law(result, moments, math.prod(w.taps for w in windows))
        return result
    if moments.pre is None:
        return dataclasses.replace(result, law=moments.law, third=moments.third)
    pre = moments.pre.mapped(windows)
    return dataclasses.replace(result, pre=pre, function=moments.function, third=moments.third)


def _picks(window: AnyWindow) -> bool:
    """Whether each output of a window is one of its inputs."""
    if window.kind == "repeat":
        return True
    if window.kind == "linear":
        return window.taps == 1 and set(np.frombuffer(window.coefficients).tolist()) == {1.0}
    inputs, outputs = window.inputs.size, window.outputs.size
    if window.inputs == window.outputs and window.taps == 1:
        return window.low == 0
    if inputs is None or outputs is None or window.taps > 1:
        return False
    return window.low <= 0 and outputs - window.low <= inputs


def back_through(visit: Visit, windows: Sequence[AnyWindow]) -> Callable[[Gradients], Gradients]:
    """Gradients back through a linear map along each axis."""

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        back = None if gradient is None else through_linear(gradient, windows)
        return only_first(back, len(visit.inputs))

    return pullback


def gather(places: Sequence[int], inputs: Axis, outputs: Axis) -> Linear:
    """The map whose output p is the input at `places[p]`."""
    positions = np.asarray(places, np.int64)
    return Linear(inputs, outputs, 1, positions.tobytes(), np.ones(len(positions)).tobytes())
