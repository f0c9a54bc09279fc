"""Selection: `x[key]`, `ops.split`, `array_split`, `unstack`, `slice` and `take`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_varinit.keras_private import Shape
from keras_varinit.maths.covariance import uniform
from keras_varinit.maths.windows import Array, Axes, Axis, Window, axes_of
from keras_varinit.signals.layouts import (
    channel_axes,
    expand,
    fitting,
    on_axes,
    position_axes,
    signal_at,
    squeeze,
)
from keras_varinit.signals.outcome import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    added,
    unknown,
)
from keras_varinit.signals.registry import (
    constant_role,
    follows_channel_axes,
    signal_rule,
)
from keras_varinit.signals.roles import Transparent
from keras_varinit.signals.taps import summed_back
from keras_varinit.tracing.reader import call_argument

Cut = tuple[int, int, int]  # start, number of entries, step


class Selection:
    """A box cut out of a tensor; `cuts` holds (start, size, step) by dimension."""

    def __init__(self, signal: Signal, shape: Shape, cuts: dict[int, Cut]) -> None:
        self.signal, self.shape, self.cuts = signal, shape, cuts
        self.rank = len(shape)
        self.channels = channel_axes(signal, self.rank)
        self.after: Shape = tuple(cuts[a][1] if a in cuts else n for a, n in enumerate(shape))
        positions = position_axes(signal, self.rank)
        axes = axes_of(tuple(self.after[a] for a in positions))
        self.windows = [
            self._window(a, signal.axes[number], axes[number]) for number, a in enumerate(positions)
        ]
        self.kept = self._kept_channels()
        self.output = self._output(axes)

    def _window(self, dimension: int, source: Axis, target: Axis) -> Window:
        start, _, step = self.cuts.get(dimension, (0, 0, 1))
        if step < 0:
            # Classes of positions are symmetric, so the mirrored part is read forward.
            start = (self.shape[dimension] or 1) - 1 - start
        return Window("conv", 1, abs(step), 1, -start, source, target)

    def _kept_channels(self) -> list[float]:
        """The share of each group of channels that is selected."""
        parts = self.signal.parts
        if len(self.channels) == 1 and self.channels[0] in self.cuts:
            start, count, step = self.cuts[self.channels[0]]
            taken = np.zeros(self.signal.channels)
            taken[[start + i * step for i in range(count)]] = 1
            ends = np.cumsum([n for n, _ in parts])[:-1]
            return [float(each.mean()) for each in np.split(taken, ends)]
        share = math.prod(
            self.cuts[a][1] / (self.shape[a] or 1) for a in self.channels if a in self.cuts
        )
        return [share] * len(parts)

    def _output(self, axes: Axes) -> Signal:
        whole = all(w.inputs == w.outputs and w.stride == 1 and w.low == 0 for w in self.windows)
        mapped = self.signal.each(lambda m: m.copied() if whole else m.mapped(self.windows))
        parts = [
            (max(round(n * share), 1), on_axes(m, axes))
            for (n, m), share in zip(mapped.parts, self.kept, strict=True)
            if share > 0
        ]
        if not parts:  # no channels, as in the first of `split(x, [0, n])`
            parts = [(1, uniform(axes, *[math.nan] * 3))]
        return signal_at(parts, self.channels, self.rank)

    def back(self, gradient: Gradient) -> Gradient:
        """The gradient of the whole tensor, 0 for entries outside the box."""
        rest = iter(gradient.parts)
        parts: list[Array] = []
        for (_, moments), share in zip(self.signal.parts, self.kept, strict=True):
            if share > 0:
                parts.append(summed_back(self.windows, moments, next(rest)) * share)
            else:
                parts.append(np.zeros_like(moments.mean))
        left = math.prod(
            # The selected share of a dimension of unknown size is unknown.
            math.nan if (n := self.shape[a]) is None else (self.after[a] or 1) / n
            for a in position_axes(self.signal, self.rank)
            if a in self.cuts
        )
        if math.isnan(left):
            parts = [np.full_like(part, math.nan) for part in parts]
        return Gradient(tuple(parts), gradient.coherence * left)


def selected(visit: Visit, boxes: Sequence[dict[int, Cut]], shape_as: Sequence[Any]) -> Outcome:
    """One output for each box; `shape_as` holds functions that give it its final shape."""
    signal, shape = visit.inputs[0], visit.call.input_shapes[0]
    channels = channel_axes(signal, len(shape))
    if any(shape[a] is None for box in boxes for a in box if a in channels):
        return unknown(visit, "it takes some of an unknown number of channels")
    cuts = [Selection(signal, shape, box) for box in boxes]
    outputs = tuple(finish(cut) for cut, finish in zip(cuts, shape_as, strict=True))

    def pullback(gradients: Gradients) -> Gradients:
        total: Gradient | None = None
        for cut, output, gradient in zip(cuts, outputs, gradients, strict=False):
            if gradient is not None and 0 not in cut.after:
                back = cut.back(fitting(gradient, output, cut.output))
                total = added(total, back)
        return [total, *[None] * (len(visit.inputs) - 1)]

    return Outcome(outputs, pullback)


@follows_channel_axes
@signal_rule("GetItem")
def _get_item(visit: Visit) -> Outcome:
    """`x[key]` with slices, integers, Ellipsis and None."""
    shape = visit.call.input_shapes[0]
    key = call_argument(visit.call.node, 1, "key")
    read = _read_key(key if isinstance(key, tuple) else (key,), shape)
    if read is None:
        return unknown(visit, "which entries it takes depends on data or is not a slice")
    cuts, removed, added = read
    if 0 in added:
        return unknown(visit, "it inserts a dimension before the batch")
    if len(shape) - len(removed) + len(added) < 2:
        return unknown(visit, "it leaves no channels")

    def finish(cut: Selection) -> Signal:
        signal = squeeze(cut.output, cut.after, removed) if removed else cut.output
        rank = len(shape) - len(removed) + len(added)
        return expand(signal, rank, set(added)) if added else signal

    return selected(visit, [cuts], [finish])


def _read_key(
    key: Sequence[Any], shape: Shape
) -> tuple[dict[int, Cut], list[int], list[int]] | None:
    """Parses a key into cuts, removed dimensions and new dimensions; None if not possible.

    Cuts and removed dimensions count in the input, new dimensions in the output.
    """
    places = [k for k in key if k is not None]
    if any(isinstance(k, bool) for k in places):
        return None
    missing = len(shape) - sum(k is not Ellipsis for k in places)
    spread: list[Any] = []
    for k in key:
        spread += [slice(None)] * missing if k is Ellipsis else [k]
    if Ellipsis not in [k for k in key if isinstance(k, type(Ellipsis))]:
        spread += [slice(None)] * missing
    cuts: dict[int, Cut] = {}
    removed: list[int] = []
    added: list[int] = []
    dimension, place = 0, 0
    for k in spread:
        if k is None:
            added.append(place)
            place += 1
            continue
        cut = _cut_of(k, shape[dimension])
        if cut is None:
            return None
        if cut != ():
            if dimension == 0:
                return None
            cuts[dimension] = cut  # type: ignore[assignment]
        if not isinstance(k, slice):
            removed.append(dimension)
        else:
            place += 1
        dimension += 1
    return cuts, removed, added


def _cut_of(key: Any, size: int | None) -> Cut | tuple[()] | None:
    """The cut of a slice or an index along a dimension: () for all of it, None if unknown."""
    if isinstance(key, slice):
        if key == slice(None):
            return ()
        bounds = (key.start, key.stop, key.step)
        if not all(b is None or isinstance(b, int | np.integer) for b in bounds):
            return None
        if size is None:
            start, stop = key.start or 0, key.stop
            if start < 0 or key.step not in (None, 1):
                return None
            if stop is None or stop < 0:
                return ()  # all but a few entries at the borders
            return (start, stop - start, 1)
        taken = range(*key.indices(size))
        return (taken[0], len(taken), taken.step) if len(taken) else None
    index = _as_integer(key)
    if index is None or (size is None and index < 0):
        return None
    return (index % size if size is not None else index, 1, 1)


def _as_integer(key: Any) -> int | None:
    if isinstance(key, int | np.integer):
        return int(key)
    if isinstance(key, np.ndarray) and key.ndim == 0 and np.issubdtype(key.dtype, np.integer):
        return int(key)
    return None


@follows_channel_axes
@signal_rule("Split", "ArraySplit")
def _split(visit: Visit) -> Outcome:
    shapes = visit.call.output_shapes
    axis = int(visit.operation.axis) % len(visit.call.input_shapes[0])
    sizes = [shape[axis] for shape in shapes]
    if axis == 0 or None in sizes:
        return unknown(visit, "it splits the batch or a dimension of unknown size")
    starts = np.cumsum([0, *(n or 0 for n in sizes)])
    boxes = [{axis: (int(start), n or 0, 1)} for start, n in zip(starts, sizes, strict=False)]
    return selected(visit, boxes, [lambda cut: cut.output] * len(boxes))


@follows_channel_axes
@signal_rule("Unstack")
def _unstack(visit: Visit) -> Outcome:
    shape = visit.call.input_shapes[0]
    axis = int(visit.operation.axis) % len(shape)
    size = shape[axis]
    if axis == 0 or size is None or len(shape) < 3:
        return unknown(visit, "it unstacks the batch, channels or a dimension of unknown size")
    boxes = [{axis: (i, 1, 1)} for i in range(size)]
    return selected(visit, boxes, [lambda cut: squeeze(cut.output, cut.after, [axis])] * size)


@follows_channel_axes
@signal_rule("Slice")
def _slice(visit: Visit) -> Outcome:
    shape = visit.call.input_shapes[0]
    starts, sizes = call_argument(visit.call.node, 1, "start_indices"), visit.operation.shape
    known = all(_as_integer(start) is not None for start in np.atleast_1d(starts))
    if not known or None in shape[1:] or _as_integer(starts[0]) != 0:
        return unknown(visit, "where it starts depends on data")
    cuts = {
        a: (int(starts[a]), shape[a] - int(starts[a]) if n == -1 else int(n), 1)  # type: ignore[operator]
        for a, n in enumerate(sizes)
        if a > 0
    }
    return selected(visit, [cuts], [lambda cut: cut.output])


@follows_channel_axes
@signal_rule("Take")
def _take(visit: Visit) -> Outcome:
    """`ops.take` of one entry of a dimension, or of evenly spaced ones."""
    shape = visit.call.input_shapes[0]
    indices, axis = call_argument(visit.call.node, 1, "indices"), visit.operation.axis
    values = np.asarray(indices) if isinstance(indices, int | list | tuple | np.ndarray) else None
    if len(visit.inputs) > 1 or values is None or axis is None or values.ndim > 1:
        return unknown(visit, "which entries it takes depends on data")
    axis = int(axis) % len(shape)
    size = shape[axis]
    if axis == 0 or size is None:
        return unknown(visit, "it takes examples, or entries of a dimension of unknown size")
    chosen = np.atleast_1d(values) % size
    steps = set(np.diff(chosen).tolist())
    if len(steps) > 1 or 0 in steps:
        return unknown(visit, "the entries that it takes are not evenly spaced")
    box = {axis: (int(chosen[0]), len(chosen), steps.pop() if steps else 1)}
    if values.ndim:
        return selected(visit, [box], [lambda cut: cut.output])
    if len(shape) < 3:
        return unknown(visit, "it leaves no channels")
    return selected(visit, [box], [lambda cut: squeeze(cut.output, cut.after, [axis])])


constant_role(Transparent(), "GetItem", "Slice", "Split", "Take", "Unstack")
