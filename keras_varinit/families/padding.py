"""Padding and cropping: ZeroPadding1D to 3D, Cropping1D to 3D, `ops.pad` and image operations.

The image operations are `ops.image.pad_images` and `crop_images`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import numpy as np

from keras_varinit.maths.borders import Pads, bordered, padding_windows
from keras_varinit.maths.covariance import uniform
from keras_varinit.maths.windows import Window
from keras_varinit.signals.axis_maps import along_axes, back_through, gather, moved
from keras_varinit.signals.layouts import channel_axis_of, in_layout
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, layout, not_modelled
from keras_varinit.signals.registry import constant_role, layer_classes, role_rule, signal_rule
from keras_varinit.signals.roles import Call, Padding, Role, Transparent
from keras_varinit.tracing.reader import call_argument


@role_rule(*layer_classes("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"))
def _zero_padding_role(call: Call) -> Role:
    padding = call.operation.padding
    if isinstance(padding, int):
        padding = ((padding, padding),)
    elif isinstance(padding[0], int):
        padding = (tuple(padding),)
    return Padding(tuple((int(before), int(after)) for before, after in padding))


@role_rule("Pad")
def _raw_pad_role(call: Call) -> Role:
    """Zero padding of positions; other padding counts as connections of the kernel."""
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


@signal_rule(*layer_classes("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"))
def _zero_padding(visit: Visit) -> Outcome:
    role = visit.role
    if not isinstance(role, Padding):
        raise TypeError("the rule expects a call whose role is `Padding`")
    signal = in_layout(visit, channel_axis_of(visit.operation, visit.inputs[0].channel_axis))
    return _padded(visit, signal, role.pads, 0.0)


def _padded(visit: Visit, signal: Signal, pads: Pads, value: float) -> Outcome:
    output = signal.each(lambda m: bordered(m, pads, value))
    return Outcome((output,), back_through(visit, padding_windows(signal.axes, pads)))


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
    """Adds channels with a constant value before and after those of a padded signal."""
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
    """Padding with entries of the map, such as reflections; details depend on the backend."""
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
    """The input position that each output position copies, from padding an array of positions."""
    numbers = np.arange(size, dtype="float32").reshape(1, size, 1, 1)
    padded = keras.ops.pad(numbers, ((0, 0), pads, (0, 0), (0, 0)), mode=mode)
    return tuple(np.asarray(keras.ops.convert_to_numpy(padded)).ravel().astype(int).tolist())


@signal_rule(*layer_classes("Cropping1D", "Cropping2D", "Cropping3D"))
def _cropping(visit: Visit) -> Outcome:
    cropping = visit.operation.cropping
    pairs = [(c, c) if isinstance(c, int) else tuple(c) for c in np.atleast_1d(cropping).tolist()]
    if len(pairs) == 2 and len(visit.inputs[0].axes) == 1:
        pairs = [(pairs[0][0], pairs[1][0])]
    return moved(visit, lambda a, b, n: Window("conv", 1, 1, 1, -pairs[n][0], a, b))


@signal_rule(*layer_classes("CenterCrop"))
def _center_crop(visit: Visit) -> Outcome:
    """The middle of a map; Keras resizes a smaller one, which is not modelled."""
    layer, axes = visit.operation, in_layout(visit, channel_axis_of(visit.operation)).axes
    rest = [(a.size or 0) - n for a, n in zip(axes, (layer.height, layer.width), strict=True)]
    if min(rest) < 0:
        return not_modelled(visit, "a center crop of a map that is smaller or of unknown size")
    return moved(visit, lambda a, b, n: Window("conv", 1, 1, 1, -(rest[n] // 2), a, b))


@signal_rule("PadImages", "CropImages")
def _raw_image_borders(visit: Visit) -> Outcome:
    """Pads with zeros or crops at the top and left; the other sides follow from the shapes."""
    operation = visit.operation
    signal = in_layout(visit, channel_axis_of(operation))
    target, _ = layout(visit.output_shape, signal.channel_axis)
    sizes = [(a.size, b.size) for a, b in zip(signal.axes, target, strict=True)]
    if len(sizes) != 2 or any(None in pair for pair in sizes):
        return not_modelled(visit, "a map of unknown size")
    pads_images = "Pad" in type(operation).__name__
    names = (("top", "bottom"), ("left", "right"))
    pads = []
    for (before, after), (size, wanted) in zip(names, sizes, strict=True):
        kind = "padding" if pads_images else "cropping"
        low = getattr(operation, f"{before}_{kind}")
        difference = (wanted or 0) - (size or 0)
        if low is None:
            high = getattr(operation, f"{after}_{kind}")
            low = abs(difference) - high
        low = int(low) if pads_images else -int(low)
        pads.append((low, difference - low))
    if pads_images:
        return _padded(visit, signal, tuple(pads), 0.0)
    return along_axes(visit, signal, padding_windows(signal.axes, tuple(pads)))


constant_role(
    Transparent(),
    *layer_classes("CenterCrop", "Cropping1D", "Cropping2D", "Cropping3D"),
    *("CropImages", "PadImages"),
)
