"""The rules of layers with kernels: which kernels, with which fans."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit import fans
from keras_varinit.analysis.activation_rules import activation_of
from keras_varinit.analysis.reader import call_argument
from keras_varinit.analysis.rules import (
    Call,
    Kernel,
    LeftAlone,
    Merge,
    Role,
    Rule,
    Unknown,
    Weights,
    layer_classes,
    per_dimension,
    rule,
    spatial_shape,
)
from keras_varinit.graph import Shape, is_variable, layers_of, own_variable


def _weights(call: Call, *kernels: Kernel) -> Role:
    return Weights(kernels, activation_of(getattr(call.operation, "activation", None)))


class _NoKernelError(Exception):
    """The layer has no variable of the name that Keras gives its kernel."""


def _kernel(layer: Any, name: str = "kernel") -> tuple[Any, tuple[int, ...]]:
    variable = own_variable(layer, name)
    if variable is None:
        raise _NoKernelError(f"it has no variable named {name!r}")
    return variable, tuple(int(n) for n in variable.shape)


def _weight_rule(*kinds: type | str) -> Callable[[Rule], Rule]:
    """`rule`, for functions that need a kernel that may be drawn."""

    def decorate(function: Rule) -> Rule:
        def guarded(call: Call) -> Role:
            reasons = map(_reason_to_leave_alone, [call.operation, *layers_of(call.operation)])
            reason = next(filter(None, reasons), None)
            if reason is not None:
                return LeftAlone(reason)
            try:
                return function(call)
            except _NoKernelError as missing:
                return Unknown(str(missing))

        return rule(*kinds)(guarded)

    return decorate


def _reason_to_leave_alone(layer: Any) -> str | None:
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled, so it is left alone"
    if layer.quantization_mode is not None:
        return f"quantized ({layer.quantization_mode}), so it is left alone"
    return None


@_weight_rule(keras.layers.Dense)
def _dense(call: Call) -> Role:
    variable, shape = _kernel(call.operation)
    places = call.input_shapes[0][1:-1]
    positions = math.prod(n for n in places if n is not None) if None not in places else None
    return _weights(call, Kernel(variable, fans.dense(shape, positions)))


@_weight_rule(keras.layers.EinsumDense)
def _einsum_dense(call: Call) -> Role:
    variable, shape = _kernel(call.operation)
    counts = fans.einsum(call.operation.equation, shape, call.input_shapes[0])
    return _weights(call, Kernel(variable, counts))


@_weight_rule(keras.layers.Embedding)
def _embedding(call: Call) -> Role:
    variable, shape = _kernel(call.operation, "embeddings")
    return Weights((Kernel(variable, fans.embedding(shape)),))


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


@_weight_rule(*layer_classes("Conv1D", "Conv2D", "Conv3D"))
def _conv(call: Call) -> Role:
    variable, shape = _kernel(call.operation)
    arguments = _convolution_arguments(call)
    counts = fans.conv(shape, groups=call.operation.groups, **arguments)
    return _weights(call, Kernel(variable, counts))


@_weight_rule(*layer_classes("DepthwiseConv1D", "DepthwiseConv2D"))
def _depthwise_conv(call: Call) -> Role:
    variable, shape = _kernel(call.operation)
    return _weights(call, Kernel(variable, fans.depthwise(shape, **_convolution_arguments(call))))


@_weight_rule(*layer_classes("SeparableConv1D", "SeparableConv2D"))
def _separable_conv(call: Call) -> Role:
    depthwise, depthwise_shape = _kernel(call.operation, "depthwise_kernel")
    pointwise, pointwise_shape = _kernel(call.operation, "pointwise_kernel")
    first = fans.depthwise(depthwise_shape, **_convolution_arguments(call))
    spatial = spatial_shape(call.output_shapes[0], call.operation.data_format)
    ones = (1,) * len(spatial)
    second = fans.conv(pointwise_shape, spatial, strides=ones, padding="valid", dilation=ones)
    return _weights(call, Kernel(depthwise, first), Kernel(pointwise, second, level=1))


@_weight_rule(*layer_classes("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"))
def _conv_transpose(call: Call) -> Role:
    variable, shape = _kernel(call.operation)
    layer = call.operation
    counts = fans.conv_transpose(
        shape,
        spatial_shape(call.input_shapes[0], layer.data_format),
        spatial_shape(call.output_shapes[0], layer.data_format),
        strides=per_dimension(layer.strides, layer.rank),
        padding=layer.padding,
        dilation=per_dimension(layer.dilation_rate, layer.rank),
    )
    return _weights(call, Kernel(variable, counts))


_GATES = {keras.layers.SimpleRNNCell: 1, keras.layers.GRUCell: 3, keras.layers.LSTMCell: 4}


@_weight_rule(keras.layers.RNN)
def _recurrent(call: Call) -> Role:
    """Kernel and recurrent kernel of each cell; stacked cells act in turn.

    The stage behind is the cell's activation; the recurrent kernel reads what the cell put out.
    """
    cell = call.operation.cell
    cells = list(getattr(cell, "cells", [cell]))
    kernels = []
    for level, each in enumerate(cells):
        gates = next((n for cls, n in _GATES.items() if isinstance(each, cls)), None)
        if gates is None:
            return Unknown(f"the cell {type(each).__name__} has no rule")
        variable, shape = _kernel(each)
        recurrent, recurrent_shape = _kernel(each, "recurrent_kernel")
        kernels += [
            Kernel(variable, fans.recurrent(shape, gates), level),
            Kernel(recurrent, fans.recurrent(recurrent_shape, gates), level, True),
        ]
    return Weights(tuple(kernels), activation_of(cells[-1].activation))


@_weight_rule(*layer_classes("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"))
def _conv_lstm(call: Call) -> Role:
    """Two convolutions with four gates on the last axis: fan-out counts one gate."""
    layer, cell = call.operation, call.operation.cell
    shapes = call.input_shapes[0]
    inputs = spatial_shape((shapes[0], *shapes[2:]), layer.data_format)
    strides, dilation = (per_dimension(v, cell.rank) for v in (cell.strides, cell.dilation_rate))
    variable, shape = _kernel(cell)
    recurrent, recurrent_shape = _kernel(cell, "recurrent_kernel")
    counts = fans.conv(
        (*shape[:-1], shape[-1] // 4),
        inputs,
        strides=strides,
        padding=cell.padding,
        dilation=dilation,
    )
    ones = (1,) * cell.rank
    outputs = call.output_shapes[0]
    if layer.return_sequences:
        outputs = (outputs[0], *outputs[2:])
    own = fans.conv(
        (*recurrent_shape[:-1], recurrent_shape[-1] // 4),
        spatial_shape(outputs, layer.data_format),
        strides=ones,
        padding="same",
        dilation=ones,
    )
    kernels = (Kernel(variable, counts), Kernel(recurrent, own, 0, True))
    return Weights(kernels, activation_of(cell.activation))


@_weight_rule(*layer_classes("MultiHeadAttention", "GroupQueryAttention"))
def _attention(call: Call) -> Role:
    """Query, key and value side by side, then the output projection."""
    kernels = []
    for part in layers_of(call.operation):
        if isinstance(part, keras.layers.EinsumDense):
            variable, shape = _kernel(part)
            level = 1 if part.name == "attention_output" else 0
            kernels.append(Kernel(variable, fans.einsum(part.equation, shape), level))
    return Weights(tuple(kernels))


@rule("Matmul", "Dot")
def _raw_matmul(call: Call) -> Role:
    """`x @ W` with a variable W is a dense layer; with two signals, or a constant, a merge."""
    variable = call_argument(call.node, 1, "x2")
    if not is_variable(variable) or len(variable.shape) != 2:
        return _product_without_kernel(call)
    return Weights((Kernel(variable, fans.dense(tuple(variable.shape))),))


@rule("Tensordot")
def _raw_tensordot(call: Call) -> Role:
    variable, axes = call_argument(call.node, 1, "x2"), call.operation.axes
    if not is_variable(variable):
        return _product_without_kernel(call)
    rank = len(variable.shape)
    summed = range(axes) if isinstance(axes, int) else np.atleast_1d(axes[1])
    inside = {int(axis) % rank for axis in summed}
    kernel = "abcdefgh"[:rank]
    data = "".join(kernel[axis] for axis in sorted(inside))
    equation = f"...{data},{kernel}->..." + "".join(k for k in kernel if k not in data)
    return Weights((Kernel(variable, fans.einsum(equation, tuple(variable.shape))),))


@rule("Einsum")
def _raw_einsum(call: Call) -> Role:
    operands, inputs = call.node.arguments.args, call.input_shapes
    variable = next((operand for operand in operands if is_variable(operand)), None)
    if len(operands) != 2 or len(inputs) != 1 or variable is None:
        return _product_without_kernel(call)
    shape, first = tuple(variable.shape), variable is operands[0]
    counts = fans.einsum(call.operation.subscripts, shape, inputs[0], kernel_first=first)
    return Weights((Kernel(variable, counts),))


def _product_without_kernel(call: Call) -> Role:
    return Merge() if len(call.node.inputs) > 1 else Unknown("a product with constants")


@rule("Conv")
def _raw_conv(call: Call) -> Role:
    operation, variable = call.operation, call_argument(call.node, 1, "kernel")
    if not is_variable(variable):
        return Unknown("a convolution with a kernel that is no variable")
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
