"""Numbers, arrays and variables that take part in a computation with known values."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.keras_private import Shape, is_symbolic, is_variable, own_variable
from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.laws import Kind, Law, Mixed
from keras_varinit.maths.windows import Array, Axis, axes_of
from keras_varinit.signals.layouts import channel_axes, position_axes, signal_at, sizes_of
from keras_varinit.signals.outcome import Signal, Visit
from keras_varinit.tensors import moments, view
from keras_varinit.typing import Layer


def moments_of_variable(layer: Layer, name: str) -> tuple[float, float]:
    """Mean and mean square of a layer's own variable, such as "bias"; 0 if it has none."""
    variable = own_variable(layer, name)
    initializer = getattr(layer, f"{name}_initializer", None)
    if variable is None or isinstance(initializer, keras.initializers.Zeros):
        return 0.0, 0.0
    return moments(variable)


def values_of(value: Any) -> Array | None:
    """An argument's value as float64, or None if it is not known before the model runs."""
    if value is None or is_symbolic(value) or isinstance(value, str):
        return None
    if isinstance(value, bool | int | float | np.number | np.ndarray):
        return np.asarray(value, np.float64)
    if is_variable(value) or keras.ops.is_tensor(value):
        return np.array(view(value), np.float64)
    if isinstance(value, list | tuple):
        parts = [values_of(each) for each in value]
        known = [p for p in parts if p is not None]
        return np.asarray(known) if len(known) == len(parts) else None
    return None


def operands(visit: Visit) -> list[int | Array | None]:
    """The two operands of an operation, each an input's number, an array of values, or None."""
    order = iter(range(len(visit.inputs)))
    operand_values: list[int | Array | None] = []
    arguments = visit.call.node.arguments
    call_values = [*arguments.args, *(arguments.kwargs[k] for k in sorted(arguments.kwargs))]
    for value in call_values[:2]:
        if is_symbolic(value):
            number = next(order)
            known = visit.values[number] if visit.values else None
            operand_values.append(number if known is None else known)
        else:
            operand_values.append(values_of(value))
    return operand_values


def constant_signal(values: npt.NDArray[Any], shape: Shape, like: Signal) -> Signal:
    """The moments of known numbers, broadcast to `shape` and laid out like another signal.

    E c_p c_q averages over channels and over the members of each class of positions; near
    positions are treated like any two.
    """
    rank = len(shape)
    channels, positions = channel_axes(like, rank), position_axes(like, rank)
    axes = axes_of(sizes_of(shape, positions))
    table = _by_position(values, rank, positions)
    mean_square = np.mean(np.square(table), axis=-1)
    second = _by_class(mean_square, axes)
    typical = _by_class(table, axes)
    mean = typical.mean(axis=-1)
    flat = typical.reshape(-1, typical.shape[-1])
    pairs = (flat @ flat.T / flat.shape[1]).reshape([a.count for a in axes] * 2)
    order = list(itertools.chain(*((n, n + len(axes)) for n in range(len(axes)))))
    moments = Moments(
        axes,
        mean,
        np.transpose(pairs, order),
        np.zeros([n for a in axes for n in (1, a.count)]),
        (0,) * len(axes),
    ).with_second(second)
    unit = uniform((), 0.0, 1.0, 0.0)
    kinds = [Kind(share, unit, 0.0, value) for share, value in _typical(table.ravel())]
    moments = dataclasses.replace(moments, law=Mixed(tuple(kinds)))
    count = int(np.prod([n or 1 for n in sizes_of(shape, channels)]))
    return signal_at([(count, moments)], channels, rank)


def _by_position(values: npt.NDArray[Any], rank: int, positions: Sequence[int]) -> Array:
    """The values as (*positions, channels); differing examples count as channels."""
    values = np.asarray(values, np.float64).reshape((1,) * (rank - values.ndim) + values.shape)
    moved = np.moveaxis(values, positions, range(len(positions)))
    return moved.reshape((*moved.shape[: len(positions)], -1))


def law_with_numbers(
    source: Moments, output: Moments, values: npt.NDArray[Any], rank: int, like: Signal, name: str
) -> Law | None:
    """The law of z·c ("Multiply"), z + c ("Add") or c - z ("Reversed") for known numbers c.

    Each class of positions contributes kinds with its own mean and standard deviation.

    Args:
        source: Moments of z.
        output: Moments of the result.
        values: The numbers c, broadcastable to the result's shape.
        rank: Rank of the result.
        like: A signal with the layout of the result.
        name: The operation.
    """
    positions = position_axes(like, rank)
    table = _by_position(values, rank, positions)
    sizes = [a.size or table.shape[n] for n, a in enumerate(source.axes)]
    table = np.broadcast_to(table, (*sizes, table.shape[-1])).reshape(-1, table.shape[-1])
    flat = np.zeros((), np.int64)
    for axis, size in zip(source.axes, sizes, strict=True):
        flat = flat[..., None] * axis.count + axis.classes(np.arange(size))
    classes = np.broadcast_to(flat, sizes).ravel() if sizes else np.zeros(1, np.int64)
    if np.all(table == table[:1]):
        return _law_by_channel(source, table[0], name)
    mean, std = source.spread
    own = source.mean.ravel(), np.sqrt(source.variance).ravel()
    after = output.mean.ravel(), np.sqrt(output.variance).ravel()
    kinds = []
    for number in np.unique(classes).tolist():
        inside = table[classes == number].ravel()
        here, there = (own[0][number], own[1][number]), (after[0][number], after[1][number])
        if there[1] <= 0 or std <= 0:
            continue
        mean_square = float(np.mean(inside**2)) or 1.0
        for share, value in _typical(inside):
            factor = value if name == "Multiply" else -1.0 if name == "Reversed" else 1.0
            shift = 0.0 if name == "Multiply" else value
            scale = factor * here[1] / (std * there[1])
            centre = (factor * here[0] + shift - there[0]) / there[1] - scale * mean
            weight = value**2 / mean_square if name == "Multiply" else 1.0
            share = share * float(np.mean(classes == number))
            kinds.append(Kind(share, source, scale, centre, weight))
    return Mixed(tuple(kinds)) if kinds else None


def _law_by_channel(source: Moments, values: Array, name: str) -> Law:
    mean_square = float(np.mean(values**2)) or 1.0
    kinds = []
    for share, value in _typical(values):
        if name == "Multiply":
            kinds.append(Kind(share, source, value, 0.0, value**2 / mean_square))
        else:
            kinds.append(Kind(share, source, -1.0 if name == "Reversed" else 1.0, value))
    return Mixed(tuple(kinds), by_channel=True)


_KINDS = 12


def _typical(values: Array) -> list[tuple[float, float]]:
    """At most `_KINDS` representative (share, value) pairs with the same mean and mean square."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _KINDS:
        return list(zip((counts / counts.sum()).tolist(), distinct.tolist(), strict=True))
    groups = np.array_split(np.sort(values), _KINDS)
    shares = np.array([len(g) / len(values) for g in groups])
    means = np.array([g.mean() for g in groups])
    mean = float(values.mean())
    left = float(shares @ (means - mean) ** 2)
    means = mean + (means - mean) * (math.sqrt(float(values.var()) / left) if left else 1.0)
    return list(zip(shares.tolist(), means.tolist(), strict=True))


def _by_class(values: Array, axes: tuple[Axis, ...]) -> Array:
    """Averages the leading dimensions over the positions of each class.

    `values` is (*positions, ...); the result is (*classes, ...).
    """
    for number, axis in enumerate(axes):
        size = values.shape[number]
        if size == 1:
            values = values.repeat(axis.count, number)
            continue
        classes = axis.classes(np.arange(size))
        members = np.zeros((axis.count, size))
        members[classes, np.arange(size)] = 1
        members /= members.sum(axis=1, keepdims=True)
        values = np.moveaxis(np.tensordot(members, values, axes=(1, number)), 0, number)
    return values


def single_value(values: Array) -> float | None:
    """The value that all entries share, or None if they differ."""
    first = float(values.flat[0]) if values.size else None
    return first if first is not None and bool(np.all(values == first)) else None
