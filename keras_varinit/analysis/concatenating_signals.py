"""The engine's rules of concatenation and stacking."""

from collections.abc import Sequence

import numpy as np

from keras_varinit.analysis.layouts import on_axes
from keras_varinit.analysis.moment_maps import Axes
from keras_varinit.analysis.rules import Concatenation
from keras_varinit.analysis.signals import Gradients, Outcome, Signal, Visit, alike


def _on_axes(signal: Signal, axes: Axes) -> Signal:
    return signal.each(lambda m: on_axes(m, axes))


def concatenated(visit: Visit) -> Outcome:
    """Channels side by side; along positions, averages."""
    role = visit.role
    if not isinstance(role, Concatenation):
        raise TypeError("a rule of concatenation met another role")
    first = visit.inputs[0]
    rank = len(visit.output_shape)
    shapes = visit.call.input_shapes
    if role.axis % rank == first.channel_axis % rank:
        parts = tuple(p for s in visit.inputs for p in _on_axes(s, first.axes).parts)
        output = Signal(parts, first.channel_axis)

        def pullback(gradients: Gradients) -> Gradients:
            gradient = gradients[0]
            if gradient is None:
                return [None] * len(visit.inputs)
            rest, results = list(gradient.parts), []
            for signal in visit.inputs:
                own, rest = rest[: len(signal.parts)], rest[len(signal.parts) :]
                results.append(gradient.with_parts(tuple(own)))
            return results

        return Outcome((output,), pullback)
    sizes = [float(s[role.axis] or 1) if len(s) == rank else 1.0 for s in shapes]
    total = sum(sizes)
    means = [s.merged for s in visit.inputs]

    def mixed(values: Sequence[float]) -> float:
        return sum(n * v for n, v in zip(sizes, values, strict=True)) / total

    output = alike(
        visit.output_shape,
        first.channel_axis,
        mixed([m.average(m.mean) for m in means]),
        mixed([m.second_moment for m in means]),
        mixed([m.pair_moment for m in means]),
    )

    def spread(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return [None] * len(visit.inputs)
        second = gradient.second_moment(output)
        return [
            gradient.with_parts(tuple(np.full_like(m.mean, second) for _, m in s.parts))
            for s in visit.inputs
        ]

    return Outcome((output,), spread)
