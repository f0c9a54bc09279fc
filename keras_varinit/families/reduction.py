"""Reductions: `ops.mean`, `sum`, `var`, `std`, `norm`, `max`, `min`, `amax` and `amin`.

A mean over positions averages over all pairs of positions. Channels are uncorrelated apart from
their means, so the mean of n channels keeps the mean and 1/n of the variance. A sum of many
nonnegative terms counts as log-normal, so that its root, inverse and logarithm exist.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.families.activations import after_activation
from keras_varinit.families.pooling import global_max
from keras_varinit.keras_private import Shape
from keras_varinit.maths.activated import IDENTITY, activated, law_of, winning
from keras_varinit.maths.covariance import Moments, near_pairs, outer
from keras_varinit.maths.entry_laws import at
from keras_varinit.maths.maxima import maximum_law
from keras_varinit.maths.mean_laws import ratio_of, with_mean_law
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.windows import axes_of
from keras_varinit.signals.layouts import (
    channel_axes,
    fitting,
    on_axes,
    position_axes,
    signal_at,
    squeeze,
    with_new_axis,
    without_axes,
)
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, only_first, unknown
from keras_varinit.signals.registry import follows_channel_axes, role_rule, signal_rule
from keras_varinit.signals.roles import Call, Pooling, Role, Unknown


@role_rule("Mean", "Max")
def _global_pooling_role(call: Call) -> Role:
    """A mean or maximum over all positions is global pooling; other reductions are unknown."""
    shape, axis = call.input_shapes[0], call.operation.axis
    axes = {
        a % len(shape) for a in ([axis] if isinstance(axis, int) else axis or range(len(shape)))
    }
    inner = set(range(1, len(shape)))
    if not axes < inner or len(inner - axes) != 1:
        return Unknown()
    sizes = [shape[a] for a in axes]
    size = None if None in sizes else math.prod(n for n in sizes if n is not None)
    return Pooling("max" if type(call.operation).__name__ == "Max" else "average", size)


_EXP = Activation("exp", np.exp, ("exp",))

_SQUARE = Activation("square", np.square, ("square",))

_ROOT = Activation("sqrt", np.sqrt, ("sqrt",))


def reduced_axes(visit: Visit) -> list[int] | None:
    """The dimensions that an operation reduces; None if the batch is among them."""
    rank, axis = len(visit.call.input_shapes[0]), visit.operation.axis
    if axis is None:
        return None
    axes = [axis] if isinstance(axis, int) else list(axis)
    reduced = sorted({int(a) % rank for a in axes})
    return None if 0 in reduced else reduced


@follows_channel_axes
@signal_rule("Mean", "Sum")
def _mean_or_sum(visit: Visit) -> Outcome:
    axes = reduced_axes(visit)
    if axes is None:
        return unknown(visit, "it reduces the batch too")
    return linear_reduction(visit, axes, mean=type(visit.operation).__name__ == "Mean")


def linear_reduction(visit: Visit, axes: Sequence[int], *, mean: bool) -> Outcome:
    """The mean or the sum over the dimensions `axes`."""
    source, shape = visit.inputs[0], visit.call.input_shapes[0]
    rank = len(shape)
    channels = channel_axes(source, rank)
    sizes = [shape[a] for a in axes]
    if None in sizes and not mean:
        return unknown(visit, "it sums over an unknown number of entries")
    if set(axes) & set(channels) and source.merged.common is not None:
        return unknown(visit, "a factor that all its channels share does not average out")
    if set(axes) & set(channels) and source.alike:
        return unknown(visit, "one of its summands is the same in all channels")
    if len(axes) == rank - 1 and not visit.operation.keepdims:
        return unknown(visit, "it leaves no channels")
    count = math.prod(math.inf if n is None else n for n in sizes)
    if not set(axes) & set(channels):
        averaged = source.each(
            lambda m: with_mean_law(_over_positions(m, source, rank, axes), m, count)
        )
    else:
        merged = _over_positions(source.merged, source, rank, axes)
        over = math.prod(shape[a] or 1 for a in axes if a in channels)
        left = source.channels // over
        averaged = signal_at([(left, _over_channels(merged, over))], channels, rank)
    if not mean:
        averaged = averaged.each(lambda m: _times(m, float(count)))
    output = _without(averaged, shape, axes, keep=visit.operation.keepdims)
    factor = 1.0 if not mean else 1 / count**2

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        ratio = ratio_of(output.parts[0][1], gradient.through)
        back = fitting(gradient, output, source).scaled(factor * ratio)
        over_positions = any(a not in channels and shape[a] != 1 for a in axes)
        # All summed positions have the same gradient.
        coherence = 1.0 if over_positions and len(axes) >= len(source.axes) else back.coherence
        in_step = bool(set(axes) & set(channels))
        back = dataclasses.replace(back, coherence=coherence, in_step=in_step)
        return only_first(back, len(visit.inputs))

    return Outcome((output,), pullback)


def _times(moments: Moments, factor: float) -> Moments:
    """The signal times a positive number, keeping its law."""
    name = Activation("multiply", lambda s: s * factor, ("multiply", factor))
    return activated(moments, name) if moments.pre is not None else moments.scaled(factor**2)


def _over_positions(moments: Moments, signal: Signal, rank: int, axes: Sequence[int]) -> Moments:
    positions = position_axes(signal, rank)
    numbers = [positions.index(a) for a in axes if a in positions]
    if not numbers:
        return moments
    moments = without_axes(moments, numbers, pooled=False)
    for number in sorted(numbers):
        moments = with_new_axis(moments, number)
    return on_axes(moments, axes_of(tuple(a.size for a in moments.axes)))


def _over_channels(moments: Moments, count: int) -> Moments:
    """The mean of `count` uncorrelated channels."""
    mean = moments.mean
    common = outer(mean)
    far = common + (moments.far - common) / count
    near_mean = near_pairs(dataclasses.replace(moments, far=common))[0]
    near = near_pairs(moments)[0] + moments.excess
    result = Moments(moments.axes, mean, far, moments.excess / count, moments.radius)
    near = near_mean + (near - near_mean) / count
    result = dataclasses.replace(result, excess=near - near_pairs(result)[0])
    result = result.with_second(mean**2 + (moments.second - mean**2) / count)
    return log_normal(result) if is_nonnegative(moments) else result


def is_nonnegative(moments: Moments) -> bool:
    """Whether a signal is a function without negative values."""
    if moments.pre is None or moments.function is None:
        return False
    mean, std = moments.pre.spread
    places = at(moments.pre.shape, np.linspace(-8.0, 8.0, 161))
    values = moments.function.function(mean + std * places)
    return bool(np.all(values >= 0))


def log_normal(moments: Moments) -> Moments:
    """The moments as those of e^g for Gaussian g; unchanged if the mean is not positive."""
    mean, second = moments.mean, moments.second
    if not moments.is_known() or np.any(mean <= 0):
        return moments
    variance = np.log(second / mean**2)
    centre = np.log(mean) - variance / 2
    far = np.log(np.maximum(moments.far / outer(mean), 1e-300)) + outer(centre)
    near_mean = near_pairs(dataclasses.replace(moments, far=outer(mean)))[0]
    near = near_pairs(moments)[0] + moments.excess
    root = Moments(moments.axes, centre, far, np.zeros_like(moments.excess), moments.radius)
    near_centre = near_pairs(dataclasses.replace(root, far=outer(centre)))[0]
    covariance = np.log(np.maximum(near / np.where(near_mean > 0, near_mean, 1.0), 1e-300))
    excess = np.where(near > 0, covariance + near_centre - near_pairs(root)[0], 0.0)
    root = dataclasses.replace(root, excess=excess).with_second(variance + centre**2)
    return dataclasses.replace(moments, pre=root, function=_EXP)


def _without(signal: Signal, shape: Shape, axes: Sequence[int], *, keep: bool) -> Signal:
    """Keeps or removes the reduced dimensions, which have size 1."""
    after = tuple(1 if a in axes else n for a, n in enumerate(shape))
    return signal if keep else squeeze(signal, after, axes)


@follows_channel_axes
@signal_rule("Norm")
def _norm(visit: Visit) -> Outcome:
    """The Euclidean norm √Σ z² of vectors."""
    axes, order = reduced_axes(visit), getattr(visit.operation, "ord", None)
    if axes is None or len(axes) != 1 or order not in (None, 2, "euclidean"):
        return unknown(visit, "only Euclidean norms of vectors are modelled")
    squares = after_activation(visit.inputs[0], _SQUARE)
    sums = linear_reduction(dataclasses.replace(visit, inputs=squares.outputs), axes, mean=False)
    root = after_activation(sums.outputs[0], _ROOT)
    return chained(squares, sums, root)


def chained(*outcomes: Outcome) -> Outcome:
    """Composes outcomes with one signal each, in order."""

    def pullback(gradients: Gradients) -> Gradients:
        for outcome in reversed(outcomes):
            gradients = outcome.pullback(gradients)
        return gradients

    return Outcome(outcomes[-1].outputs, pullback)


@follows_channel_axes
@signal_rule("Var", "Std")
def _variance(visit: Visit) -> Outcome:
    """The variance or standard deviation over channels."""
    axes, rank = reduced_axes(visit), len(visit.call.input_shapes[0])
    signal = visit.inputs[0]
    if axes is None or not set(axes) <= set(channel_axes(signal, rank)):
        return unknown(visit, "only variances over channels are modelled")
    # Over many channels, the sample mean equals the mean of the law.
    mean = signal.merged.average(signal.merged.mean)
    centred = Activation("centred square", lambda s: (s - mean) ** 2, ("centred square", mean))
    squares = after_activation(signal, centred)
    means = linear_reduction(dataclasses.replace(visit, inputs=squares.outputs), axes, mean=True)
    if type(visit.operation).__name__ == "Var":
        return chained(squares, means)
    return chained(squares, means, after_activation(means.outputs[0], _ROOT))


@signal_rule("Max", "Amax", "Min", "Amin")
def _extreme(visit: Visit) -> Outcome:
    """The extreme over all positions, as in global pooling, or over independent channels."""
    axes, shape = reduced_axes(visit), visit.call.input_shapes[0]
    signal = visit.inputs[0]
    if axes is None:
        return unknown(visit, "it reduces the batch too")
    sign = -1.0 if type(visit.operation).__name__ in ("Min", "Amin") else 1.0
    positions = position_axes(signal, len(shape))
    if set(axes) == set(positions):
        return _extreme_of_positions(visit, axes, sign)
    if set(axes) != set(channel_axes(signal, len(shape))) or len(shape) < 3:
        return unknown(visit, "only extremes over all positions or all channels are modelled")
    return _extreme_of_channels(visit, axes, sign)


def _mirrored(signal: Signal, sign: float) -> Outcome:
    negative = Activation("negative", lambda s: sign * s, ("times", sign))
    return after_activation(signal, negative) if sign < 0 else Outcome((signal,), lambda g: g)


def _extreme_of_positions(visit: Visit, axes: Sequence[int], sign: float) -> Outcome:
    first = _mirrored(visit.inputs[0], sign)
    pooled = global_max(dataclasses.replace(visit, inputs=first.outputs))
    return chained(first, pooled, _mirrored(pooled.outputs[0], sign))


def _extreme_of_channels(visit: Visit, axes: Sequence[int], sign: float) -> Outcome:
    first = _mirrored(visit.inputs[0], sign)
    signal, shape = first.outputs[0], visit.call.input_shapes[0]
    moments, count = signal.merged, signal.channels
    if signal.alike:
        return unknown(visit, "one of its summands is the same in all channels")
    if not moments.is_known() or len(signal.parts) > 1:
        return unknown(visit, "channels of several kinds are not modelled")
    root, function = moments.pre or moments, moments.function or IDENTITY
    mean, std = root.spread
    law = maximum_law(function, ((mean, std, float(count)),), 0.0, root.shape)
    own = law_of(root, function)
    scale = np.sqrt(moments.second / own.second) if own.second > 0 else np.zeros_like(moments.mean)
    # Maxima of two positions are taken to be as correlated as their channels.
    covariance = moments.far - outer(moments.mean)
    deviation = np.sqrt(moments.variance)
    correlation = np.divide(
        covariance, outer(deviation), out=np.zeros_like(covariance), where=outer(deviation) > 0
    )
    left = law.second - law.first**2
    far = (law.first**2 + left * np.clip(correlation, 0.0, 1.0)) * outer(scale)
    result = Moments(
        moments.axes,
        law.first * scale,
        far,
        np.zeros([n for a in moments.axes for n in (1, a.count)]),
        (0,) * len(moments.axes),
    ).with_second(law.second * scale**2)
    share = law.squared_slope / own.squared_slope if own.squared_slope > 0 else 0.0
    extreme = signal_at([(1, result)], channel_axes(signal, len(shape)), len(shape))
    output = _without(extreme, shape, axes, keep=visit.operation.keepdims)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return (None,)
        back = fitting(gradient, output, signal).scaled(share / count)
        return (dataclasses.replace(back, through=winning(moments, 0.0, count)),)

    return chained(first, Outcome((output,), pullback), _mirrored(output, sign))
