"""Softmax, LogSoftmax and `ops.softmax`: over channels, positions, or the keys of attention.

Weights A = softmax(l) over n logits have E A = 1/n and E Σ A² = S. For uncorrelated gradients of
second moment g², E Σ (dL/dl)² = (S - 2 E Σ A³ + E (Σ A²)²)·g².
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.families.attention.masks import UnknownError
from keras_varinit.families.attention.rows import (
    RowGradient,
    Rows,
    RowSignal,
    hides,
    known_numbers,
    masked,
    passed_on,
    rows_of,
    with_rows,
)
from keras_varinit.maths.attention import row_shares
from keras_varinit.maths.covariance import Moments, outer, uniform
from keras_varinit.maths.patterns import everything
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.tokens import size_of
from keras_varinit.maths.windows import axes_of
from keras_varinit.signals.constants import operands
from keras_varinit.signals.layouts import channel_axes, position_axes, sizes_of, without_axes
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, only_first, unknown
from keras_varinit.signals.registry import follows_channel_axes, role_rule, row_rule, signal_rule
from keras_varinit.signals.roles import Call, Elementwise, Role
from keras_varinit.tracing.arguments import Input, named_arguments
from keras_varinit.typing import Operation


@role_rule(keras.layers.Softmax, "Softmax")
def _softmax_role(call: Call) -> Role:
    return Elementwise(Activation("softmax", lambda s: s, ("softmax",)))


@role_rule("LogSoftmax")
def _log_softmax_role(call: Call) -> Role:
    return Elementwise(Activation("log_softmax", lambda s: s, ("log_softmax",)))


def softmax_axes(operation: Operation, rank: int) -> list[int]:
    """The dimensions that a softmax runs over, counted from the left."""
    axis = getattr(operation, "axis", -1)
    axis = -1 if axis is None else axis
    return sorted({int(a) % rank for a in ([axis] if isinstance(axis, int) else axis)})


@follows_channel_axes
@signal_rule("Softmax", keras.layers.Softmax)
def _softmax(visit: Visit) -> Outcome:
    """Softmax of a signal without rows; at the model's output it belongs to the loss."""
    if visit.at_output:
        count = len(visit.inputs)
        return Outcome(visit.inputs[:1], lambda gradients: only_first(gradients[0], count))
    axes = softmax_axes(visit.operation, len(visit.output_shape))
    first = softmax(visit, axes)
    rows = first.outputs[0]
    number, value = _mask_of(visit)
    if value is None and number is None:
        return first
    if not isinstance(rows, RowSignal):
        return unknown(visit, "a masked softmax over channels is not modelled")
    return unknown(visit, "a masked softmax over positions is not modelled")


def softmax(visit: Visit, axes: Sequence[int]) -> Outcome:
    """Softmax of the first input over the dimensions `axes`."""
    signal, shape = visit.inputs[0], visit.call.input_shapes[0]
    if visit.at_output:
        return Outcome((signal,), lambda gradients: only_first(gradients[0], len(visit.inputs)))
    sizes = sizes_of(shape, axes)
    if 0 in axes or None in sizes:
        return unknown(visit, "softmax over the batch or over an unknown number of entries")
    channels = channel_axes(signal, len(shape))
    if signal.merged.common is not None:
        return unknown(visit, "all its logits share a factor that varies")
    if set(axes) <= set(channels):
        if signal.alike:
            return unknown(visit, "one of its summands is the same in all channels")
        return _over_channels(visit, math.prod(n or 1 for n in sizes))
    if set(axes) & set(channels):
        return unknown(visit, "softmax over channels and positions at once")
    return _over_positions(visit, axes)


def as_activation(visit: Visit, outputs: tuple[Signal, ...], name: str) -> Outcome:
    """Softmax as the activation of a layer with kernels; similar functions are not modelled."""
    call = dataclasses.replace(visit.call, input_shapes=visit.call.output_shapes)
    moved = dataclasses.replace(visit, inputs=outputs, call=call)
    if name != "softmax":
        return unknown(moved, f"its activation {name} is not modelled")
    return softmax(moved, [len(visit.output_shape) - 1])


def _over_channels(visit: Visit, count: int) -> Outcome:
    """Softmax over channels, which are independent logits."""
    signal = visit.inputs[0]
    total = signal.merged
    variance = total.average(total.variance)
    shares = row_shares(np.array([variance]), np.array([float(count)]), math.inf)[:, 0]
    squares, slopes = float(shares[0]), max(float(shares[0] - 2 * shares[1] + shares[2]), 0.0)
    deviation = np.sqrt(np.maximum(total.variance, 1e-300))
    rho = np.clip((total.far - outer(total.mean)) / outer(deviation), -1.0, 1.0)

    def weighted(moments: Moments) -> Moments:
        far = (squares * count) ** rho / count**2
        mean = np.full_like(moments.mean, 1 / count)
        shape = [n for a in moments.axes for n in (1, a.count)]
        result = Moments(moments.axes, mean, far, np.zeros(shape), (0,) * len(moments.axes))
        return result.with_second(np.full_like(mean, squares / count))

    output = signal.each(weighted)
    kept = (squares * count) ** (min(max(total.correlation, 0.0), 1.0) - 1)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        back = gradient.scaled(slopes / count).less_coherent(kept, kept)
        return only_first(back, len(visit.inputs))

    return Outcome((output,), pullback)


def _over_positions(visit: Visit, axes: Sequence[int]) -> Outcome:
    """Softmax over positions of one channel, where the common part of the logits cancels."""
    signal, shape = visit.inputs[0], visit.call.input_shapes[0]
    rank = len(shape)
    positions = position_axes(signal, rank)
    merged = signal.merged
    keys = [positions.index(a) for a in axes]
    others = [n for n in range(len(positions)) if n not in keys]
    key = without_axes(merged, others, pooled=True)
    second, pair = key.second_moment, _within(key)
    own = max(second - pair, 0.0)
    # Correlation of two rows of logits, from that of their entries at the same key.
    row_axes = axes_of(sizes_of(shape, [positions[n] for n in others]))
    same = without_axes(merged, keys, pooled=True).pair_moment
    alike = min(max((same - merged.pair_moment) / own, 0.0), 1.0) if own > 0 else 1.0
    query = uniform(row_axes, 0.0, 1.0, alike)
    rows_count = size_of(row_axes)
    if rows_count is None:
        return unknown(visit, "an unknown number of rows")
    rows = Rows(
        query,
        key,
        everything(rows_count, size_of(key.axes) or 1),
        tuple(positions[n] - rank for n in others),
        tuple(a - rank for a in axes),
    )
    return _weights(visit, rows)


def _within(key: Moments) -> float:
    """E l l' of two positions of one example."""
    count = size_of(key.axes) or 1
    whole = key.pair_moment * count**2
    diagonal = key.average(key.second)
    near = key.average(key.excess.sum(axis=tuple(range(0, key.excess.ndim, 2))))
    if count < 2:
        return diagonal
    return (whole + count * near - count * diagonal) / (count * (count - 1))


def _weights(visit: Visit, rows: Rows) -> Outcome:
    """Softmax of the first input, logits with the given rows."""
    signal = visit.inputs[0]
    squares, cubes, fourths, _ = rows.shares().tolist()
    keys = rows.pattern.keys
    moments = uniform(signal.axes, 1 / keys, squares / keys, keys**-2)
    parts = tuple((n, moments) for n, _ in signal.parts)
    plain = Signal(parts, signal.channel_axis, signal.other_axes)
    output = with_rows(plain, dataclasses.replace(rows, are_weights=True))
    slopes = max(squares - 2 * cubes + fourths, 0.0)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        if not (isinstance(gradient, RowGradient) and gradient.sources is not None):
            parts = tuple(g * slopes / keys for g in gradient.parts)
            gradient = RowGradient(parts, 0.0, centred=True)
        return only_first(gradient, len(visit.inputs))

    return Outcome((output,), pullback)


@row_rule("Softmax", keras.layers.Softmax, keras.layers.Activation)
def _of_rows(visit: Visit) -> Outcome | None:
    """Softmax of logits with rows, over the keys."""
    is_softmax = isinstance(visit.role, Elementwise) and visit.role.activation.name == "softmax"
    if not is_softmax:
        return None
    rows, rank = rows_of(visit), len(visit.output_shape)
    if rows is None or rows.are_weights or visit.at_output:
        return None
    axes = softmax_axes(visit.operation, rank)
    if axes != sorted(a % rank for a in rows.key_axes):
        return None
    number, value = _mask_of(visit)
    if number is not None or value is not None:
        values = known_numbers(visit, value, number)
        if values is None:
            return unknown(visit, "its mask is a signal, or of unknown size")
        try:
            signal = masked(visit, 0, rows, values).outputs[0]
        except UnknownError as reason:
            return unknown(visit, str(reason))
        if isinstance(signal, RowSignal) and signal.rows is not None:
            rows = signal.rows
    return _weights(visit, rows)


def _mask_of(visit: Visit) -> tuple[int | None, Any]:
    """The mask of a `Softmax` layer: (number of the input, None) or (None, value)."""
    if not isinstance(visit.operation, keras.layers.Softmax):
        return None, None
    mask = named_arguments(visit.call.node).get("mask")
    return (mask.number, None) if isinstance(mask, Input) else (None, mask)


@row_rule("Multiply", "Divide", "TrueDivide")
def _scaled(visit: Visit) -> Outcome | None:
    """Logits multiplied or divided by a number."""
    sides = operands(visit)
    numbers = [o for o in sides if isinstance(o, np.ndarray)]
    if len(numbers) != 1 or (not isinstance(sides[0], int) and "Divide" in _name(visit)):
        return None
    number = next(o for o in sides if isinstance(o, int))
    rows = rows_of(visit, number)
    if rows is None or rows.are_weights or numbers[0].size != 1:
        return None
    factor = float(numbers[0].flat[0]) ** 2
    factor = 1 / factor if "Divide" in _name(visit) else factor
    changed = dataclasses.replace(rows, scale=rows.scale * factor)
    return passed_on(visit, number, changed, factor)


def _name(visit: Visit) -> str:
    return type(visit.operation).__name__


@row_rule("Add", "Where", keras.layers.Add)
def _masked(visit: Visit) -> Outcome | None:
    """Logits with an additive mask, or with -∞ where a boolean mask is false."""
    arguments = visit.call.node.arguments
    call_values = [*arguments.args, *(arguments.kwargs[k] for k in sorted(arguments.kwargs))]
    call_values = keras.tree.flatten(call_values)
    numbers, values = _numbered(call_values), []
    index = next(n for n, s in enumerate(visit.inputs) if isinstance(s, RowSignal))
    rows = rows_of(visit, index)
    if rows is None or rows.are_weights:
        return None
    place = numbers.index(index)
    others = [n for n in range(len(call_values)) if n != place]
    for n in others:
        value = known_numbers(visit, call_values[n], numbers[n])
        if value is None:
            return None
        values.append(value)
    if _name(visit) == "Where":
        if len(values) != 2 or place == 0 or not np.all(values[1] <= -1e3):
            return None
        seen = (values[0] != 0) == (place == 1)
    else:
        if len(values) != 1:
            return None
        hidden = hides(values[0])
        if hidden is None:
            return None
        seen = hidden
    try:
        return masked(visit, index, rows, seen)
    except UnknownError as reason:
        return unknown(visit, str(reason))


def _numbered(values: Sequence[Any]) -> list[int | None]:
    """The input number of each argument, None for arguments that are not symbolic tensors."""
    count, numbers = 0, []
    for value in values:
        is_input = isinstance(value, keras.KerasTensor)
        numbers.append(count if is_input else None)
        count += is_input
    return numbers


@row_rule(keras.layers.Dropout)
def _dropped(visit: Visit) -> Outcome | None:
    """Dropout of attention weights, which divides them by the kept share."""
    rows, signal = rows_of(visit), visit.inputs[0]
    if rows is None or not rows.are_weights:
        return None
    kept = 1 - float(visit.operation.rate)
    plain = signal.each(lambda m: m.with_second(m.second / kept))
    output = with_rows(plain, dataclasses.replace(rows, kept=rows.kept * kept))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        known = isinstance(gradient, RowGradient) and gradient.sources is not None
        if gradient is None or known:
            return only_first(gradient, len(visit.inputs))
        return only_first(gradient.scaled(1 / kept), len(visit.inputs))

    return Outcome((output,), pullback)
