"""The rules of activations: layers, `activation=` arguments and element-wise operations."""

import math
import re
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.analysis.reader import Node, evaluate
from keras_varinit.analysis.rules import (
    Call,
    Elementwise,
    Role,
    Transparent,
    role_of,
    rule,
)
from keras_varinit.graph import own_variable
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


@rule(keras.layers.Softmax, "Softmax")
def _softmax(call: Call) -> Role:
    return Elementwise(Activation("softmax", lambda s: s, ("softmax",)))


@rule("LogSoftmax")
def _log_softmax(call: Call) -> Role:
    return Elementwise(Activation("log_softmax", lambda s: s, ("log_softmax",)))


ELEMENTWISE_OPERATIONS = (
    "Absolute",
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
    "ReLU",  # what `keras.activations.relu` makes
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
)


@rule(*ELEMENTWISE_OPERATIONS)
def _raw_elementwise(call: Call) -> Role:
    node = call.node
    name = snake_case(type(call.operation).__name__)
    plain = named_activation(name) if _has_default_arguments(call) else None
    if plain is not None:
        return Elementwise(plain)
    return Elementwise(Activation(name, lambda s: evaluate(node, s), (id(node.arguments),)))


def _has_default_arguments(call: Call) -> bool:
    """Whether an operation is the plain function of its name, without parameters."""
    parameters = {k for k in vars(call.operation) if not k.startswith("_")}
    return parameters <= {"name", "built"} and type(call.operation).__name__ != "Gelu"


def snake_case(name: str) -> str:
    """`HardSigmoid` as `hard_sigmoid`, and `ReLU` as `relu`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ReLU", "Relu")).lower()
