"""Reshaping: Reshape, Flatten, Permute, RepeatVector, and `ops.reshape`, `transpose` and the like.

Also `ops.ravel`, `swapaxes`, `moveaxis`, `expand_dims`, `squeeze`, `broadcast_to` and `repeat`.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras

from keras_varinit.keras_private import Shape
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.windows import Window, axes_of
from keras_varinit.signals.layouts import (
    channel_axes,
    expand,
    fitting,
    on_axes,
    position_axes,
    reordered,
    signal_at,
    sizes_of,
    squeeze,
    stretched,
    with_batch,
    with_channel_axes,
    with_new_axis,
    without_axes,
)
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, only_first, unknown
from keras_varinit.signals.registry import (
    constant_role,
    follows_channel_axes,
    layer_classes,
    signal_rule,
)
from keras_varinit.signals.roles import Transparent


def reordering(visit: Visit, output: Signal) -> Outcome:
    """The outcome of an operation that moves each entry once; gradients pass back unchanged."""
    source = visit.inputs[0]
    # A copy, since entries at the same place of input and output are different.
    output = dataclasses.replace(output.each(Moments.copied), alike=source.alike)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        back = None if gradient is None else fitting(gradient, output, source)
        return only_first(back, len(visit.inputs))

    return Outcome((output,), pullback)


@follows_channel_axes
@signal_rule(keras.layers.Reshape, keras.layers.Flatten, "Reshape", "Ravel")
def reshaped(visit: Visit) -> Outcome:
    """Splits or joins dimensions, which keep their kind.

    Positions joined with channels become channels. Channels joined into a dimension before the
    last one, as when a map is assembled from patches, become positions.
    """
    before, after = visit.call.input_shapes[0], visit.output_shape
    signal = reshape(visit.inputs[0], before, after)
    if signal is None:
        return unknown(visit, "its sizes do not determine how dimensions correspond")
    return reordering(visit, signal)


def reshape(signal: Signal, before: Shape, after: Shape) -> Signal | None:
    """A signal in another shape; None if the sizes do not determine how dimensions correspond."""
    if before == after:
        return signal
    blocks = _blocks(before, after)
    if blocks is None or len(after) < 2:
        return None
    channels = set(channel_axes(signal, len(before)))
    several = any(before[a] != 1 for a in channels)
    last = max((o for _, outs in blocks for o in outs), default=len(after) - 1)
    kept, target = set(), []
    for ins, outs in blocks:
        inside = channels & set(ins)
        # A single channel has size 1 and so is in no group.
        if (inside and inside == set(ins)) or (last in outs and (inside or not several)):
            kept |= set(ins)
            target += outs
    if not kept:
        return None
    signal = with_channel_axes(signal, before, sorted(kept))
    sources = [a for a in position_axes(signal, len(before)) if before[a] != 1]
    target = target or [len(after) - 1]
    axes = axes_of(sizes_of(after, [a for a in range(1, len(after)) if a not in target]))
    in_step = all(len(ins) == len(outs) == 1 for ins, outs in blocks if not set(ins) <= kept)

    def moved(moments: Moments) -> Moments:
        if not in_step:
            return moments.spread_over(axes)
        ones = [n for n, a in enumerate(moments.axes) if a.size == 1]
        moments = without_axes(moments, ones, pooled=True) if ones else moments
        for number, axis in enumerate(axes):
            if axis.size == 1:
                moments = with_new_axis(moments, number)
        return on_axes(moments, axes)

    if in_step and len(sources) != sum(a.size != 1 for a in axes):
        return None
    parts = signal.each(moved).parts
    if len(target) > 1 and len(parts) > 1:
        parts = ((signal.channels, moved(signal.merged)),)
    return signal_at(parts, target, len(after))


def _blocks(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Groups of input and output dimensions with equal products; None if there are none.

    Dimensions of size 1 and the batch are left out.
    """
    ins = [a for a in range(1, len(before)) if before[a] != 1]
    outs = [a for a in range(1, len(after)) if after[a] != 1]
    groups = []
    while ins or outs:
        left, right = ins[:1], outs[:1]
        ins, outs = ins[1:], outs[1:]
        while True:
            first = [before[a] for a in left]
            second = [after[a] for a in right]
            if None in first or None in second:
                if first != [None] or second != [None]:
                    return None
                break
            one, two = math.prod(n or 1 for n in first), math.prod(n or 1 for n in second)
            if left and right and one == two:
                break
            if one < two or not left:
                if not ins:
                    return None
                left, ins = [*left, ins[0]], ins[1:]
            else:
                if not outs:
                    return None
                right, outs = [*right, outs[0]], outs[1:]
        groups.append((left, right))
    return groups


def transposition(visit: Visit) -> tuple[int, ...] | None:
    """The input dimension of each output dimension; None if the batch moves."""
    operation, rank = visit.operation, len(visit.call.input_shapes[0])
    order = list(range(rank))
    name = type(operation).__name__
    if isinstance(operation, keras.layers.Permute):
        order = [0, *operation.dims]
    elif name == "Transpose":
        axes = operation.axes
        order = order[::-1] if axes is None else [int(a) % rank for a in axes]
    elif name == "Swapaxes":
        first, second = operation.axis1 % rank, operation.axis2 % rank
        order[first], order[second] = second, first
    elif name == "Moveaxis":
        sources = _as_tuple(operation.source, rank)
        destinations = _as_tuple(operation.destination, rank)
        order = [a for a in order if a not in sources]
        for place, source in sorted(zip(destinations, sources, strict=True)):
            order.insert(place, source)
    return tuple(order) if order[0] == 0 else None


def _as_tuple(axes: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(int(a) % rank for a in ([axes] if isinstance(axes, int) else axes))


@follows_channel_axes
@signal_rule(keras.layers.Permute, "Transpose", "Swapaxes", "Moveaxis")
def _transposed(visit: Visit) -> Outcome:
    order = transposition(visit)
    if order is None:
        return unknown(visit, "it moves the batch")
    signal, rank = visit.inputs[0], len(order)
    channels = channel_axes(signal, rank)
    positions = position_axes(signal, rank)
    target = [place for place, source in enumerate(order) if source in channels]
    moved = [positions.index(source) for source in order if source in positions]
    parts = signal.each(lambda m: reordered(m, moved)).parts
    if [a for a in order if a in channels] != list(channels) and len(parts) > 1:
        parts = ((signal.channels, reordered(signal.merged, moved)),)
    output = signal_at(parts, target, rank)
    outcome = reordering(visit, output)
    inverse = [moved.index(n) for n in range(len(moved))]

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None or len(gradient.parts) != len(signal.parts):
            return outcome.pullback(gradients)
        parts = tuple(g.transpose(inverse) for g in gradient.parts)
        return only_first(gradient.with_parts(parts), len(visit.inputs))

    return dataclasses.replace(outcome, pullback=pullback)


@follows_channel_axes
@signal_rule("ExpandDims")
def _expanded(visit: Visit) -> Outcome:
    rank = len(visit.output_shape)
    added = {int(a) % rank for a in _as_list(visit.operation.axis)}
    signal, before = visit.inputs[0], visit.call.input_shapes[0]
    if 0 in added:
        batched = with_batch(signal, before)
        if batched is None:
            return unknown(visit, "it inserts a dimension before the batch")
        signal, added = batched, added - {0}
    return reordering(visit, expand(signal, rank, added) if added else signal)


def _as_list(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


@follows_channel_axes
@signal_rule("Squeeze")
def _squeezed(visit: Visit) -> Outcome:
    shape = visit.call.input_shapes[0]
    axes = visit.operation.axis
    if axes is None:
        removed = [a for a in range(1, len(shape)) if shape[a] == 1]
    else:
        removed = [int(a) % len(shape) for a in _as_list(axes)]
    if 0 in removed or len(shape) - len(removed) < 2:
        return unknown(visit, "it leaves no channels")
    return reordering(visit, squeeze(visit.inputs[0], shape, removed))


@follows_channel_axes
@signal_rule("BroadcastTo")
def _broadcast(visit: Visit) -> Outcome:
    before, after = visit.call.input_shapes[0], visit.output_shape
    lead = len(after) - len(before)
    if lead or before[0] != after[0]:
        return unknown(visit, "it repeats the batch")
    return repeated(visit, [])


@follows_channel_axes
@signal_rule(keras.layers.RepeatVector)
def _repeat_vector(visit: Visit) -> Outcome:
    return repeated(visit, [1])


def repeated(visit: Visit, added: Sequence[int]) -> Outcome:
    """Repeats entries along new dimensions and those of size 1; gradients of copies add up.

    `added` are the new dimensions, by their place in the output.
    """
    rank, source = len(visit.output_shape), visit.inputs[0]
    signal = expand(source, rank, set(added))
    kept = [a for a in range(rank) if a not in added]
    sizes = dict(zip(kept, visit.call.input_shapes[0], strict=True))
    before = tuple(sizes.get(a, 1) for a in range(rank))
    grown = broadcast_to(signal, before, visit.output_shape)
    if grown is None:
        return unknown(visit, "it repeats channels, which then depend on each other")
    output = grown.each(Moments.copied)
    more = [visit.output_shape[a] for a in range(1, rank) if before[a] == 1]
    times = math.prod(math.inf if n is None else n for n in more)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        together = times * (1 + gradient.coherence * (times - 1)) if times > 1 else 1.0
        return only_first(fitting(gradient, output, source).scaled(together), len(visit.inputs))

    return Outcome((output,), pullback)


def broadcast_to(signal: Signal, before: Shape, after: Shape) -> Signal | None:
    """A signal repeated along its dimensions of size 1; None if those are channels."""
    rank = len(after)
    if before == after:
        return signal
    grown = [a for a in range(1, rank) if len(before) == rank and before[a] != after[a]]
    repeats = all(before[a] == 1 for a in grown)
    if len(before) != rank or not repeats or set(grown) & set(channel_axes(signal, rank)):
        return None
    positions = position_axes(signal, rank)
    target = axes_of(sizes_of(after, positions))
    numbers = [positions.index(a) for a in grown]
    parts = signal.each(lambda m: stretched(m, numbers, target)).parts
    return signal_at(parts, channel_axes(signal, rank), rank)


@follows_channel_axes
@signal_rule("Repeat")
def _repeated(visit: Visit) -> Outcome:
    """Repeats each entry several times in a row; gradients of copies add up."""
    operation, shape = visit.operation, visit.call.input_shapes[0]
    times, axis = operation.repeats, operation.axis
    if not isinstance(times, int) or axis is None or int(axis) % len(shape) == 0:
        return unknown(visit, "it repeats the batch, or entries unequally often")
    axis, source = int(axis) % len(shape), visit.inputs[0]
    positions = position_axes(source, len(shape))
    if axis in positions:
        number = positions.index(axis)
        targets = axes_of(sizes_of(visit.output_shape, positions))
        windows = [
            Window("repeat", 1, times if n == number else 1, 1, 0, a, b)
            for n, (a, b) in enumerate(zip(source.axes, targets, strict=True))
        ]
        output = source.each(lambda m: m.mapped(windows))
    else:
        # Copies of a channel are equal, but the following rules treat them as independent.
        parts = tuple((n * times, m) for n, m in source.each(Moments.copied).parts)
        output = dataclasses.replace(source, parts=parts)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return (None,)
        grown = times * (1 + (gradient.coherence * (times - 1) if axis in positions else 0.0))
        return (fitting(gradient, output, source).scaled(grown),)

    return Outcome((output,), pullback)


constant_role(
    Transparent(),
    *layer_classes("Flatten", "Permute", "RepeatVector", "Reshape"),
    *("BroadcastTo", "ExpandDims", "Moveaxis", "Ravel", "Repeat", "Reshape", "Squeeze"),
    *("Swapaxes", "Tile", "Transpose"),
)
