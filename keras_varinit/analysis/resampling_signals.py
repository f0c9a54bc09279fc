"""The engine's rules of padding, cropping, moving and interpolating positions."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_varinit.analysis.axes import AnyWindow, Array, Axis, Linear, Window
from keras_varinit.analysis.borders import Pads, bordered, padding_windows
from keras_varinit.analysis.gradient_maps import through_linear
from keras_varinit.analysis.mean_laws import ratio_of, with_mean_law
from keras_varinit.analysis.moment_maps import Moments, uniform
from keras_varinit.analysis.reader import call_argument
from keras_varinit.analysis.rules import Padding, layer_classes, per_dimension
from keras_varinit.analysis.signals import (
    Gradients,
    Outcome,
    Signal,
    Visit,
    layout,
    only_first,
    signal_rule,
    unknown,
)
from keras_varinit.analysis.weight_signals import channel_axis_of, in_layout

_INTERIOR = 24


def moved(visit: Visit, windows_of: Callable[[Axis, Axis, int], AnyWindow]) -> Outcome:
    """A linear map along each axis: entries at other positions, repeated, left out or mixed."""
    signal = in_layout(visit, channel_axis_of(visit.operation, visit.inputs[0].channel_axis))
    target, _ = layout(visit.output_shape, signal.channel_axis)
    windows = [
        windows_of(source, axis, number)
        for number, (source, axis) in enumerate(zip(signal.axes, target, strict=True))
    ]
    return along_axes(visit, signal, windows)


def along_axes(visit: Visit, signal: Signal, windows: Sequence[AnyWindow]) -> Outcome:
    """A linear map along each axis of the positions."""
    output = signal.each(lambda m: _mapped(m, windows))
    back = _back_through(visit, windows)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is not None and gradient.through is not None:
            ratios = [ratio_of(m, gradient.through) for _, m in output.parts]
            parts = zip(gradient.parts, ratios, strict=True)
            gradient = gradient.with_parts(tuple(g * r for g, r in parts))
        return back([gradient, *gradients[1:]])

    return Outcome((output,), pullback)


def _mapped(moments: Moments, windows: Sequence[AnyWindow]) -> Moments:
    """Where each output is one input, it is the same function of something Gaussian."""
    result = moments.mapped(windows)
    if not all(_picks(window) for window in windows):
        if all(isinstance(w, Window) and w.kind == "pool" for w in windows):
            return with_mean_law(result, moments, math.prod(w.taps for w in windows))
        return result
    if moments.pre is None:
        return dataclasses.replace(result, law=moments.law, third=moments.third)
    pre = moments.pre.mapped(windows)
    return dataclasses.replace(result, pre=pre, function=moments.function, third=moments.third)


def _picks(window: AnyWindow) -> bool:
    if window.kind == "repeat":
        return True
    if window.kind == "linear":
        return window.taps == 1 and set(np.frombuffer(window.coefficients).tolist()) == {1.0}
    inputs, outputs = window.inputs.size, window.outputs.size
    if window.inputs == window.outputs and window.taps == 1:
        return window.low == 0
    if inputs is None or outputs is None or window.taps > 1:
        return False
    return window.low <= 0 and outputs - window.low <= inputs


def _back_through(visit: Visit, windows: Sequence[AnyWindow]) -> Callable[[Gradients], Gradients]:
    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        back = None if gradient is None else through_linear(gradient, windows)
        return only_first(back, len(visit.inputs))

    return pullback


@signal_rule(*layer_classes("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"))
def _zero_padding(visit: Visit) -> Outcome:
    role = visit.role
    if not isinstance(role, Padding):
        raise TypeError("a rule of padding met another role")
    signal = in_layout(visit, channel_axis_of(visit.operation, visit.inputs[0].channel_axis))
    return _padded(visit, signal, role.pads, 0.0)


def _padded(visit: Visit, signal: Signal, pads: Pads, value: float) -> Outcome:
    output = signal.each(lambda m: bordered(m, pads, value))
    return Outcome((output,), _back_through(visit, padding_windows(signal.axes, pads)))


@signal_rule("Pad")
def _raw_pad(visit: Visit) -> Outcome:
    signal, rank = visit.inputs[0], len(visit.output_shape)
    widths = np.broadcast_to(np.asarray(visit.operation.pad_width, int), (rank, 2)).tolist()
    channel = signal.channel_axis % rank
    pads = tuple((low, high) for a, (low, high) in enumerate(widths) if a not in (0, channel))
    mode = visit.operation.mode
    value = call_argument(visit.call.node, 1, "constant_values")
    value = 0.0 if value is None else value
    if any(widths[0]) or (any(widths[channel]) and mode != "constant"):
        return not_modelled(visit, "padding along the batch, or of channels with other channels")
    if mode != "constant":
        return _reflected(visit, signal, pads, mode)
    if not isinstance(value, int | float | np.number):
        return not_modelled(visit, "padding with a tensor")
    padded = _padded(visit, signal, pads, float(value))
    return _with_more_channels(padded, widths[channel], float(value))


def _with_more_channels(padded: Outcome, counts: Sequence[int], value: float) -> Outcome:
    """Between channels that are a number everywhere."""
    if not any(counts):
        return padded
    inner = padded.outputs[0]
    constant = uniform(inner.axes, value, value**2, value**2)
    before, after = ([(n, constant)] if n else [] for n in counts)
    output = dataclasses.replace(inner, parts=(*before, *inner.parts, *after))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return padded.pullback((None,))
        own = gradient.parts[len(before) : len(before) + len(inner.parts)]
        return padded.pullback((gradient.with_parts(own),))

    return Outcome((output,), pullback)


def _reflected(visit: Visit, signal: Signal, pads: Pads, mode: str) -> Outcome:
    """Entries of the map around it; which ones depends on the backend too."""
    target, _ = layout(visit.output_shape, signal.channel_axis)
    if any(a.size is None for a, pair in zip(signal.axes, pads, strict=True) if any(pair)):
        return not_modelled(visit, f"padding of mode {mode!r} along an unknown size")
    windows = [
        gather(_reflected_places(axis.size, pair, mode), axis, other)
        if axis.size is not None
        else Window("conv", 1, 1, 1, 0, axis, other)
        for axis, other, pair in zip(signal.axes, target, pads, strict=True)
    ]
    return along_axes(visit, signal, windows)


@functools.lru_cache(maxsize=256)
def _reflected_places(size: int, pads: tuple[int, int], mode: str) -> tuple[int, ...]:
    """What Keras pads with, by padding the numbers of the positions."""
    numbers = np.arange(size, dtype="float32").reshape(1, size, 1, 1)
    padded = keras.ops.pad(numbers, ((0, 0), pads, (0, 0), (0, 0)), mode=mode)
    return tuple(np.asarray(keras.ops.convert_to_numpy(padded)).ravel().astype(int).tolist())


def gather(places: Sequence[int], inputs: Axis, outputs: Axis) -> Linear:
    """Output p is the input at `places[p]`."""
    positions = np.asarray(places, np.int64)
    return Linear(inputs, outputs, 1, positions.tobytes(), np.ones(len(positions)).tobytes())


def not_modelled(visit: Visit, what: str) -> Outcome:
    """Unknown, with a note that says what is."""
    return unknown(visit, f"{what} is not modelled")


@signal_rule(*layer_classes("Cropping1D", "Cropping2D", "Cropping3D"))
def _cropping(visit: Visit) -> Outcome:
    cropping = visit.operation.cropping
    pairs = [(c, c) if isinstance(c, int) else tuple(c) for c in np.atleast_1d(cropping).tolist()]
    if len(pairs) == 2 and len(visit.inputs[0].axes) == 1:
        pairs = [(pairs[0][0], pairs[1][0])]
    return moved(visit, lambda a, b, n: Window("conv", 1, 1, 1, -pairs[n][0], a, b))


@signal_rule("PadImages", "CropImages")
def _raw_image_borders(visit: Visit) -> Outcome:
    """Zeros above and to the left, or rows and columns less; the rest by the shapes."""
    operation = visit.operation
    signal = in_layout(visit, channel_axis_of(operation))
    target, _ = layout(visit.output_shape, signal.channel_axis)
    sizes = [(a.size, b.size) for a, b in zip(signal.axes, target, strict=True)]
    if len(sizes) != 2 or any(None in pair for pair in sizes):
        return not_modelled(visit, "a map of unknown size")
    pads_images = "Pad" in type(operation).__name__
    names = (("top", "bottom"), ("left", "right"))
    found = []
    for (before, after), (size, wanted) in zip(names, sizes, strict=True):
        kind = "padding" if pads_images else "cropping"
        low = getattr(operation, f"{before}_{kind}")
        difference = (wanted or 0) - (size or 0)
        if low is None:
            high = getattr(operation, f"{after}_{kind}")
            low = abs(difference) - high
        low = int(low) if pads_images else -int(low)
        found.append((low, difference - low))
    if pads_images:
        return _padded(visit, signal, tuple(found), 0.0)
    return along_axes(visit, signal, padding_windows(signal.axes, tuple(found)))


@signal_rule("Flip", "Fliplr", "Flipud", "Roll")
def _other_order(visit: Visit) -> Outcome:
    """The same entries in another order along some dimensions."""
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
    """The shift along each dimension that changes; a flip counts as 0."""
    operation, name = visit.operation, type(visit.operation).__name__
    if name in ("Fliplr", "Flipud"):
        return {1 if name == "Fliplr" else 0: 0}
    axis = operation.axis
    if axis is None:
        return None if name == "Roll" else dict.fromkeys(range(rank), 0)
    axes = [axis] if isinstance(axis, int) else list(axis)
    shift = getattr(operation, "shift", 0)
    each = [shift] * len(axes) if isinstance(shift, int) else list(shift)
    found: dict[int, int] = {}
    for a, s in zip(axes, each, strict=True):
        found[a % rank] = found.get(a % rank, 0) + int(s)
    return found


def _for_parts(outcome: Outcome, signal: Signal) -> Outcome:
    """The gradient of averages over channels, for each group of them."""

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
    """The matrix (wanted, size) of Keras's resizing along one axis: unit vectors, resized."""
    # Two columns, since PyTorch's filter against aliasing misreads maps of a single one.
    units = np.eye(size, dtype="float32").reshape(size, size, 1, 1)
    resized = keras.ops.image.resize(
        np.repeat(units, 2, axis=2),
        (wanted, 2),
        interpolation=interpolation,
        antialias=antialias,
        data_format="channels_last",
    )
    found = np.asarray(keras.ops.convert_to_numpy(resized), np.float64)
    matrix = found[:, :, 0, 0].T.copy()
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
