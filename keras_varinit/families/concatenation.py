"""Concatenation and stacking: Concatenate, and `ops.append`, `concatenate`, `stack` and the like.

Along channels, the groups of channels of all inputs are joined. Along positions, y is the sum of
its inputs, each padded with zeros: E y_p y_q is E z_p z_q if p and q lie in the same input, and
the product of their means otherwise.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.families.merging import arguments_of
from keras_varinit.keras_private import Shape
from keras_varinit.maths.windows import axes_of
from keras_varinit.signals.broadcasting import parts_for, regrouped
from keras_varinit.signals.constants import constant_signal
from keras_varinit.signals.layouts import (
    channel_axes,
    expand,
    fitting,
    on_axes,
    position_axes,
    signal_at,
    sizes_of,
    with_channel_axes,
)
from keras_varinit.signals.outcome import Gradient, Gradients, Outcome, Signal, Visit, unknown
from keras_varinit.signals.placing import Mixture, Placing, joined
from keras_varinit.signals.registry import follows_channel_axes, role_rule, signal_rule
from keras_varinit.signals.roles import Call, Concatenation, Role, Unknown


@role_rule(keras.layers.Concatenate, "Concatenate")
def _concatenate_role(call: Call) -> Role:
    return Concatenation(int(call.operation.axis))


@role_rule("Append", "Hstack", "Stack", "Vstack")
def _stack_role(call: Call) -> Role:
    """The axis of a concatenation; stacking counts as concatenation along the new axis."""
    axis = {"Hstack": 1, "Vstack": 0}.get(type(call.operation).__name__, -1)
    if type(call.operation).__name__ == "Append":
        axis = call.operation.axis
    return Unknown("it flattens its inputs") if axis is None else Concatenation(int(axis))


@follows_channel_axes
@signal_rule(keras.layers.Concatenate, "Append", "Concatenate", "Hstack", "Stack", "Vstack")
def concatenated(visit: Visit) -> Outcome:
    """Joins signals and known numbers along an existing or a new dimension."""
    operation, name = visit.operation, type(visit.operation).__name__
    axis = {"Hstack": 1, "Vstack": 0}.get(name, getattr(operation, "axis", None))
    arguments = arguments_of(visit)
    if axis is None or any(a is None for a in arguments):
        return unknown(visit, "what it joins is not known")
    if not all(s.is_known() for s in visit.inputs):
        return unknown(visit)
    rank = len(visit.output_shape)
    pieces = _pieces(visit, arguments, int(axis) % rank, stacks=name == "Stack")
    if pieces is None:
        return unknown(visit, "it joins signals of different layouts")
    return _Joint(visit, pieces, int(axis) % rank).outcome()


class _Piece:
    """One of the joined tensors, laid out like the others.

    `number` is its index among the inputs, None for known numbers.
    """

    def __init__(self, signal: Signal, size: int | None, number: int | None) -> None:
        self.signal, self.size, self.number = signal, size, number


def _pieces(
    visit: Visit, arguments: Sequence[Any], axis: int, *, stacks: bool
) -> list[_Piece] | None:
    shape = visit.output_shape
    rank = len(shape)
    signals: list[tuple[Signal, Shape] | None] = []
    for argument in arguments:
        if not isinstance(argument, int):
            signals.append(None)
            continue
        signal, before = visit.inputs[argument], visit.call.input_shapes[argument]
        if stacks:
            signal = expand(signal, rank, {axis})
            before = (*before[:axis], 1, *before[axis:])
        signals.append((signal, before))
    target = max((s for s in signals if s is not None), key=lambda s: s[0].channels)[0]
    channels = channel_axes(target, rank)
    pieces = []
    for argument, known in zip(arguments, signals, strict=True):
        if known is None:
            values = np.expand_dims(argument, axis) if stacks else np.asarray(argument)
            if values.ndim != rank:
                return None
            size = values.shape[axis]
            own = tuple(size if a == axis else n for a, n in enumerate(shape))
            pieces.append(_Piece(constant_signal(values, own, target), size, None))
        elif len(known[1]) != rank:
            return None
        else:
            signal = with_channel_axes(known[0], known[1], channels)
            pieces.append(_Piece(signal, known[1][axis], argument))
    return pieces


class _Joint:
    """The concatenation of pieces along the dimension `axis`."""

    def __init__(self, visit: Visit, pieces: Sequence[_Piece], axis: int) -> None:
        self.visit, self.pieces, self.axis = visit, pieces, axis
        self.shape = visit.output_shape
        rank = len(self.shape)
        self.channels = channel_axes(pieces[0].signal, rank)
        self.positions = position_axes(pieces[0].signal, rank)
        self.axes = axes_of(sizes_of(self.shape, self.positions))

    def outcome(self) -> Outcome:
        """The outcome along channels, the batch or positions."""
        if self.axis in self.channels:
            return self._along_channels()
        if self.axis == 0:
            count = len(self.pieces)
            known = [float(p.size) for p in self.pieces if p.size is not None]
            shares = np.array(known) / sum(known) if len(known) == count else np.ones(count) / count
            return self._along_positions(Mixture(shares.tolist(), self.axes))
        number = self.positions.index(self.axis)
        sizes = [p.size for p in self.pieces if p.size is not None]
        if len(sizes) < len(self.pieces):
            return self._of_unknown_sizes()
        sources = [p.signal.axes for p in self.pieces]
        return self._along_positions(Placing(sizes, sources, self.axes, number))

    def _along_channels(self) -> Outcome:
        parts = [(n, on_axes(m, self.axes)) for piece in self.pieces for n, m in piece.signal.parts]
        output = signal_at(parts, self.channels, len(self.shape))

        def pullback(gradients: Gradients) -> Gradients:
            gradient = gradients[0]
            if gradient is None:
                return [None] * len(self.visit.inputs)
            rest, at_pieces = list(gradient.parts), []
            for piece in self.pieces:
                count = len(piece.signal.parts)
                own, rest = tuple(rest[:count]), rest[count:]
                at_pieces.append(gradient.with_parts(own))
            return self._by_input(at_pieces)

        return Outcome((output,), pullback)

    def _by_input(self, at_pieces: Sequence[Gradient]) -> list[Gradient | None]:
        """Assigns the gradients of the pieces to the inputs."""
        results: list[Gradient | None] = [None] * len(self.visit.inputs)
        for piece, gradient in zip(self.pieces, at_pieces, strict=True):
            if piece.number is not None:
                source = self.visit.inputs[piece.number]
                results[piece.number] = fitting(gradient, piece.signal, source)
        return results

    def _along_positions(self, places: Placing | Mixture) -> Outcome:
        crosses = self._crosses()
        if crosses is None:
            return unknown(self.visit, "its inputs depend on each other")
        groups = [
            (n, joined(parts, places, crosses))
            for n, parts in regrouped([p.signal for p in self.pieces])
        ]
        output = signal_at(groups, self.channels, len(self.shape))

        def pullback(gradients: Gradients) -> Gradients:
            gradient = gradients[0]
            if gradient is None:
                return [None] * len(self.visit.inputs)
            at_pieces = []
            for number, piece in enumerate(self.pieces):
                back = places.back(number, gradient)
                parts = parts_for(back.parts, output, piece.signal)
                at_pieces.append(back.with_parts(tuple(parts)))
            return self._by_input(at_pieces)

        return Outcome((output,), pullback)

    def _crosses(self) -> dict[tuple[int, int], bool] | None:
        """For each pair of pieces, whether they are related like two examples or independent.

        Returns None if they depend on each other in another way.
        """
        visit, alike = self.visit, {}
        for i, j in itertools.combinations(range(len(self.pieces)), 2):
            one, two = self.pieces[i], self.pieces[j]
            alike[i, j] = False
            if one.number is None or two.number is None:
                continue
            if visit.reaches[one.number] & visit.reaches[two.number]:
                if not _are_alike([one.signal, two.signal]):
                    return None
                alike[i, j] = True
        return alike

    def _of_unknown_sizes(self) -> Outcome:
        if not _are_alike([p.signal for p in self.pieces]):
            return unknown(self.visit, "the share of each of its inputs is not known")
        whole = self.pieces[0].signal
        output = signal_at(
            [(n, on_axes(m, self.axes)) for n, m in whole.parts], self.channels, len(self.shape)
        )

        def pullback(gradients: Gradients) -> Gradients:
            gradient = gradients[0]
            if gradient is None:
                return [None] * len(self.visit.inputs)
            return self._by_input([fitting(gradient, output, p.signal) for p in self.pieces])

        return Outcome((output,), pullback)


def _are_alike(signals: Sequence[Signal]) -> bool:
    """Whether signals have nearly equal means and second moments."""
    size = signals[0].second_moment or 1.0
    averages = [
        (m.average(m.mean) / math.sqrt(size), m.second_moment / size)
        for m in (s.merged for s in signals)
    ]
    return bool(np.allclose(averages, averages[0], atol=0.01))
