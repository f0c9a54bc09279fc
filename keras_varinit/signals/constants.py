"""Numbers, arrays and variables that take part in a model's computation: their values are known."""

import itertools
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.keras_private import Shape, is_symbolic, is_variable, own_variable
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.windows import Array, Axis, axes_of
from keras_varinit.signals.layouts import channel_axes, position_axes, signal_at, sizes_of
from keras_varinit.signals.outcome import Signal, Visit
from keras_varinit.tensors import to_numpy, view


def moments_of_variable(layer: Any, name: str) -> tuple[float, float]:
    """Mean and mean square of a layer's bias, or of another variable of its own; 0 without one."""
    variable = own_variable(layer, name)
    held = getattr(layer, f"{name}_initializer", None)
    if variable is None or isinstance(held, keras.initializers.Zeros):
        return 0.0, 0.0
    values = np.asarray(view(variable), np.float64)
    return float(np.mean(values)), float(np.mean(np.square(values)))


def values_of(value: Any) -> Array | None:
    """An argument's value as numbers, or None where it is not known before the model runs."""
    if value is None or is_symbolic(value) or isinstance(value, str):
        return None
    if isinstance(value, bool | int | float | np.number | np.ndarray):
        return np.asarray(value, np.float64)
    if is_variable(value) or keras.ops.is_tensor(value):
        return np.asarray(to_numpy(value), np.float64)
    if isinstance(value, list | tuple):
        parts = [values_of(each) for each in value]
        known = [p for p in parts if p is not None]
        return np.asarray(known) if len(known) == len(parts) else None
    return None


def operands(visit: Visit) -> list[int | Array | None]:
    """The two arguments of an operation: the number of a signal, known values, or None."""
    order = iter(range(len(visit.inputs)))
    found: list[int | Array | None] = []
    arguments = visit.call.node.arguments
    given = [*arguments.args, *(arguments.kwargs[k] for k in sorted(arguments.kwargs))]
    for value in given[:2]:
        if is_symbolic(value):
            number = next(order)
            known = visit.values[number] if visit.values else None
            found.append(number if known is None else known)
        else:
            found.append(values_of(value))
    return found


def constant_signal(values: npt.NDArray[Any], shape: Shape, like: Signal) -> Signal:
    """The moments of known numbers, broadcast to a shape, laid out as another signal is.

    E c_p c_q averages over channels. Within a class of positions it averages over its members; near
    positions count like any two.
    """
    rank = len(shape)
    values = np.asarray(values, np.float64).reshape((1,) * (rank - values.ndim) + values.shape)
    channels, positions = channel_axes(like, rank), position_axes(like, rank)
    axes = axes_of(sizes_of(shape, positions))
    # Examples that differ (a leading dimension of more than 1) are averaged like channels.
    moved = np.moveaxis(values, positions, range(len(positions)))
    table = moved.reshape((*moved.shape[: len(positions)], -1))
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
    count = int(np.prod([n or 1 for n in sizes_of(shape, channels)]))
    return signal_at([(count, moments)], channels, rank)


def _by_class(values: Array, axes: tuple[Axis, ...]) -> Array:
    """Means over the positions of each class, along the first dimensions."""
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
    """The number that all entries are, or None where they differ."""
    first = float(values.flat[0]) if values.size else None
    return first if first is not None and bool(np.all(values == first)) else None
