"""The rules of layers and operations without kernels: pooling, padding, merging, reshaping."""

import math

import keras
import numpy as np

from keras_varinit.analysis.activation_rules import snake_case
from keras_varinit.analysis.reader import call_argument, evaluate
from keras_varinit.analysis.rules import (
    Call,
    Concatenation,
    Elementwise,
    Merge,
    Padding,
    Pooling,
    Role,
    Source,
    Transparent,
    Unknown,
    layer_classes,
    per_dimension,
    rule,
    spatial_shape,
)
from keras_varinit.moments import Activation


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


def _data_format(call: Call) -> str:
    """Of a layer, or of an operation that may leave it to Keras's setting."""
    return str(getattr(call.operation, "data_format", None) or keras.config.image_data_format())


def _map_size(call: Call) -> int | None:
    spatial = spatial_shape(call.input_shapes[0], _data_format(call))
    return None if None in spatial else math.prod(n for n in spatial if n is not None)


@rule(
    *layer_classes(
        "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"
    ),
    "AdaptiveAveragePool",
)
def _adaptive_average_pooling(call: Call) -> Role:
    return Pooling("average", _adaptive_window(call))


@rule(
    *layer_classes("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"),
    "AdaptiveMaxPool",
)
def _adaptive_max_pooling(call: Call) -> Role:
    return Pooling("max", _adaptive_window(call))


def _adaptive_window(call: Call) -> int | None:
    inputs = _map_size(call)
    outputs = spatial_shape(call.output_shapes[0], _data_format(call))
    if inputs is None or None in outputs:
        return None
    return max(1, round(inputs / math.prod(n for n in outputs if n is not None)))


@rule("MaxPool", "AveragePool")
def _raw_pooling(call: Call) -> Role:
    size = getattr(call.operation, "pool_size", None)
    if size is None:
        return Unknown()
    rank = len(call.input_shapes[0]) - 2
    kind = "max" if type(call.operation).__name__ == "MaxPool" else "average"
    return Pooling(kind, math.prod(per_dimension(size, rank)))


@rule("Mean", "Max")
def _raw_reduction(call: Call) -> Role:
    """A mean or maximum over all positions is global pooling; over anything else it is unknown."""
    shape, axis = call.input_shapes[0], call.operation.axis
    axes = {
        a % len(shape) for a in ([axis] if isinstance(axis, int) else axis or range(len(shape)))
    }
    inner = set(range(1, len(shape)))
    if not axes < inner or len(inner - axes) != 1:
        return Unknown()
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


@rule(
    *("Add", "Arctan2", "Divide", "DivideNoNan", "Fmax", "Fmin", "Hypot", "Logaddexp"),
    *("Logaddexp2", "Maximum", "Minimum", "Multiply", "Power", "Subtract", "TrueDivide"),
)
def _raw_arithmetic(call: Call) -> Role:
    """Two signals merge; a signal and a number are a function of each entry."""
    if len(call.node.inputs) == 2:
        return Merge()
    node = call.node
    others = [call_argument(node, position, "") for position in range(2)]
    if not any(isinstance(v, int | float | np.number) for v in others):
        return Transparent()  # a constant array: a mask or a bias, one factor per entry
    name = snake_case(type(call.operation).__name__)
    return Elementwise(Activation(name, lambda s: evaluate(node, s), (id(node.arguments),)))


@rule(
    *layer_classes(
        "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Dot", "Bidirectional"
    ),
    *layer_classes("Attention", "AdditiveAttention"),
    "DotProductAttention",
    "Where",
)
def _merge(call: Call) -> Role:
    """Also `Bidirectional`, of which the graph keeps the end where its directions meet."""
    return Merge() if len(call.node.inputs) > 1 else Transparent()


@rule(keras.layers.Concatenate, "Concatenate")
def _concatenate(call: Call) -> Role:
    return Concatenation(int(call.operation.axis))


@rule("Append", "Hstack", "Stack", "Vstack")
def _stack(call: Call) -> Role:
    """Along a new dimension all inputs have the same share."""
    axis = {"Hstack": 1, "Vstack": 0}.get(type(call.operation).__name__, -1)
    if type(call.operation).__name__ == "Append":
        axis = call.operation.axis
    return Unknown("it flattens its inputs") if axis is None else Concatenation(int(axis))


@rule("Pad")
def _raw_pad(call: Call) -> Role:
    """Zeros around the map; other numbers, entries of the map and channels count as connections."""
    widths = getattr(call.operation, "pad_width", None)
    value = call_argument(call.node, 1, "constant_values")
    zeros = value is None or (isinstance(value, int | float | np.number) and value == 0)
    if widths is None or getattr(call.operation, "mode", "constant") != "constant" or not zeros:
        return Transparent()
    pairs = np.broadcast_to(np.asarray(widths, int), (len(call.input_shapes[0]), 2)).tolist()
    channels_first = keras.config.image_data_format() == "channels_first"
    inner, rest = (pairs[2:], pairs[:2]) if channels_first else (pairs[1:-1], [pairs[0], pairs[-1]])
    if any(before or after for before, after in rest):
        return Transparent()
    return Padding(tuple((int(before), int(after)) for before, after in inner))


@rule(
    keras.layers.InputLayer,
    "Equal",
    "Greater",
    "GreaterEqual",
    "Less",
    "LessEqual",
    "LogicalAnd",
    "LogicalNot",
    "LogicalOr",
    "NotEqual",
)
def _source(call: Call) -> Role:
    """Also comparisons, which make masks."""
    return Source()


@rule(
    *layer_classes(
        "ActivityRegularization",
        "TimeDistributed",
        "AlphaDropout",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "Dropout",
        "Flatten",
        "GaussianDropout",
        "GaussianNoise",
        "Identity",
        "Masking",
        "Normalization",
        "Permute",
        "RepeatVector",
        "Rescaling",
        "Reshape",
        "Resizing",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
    ),
    "BroadcastTo",
    "Cast",
    "ConvertToTensor",
    "Copy",
    "CropImages",
    "DepthToSpace",
    "ExpandDims",
    "ExtractPatches",
    "Flip",
    "Fliplr",
    "Flipud",
    "GetItem",
    "Moveaxis",
    "PadImages",
    "Ravel",
    "Repeat",
    "Reshape",
    "Resize",
    "Roll",
    "Slice",
    "SpaceToDepth",
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


@rule(
    *layer_classes(
        "BatchNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "UnitNormalization",
    ),
    "BatchNorm",
    "LayerNorm",
    "Normalize",
    "RMSNorm",
)
def _normalization(call: Call) -> Role:
    return Transparent(normalizes=True)
