"""Padding: a constant border around a map, whose entries take part in a following maximum."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_varinit.maths.covariance import Border, Moments, columns, outer, rows
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.windows import (
    AnyWindow,
    Array,
    Axes,
    Axis,
    Window,
    apply,
    axis_map,
    entries_read,
    members_of,
)

Pads = tuple[tuple[int, int], ...]


def padding_windows(axes: Axes, pads: Pads) -> list[Window]:
    """Each position at its place in the padded map; negative pads crop."""
    return [
        Window("conv", 1, 1, 1, low, axis, _longer(axis, low + high))
        for axis, (low, high) in zip(axes, pads, strict=True)
    ]


def _longer(axis: Axis, more: int) -> Axis:
    return axis if axis.size is None else dataclasses.replace(axis, size=axis.size + more)


def bordered(source: Moments, pads: Pads, value: float) -> Moments:
    """A signal z padded with the number `value`.

    With h_p = 1 in the border and 0 inside, z + value·h has the second moments
    E z_p z_q + value·(h_p E z_q + h_q E z_p) + value²·h_p h_q.
    """
    inner = source.border
    if inner is not None and inner.value == value:
        more = zip(inner.pads, pads, strict=True)
        whole = tuple((a + c, b + d) for (a, b), (c, d) in more)
        return bordered(inner.source, whole, value)
    windows = padding_windows(source.axes, pads)
    result = source.mapped(windows)
    if value:
        inside = apply([axis_map(w, 0).means for w in windows], np.ones(source.mean.shape))
        own = value * (1 - inside)
        cross = rows(own) * columns(result.mean) + columns(own) * rows(result.mean)
        far = result.far + cross + outer(own)
        result = dataclasses.replace(result, mean=result.mean + own, far=far)
    return dataclasses.replace(result, border=Border(source, pads, value))


def activated_border(border: Border, source: Moments, activation: Activation) -> Moments:
    """The activation of a padded signal; `source` is f(u) inside the border."""
    value = float(np.asarray(activation.function(np.array([border.value])))[0])
    return bordered(source, border.pads, value)


def share_at_border(windows: Sequence[AnyWindow], pads: Pads) -> Array:
    """Share of the windows of each class that reach into a border of `pads`: (n₁, n₂, …)."""
    inside = np.ones(())
    for window, (before, after) in zip(windows, pads, strict=True):
        target, size = window.outputs, window.inputs.size
        if size is None:
            inside = inside[..., None] * np.ones(target.count)
            continue
        outputs = members_of(window)
        reads, valid = entries_read(window, outputs)
        padded = ~valid & (reads >= -before) & (reads < size + after)
        clear = (~padded.any(axis=0)).astype(float)
        classes = target.classes(outputs)
        counts = np.bincount(classes, clear, minlength=target.count)
        inside = inside[..., None] * (counts / np.bincount(classes, minlength=target.count))
    return np.asarray(1 - inside)
