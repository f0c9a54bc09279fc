"""The engine's rules of layers with kernels: E u² of what they put out, and gradients through them.

Kernels are independent and zero-mean, so E u_p u_q = Var(w)·Σ E z z over the taps that p and q have
in common, and the gradient comes back through the same sums.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.analysis import rules
from keras_varinit.analysis.axes import Window
from keras_varinit.analysis.axes import in_place as is_in_place
from keras_varinit.analysis.curvature import with_own
from keras_varinit.analysis.gradient_maps import through_taps
from keras_varinit.analysis.layouts import back_to, with_channel_axes
from keras_varinit.analysis.moment_maps import Axes, Moments, uniform
from keras_varinit.analysis.narrowness import beyond_independent
from keras_varinit.analysis.pointwise_signals import (
    acts_on_rows,
    after_activation,
    moments_of_variable,
)
from keras_varinit.analysis.rules import Weights, layer_classes
from keras_varinit.analysis.scatter import scattered
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
from keras_varinit.analysis.softmax_signals import as_activation
from keras_varinit.analysis.taps import mean_inverse, summed_back, transposed_windows, windows


def channel_axis_of(layer: Any, default: int = -1) -> int:
    """The dimension of the channels in a layer's input and output."""
    data_format = getattr(layer, "data_format", None)
    if data_format is None:
        return default
    return 1 if data_format == "channels_first" else -1


def in_layout(visit: Visit, channel_axis: int) -> Signal:
    """The first input with its channels where a layer expects them."""
    return with_channel_axes(visit.inputs[0], visit.call.input_shapes[0], (channel_axis,))


class Weighing:
    """One kernel at work: its variance for the signal it reads, and what it passes on."""

    def __init__(self, visit: Visit, kernel: rules.Kernel, unit: Sequence[tuple[int, Moments]]):
        """`unit`: what comes out, by groups of channels, for a kernel of variance 1."""
        self.visit, self.kernel = visit, kernel
        self.unit = unit
        gain = sum(n * m.second_moment for n, m in unit) / sum(n for n, _ in unit)
        self.variance = visit.variance_of(kernel.variable, gain)

    def output(self, bias: tuple[float, float], channel_axis: int) -> Signal:
        """The kernel's output, which is taken down."""
        parts = tuple((n, m.scaled(self.variance).shifted(bias)) for n, m in self.unit)
        self.unit = ()  # gradients need it no more, and it is as large as the output
        signal = Signal(parts, channel_axis)
        self.visit.forward(self.kernel.variable, signal.second_moment)
        return signal

    def came_back(self, gradient: Gradient | None, output: Signal) -> None:
        """Takes down the gradient at the kernel's output."""
        if gradient is not None:
            second = gradient.second_moment(output) * gradient.here
            self.visit.backward(self.kernel.variable, second)


def with_activation(visit: Visit, linear: Outcome) -> Outcome:
    """Followed by the activation inside the layer."""
    role = visit.role
    if not isinstance(role, Weights) or role.activation is None:
        return linear
    if acts_on_rows(role.activation) and not visit.at_output:
        after = as_activation(visit, linear.outputs, role.activation.name)
    else:
        after = after_activation(linear.outputs[0], role.activation)

    def pullback(gradients: Gradients) -> Gradients:
        return linear.pullback(after.pullback(gradients))

    return Outcome(after.outputs, pullback)


@signal_rule(*layer_classes("Conv1D", "Conv2D", "Conv3D"))
def _conv(visit: Visit) -> Outcome:
    layer = visit.operation
    channel_axis = channel_axis_of(layer)
    target, channels = layout(visit.output_shape, channel_axis)
    signal = in_layout(visit, channel_axis)
    merged = signal.merged
    taps = windows(visit.call, signal.axes, target)
    groups = getattr(layer, "groups", 1)
    return shared_kernel(visit, signal, merged, taps, signal.channels // groups, channels, groups)


@signal_rule(*layer_classes("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"))
def _conv_transpose(visit: Visit) -> Outcome:
    channel_axis = channel_axis_of(visit.operation)
    target, channels = layout(visit.output_shape, channel_axis)
    signal = in_layout(visit, channel_axis)
    taps = transposed_windows(visit.call, signal.axes, target)
    return shared_kernel(visit, signal, signal.merged, taps, signal.channels, channels, 1)


def shared_kernel(
    visit: Visit,
    signal: Signal,
    merged: Moments,
    taps: list[Window],
    fan_in: int,
    channels: int,
    groups: int,
) -> Outcome:
    """Every output channel sums `fan_in` channels over the taps."""
    role = visit.role
    if not isinstance(role, Weights):
        raise TypeError("a rule of weight layers met another role")
    unit = scattered(merged.weighted(taps, fan_in), merged, taps, fan_in)
    weighing = Weighing(visit, role.kernels[0], [(channels, unit)])
    output = weighing.output(moments_of_variable(visit.operation, "bias"), signal.channel_axis)
    inverse = mean_inverse(merged, taps, fan_in)
    # E w'w/w'Cw of kernels w that read channels of covariance C, to second order.
    unequal = 2 * beyond_independent(role, signal, max(visit.narrowness, default=0.0))
    output = output.each(lambda m: dataclasses.replace(m, inverse=inverse, unequal=unequal))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        weighing.came_back(gradient, output)
        if gradient is None:
            return only_first(None, len(visit.inputs))
        back = summed_back(taps, merged, gradient.parts[0])
        back = back * (weighing.variance * channels / groups)
        count = len(signal.parts)
        passed = through_taps(gradient, taps).with_parts((back,) * count)
        if all(map(is_in_place, taps)):
            passed = dataclasses.replace(passed, radial=gradient.radial)
        passed = with_own(passed, gradient, taps, merged, fan_in)
        return only_first(
            back_to(passed, signal, visit.inputs[0], len(visit.call.input_shapes[0])),
            len(visit.inputs),
        )

    return with_activation(visit, Outcome((output,), pullback))


@signal_rule(keras.layers.Dense)
def _dense(visit: Visit) -> Outcome:
    signal = in_layout(visit, -1)
    channels = visit.output_shape[-1] or 1
    return shared_kernel(
        visit, signal, signal.merged, in_place(signal.axes), signal.channels, channels, 1
    )


def in_place(axes: Axes) -> list[Window]:
    """Windows of one entry: each position by itself."""
    return [Window("conv", 1, 1, 1, 0, axis, axis) for axis in axes]


@signal_rule(*layer_classes("DepthwiseConv1D", "DepthwiseConv2D"))
def _depthwise(visit: Visit) -> Outcome:
    linear, _ = _each_channel(visit, visit.operation.depth_multiplier)
    return with_activation(visit, linear)


def _each_channel(visit: Visit, multiplier: int) -> tuple[Outcome, Signal]:
    """Every channel is convolved by itself, `multiplier` times."""
    layer, role = visit.operation, visit.role
    if not isinstance(role, Weights):
        raise TypeError("a rule of weight layers met another role")
    channel_axis = channel_axis_of(layer)
    target, _ = layout(visit.output_shape, channel_axis)
    signal = in_layout(visit, channel_axis)
    taps = windows(visit.call, signal.axes, target)
    mapped = Signal(signal.parts, channel_axis)
    mapped = mapped.each(lambda m: scattered(m.weighted(taps, 1), m, taps, 1))
    unit = [(n * multiplier, m) for n, m in mapped.parts]
    weighing = Weighing(visit, role.kernels[0], unit)
    single = len(role.kernels) == 1
    output = weighing.output(
        moments_of_variable(layer, "bias") if single else (0.0, 0.0), channel_axis
    )
    inverse = mean_inverse(signal.merged, taps, 1)
    output = output.each(lambda m: dataclasses.replace(m, inverse=inverse))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        weighing.came_back(gradient, output)
        if gradient is None:
            return only_first(None, len(visit.inputs))
        back = tuple(
            summed_back(taps, m, g) * (weighing.variance * multiplier)
            for (_, m), g in zip(signal.parts, gradient.parts, strict=True)
        )
        passed = through_taps(gradient, taps).with_parts(back)
        passed = with_own(passed, gradient, taps, signal.merged, 1)
        return only_first(
            back_to(passed, signal, visit.inputs[0], len(visit.call.input_shapes[0])),
            len(visit.inputs),
        )

    return Outcome((output,), pullback), signal


@signal_rule(*layer_classes("SeparableConv1D", "SeparableConv2D"))
def _separable(visit: Visit) -> Outcome:
    role = visit.role
    if not isinstance(role, Weights):
        raise TypeError("a rule of weight layers met another role")
    first, _ = _each_channel(visit, visit.operation.depth_multiplier)
    between = first.outputs[0]
    channels = layout(visit.output_shape, between.channel_axis)[1]
    unit = between.merged.weighted(in_place(between.axes), between.channels)
    weighing = Weighing(visit, role.kernels[1], [(channels, unit)])
    output = weighing.output(moments_of_variable(visit.operation, "bias"), between.channel_axis)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        weighing.came_back(gradient, output)
        if gradient is None:
            return first.pullback((None,))
        back = gradient.parts[0] * (weighing.variance * channels)
        return first.pullback((gradient.with_parts((back,) * len(between.parts)),))

    return with_activation(visit, Outcome((output,), pullback))


@signal_rule(keras.layers.Embedding)
def _embedding(visit: Visit) -> Outcome:
    """A row per token; tokens count as drawn evenly from the vocabulary."""
    role = visit.role
    if not isinstance(role, Weights):
        raise TypeError("a rule of weight layers met another role")
    rows = role.kernels[0].variable.shape[0]
    unit = alike(visit.output_shape, -1, 0.0, 1.0, 1.0 / rows)
    weighing = Weighing(visit, role.kernels[0], unit.parts)
    output = weighing.output((0.0, 0.0), -1)

    def pullback(gradients: Gradients) -> Gradients:
        weighing.came_back(gradients[0], output)
        return [None] * len(visit.inputs)

    return Outcome((output,), pullback)


def labels_of(equation: str, rank: int) -> tuple[list[str], list[str], list[str]]:
    """The labels of data, kernel and output in an equation; an ellipsis spelled out."""
    operands, output = equation.replace(" ", "").split("->")
    data, kernel = operands.split(",")
    hidden = [f"#{n}" for n in range(rank - len(data.replace("...", "")))]

    def spelled(labels: str) -> list[str]:
        before, dots, after = labels.partition("...")
        return [*before, *(hidden if dots else []), *after]

    return spelled(data), spelled(kernel), spelled(output)


def general_kernels(visit: Visit) -> Outcome:
    """Kernels known by their fans alone: the averages of the input, alike everywhere.

    A recurrent kernel reads what this does not follow; what leaves its layer is not known.
    """
    role, signal = visit.role, visit.inputs[0]
    if not isinstance(role, Weights):
        raise TypeError("a rule of weight layers met another role")
    merged = signal.merged
    kernel = next(k for k in role.kernels if not k.reads_own_output)
    recurrent = any(k.reads_own_output for k in role.kernels)
    fan_in, fan_out = kernel.fans.fan_in, kernel.fans.fan_out
    axes, channels = layout(visit.output_shape, signal.channel_axis)
    unit = uniform(
        axes,
        0.0,
        fan_in * merged.second_moment,
        fan_in * merged.pair_moment,
    )
    weighing = Weighing(visit, kernel, [(channels, unit)])
    output = weighing.output(moments_of_variable(visit.operation, "bias"), signal.channel_axis)
    if recurrent or len(role.kernels) > 1:
        visit.note(f"{visit.operation.name}: what its kernels do together is not modelled")
        unknown = alike(visit.output_shape, signal.channel_axis, math.nan, math.nan, math.nan)
        return Outcome(
            (unknown,) * len(visit.call.output_shapes), lambda _: [None] * len(visit.inputs)
        )

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        weighing.came_back(gradient, output)
        if gradient is None:
            return [None] * len(visit.inputs)
        second = gradient.second_moment(output) * weighing.variance * fan_out
        parts = tuple(np.full_like(m.mean, second) for _, m in signal.parts)
        return only_first(gradient.with_parts(parts), len(visit.inputs))

    return with_activation(visit, Outcome((output,), pullback))
