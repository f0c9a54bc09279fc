"""The rules of Keras's own layers and operations."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit import fans
from keras_varinit.analysis.rules import (
    Call,
    Concatenation,
    Elementwise,
    Kernel,
    Merge,
    Padding,
    Pooling,
    Role,
    Source,
    Transparent,
    Unknown,
    Weights,
    layer_classes,
    role_of,
    rule,
)
from keras_varinit.graph import Node, Shape, call_argument, evaluate, own_variable
from keras_varinit.moments import FUNCTIONS, Activation, named_activation

_FUNCTION_NAMES = {
    getattr(keras.activations, name): name for name in FUNCTIONS if hasattr(keras.activations, name)
}


def activation_of(function: Any) -> Activation | None:
    """The element-wise function behind an `activation=` argument; None for no activation.

    Softmax and its kin act on a whole row and belong to the loss, so they count as the identity.

    Raises:
        ValueError: the callable does not map an array to one of the same shape.
    """
    if function is None or function is keras.activations.linear:
        return None
    if isinstance(function, keras.Layer):
        role = role_of(Call(Node(-1, function, (), ()), ((None, 1),), ((None, 1),)))
        return role.activation if isinstance(role, Elementwise) else None
    name = _FUNCTION_NAMES.get(function)
    if name is not None:
        return named_activation(name)
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("softmax", "log_softmax", "sparsemax"):
        return Activation(name, lambda s: s, (name,))
    activation = Activation(name, _numeric(function), (function,))
    probe = np.linspace(-1.0, 1.0, 4)
    if np.shape(activation.function(probe)) != probe.shape:
        raise ValueError(f"activation {name!r} is not element-wise")
    return activation


def _numeric(function: Any) -> Any:
    """A Keras callable as a function of NumPy arrays, computed in float32."""

    def call(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        tensor = keras.ops.convert_to_tensor(values.astype(np.float32))
        return np.asarray(keras.ops.convert_to_numpy(function(tensor)), np.float64)

    return call


def _weights(call: Call, *kernels: Kernel) -> Role:
    return Weights(kernels, activation_of(getattr(call.operation, "activation", None)))


def _kernel_shape(call: Call, name: str) -> tuple[int, ...] | None:
    variable = own_variable(call.operation, name)
    return None if variable is None else tuple(variable.shape)


def _spatial(shape: Shape, data_format: str) -> Shape:
    return shape[1:-1] if data_format == "channels_last" else shape[2:]


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
        "spatial": _unpadded(_spatial(call.input_shapes[0], layer.data_format), call.pads),
        "strides": _per_dimension(layer.strides, layer.rank),
        "padding": layer.padding,
        "dilation": _per_dimension(layer.dilation_rate, layer.rank),
        "extra_pads": call.pads,
    }


def _per_dimension(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


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
    spatial = _spatial(call.output_shapes[0], call.operation.data_format)
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
        _spatial(call.input_shapes[0], layer.data_format),
        _spatial(call.output_shapes[0], layer.data_format),
        strides=_per_dimension(layer.strides, layer.rank),
        padding=layer.padding,
        dilation=_per_dimension(layer.dilation_rate, layer.rank),
    )
    return _weights(call, Kernel("kernel", counts))


@rule(*layer_classes("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"))
def _max_pooling(call: Call) -> Role:
    return Pooling("max", math.prod(_window(call)))


@rule(*layer_classes("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"))
def _average_pooling(call: Call) -> Role:
    return Pooling("average", math.prod(_window(call)))


def _window(call: Call) -> tuple[int, ...]:
    size = call.operation.pool_size
    return (size,) if isinstance(size, int) else tuple(size)


@rule(*layer_classes("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"))
def _global_max_pooling(call: Call) -> Role:
    return Pooling("max", _map_size(call))


@rule(*layer_classes("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"))
def _global_average_pooling(call: Call) -> Role:
    return Pooling("average", _map_size(call))


def _map_size(call: Call) -> int | None:
    spatial = _spatial(call.input_shapes[0], call.operation.data_format)
    return None if None in spatial else math.prod(n for n in spatial if n is not None)


@rule(
    *layer_classes(
        "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"
    )
)
def _adaptive_average_pooling(call: Call) -> Role:
    return Pooling("average", _adaptive_window(call))


@rule(*layer_classes("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"))
def _adaptive_max_pooling(call: Call) -> Role:
    return Pooling("max", _adaptive_window(call))


def _adaptive_window(call: Call) -> int | None:
    inputs = _map_size(call)
    outputs = _spatial(call.output_shapes[0], call.operation.data_format)
    if inputs is None or None in outputs:
        return None
    return max(1, round(inputs / math.prod(n for n in outputs if n is not None)))


@rule("MaxPool", "AveragePool")
def _raw_pooling(call: Call) -> Role:
    size = getattr(call.operation, "pool_size", None)
    if size is None:
        return Unknown(weighted=False)
    rank = len(call.input_shapes[0]) - 2
    kind = "max" if type(call.operation).__name__ == "MaxPool" else "average"
    return Pooling(kind, math.prod(_per_dimension(size, rank)))


@rule("Mean", "Max")
def _raw_reduction(call: Call) -> Role:
    """A mean or maximum over all positions is global pooling; over anything else it is unknown."""
    shape, axis = call.input_shapes[0], call.operation.axis
    axes = {
        a % len(shape) for a in ([axis] if isinstance(axis, int) else axis or range(len(shape)))
    }
    inner = set(range(1, len(shape)))
    if not axes < inner or len(inner - axes) != 1:
        return Unknown(weighted=False)
    sizes = [shape[a] for a in axes]
    size = None if None in sizes else math.prod(n for n in sizes if n is not None)
    return Pooling("max" if type(call.operation).__name__ == "Max" else "average", size)


@rule(*layer_classes("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"))
def _zero_padding(call: Call) -> Role:
    padding = call.operation.padding
    if isinstance(padding, int):
        padding = ((padding, padding),)
    elif isinstance(padding[0], int):
        padding = (tuple(padding),)
    return Padding(tuple((int(before), int(after)) for before, after in padding))


@rule(keras.layers.Activation)
def _activation_layer(call: Call) -> Role:
    activation = activation_of(call.operation.activation)
    return Transparent() if activation is None else Elementwise(activation)


@rule(keras.layers.ReLU)
def _relu(call: Call) -> Role:
    layer = call.operation
    top = math.inf if layer.max_value is None else float(layer.max_value)
    slope, threshold = float(layer.negative_slope), float(layer.threshold)

    def function(s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        low = slope * (s - threshold)
        return np.where(s >= threshold, np.minimum(s, top), np.where(s < threshold, low, 0.0))

    key = ("relu", top, slope, threshold)
    return Elementwise(Activation("relu", function, key))


@rule(keras.layers.LeakyReLU)
def _leaky_relu(call: Call) -> Role:
    return _leaky(float(call.operation.negative_slope), "leaky_relu")


@rule(keras.layers.PReLU)
def _prelu(call: Call) -> Role:
    """The slope at initialization: the mean of α, which Keras starts at 0."""
    variable = own_variable(call.operation, "alpha")
    slope = 0.0 if variable is None else float(np.mean(keras.ops.convert_to_numpy(variable)))
    return _leaky(slope, "prelu")


def _leaky(slope: float, name: str) -> Role:
    activation = Activation(name, lambda s: np.where(s > 0, s, slope * s), (name, slope))
    return Elementwise(activation)


@rule(keras.layers.ELU)
def _elu(call: Call) -> Role:
    alpha = float(call.operation.alpha)
    activation = Activation(
        "elu",
        lambda s: np.where(s > 0, s, alpha * np.expm1(np.minimum(s, 0.0))),
        ("elu", alpha),
    )
    return Elementwise(activation)


@rule(keras.layers.Softmax, "Softmax", "LogSoftmax")
def _softmax(call: Call) -> Role:
    return Elementwise(Activation("softmax", lambda s: s, ("softmax",)))


_ELEMENTWISE_OPERATIONS = (
    "Absolute",
    "Abs",
    "Fabs",
    "Arctan",
    "Arcsinh",
    "Celu",
    "Clip",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Expm1",
    "Gelu",
    "HardShrink",
    "HardSigmoid",
    "HardSilu",
    "HardTanh",
    "LeakyRelu",
    "Log1p",
    "LogSigmoid",
    "Negative",
    "ReLU",
    "Relu",
    "Relu6",
    "Selu",
    "Sigmoid",
    "Sign",
    "Silu",
    "Sin",
    "Sinh",
    "SoftShrink",
    "Softplus",
    "Softsign",
    "SparsePlus",
    "SparseSigmoid",
    "Square",
    "Squareplus",
    "Tanh",
    "TanhShrink",
    "Threshold",
    "Mish",
)


@rule(*_ELEMENTWISE_OPERATIONS)
def _raw_elementwise(call: Call) -> Role:
    node = call.node
    name = _snake_case(type(call.operation).__name__)
    plain = named_activation(name) if _has_default_arguments(call) else None
    if plain is not None:
        return Elementwise(plain)
    return Elementwise(Activation(name, lambda s: evaluate(node, s), (id(node.arguments),)))


def _has_default_arguments(call: Call) -> bool:
    """Whether an operation is the plain function of its name, without parameters."""
    parameters = {k for k in vars(call.operation) if not k.startswith("_")}
    return parameters <= {"name", "built"} and type(call.operation).__name__ != "Gelu"


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).removeprefix("_")


@rule("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power")
def _raw_arithmetic(call: Call) -> Role:
    """Two signals merge; a signal and a number are a function of each entry."""
    if len(call.node.inputs) == 2:
        return Merge()
    node = call.node
    others = [call_argument(node, position, "") for position in range(2)]
    if not any(isinstance(v, int | float | np.number) for v in others):
        return Transparent()  # a constant array: a mask or a bias, one factor per entry
    name = _snake_case(type(call.operation).__name__)
    return Elementwise(Activation(name, lambda s: evaluate(node, s), (id(node.arguments),)))


@rule(
    *layer_classes("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Dot"),
    "Matmul",
    "Einsum",
    "Dot",
    "Tensordot",
    "Where",
)
def _merge(call: Call) -> Role:
    return Merge() if len(call.node.inputs) > 1 else Transparent()


@rule(keras.layers.Concatenate, "Concatenate")
def _concatenate(call: Call) -> Role:
    return Concatenation(int(call.operation.axis))


@rule("Stack", "Hstack", "Vstack", "Append")
def _stack(call: Call) -> Role:
    return Concatenation(-1)


@rule("Pad")
def _raw_pad(call: Call) -> Role:
    widths = getattr(call.operation, "pad_width", None)
    mode = getattr(call.operation, "mode", "constant")
    if widths is None or mode != "constant":
        return Transparent()
    pairs = np.broadcast_to(np.asarray(widths, int), (len(call.input_shapes[0]), 2)).tolist()
    inner = pairs[1:-1]
    if any(before or after for before, after in (pairs[0], pairs[-1])):
        return Transparent()
    return Padding(tuple((int(before), int(after)) for before, after in inner))


@rule(keras.layers.InputLayer)
def _input(call: Call) -> Role:
    return Source()


@rule(
    *layer_classes(
        "ActivityRegularization",
        "AlphaDropout",
        "BatchNormalization",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "Dropout",
        "Flatten",
        "GaussianDropout",
        "GaussianNoise",
        "GroupNormalization",
        "Identity",
        "LayerNormalization",
        "Masking",
        "Normalization",
        "Permute",
        "RMSNormalization",
        "RepeatVector",
        "Rescaling",
        "Reshape",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "UnitNormalization",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
    ),
    "BatchNorm",
    "BroadcastTo",
    "Cast",
    "ConvertToTensor",
    "Copy",
    "ExpandDims",
    "Flip",
    "GetItem",
    "LayerNorm",
    "Moveaxis",
    "Normalize",
    "RMSNorm",
    "Ravel",
    "Repeat",
    "Reshape",
    "Resize",
    "Roll",
    "Slice",
    "Split",
    "Squeeze",
    "StopGradient",
    "Swapaxes",
    "Take",
    "Tile",
    "Transpose",
    "Unstack",
)
def _transparent(call: Call) -> Role:
    return Transparent()
