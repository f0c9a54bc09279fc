"""Activations: Activation, ReLU, LeakyReLU, PReLU, ELU, and operations such as `ops.gelu`.

Also the functions of `activation=` arguments. For softmax, see `attention.softmax`; for
element-wise operations that are not activations, `entrywise`.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.families.attention.softmax import softmax, softmax_axes
from keras_varinit.keras_private import own_variable
from keras_varinit.maths.activated import activated, composed, law_of, squared_slopes
from keras_varinit.maths.common_factors import after, around
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.entry_laws import Shape, at
from keras_varinit.maths.hermite import is_homogeneous
from keras_varinit.maths.quadrature import FUNCTIONS, Activation, named_activation
from keras_varinit.maths.windows import Array
from keras_varinit.signals.curvature import Bend, bend_of, through_activation
from keras_varinit.signals.outcome import Gradient, Gradients, Outcome, Signal, Visit, unknown
from keras_varinit.signals.registry import (
    follows_channel_axes,
    layer_classes,
    role_of,
    role_rule,
    signal_rule,
)
from keras_varinit.signals.roles import Call, Elementwise, Role, Transparent
from keras_varinit.tracing.names import snake_case
from keras_varinit.tracing.reader import Node, evaluate

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
    """Wraps a Keras callable as a function of NumPy arrays, computed in float32."""

    def call(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        tensor = keras.ops.convert_to_tensor(values.astype(np.float32))
        return np.asarray(keras.ops.convert_to_numpy(function(tensor)), np.float64)

    return call


@role_rule(keras.layers.Activation)
def _activation_role(call: Call) -> Role:
    activation = activation_of(call.operation.activation)
    return Transparent() if activation is None else Elementwise(activation)


@role_rule(keras.layers.ReLU)
def _relu_role(call: Call) -> Role:
    layer = call.operation
    top = math.inf if layer.max_value is None else float(layer.max_value)
    slope, threshold = float(layer.negative_slope), float(layer.threshold)

    def function(s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        low = slope * (s - threshold)
        return np.where(s >= threshold, np.minimum(s, top), np.where(s < threshold, low, 0.0))

    key = ("relu", top, slope, threshold)
    return Elementwise(Activation("relu", function, key))


@role_rule(keras.layers.LeakyReLU)
def _leaky_relu_role(call: Call) -> Role:
    return _leaky(float(call.operation.negative_slope), "leaky_relu")


@role_rule(keras.layers.PReLU)
def _prelu_role(call: Call) -> Role:
    """Leaky ReLU with the slope at initialization, the mean of α (0 by default)."""
    variable = own_variable(call.operation, "alpha")
    slope = 0.0 if variable is None else float(np.mean(keras.ops.convert_to_numpy(variable)))
    return _leaky(slope, "prelu")


def _leaky(slope: float, name: str) -> Role:
    activation = Activation(name, lambda s: np.where(s > 0, s, slope * s), (name, slope))
    return Elementwise(activation)


@role_rule(keras.layers.ELU)
def _elu_role(call: Call) -> Role:
    alpha = float(call.operation.alpha)
    activation = Activation(
        "elu",
        lambda s: np.where(s > 0, s, alpha * np.expm1(np.minimum(s, 0.0))),
        ("elu", alpha),
    )
    return Elementwise(activation)


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
    "ReLU",  # the operation of `keras.activations.relu`
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


@role_rule(*ELEMENTWISE_OPERATIONS)
def _raw_elementwise_role(call: Call) -> Role:
    node = call.node
    name = snake_case(type(call.operation).__name__)
    plain = named_activation(name) if _has_default_arguments(call) else None
    if plain is not None:
        return Elementwise(plain)
    return Elementwise(Activation(name, lambda s: evaluate(node, s), (id(node.arguments),)))


def _has_default_arguments(call: Call) -> bool:
    """Whether an operation has no parameters that change its function."""
    parameters = {k for k in vars(call.operation) if not k.startswith("_")}
    return parameters <= {"name", "built"} and type(call.operation).__name__ != "Gelu"


def after_activation(signal: Signal, activation: Activation) -> Outcome:
    """Applies f to every entry; gradients are multiplied by E f'²."""

    def passed_on(moments: Moments) -> Moments:
        result = activated(moments, activation)
        if moments.common is None or result is moments:
            return result
        inner = moments.function and composed(moments.function, activation)
        common = after(moments.pre or moments, inner or activation)
        return dataclasses.replace(result, common=common)

    output = signal.each(passed_on)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return (None,)
        factors, far, adjacent, slope, common = [], 0.0, 0.0, 0.0, 0.0
        bend: Bend | None = None
        for _, moments in signal.parts:
            passed = _passed_back(moments, activation, gradient)
            factors.append(passed.squared_slope)
            far += passed.far / len(signal.parts)
            adjacent += passed.adjacent / len(signal.parts)
            slope += passed.slope / len(signal.parts)
            bend = passed.bend or bend
            common += passed.common / len(signal.parts)
        parts = tuple(g * f for g, f in zip(gradient.parts, factors, strict=True))
        back = gradient.less_coherent(far, adjacent).with_parts(parts)
        phases, in_step = gradient.times_phases(slope), gradient.in_step
        through = activation
        if gradient.through is not None:
            through = composed(activation, gradient.through)
        here, radial = around(signal.merged, activation)
        radial *= gradient.radial if is_homogeneous(activation) else 1.0
        back = dataclasses.replace(
            back,
            coherence=back.coherence + common * (1 - back.coherence),
            through=through,
            phases=phases,
            in_step=in_step,
            bend=bend,
            radial=radial,
            here=here,
        )
        return (back,)

    return Outcome((output,), pullback)


def acts_on_rows(activation: Activation) -> bool:
    """Whether a function acts on rows, like softmax; it is the identity only before a loss."""
    return activation.name in ("softmax", "log_softmax", "sparsemax")


@follows_channel_axes
@signal_rule(*layer_classes("ELU", "LeakyReLU", "PReLU", "ReLU"))
@signal_rule(*ELEMENTWISE_OPERATIONS, "LogSoftmax")
def elementwise(visit: Visit) -> Outcome:
    """An element-wise function of one signal."""
    role = visit.role
    if not isinstance(role, Elementwise):
        return unknown(visit, "it is not a function of each entry")
    if role.activation.name == "softmax" and not visit.at_output:
        return softmax(visit, softmax_axes(visit.operation, len(visit.output_shape)))
    if acts_on_rows(role.activation) and not visit.at_output:
        return unknown(visit, "it is not modelled inside a network")
    if len(visit.inputs) != 1 or visit.call.input_shapes[0] != visit.output_shape:
        return unknown(visit, "it is not a function of each entry of one signal")
    outcome = after_activation(visit.inputs[0], role.activation)
    if visit.inputs[0].is_known() and not is_integrable(visit.inputs[0], role.activation):
        return unknown(visit, "its second moment does not exist for a Gaussian signal")
    return outcome


@follows_channel_axes
@signal_rule(keras.layers.Activation)
def _activation(visit: Visit) -> Outcome:
    """The layer `Activation`; the identity for `activation="linear"`."""
    if isinstance(visit.role, Elementwise):
        return elementwise(visit)
    return Outcome(visit.inputs, lambda gradients: gradients)


def is_integrable(signal: Signal, activation: Activation) -> bool:
    """Whether E f² exists.

    Near a singularity the numerical integral depends on the nodes. At a jump it does so too, but
    by at most 1 %.
    """
    for _, moments in signal.parts:
        root, function = moments.pre or moments, moments.function
        whole = activation if function is None else composed(function, activation)
        if not is_homogeneous(whole) and not _has_second_moment(whole, *root.spread, root.shape):
            return False
    return True


@functools.lru_cache(maxsize=1024)
def _has_second_moment(
    activation: Activation, mean: float, std: float, shape: Shape | None
) -> bool:
    estimates = []
    for nodes, weights in _shifted_nodes():
        values = np.asarray(activation.function(mean + std * at(shape, nodes)), np.float64)
        estimates.append(float(np.sum(weights * values**2) / np.sum(weights)))
    if not all(math.isfinite(f) for f in estimates):
        return False
    return abs(estimates[0] - estimates[1]) <= 0.03 * abs(estimates[0])


@functools.cache
def _shifted_nodes() -> list[tuple[Array, Array]]:
    nodes = [np.arange(-9.0, 9.0, 0.01) + 0.01 * shift for shift in (0.0, 0.37)]
    return [(each, np.exp(-(each**2) / 2)) for each in nodes]


class _Passed(NamedTuple):
    """The effect of an activation on gradients.

    `far` and `adjacent` are factors on the correlations of distant and adjacent positions. For
    `bend` and `common`, the coherence that a gradient's own part adds, see `curvature`.
    """

    squared_slope: float | Array
    slope: float
    far: float = 1.0
    adjacent: float = 1.0
    bend: Bend | None = None
    common: float = 0.0


def _passed_back(moments: Moments, activation: Activation, gradient: Gradient) -> _Passed:
    if moments.border is not None:
        source = moments.border.source
        passed = _passed_back(source, activation, gradient)
        return _Passed(source.average(np.asarray(passed.squared_slope)), *passed[1:])
    if moments.pre is not None and moments.function is not None:
        # The slope of the outer function, averaged where the inner slope is not 0.
        function = composed(moments.function, activation)
        whole, inner = law_of(moments.pre, function), law_of(moments.pre, moments.function)
        before = squared_slopes(moments.pre, moments.function, inner)
        after = squared_slopes(moments.pre, function, whole)
        share = np.divide(after, before, out=np.zeros_like(after), where=before > 0)
        return _Passed(share, whole.slope / inner.slope if abs(inner.slope) > 1e-9 else 0.0)
    if not math.isfinite(moments.second_moment):
        return _Passed(math.nan, math.nan)
    law = law_of(moments, activation)
    if law.squared_slope <= 0:
        return _Passed(0.0, 0.0, 0.0, 0.0)
    own = through_activation(gradient.own, law)
    wider = law_of(moments, activation, 2**0.5)
    kept = 1 / own.factor
    return _Passed(
        squared_slopes(moments, activation, law) * own.factor,
        law.slope,
        law.slope_product(moments.correlation) / law.squared_slope * kept,
        law.slope_product(moments.adjacent_correlation) / law.squared_slope * kept,
        bend_of(gradient.coherence, law, wider, moments.correlation),
        own.coherent,
    )
