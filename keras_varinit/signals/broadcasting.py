"""Broadcasting of signals to a common shape, and of gradients back."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.keras_private import Shape
from keras_varinit.maths.activated import activated
from keras_varinit.maths.covariance import Moments, Term
from keras_varinit.maths.windows import Array, Axes, axes_of
from keras_varinit.signals.layouts import (
    channel_axes,
    expand,
    on_axes,
    position_axes,
    sizes_of,
    stretched,
    with_batch,
    with_channel_axes,
)
from keras_varinit.signals.outcome import Gradient, Signal


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A signal broadcast to the positions and channels of a result.

    Args:
        signal: The broadcast signal.
        source: The signal before.
        repeats: Number of positions each entry was copied to.
        rearranged: Whether its channels were in other dimensions.
        copies: Number of channels each channel was copied to.
    """

    signal: Signal
    source: Signal
    repeats: float
    rearranged: bool = False
    copies: int = 1

    def back(self, gradient: Gradient, output: Signal) -> Gradient:
        """The gradient of the source: a sum over all copies of each entry."""
        coherence = gradient.coherence
        times = self.repeats
        grown = times * (1 + coherence * (times - 1)) if math.isfinite(times) and times > 1 else 1.0
        # The gradients of channels have independent signs.
        grown *= self.copies
        parts = parts_for(gradient.parts, output, self.source)
        parts = [
            g if g.shape == m.mean.shape else np.full_like(m.mean, self._mean(g, output))
            for g, (_, m) in zip(parts, self.source.parts, strict=True)
        ]
        back = gradient.with_parts(tuple(g * grown for g in parts))
        if self.rearranged:
            # What were channels had independent gradients.
            return Gradient(back.parts)
        if grown == 1.0:
            through = gradient.through
            return dataclasses.replace(back, phases=gradient.phases, through=through)
        return dataclasses.replace(back, local=0.0)

    def _mean(self, gradient: Array, output: Signal) -> float:
        return output.parts[0][1].average(gradient)


def are_alike(operands: Sequence[Aligned], *, summed: bool) -> bool:
    """Whether the channels of a function, or a sum, of signals have a summand in common.

    It counts if a tenth of what varies in the sum is the same in all channels.
    """
    if any(each.signal.alike for each in operands):
        return True
    if not summed or all(each.copies == 1 for each in operands):
        return False
    varying = [each.signal.merged.spread[1] ** 2 for each in operands]
    common = sum(v for v, each in zip(varying, operands, strict=True) if each.copies > 1)
    return not common <= sum(varying) / 10


def parts_for(gradients: Sequence[Array], output: Signal, source: Signal) -> list[Array]:
    """Second moments by the channel groups of `source`, averaged over overlapping groups.

    `gradients` holds one array by class of position for each group of channels of `output`.
    """
    if [n for n, _ in output.parts] == [n for n, _ in source.parts]:
        return list(gradients)
    ends = np.cumsum([0, *(n for n, _ in output.parts)]) / output.channels
    own = np.cumsum([0, *(n for n, _ in source.parts)]) / source.channels
    regrouped_gradients = []
    for start, stop in itertools.pairwise(own):
        shares = np.clip(np.minimum(ends[1:], stop) - np.maximum(ends[:-1], start), 0.0, None)
        weights = shares / shares.sum()
        regrouped_gradients.append(
            sum((w * g for w, g in zip(weights, gradients, strict=True)), np.zeros(()))
        )
    return regrouped_gradients


def align(
    signal: Signal, before: Shape, shape: Shape, target: Signal, *, by_layer: bool
) -> Aligned | None:
    """Broadcasts a signal to a result's shape.

    Args:
        signal: The signal.
        before: Shape of its tensor.
        shape: That of the result.
        target: A signal with the layout of the result.
        by_layer: Whether dimensions that are missing follow the batch, as in Keras's merging
            layers; in `keras.ops`, as in NumPy, they are in front of all.

    Returns:
        None if it cannot be broadcast.
    """
    rank = len(shape)
    channels = channel_axes(target, rank)
    known = signal
    if len(before) < rank and not by_layer:
        batched = with_batch(signal, before)
        if batched is None:
            return None
        known, before = batched, (1, *before)
    missing = rank - len(before)
    if missing:
        known = expand(known, rank, set(range(1, 1 + missing)))
        before = (before[0], *(1,) * missing, *before[1:])
    laid_out = _with_channels(known, before, channels)
    if laid_out is None:
        return None
    positions = position_axes(laid_out, rank)
    grown = [a for a in range(1, rank) if before[a] != shape[a]]
    if any(before[a] != 1 for a in grown):
        return None
    axes = axes_of(sizes_of(shape, positions))
    numbers = [n for n, a in enumerate(positions) if a in grown]
    move = _Move(axes, tuple(numbers))
    result = laid_out.each(move)
    wider = [a for a in channels if a in grown]
    if wider:
        count = math.prod(shape[a] or 1 for a in channels)
        if result.channels * math.prod(shape[a] or 1 for a in wider) != count:
            return None
        result = Signal(((count, result.merged),), result.channel_axis, result.other_axes)
    repeats = math.prod(
        math.inf if shape[positions[n]] is None else shape[positions[n]] or 1 for n in numbers
    )
    copies = math.prod(shape[a] or 1 for a in wider)
    rearranged = channel_axes(known, rank) != tuple(channels)
    return Aligned(result, signal, repeats, rearranged, copies)


def _with_channels(signal: Signal, shape: Shape, channels: Sequence[int]) -> Signal | None:
    rank = len(shape)
    if channel_axes(signal, rank) == tuple(channels):
        return signal
    return with_channel_axes(signal, shape, channels)


class _Move:
    """Broadcasts moments to other axes; equal arguments return the same object."""

    def __init__(self, axes: Axes, numbers: tuple[int, ...]) -> None:
        self.axes, self.numbers = axes, numbers

    def __call__(self, moments: Moments) -> Moments:
        if moments.axes == self.axes and not self.numbers:
            return moments
        key = (self.axes, self.numbers)
        if key not in moments.elsewhere:
            moments.elsewhere[key] = self._moved(moments)
            moments.elsewhere[key].elsewhere["origin"] = moments
        derived: Moments = moments.elsewhere[key]
        return derived

    def _moved(self, moments: Moments) -> Moments:
        if moments.pre is not None and moments.function is not None:
            return activated(self(moments.pre), moments.function)
        if self.numbers:
            moved = stretched(moments, self.numbers, self.axes)
        else:
            moved = on_axes(moments, self.axes)
        terms = tuple(
            Term(t.coefficient, tuple((self(root), function) for root, function in t.factors))
            for t in moments.terms
        )
        return dataclasses.replace(moved, terms=terms, third=moments.third)


def regrouped(signals: Sequence[Signal]) -> list[tuple[int, list[Moments]]]:
    """Groups of channels that no signal splits further: (channels, moments of each signal)."""
    edges = sorted({end for s in signals for end in _ends(s)})
    groups = []
    for start, stop in zip([0, *edges[:-1]], edges, strict=True):
        parts = [s.parts[int(np.searchsorted(_ends(s), start, side="right"))][1] for s in signals]
        groups.append((stop - start, parts))
    return groups


def _ends(signal: Signal) -> list[int]:
    return list(itertools.accumulate(n for n, _ in signal.parts))
