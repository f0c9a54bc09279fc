"""The rules of layers with kernels: which kernels, with which fans."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_varinit import fans
from keras_varinit.analysis.activation_rules import activation_of
from keras_varinit.analysis.rules import (
    Call,
    Kernel,
    Role,
    Unknown,
    Weights,
    layer_classes,
    per_dimension,
    rule,
    spatial_shape,
)
from keras_varinit.graph import Shape, own_variable


def _weights(call: Call, *kernels: Kernel) -> Role:
    return Weights(kernels, activation_of(getattr(call.operation, "activation", None)))


def _kernel_shape(call: Call, name: str) -> tuple[int, ...] | None:
    variable = own_variable(call.operation, name)
    return None if variable is None else tuple(variable.shape)


@rule(keras.layers.Dense)
def _dense(call: Call) -> Role:
    shape = _kernel_shape(call, "kernel")
    if shape is None:
        return Unknown(weighted=True)
    places = call.input_shapes[0][1:-1]
    positions = math.prod(n for n in places if n is not None) if None not in places else None
    return _weights(call, Kernel("kernel", fans.dense(shape, positions)))


@rule(keras.layers.EinsumDense)
def _einsum_dense(call: Call) -> Role:
    shape = _kernel_shape(call, "kernel")
    if shape is None:
        return Unknown(weighted=True)
    left, output = call.operation.equation.replace(" ", "").split("->")
    kernel = left.split(",")[1].replace("...", "")
    contracted = [axis for axis, letter in enumerate(kernel) if letter not in output]
    return _weights(call, Kernel("kernel", fans.einsum(shape, contracted)))


@rule(keras.layers.Embedding)
def _embedding(call: Call) -> Role:
    shape = _kernel_shape(call, "embeddings")
    if shape is None:
        return Unknown(weighted=True)
    return Weights((Kernel("embeddings", fans.embedding(shape)),))


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


@rule(*layer_classes("Conv1D", "Conv2D", "Conv3D"))
def _conv(call: Call) -> Role:
    shape = _kernel_shape(call, "kernel")
    if shape is None:
        return Unknown(weighted=True)
    arguments = _convolution_arguments(call)
    counts = fans.conv(shape, groups=call.operation.groups, **arguments)
    return _weights(call, Kernel("kernel", counts))


@rule(*layer_classes("DepthwiseConv1D", "DepthwiseConv2D"))
def _depthwise_conv(call: Call) -> Role:
    shape = _kernel_shape(call, "kernel")
    if shape is None:
        return Unknown(weighted=True)
    return _weights(call, Kernel("kernel", fans.depthwise(shape, **_convolution_arguments(call))))


@rule(*layer_classes("SeparableConv1D", "SeparableConv2D"))
def _separable_conv(call: Call) -> Role:
    depthwise = _kernel_shape(call, "depthwise_kernel")
    pointwise = _kernel_shape(call, "pointwise_kernel")
    if depthwise is None or pointwise is None:
        return Unknown(weighted=True)
    first = fans.depthwise(depthwise, **_convolution_arguments(call))
    spatial = spatial_shape(call.output_shapes[0], call.operation.data_format)
    ones = (1,) * len(spatial)
    second = fans.conv(pointwise, spatial, strides=ones, padding="valid", dilation=ones)
    return _weights(
        call, Kernel("depthwise_kernel", first), Kernel("pointwise_kernel", second, level=1)
    )


@rule(*layer_classes("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"))
def _conv_transpose(call: Call) -> Role:
    shape = _kernel_shape(call, "kernel")
    if shape is None:
        return Unknown(weighted=True)
    layer = call.operation
    counts = fans.conv_transpose(
        shape,
        spatial_shape(call.input_shapes[0], layer.data_format),
        spatial_shape(call.output_shapes[0], layer.data_format),
        strides=per_dimension(layer.strides, layer.rank),
        padding=layer.padding,
        dilation=per_dimension(layer.dilation_rate, layer.rank),
    )
    return _weights(call, Kernel("kernel", counts))
