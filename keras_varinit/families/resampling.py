"""Resampling: UpSampling1D to 3D, Resizing, `ops.image.resize`, `flip` and `roll`."""

import functools

import keras
import numpy as np

from keras_varinit.maths.windows import AnyWindow, Array, Axis, Linear, Window
from keras_varinit.signals.axis_maps import along_axes, gather, moved
from keras_varinit.signals.layouts import channel_axis_of, in_layout
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, layout, not_modelled
from keras_varinit.signals.registry import constant_role, layer_classes, signal_rule
from keras_varinit.signals.roles import Transparent, per_dimension

_INTERIOR = 24


@signal_rule("Flip", "Fliplr", "Flipud", "Roll")
def _other_order(visit: Visit) -> Outcome:
    """Flips and rolls: the same entries in another order along some dimensions."""
    signal, shape = visit.inputs[0], visit.output_shape
    rank, name = len(shape), type(visit.operation).__name__
    shifts = _turned_axes(visit, rank)
    if shifts is None:
        return not_modelled(visit, "a shift of the flattened tensor")
    channel = signal.channel_axis % rank
    inner = [a for a in range(1, rank) if a != channel]
    if any(shape[a] is None for a in shifts if a in inner):
        return not_modelled(visit, "another order along an unknown size")
    windows: list[AnyWindow] = []
    for axis, number in zip(signal.axes, inner, strict=True):
        if number not in shifts or axis.size is None:
            windows.append(Window("conv", 1, 1, 1, 0, axis, axis))
            continue
        places = np.arange(axis.size)
        turned = np.roll(places, shifts[number]) if name == "Roll" else places[::-1]
        windows.append(gather(turned.tolist(), axis, axis))
    if channel in shifts and len(signal.parts) > 1:
        signal = Signal(((signal.channels, signal.merged),), signal.channel_axis)
        moved_along = along_axes(visit, signal, windows)
        return _for_parts(moved_along, visit.inputs[0])
    return along_axes(visit, signal, windows)


def _turned_axes(visit: Visit, rank: int) -> dict[int, int] | None:
    """The shift along each dimension that is rolled, 0 if it is flipped; None if flattened."""
    operation, name = visit.operation, type(visit.operation).__name__
    if name in ("Fliplr", "Flipud"):
        return {1 if name == "Fliplr" else 0: 0}
    axis = operation.axis
    if axis is None:
        return None if name == "Roll" else dict.fromkeys(range(rank), 0)
    axes = [axis] if isinstance(axis, int) else list(axis)
    shift = getattr(operation, "shift", 0)
    each = [shift] * len(axes) if isinstance(shift, int) else list(shift)
    shifts: dict[int, int] = {}
    for a, s in zip(axes, each, strict=True):
        shifts[a % rank] = shifts.get(a % rank, 0) + int(s)
    return shifts


def _for_parts(outcome: Outcome, signal: Signal) -> Outcome:
    """Copies the gradient of channel averages to each group of channels."""

    def pullback(gradients: Gradients) -> Gradients:
        first, *rest = outcome.pullback(gradients)
        if first is not None:
            first = first.with_parts(first.parts * len(signal.parts))
        return [first, *rest]

    return Outcome(outcome.outputs, pullback)


@signal_rule(*layer_classes("UpSampling1D", "UpSampling2D", "UpSampling3D"))
def _up_sampling(visit: Visit) -> Outcome:
    size = per_dimension(visit.operation.size, len(visit.call.input_shapes[0]) - 2)
    interpolation = getattr(visit.operation, "interpolation", "nearest")
    if interpolation == "nearest":
        return moved(visit, lambda a, b, n: Window("repeat", 1, size[n], 1, 0, a, b))
    return moved(visit, lambda a, b, n: _enlarged(a, b, size[n], interpolation))


def _enlarged(source: Axis, target: Axis, factor: int, interpolation: str) -> Linear:
    if source.size is not None:
        return Linear.of(
            resizing(source.size, source.size * factor, interpolation, False), source, target
        )
    middle = _INTERIOR // 2
    matrix = resizing(_INTERIOR, _INTERIOR * factor, interpolation, False)
    return Linear.periodic(matrix[middle * factor : (middle + 1) * factor], middle, source, target)


@functools.lru_cache(maxsize=256)
def resizing(size: int, wanted: int, interpolation: str, antialias: bool) -> Array:
    """The matrix (wanted, size) of Keras's resizing along one axis, from resized unit vectors."""
    # Two columns, because PyTorch's antialiasing is wrong for maps of width 1.
    units = np.eye(size, dtype="float32").reshape(size, size, 1, 1)
    resized = keras.ops.image.resize(
        np.repeat(units, 2, axis=2),
        (wanted, 2),
        interpolation=interpolation,
        antialias=antialias,
        data_format="channels_last",
    )
    columns = np.asarray(keras.ops.convert_to_numpy(resized), np.float64)
    matrix = columns[:, :, 0, 0].T.copy()
    matrix[np.abs(matrix) < 1e-6] = 0.0
    return matrix


@signal_rule(*layer_classes("Resizing"), "Resize")
def _resizing(visit: Visit) -> Outcome:
    operation = visit.operation
    if operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio:
        return not_modelled(visit, "resizing that keeps the aspect ratio")
    signal = in_layout(visit, channel_axis_of(operation))
    target, _ = layout(visit.output_shape, signal.channel_axis)
    if len(visit.output_shape) != 4 or any(a.size is None for a in (*signal.axes, *target)):
        return not_modelled(visit, "resizing of a map of unknown size")
    windows = [
        Linear.of(
            resizing(a.size or 1, b.size or 1, operation.interpolation, operation.antialias), a, b
        )
        for a, b in zip(signal.axes, target, strict=True)
    ]
    return along_axes(visit, signal, windows)


constant_role(
    Transparent(),
    *layer_classes("Resizing", "UpSampling1D", "UpSampling2D", "UpSampling3D"),
    *("Flip", "Fliplr", "Flipud", "Resize", "Roll"),
)
