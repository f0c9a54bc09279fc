"""The engine's rules of layers and operations that join several signals."""

import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.analysis.axes import Array
from keras_varinit.analysis.moment_maps import Axes, Moments, added, broadcast, multiplied
from keras_varinit.analysis.nonlinear import IDENTITY, activated, law_of
from keras_varinit.analysis.rules import Concatenation
from keras_varinit.analysis.shape_signals import number_of_positions
from keras_varinit.analysis.signals import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    alike,
    layout,
    unknown,
)
from keras_varinit.moments import Activation
from keras_varinit.pair_moments import joint_squared_slope


def merged(visit: Visit) -> Outcome:
    """Sums and products of signals made by different weights, or functions of one signal."""
    name = type(visit.operation).__name__
    if name not in ("Add", "Subtract", "Average", "Multiply"):
        if any(signal.merged.is_known() for signal in visit.inputs):
            visit.note(f"{visit.operation.name} ({name}): what it does to signals is not modelled")
        return unknown(visit)
    target, _ = layout(visit.output_shape, visit.inputs[0].channel_axis)
    signals = [_on_axes(s, target) for s in visit.inputs]
    widest = max(signals, key=lambda s: len(s.parts))
    aligned = [_as_parts(s, widest) for s in signals]
    share = 1 / len(signals) ** 2 if name == "Average" else 1.0
    factors = [share] * len(aligned)
    if name == "Multiply":
        seconds = [s.second_moment for s in aligned]
        factors = [math.prod(seconds[:i] + seconds[i + 1 :]) for i in range(len(seconds))]
    groups, ratios = [], []
    for number, (channels, _) in enumerate(widest.parts):
        groups.append((channels, _merge(name, [s.parts[number][1] for s in aligned])))
        ratios.append(_together(groups[-1][1], [s.parts[number][1] for s in aligned], factors))
    output = Signal(tuple(groups), visit.inputs[0].channel_axis)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return [None] * len(visit.inputs)
        results = []
        for index, signal in enumerate(visit.inputs):
            coherence = gradient.coherence
            if name == "Multiply":
                for other, known in enumerate(aligned):
                    if other != index:
                        pair = known.merged.pair_moment
                        coherence *= min(abs(pair) / max(known.second_moment, 1e-300), 1.0)
            given = _gathered(gradient, coherence, factors[index], output, signal)
            if len(given.parts) == len(ratios):
                parts = tuple(g * r for g, r in zip(given.parts, ratios, strict=True))
                given = given.with_parts(parts)
            if name == "Add" and gradient.through is not None:
                given = _kept_together(given, gradient.through, signal, output)
            results.append(given)
        return results

    return Outcome((output,), pullback)


def _gathered(
    gradient: Gradient, coherence: float, factor: float, output: Signal, signal: Signal
) -> Gradient:
    """The gradient of a merged signal for one that was spread over positions to join it."""
    if signal.axes == output.axes and len(signal.parts) == len(output.parts):
        return Gradient(tuple(g * factor for g in gradient.parts), coherence)
    whole = gradient.second_moment(output) * factor
    repeats = number_of_positions(output.axes) / number_of_positions(signal.axes)
    if math.isfinite(repeats) and repeats > 1:
        whole *= repeats * (1 + coherence * (repeats - 1))
    return Gradient(tuple(np.full_like(m.mean, whole) for _, m in signal.parts), coherence)


def _kept_together(
    gradient: Gradient, through: Activation, signal: Signal, output: Signal
) -> Gradient:
    """For a shortcut: where its own activation passes, the one behind the sum passes more often."""
    if len(signal.parts) != len(output.parts):
        return gradient
    parts = []
    for g, (_, moments), (_, total) in zip(gradient.parts, signal.parts, output.parts, strict=True):
        ratio = 1.0
        if moments.pre is not None and moments.function is not None:
            (mean, std), (rest_mean, rest_std) = moments.spread, total.spread
            rest = (rest_mean - mean, math.sqrt(max(rest_std**2 - std**2, 0.0)))
            first, second = law_of(moments.pre, moments.function), law_of(total, through)
            apart = first.squared_slope * second.squared_slope
            if apart > 0 and rest[1] > 0:
                root = moments.pre.spread
                ratio = joint_squared_slope(moments.function, root, through, rest) / apart
        parts.append(g * ratio)
    return gradient.with_parts(tuple(parts))


def _on_axes(signal: Signal, axes: Axes) -> Signal:
    return signal.each(lambda m: broadcast(m, axes))


def _as_parts(signal: Signal, widest: Signal) -> Signal:
    counts = [n for n, _ in widest.parts]
    if [n for n, _ in signal.parts] == counts:
        return signal
    whole = signal.merged
    return Signal(tuple((n, whole) for n in counts), signal.channel_axis)


def _merge(name: str, parts: Sequence[Moments]) -> Moments:
    roots = [m.pre or m for m in parts]
    if all(root is roots[0] for root in roots[1:]) and roots[0].is_known():
        return _of_one_root(name, roots[0], [m.function or IDENTITY for m in parts])
    result = parts[0]
    for each in parts[1:]:
        if name == "Multiply":
            result = multiplied(result, each)
        else:
            result = added(result, each, -1.0 if name == "Subtract" else 1.0)
    return result.scaled(1 / len(parts) ** 2) if name == "Average" else result.plain()


def _together(result: Moments, parts: Sequence[Moments], factors: Sequence[float]) -> float:
    """What functions of one signal give it together, over the sum of what each gives it."""
    root = result.pre
    if root is None or result.function is None or any((m.pre or m) is not root for m in parts):
        return 1.0
    apart = sum(
        factor * law_of(root, m.function or IDENTITY).squared_slope
        for factor, m in zip(factors, parts, strict=True)
    )
    return law_of(root, result.function).squared_slope / apart if apart > 0 else 1.0


def _of_one_root(name: str, root: Moments, functions: Sequence[Activation]) -> Moments:
    def function(s: Array) -> Array:
        values = [f.function(s) for f in functions]
        if name == "Multiply":
            return np.asarray(np.prod(values, axis=0))
        if name == "Subtract":
            return np.asarray(values[0] - values[1])
        total = np.sum(values, axis=0)
        return np.asarray(total / len(values) if name == "Average" else total)

    return activated(root, Activation(f"{name} of one signal", function, (name, *functions)))


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
