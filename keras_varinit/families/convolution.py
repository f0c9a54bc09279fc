"""Convolutions: Conv1D, Conv2D, Conv3D, their transposes such as Conv2DTranspose, `ops.conv`.

Also DepthwiseConv1D and 2D, SeparableConv1D and 2D. `ops.conv` needs a variable as its kernel.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from keras_varinit.families.kernels import (
    Weighing,
    kernel_of,
    shared_kernel,
    taps_read,
    weight_rule,
    weights_of,
    with_activation,
)
from keras_varinit.keras_private import Shape, is_variable
from keras_varinit.maths import fans
from keras_varinit.maths.scatter import scattered
from keras_varinit.maths.windows import windows_in_place
from keras_varinit.signals.constants import moments_of_variable
from keras_varinit.signals.curvature import with_own
from keras_varinit.signals.gradient_maps import through_taps
from keras_varinit.signals.layouts import back_to, channel_axis_of, in_layout
from keras_varinit.signals.outcome import (
    Gradients,
    Outcome,
    Signal,
    Visit,
    layout,
    only_first,
    unknown,
)
from keras_varinit.signals.registry import layer_classes, role_rule, signal_rule
from keras_varinit.signals.roles import (
    Call,
    Kernel,
    Role,
    Unknown,
    Weights,
    per_dimension,
    spatial_shape,
)
from keras_varinit.signals.taps import (
    mean_inverse,
    summed_back,
    transposed_windows,
    windows,
    windows_of,
)
from keras_varinit.tracing.reader import call_argument


def _convolution_arguments(call: Call) -> dict[str, Any]:
    layer = call.operation
    return {
        "spatial": _unpadded(spatial_shape(call.input_shapes[0], layer.data_format), call.pads),
        "strides": per_dimension(layer.strides, layer.rank),
        "padding": layer.padding,
        "dilation": per_dimension(layer.dilation_rate, layer.rank),
        "extra_pads": call.pads,
    }


def _unpadded(spatial: Shape, pads: Sequence[tuple[int, int]] | None) -> Shape:
    if pads is None:
        return spatial
    return tuple(
        None if n is None else n - before - after
        for n, (before, after) in zip(spatial, pads, strict=True)
    )


@weight_rule(*layer_classes("Conv1D", "Conv2D", "Conv3D"))
def _conv_role(call: Call) -> Role:
    variable, shape = kernel_of(call.operation)
    arguments = _convolution_arguments(call)
    counts = fans.conv(shape, groups=call.operation.groups, **arguments)
    return weights_of(call, Kernel(variable, counts))


@weight_rule(*layer_classes("DepthwiseConv1D", "DepthwiseConv2D"))
def _depthwise_role(call: Call) -> Role:
    variable, shape = kernel_of(call.operation)
    return weights_of(call, Kernel(variable, fans.depthwise(shape, **_convolution_arguments(call))))


@weight_rule(*layer_classes("SeparableConv1D", "SeparableConv2D"))
def _separable_role(call: Call) -> Role:
    depthwise, depthwise_shape = kernel_of(call.operation, "depthwise_kernel")
    pointwise, pointwise_shape = kernel_of(call.operation, "pointwise_kernel")
    first = fans.depthwise(depthwise_shape, **_convolution_arguments(call))
    spatial = spatial_shape(call.output_shapes[0], call.operation.data_format)
    ones = (1,) * len(spatial)
    second = fans.conv(pointwise_shape, spatial, strides=ones, padding="valid", dilation=ones)
    return weights_of(call, Kernel(depthwise, first), Kernel(pointwise, second, level=1))


@weight_rule(*layer_classes("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"))
def _conv_transpose_role(call: Call) -> Role:
    variable, shape = kernel_of(call.operation)
    layer = call.operation
    counts = fans.conv_transpose(
        shape,
        spatial_shape(call.input_shapes[0], layer.data_format),
        spatial_shape(call.output_shapes[0], layer.data_format),
        strides=per_dimension(layer.strides, layer.rank),
        padding=layer.padding,
        dilation=per_dimension(layer.dilation_rate, layer.rank),
    )
    return weights_of(call, Kernel(variable, counts))


@role_rule("Conv")
def _raw_conv_role(call: Call) -> Role:
    operation, variable = call.operation, call_argument(call.node, 1, "kernel")
    if not is_variable(variable):
        return Unknown("a convolution whose kernel is not a variable")
    rank = len(variable.shape) - 2
    data_format = operation.data_format or keras.config.image_data_format()
    channels = call.input_shapes[0][-1 if data_format == "channels_last" else 1]
    counts = fans.conv(
        tuple(variable.shape),
        _unpadded(spatial_shape(call.input_shapes[0], data_format), call.pads),
        strides=per_dimension(operation.strides, rank),
        padding=operation.padding,
        dilation=per_dimension(operation.dilation_rate, rank),
        groups=1 if channels is None else channels // variable.shape[-2],
        extra_pads=call.pads,
    )
    return Weights((Kernel(variable, counts),))


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


@signal_rule(*layer_classes("DepthwiseConv1D", "DepthwiseConv2D"))
def _depthwise(visit: Visit) -> Outcome:
    linear, _ = _each_channel(visit, visit.operation.depth_multiplier)
    return with_activation(visit, linear)


def _each_channel(visit: Visit, multiplier: int) -> tuple[Outcome, Signal]:
    """A depthwise convolution: each channel separately, with `multiplier` kernels."""
    layer, role = visit.operation, visit.role
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    channel_axis = channel_axis_of(layer)
    target, _ = layout(visit.output_shape, channel_axis)
    signal = in_layout(visit, channel_axis)
    taps, share = taps_read(visit, role.kernels[0], windows(visit.call, signal.axes, target))
    mapped = Signal(signal.parts, channel_axis)
    mapped = mapped.each(lambda m: scattered(m.weighted(taps, 1), m, taps, 1).scaled(share))
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
            summed_back(taps, m, g) * (weighing.variance * share * multiplier)
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
        raise TypeError("the rule expects a call whose role is `Weights`")
    first, _ = _each_channel(visit, visit.operation.depth_multiplier)
    between = first.outputs[0]
    channels = layout(visit.output_shape, between.channel_axis)[1]
    unit = between.merged.weighted(windows_in_place(between.axes), between.channels)
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


@signal_rule("Conv")
def _raw_conv(visit: Visit) -> Outcome:
    """`ops.conv` with a variable; the kernel's input channels determine the groups."""
    if not isinstance(visit.role, Weights):
        return unknown(visit, "a convolution whose kernel is not a variable is not modelled")
    operation, variable = visit.operation, call_argument(visit.call.node, 1, "kernel")
    data_format = operation.data_format or keras.config.image_data_format()
    channel_axis = -1 if data_format == "channels_last" else 1
    signal = in_layout(visit, channel_axis)
    target, channels = layout(visit.output_shape, channel_axis)
    rank = len(target)
    taps = windows_of(
        tuple(int(n) for n in variable.shape[:rank]),
        per_dimension(operation.strides, rank),
        per_dimension(operation.dilation_rate, rank),
        operation.padding,
        signal.axes,
        target,
    )
    groups = signal.channels // int(variable.shape[-2])
    return shared_kernel(
        visit, signal, signal.merged, taps, signal.channels // groups, channels, groups
    )
