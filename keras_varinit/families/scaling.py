"""Arithmetic with known numbers: Rescaling, Normalization, and `ops.add`, `multiply` and the like.

Also `ops.subtract` and `divide`. This covers LayerScale, masks and rescaled inputs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_varinit.families.activations import after_activation, is_integrable
from keras_varinit.families.merging import merged
from keras_varinit.families.reshaping import broadcast_to
from keras_varinit.maths.algebra import added, multiplied
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.windows import Array
from keras_varinit.signals.constants import (
    constant_signal,
    law_with_numbers,
    operands,
    single_value,
    values_of,
)
from keras_varinit.signals.layouts import fitting, on_axes
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, unknown
from keras_varinit.signals.registry import (
    constant_role,
    follows_channel_axes,
    layer_classes,
    role_rule,
    signal_rule,
)
from keras_varinit.signals.roles import Call, Elementwise, Merge, Role, Transparent
from keras_varinit.tracing.names import snake_case
from keras_varinit.tracing.reader import call_argument, evaluate


@role_rule(
    *("Add", "Arctan2", "Divide", "DivideNoNan", "Fmax", "Fmin", "Hypot", "Logaddexp"),
    *("Logaddexp2", "Maximum", "Minimum", "Multiply", "Power", "Subtract", "TrueDivide"),
)
def _arithmetic_role(call: Call) -> Role:
    """A merge of two signals; with a number, an element-wise function."""
    if len(call.node.inputs) == 2:
        return Merge()
    node = call.node
    others = [call_argument(node, position, "") for position in range(2)]
    if not any(isinstance(v, int | float | np.number) for v in others):
        return Transparent()  # a constant array: a mask or a bias, one factor per entry
    name = snake_case(type(call.operation).__name__)
    return Elementwise(Activation(name, lambda s: evaluate(node, s), (id(node.arguments),)))


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Divide": np.divide,
    "TrueDivide": np.divide,
}


@follows_channel_axes
@signal_rule(*_ARITHMETIC)
def _arithmetic(visit: Visit) -> Outcome:
    """Arithmetic of two signals, or of a signal and known numbers."""
    sides = operands(visit)
    name = type(visit.operation).__name__
    signals = [o for o in sides if isinstance(o, int)]
    numbers = [o for o in sides if isinstance(o, np.ndarray)]
    if len(signals) == 2:
        return merged(visit)
    if len(signals) != 1 or len(numbers) != 1:
        return unknown(visit, "the value of an operand is not known")
    first = isinstance(sides[0], int)
    return with_numbers(visit, signals[0], name, numbers[0], signal_first=first)


def with_numbers(
    visit: Visit, index: int, name: str, values: Array, *, signal_first: bool = True
) -> Outcome:
    """The operation `name` on the input `index` and known numbers.

    `signal_first` tells whether the signal is the first operand.
    """
    single = single_value(values)
    same_shape = visit.call.input_shapes[index] == visit.output_shape
    if single is not None and same_shape:
        function = _function(name, single, signal_first)
        singular = "Divide" in name and not signal_first
        if singular and not is_integrable(visit.inputs[index], function):
            return unknown(visit, "the inverse of a signal that may be 0 has no second moment")
        outcome = after_activation(visit.inputs[index], function)
        if name == "Multiply" or ("Divide" in name and signal_first):
            outcome = _without_batch(outcome, visit.inputs[index].lead)
        return _only(visit, index, outcome)
    if "Divide" in name:
        if not signal_first:
            return unknown(visit, "it divides numbers that differ by a signal")
        name, values = "Multiply", 1 / np.asarray(values)
    return _affine(visit, index, name, values, signal_first)


def _without_batch(outcome: Outcome, lead: float | None) -> Outcome:
    """Places along the first dimension of a tensor without a batch are as alike as before."""
    outputs = tuple(dataclasses.replace(output, lead=lead) for output in outcome.outputs)
    return dataclasses.replace(outcome, outputs=outputs)


def _function(name: str, number: float, signal_first: bool) -> Activation:
    act = _ARITHMETIC[name]

    def function(s: Array) -> Array:
        return np.asarray(act(s, number) if signal_first else act(number, s), np.float64)

    return Activation(name.lower(), function, (name, number, signal_first))


def _only(visit: Visit, index: int, outcome: Outcome) -> Outcome:
    """Extends an outcome of the input `index` alone to all inputs."""

    def pullback(gradients: Gradients) -> Gradients:
        results = [None] * len(visit.inputs)
        return [*results[:index], outcome.pullback(gradients)[0], *results[index + 1 :]]

    return dataclasses.replace(outcome, pullback=pullback)


def _affine(visit: Visit, index: int, name: str, values: Array, signal_first: bool) -> Outcome:
    """Adds, subtracts or multiplies numbers c that differ between channels or positions."""
    shape = visit.output_shape
    source = visit.inputs[index]
    signal = broadcast_to(source, visit.call.input_shapes[index], shape)
    if signal is None:
        return unknown(visit, "it repeats a signal's channels")
    constant = constant_signal(values, shape, signal)
    numbers = constant.parts[0][1]

    def combined(moments: Moments) -> Moments:
        moments = on_axes(moments, numbers.axes)
        kind, operand = name, values
        if name == "Multiply":
            result = multiplied(moments, numbers)
        elif name == "Subtract" and not signal_first:
            result, kind = added(numbers, moments, -1.0), "Reversed"
        else:
            result = added(moments, numbers, -1.0 if name == "Subtract" else 1.0)
            kind, operand = "Add", -values if name == "Subtract" else values
        law = law_with_numbers(moments, result, operand, len(shape), signal, kind)
        return dataclasses.replace(result, law=law)

    output = signal.each(combined)
    factor = numbers.second if name == "Multiply" else np.ones_like(numbers.mean)
    # Factors of different sign reduce the coherence of gradients.
    kept = 1.0
    if name == "Multiply" and numbers.second_moment > 0:
        kept = min(abs(numbers.pair_moment) / numbers.second_moment, 1.0)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        results: list[Any] = [None] * len(visit.inputs)
        if gradient is not None:
            passed = gradient.less_coherent(kept, kept)
            passed = passed.with_parts(tuple(g * factor for g in gradient.parts))
            results[index] = summed_over_repeats(passed, output, source)
        return results

    return Outcome((output,), pullback)


def summed_over_repeats(gradient: Any, output: Signal, source: Signal) -> Any:
    """The gradient of a signal that was broadcast: the sum over its copies."""
    back = fitting(gradient, output, source)
    sizes = [_positions(signal) for signal in (output, source)]
    times = sizes[0] / sizes[1]
    if times > 1:
        back = back.scaled(times * (1 + gradient.coherence * (times - 1)))
    return back


def _positions(signal: Signal) -> float:
    """Number of positions of a signal; axes of unknown size count as 1."""
    return float(np.prod([a.size or 1 for a in signal.axes]))


@signal_rule(keras.layers.Rescaling)
def _rescaling(visit: Visit) -> Outcome:
    layer = visit.operation
    scale, offset = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    scaled = with_numbers(visit, 0, "Multiply", scale)
    moved = dataclasses.replace(visit, inputs=scaled.outputs)
    shifted = with_numbers(moved, 0, "Add", offset)
    return Outcome(shifted.outputs, lambda gradients: scaled.pullback(shifted.pullback(gradients)))


@signal_rule(keras.layers.Normalization)
def _normalization(visit: Visit) -> Outcome:
    """(z - mean)/√variance with the adapted statistics, or the inverse."""
    layer = visit.operation
    mean, variance = (
        values_of(getattr(layer, "mean", None)),
        values_of(getattr(layer, "variance", None)),
    )
    if mean is None or variance is None:
        return unknown(visit, "it is not adapted to data")
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    steps = [("Subtract", mean), ("Divide", deviation)]
    if layer.invert:
        steps = [("Multiply", deviation), ("Add", mean)]
    outcomes: list[Outcome] = []
    for name, values in steps:
        outcomes.append(with_numbers(visit, 0, name, values))
        visit = dataclasses.replace(visit, inputs=outcomes[-1].outputs)
    first, second = outcomes
    return Outcome(second.outputs, lambda gradients: first.pullback(second.pullback(gradients)))


constant_role(Transparent(), *layer_classes("Normalization", "Rescaling"))
