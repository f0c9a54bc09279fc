"""Layouts: which dimensions of a tensor hold channels and which hold positions.

Channels come from different columns of a kernel, so they are exchangeable and uncorrelated apart
from their means. Positions share one kernel. Reshaping and transposing keep the kind of each
dimension; a layer that contracts a position dimension treats it as channels.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.keras_private import Shape
from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.windows import Array, Axes, Axis, Window, axes_of
from keras_varinit.signals.outcome import Gradient, Signal, Visit
from keras_varinit.typing import Operation


def channel_axis_of(layer: Operation, default: int = -1) -> int:
    """The channel dimension of a layer's input and output."""
    data_format = getattr(layer, "data_format", None)
    if data_format is None:
        return default
    return 1 if data_format == "channels_first" else -1


def in_layout(visit: Visit, channel_axis: int) -> Signal:
    """The first input with its channels in `channel_axis`."""
    return with_channel_axes(visit.inputs[0], visit.call.input_shapes[0], (channel_axis,))


def channel_axes(signal: Signal, rank: int) -> tuple[int, ...]:
    """The dimensions that hold channels, counted from the left, ascending."""
    return tuple(sorted({a % rank for a in (signal.channel_axis, *signal.other_axes)}))


def position_axes(signal: Signal, rank: int) -> tuple[int, ...]:
    """The dimensions that hold positions, counted from the left, ascending."""
    channels = channel_axes(signal, rank)
    return tuple(a for a in range(1, rank) if a not in channels)


def signal_at(parts: Sequence[tuple[int, Moments]], channels: Sequence[int], rank: int) -> Signal:
    """A signal with channels in the dimensions `channels`; the last one is the main one."""
    places = sorted(a % rank - rank for a in channels)
    return Signal(tuple(parts), places[-1], tuple(places[:-1]))


def sizes_of(shape: Shape, dimensions: Sequence[int]) -> tuple[int | None, ...]:
    """The sizes of some dimensions."""
    return tuple(shape[a] for a in dimensions)


def with_channel_axes(signal: Signal, shape: Shape, wanted: Sequence[int]) -> Signal:
    """The same tensor with its channels in other dimensions.

    Positions that become channels are averaged over. For channels that become positions, the
    pair moment of two different ones is the product of their means.

    Args:
        signal: The signal.
        shape: Shape of its tensor, batch included.
        wanted: The channel dimensions to use.
    """
    rank = len(shape)
    wanted = tuple(sorted(a % rank for a in wanted))
    present = channel_axes(signal, rank)
    if wanted == present:
        return signal
    positions = position_axes(signal, rank)
    taken = [number for number, a in enumerate(positions) if a in wanted]
    released = [a for a in present if a not in wanted]
    absorbed = math.prod(shape[positions[n]] or 1 for n in taken)
    if not released:
        parts = [
            (n * absorbed, m)
            for n, m in signal.each(lambda m: without_axes(m, taken, pooled=True)).parts
        ]
        return signal_at(parts, wanted, rank)
    count = math.prod(shape[a] or 1 for a in released)
    merged = without_axes(signal.merged, taken, pooled=True)
    mean = merged.average(merged.mean)
    pair = merged.pair_moment / count + (1 - 1 / count) * mean**2 if merged.axes else mean**2
    axes = axes_of(sizes_of(shape, [a for a in range(1, rank) if a not in wanted]))
    channels = math.prod(n or 1 for n in sizes_of(shape, wanted))
    even = uniform(axes, mean, merged.second_moment, pair)
    even = dataclasses.replace(even, law=merged.own_law, third=merged.third)
    return signal_at([(channels, even)], wanted, rank)


def without_axes(moments: Moments, numbers: Sequence[int], *, pooled: bool) -> Moments:
    """Removes position axes.

    With `pooled`, moments are averaged over equal positions along the removed axes. Otherwise the
    *signal* is averaged along them, so that pairs of different positions count too.
    """
    for number in sorted(numbers, reverse=True):
        moments = _averaged_over(moments, number) if not pooled else _typical_of(moments, number)
    return moments


def _typical_of(moments: Moments, number: int) -> Moments:
    """Moments averaged along one axis, at equal positions of each pair."""
    weights = moments.axes[number].weights
    mean = np.tensordot(moments.mean, weights, axes=(number, 0))
    pairs = np.diagonal(moments.far, axis1=2 * number, axis2=2 * number + 1)
    far = np.tensordot(pairs, weights, axes=(pairs.ndim - 1, 0))
    own = np.take(moments.excess, moments.radius[number], axis=2 * number)
    excess = np.tensordot(own, weights, axes=(2 * number, 0))
    typical = _reduced(moments, number, mean, far, excess)
    law, third, common = moments.own_law, moments.third, moments.common
    return dataclasses.replace(typical, law=law, third=third, common=common)


def _averaged_over(moments: Moments, number: int) -> Moments:
    """Moments of the signal's mean along one axis: over all pairs, plus the excess of near ones."""
    axis = moments.axes[number]
    weights = axis.weights
    mean = np.tensordot(moments.mean, weights, axes=(number, 0))
    pairs = np.tensordot(moments.far, weights, axes=(2 * number, 0))
    far = np.tensordot(pairs, weights, axes=(2 * number, 0))
    beyond = np.tensordot(moments.excess.sum(axis=2 * number), weights, axes=(2 * number, 0))
    size = math.inf if axis.size is None else axis.size
    return _reduced(moments, number, mean, far, np.asarray(beyond / size))


def _reduced(moments: Moments, number: int, mean: Array, far: Array, excess: Array) -> Moments:
    axes, radius = list(moments.axes), list(moments.radius)
    del axes[number], radius[number]
    return Moments(
        tuple(axes), np.asarray(mean), np.asarray(far), np.asarray(excess), tuple(radius)
    )


def with_new_axis(moments: Moments, number: int) -> Moments:
    """Inserts an axis of size 1."""
    axes = (*moments.axes[:number], Axis(1, 1), *moments.axes[number:])
    return Moments(
        axes,
        np.expand_dims(moments.mean, number),
        np.expand_dims(moments.far, (2 * number, 2 * number + 1)),
        np.expand_dims(moments.excess, (2 * number, 2 * number + 1)),
        (*moments.radius[:number], 0, *moments.radius[number:]),
        moments.pre and with_new_axis(moments.pre, number),
        moments.function,
        moments.third,
        law=moments.law,
        common=moments.common,
    )


def with_examples(moments: Moments, axis: Axis) -> Moments:
    """Prepends an axis over examples: two of its positions are related like two examples."""
    count = axis.count

    def repeated(one: Moments) -> Moments:
        one = with_new_axis(one, 0)
        return dataclasses.replace(
            one,
            axes=(axis, *one.axes[1:]),
            mean=one.mean.repeat(count, 0),
            far=one.far.repeat(count, 0).repeat(count, 1),
            excess=one.excess.repeat(count, 1),
        )

    result = repeated(moments)
    return result if moments.pre is None else dataclasses.replace(result, pre=repeated(moments.pre))


def on_axes(moments: Moments, axes: Axes) -> Moments:
    """The same positions, divided into the classes of other axes."""
    if moments.axes == axes:
        return moments
    if [a.size for a in moments.axes] != [a.size for a in axes]:
        return moments.spread_over(axes)
    if moments.pre is not None:
        root = on_axes(moments.pre, axes)
        plain = on_axes(moments.plain(), axes)
        return dataclasses.replace(plain, pre=root, function=moments.function, third=moments.third)
    windows = [
        Window("conv", 1, 1, 1, 0, old, new) for old, new in zip(moments.axes, axes, strict=True)
    ]
    return dataclasses.replace(moments.mapped(windows), third=moments.third, law=moments.law)


def reordered(moments: Moments, order: Sequence[int]) -> Moments:
    """Permutes the position axes."""
    if list(order) == list(range(len(moments.axes))):
        return moments
    pairs = [i for axis in order for i in (2 * axis, 2 * axis + 1)]
    return Moments(
        tuple(moments.axes[a] for a in order),
        np.transpose(moments.mean, order),
        np.transpose(moments.far, pairs),
        np.transpose(moments.excess, pairs),
        tuple(moments.radius[a] for a in order),
        moments.pre and reordered(moments.pre, order),
        moments.function,
        moments.third,
        law=moments.law,
        common=moments.common,
    )


def stretched(moments: Moments, numbers: Sequence[int], axes: Axes) -> Moments:
    """Repeats along axes of size 1: E z_p z_q = E z_p² where p and q differ only along them."""
    if not numbers:
        return on_axes(moments, axes)
    mean, second = moments.mean, moments.second
    far, excess, radius = moments.far, moments.excess, list(moments.radius)
    alone = all(a.size == 1 for n, a in enumerate(moments.axes) if n not in numbers)
    for number in numbers:
        count, size = axes[number].count, axes[number].size
        mean = mean.repeat(count, number)
        second = second.repeat(count, number)
        far = far.repeat(count, 2 * number).repeat(count, 2 * number + 1)
        # Pairs that also differ along other axes: near ones are tracked separately.
        reach = 0 if alone else min(4, size - 1 if size is not None else 4)
        radius[number] = reach
        excess = excess.repeat(2 * reach + 1, 2 * number).repeat(count, 2 * number + 1)
    if alone:
        same = np.broadcast_to(second.reshape([n for c in second.shape for n in (c, 1)]), far.shape)
        far, excess = np.array(same), np.zeros_like(excess)
    law = moments.own_law
    return Moments(axes, mean, far, excess, tuple(radius), third=moments.third, law=law)


def flat_channels(signal: Signal, shape: Shape) -> Signal:
    """Moves all channels to the main dimension, as most rules expect them."""
    if not signal.other_axes:
        return signal
    return with_channel_axes(signal, shape, (signal.channel_axis,))


def fitting(gradient: Gradient, current: Signal, signal: Signal) -> Gradient:
    """Transfers a gradient from the classes of `current` to those of `signal`.

    It is averaged where the classes differ.
    """
    shapes = [m.mean.shape for _, m in signal.parts]
    if [g.shape for g in gradient.parts] == shapes:
        return gradient
    second = gradient.second_moment(current)
    coherence = gradient.coherence if current.axes and signal.axes else 0.0
    parts = tuple(np.full(shape, second) for shape in shapes)
    return dataclasses.replace(gradient, parts=parts, coherence=coherence)


def back_to(gradient: Gradient, current: Signal, signal: Signal, rank: int) -> Gradient:
    """`fitting` for a rule that moved the channels of its input to other dimensions.

    Channels have independent gradients, so the positions they become are uncorrelated.
    """
    fitted = fitting(gradient, current, signal)
    if channel_axes(current, rank) == channel_axes(signal, rank):
        return fitted
    return Gradient(fitted.parts)


def expand(signal: Signal, rank: int, added: set[int]) -> Signal:
    """Inserts dimensions of size 1 at the places `added` of the new shape, of rank `rank`."""
    kept = [a for a in range(rank) if a not in added]
    target = [kept[a] for a in channel_axes(signal, len(kept))]
    positions = [a for a in range(1, rank) if a not in target]

    def moved(moments: Moments) -> Moments:
        for number, place in enumerate(positions):
            if place in added:
                moments = with_new_axis(moments, number)
        return on_axes(moments, axes_of(tuple(a.size for a in moments.axes)))

    return signal_at(signal.each(moved).parts, target, rank)


def with_batch(signal: Signal, shape: Shape) -> Signal | None:
    """A tensor without a batch, such as a table's rows by position, with a batch of one in front.

    Args:
        signal: The signal.
        shape: Shape of its tensor, without a batch.

    Returns:
        None where it is not known how places along the first dimension are related.
    """
    if len(shape) > 1 and shape[0] == 1:
        return expand(signal, len(shape) + 1, {1})
    if len(shape) != 2 or signal.lead is None:
        return None
    share = signal.lead

    def spread(moments: Moments) -> Moments:
        mean, second = moments.average(moments.mean), moments.second_moment
        placed = uniform(axes_of(shape[:1]), mean, second, share * second)
        return dataclasses.replace(placed, law=moments.own_law, third=moments.third)

    return signal.each(spread)


def squeeze(signal: Signal, shape: Shape, removed: Sequence[int]) -> Signal:
    """Removes dimensions of size 1; the last dimension holds the channels if none are left."""
    rank = len(shape)
    left = [a for a in range(rank) if a not in removed]
    channels = channel_axes(signal, rank)
    if not set(channels) - set(removed):
        signal = with_channel_axes(signal, shape, (*channels, left[-1]))
        channels = channel_axes(signal, rank)
    positions = position_axes(signal, rank)
    gone = [number for number, a in enumerate(positions) if a in removed]

    def moved(moments: Moments) -> Moments:
        moments = without_axes(moments, gone, pooled=True)
        return on_axes(moments, axes_of(tuple(a.size for a in moments.axes)))

    target = [left.index(a) for a in channels if a in left]
    return signal_at(signal.each(moved).parts, target, len(left))
