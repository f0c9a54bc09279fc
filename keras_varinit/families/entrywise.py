"""Element-wise operations that are not activations: log, sqrt, round, comparisons and the like.

They are not part of a stage. For activations, see the module `activations`.
"""

import dataclasses

import numpy as np

from keras_varinit.families.activations import after_activation, is_integrable
from keras_varinit.families.merging import merged
from keras_varinit.maths.quadrature import Activation
from keras_varinit.signals.constants import operands
from keras_varinit.signals.outcome import Gradients, Outcome, Visit, unknown
from keras_varinit.signals.registry import (
    constant_role,
    follows_channel_axes,
    signal_rule,
)
from keras_varinit.signals.roles import Source
from keras_varinit.tracing.names import snake_case
from keras_varinit.tracing.reader import evaluate

_SMOOTH = (
    *("Arccos", "Arccosh", "Arcsin", "Arctanh", "Cbrt", "Cosh", "Deg2rad", "Erfc", "Erfinv"),
    *("Exp2", "I0", "Log", "Log10", "Log2", "NanToNum", "Rad2deg", "Reciprocal", "Rsqrt", "Sinc"),
    *("Sqrt", "Tan"),
)

# Piecewise constant functions, whose gradient is 0.
_STEPS = (
    *("Ceil", "Floor", "Heaviside", "Isfinite", "Isinf", "Isnan", "Isneginf", "Isposinf"),
    *("LogicalNot", "Round", "Sign", "Signbit", "Trunc"),
)

_COMPARISONS = ("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual")

_WITH_NUMBER = ("FloorDivide", "Fmod", "Mod")


@follows_channel_axes
@signal_rule(*_SMOOTH, *_STEPS, *_WITH_NUMBER, *_COMPARISONS)
def _of_each_entry(visit: Visit) -> Outcome:
    """f(z), f(z, c) or f(c, z) with a number c, or a function of two signals."""
    name = type(visit.operation).__name__
    if len(visit.inputs) == 2:
        # Known if both are functions of one signal.
        return without_gradient(merged(visit)) if name in _COMPARISONS else merged(visit)
    numbers = [o for o in operands(visit) if isinstance(o, np.ndarray)]
    if any(values.size != 1 for values in numbers):
        return unknown(visit, "it takes numbers that differ between entries")
    node = visit.call.node
    function = Activation(snake_case(name), lambda s: evaluate(node, s), (id(node.arguments),))
    outcome = after_activation(visit.inputs[0], function)
    if name in (*_STEPS, *_COMPARISONS, "FloorDivide"):
        return without_gradient(outcome)
    if visit.inputs[0].is_known() and not is_integrable(visit.inputs[0], function):
        return unknown(visit, "its second moment does not exist for a Gaussian signal")
    return outcome


def without_gradient(outcome: Outcome) -> Outcome:
    """The same outcome with a gradient of 0."""

    def pullback(gradients: Gradients) -> Gradients:
        return [g and g.scaled(0.0) for g in outcome.pullback(gradients)]

    return dataclasses.replace(outcome, pullback=pullback)


# Comparisons make masks.
constant_role(Source(), *_COMPARISONS, "LogicalAnd", "LogicalNot", "LogicalOr")
