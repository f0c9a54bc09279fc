"""Normalization: over the batch, over the channels of a position, and over groups of them."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from keras_varinit.keras_private import own_variable
from keras_varinit.maths.covariance import Moments, outer, uniform
from keras_varinit.signals.constants import moments_of_variable
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, only_first, unknown
from keras_varinit.signals.registry import constant_role, layer_classes, signal_rule
from keras_varinit.signals.roles import Transparent
from keras_varinit.tensors import view
from keras_varinit.tracing.reader import call_argument


def _scales(layer: Any) -> tuple[float, tuple[float, float]]:
    """Mean square of γ, 1 without it; mean and mean square of β."""
    gamma = own_variable(layer, "gamma")
    if gamma is None:
        gamma = own_variable(layer, "scale")
    scale = 1.0
    if gamma is not None and not isinstance(
        getattr(layer, "gamma_initializer", None), keras.initializers.Ones
    ):
        scale = float(np.mean(np.square(np.asarray(view(gamma), np.float64))))
    return scale, moments_of_variable(layer, "beta")


@signal_rule(keras.layers.BatchNormalization)
def _batch_normalization(visit: Visit) -> Outcome:
    """In training: mean and variance of a channel are those over examples and positions."""
    layer, signal = visit.operation, visit.inputs[0]
    rank = len(visit.call.input_shapes[0])
    if layer.axis % rank != signal.channel_axis % rank:
        return unknown(visit, "it normalizes along positions, not channels")
    gamma, beta = _scales(layer)
    factors: dict[int, float] = {}

    def normalized(moments: Moments) -> Moments:
        if not math.isfinite(moments.second_moment):
            factors[id(moments)] = math.nan
            return _renewed(moments, gamma, beta)
        centred = moments.without_average()
        factors[id(moments)] = gamma / (max(centred.second_moment, 0.0) + layer.epsilon)
        return centred.scaled(factors[id(moments)]).shifted(beta)

    output = signal.each(normalized)
    back = _per_part(signal, factors, len(visit.inputs))
    here, unequal = signal.parts[0][1].inverse, signal.parts[0][1].unequal
    if math.isnan(here):
        visit.note(
            f"{visit.operation.name}: so few inputs make each of its channels that the mean of "
            "their inverse variances, and so of the gradients' squares, does not exist"
        )

    def pullback(gradients: Gradients) -> Gradients:
        # Channels of small variance get large gradients, which their small kernels take away again.
        first, *others = back(gradients)
        first = first and first.scaled(1 + unequal)
        bend = gradients[0] and gradients[0].bend
        bend = bend and dataclasses.replace(bend, normalized=True)
        given = first and dataclasses.replace(first, here=here, bend=bend)
        return (given, *others)

    return Outcome((output,), pullback)


def _renewed(moments: Moments, gamma: float, beta: tuple[float, float]) -> Moments:
    """Unit variance where nothing was known."""
    return uniform(moments.axes, 0.0, gamma, 0.0).shifted(beta)


def _per_part(signal: Signal, factors: dict[int, Any], count: int) -> Any:
    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, count)
        parts = tuple(
            g * factors[id(m)] for (_, m), g in zip(signal.parts, gradient.parts, strict=True)
        )
        return only_first(gradient.with_parts(parts), count)

    return pullback


def _given_scales(visit: Visit) -> tuple[float, tuple[float, float]]:
    """The same of a raw operation, which takes γ and β as arguments; NaN where they are signals."""
    if len(visit.inputs) > 1:
        return math.nan, (0.0, 0.0)
    node = visit.call.node
    gamma = call_argument(node, 1, "scale", call_argument(node, 1, "gamma"))
    beta = call_argument(node, 2, "beta")
    scale = 1.0 if gamma is None else float(np.mean(np.square(_numbers(gamma))))
    if beta is None:
        return scale, (0.0, 0.0)
    return scale, (float(np.mean(_numbers(beta))), float(np.mean(np.square(_numbers(beta)))))


def _numbers(value: Any) -> Any:
    return np.asarray(view(value), np.float64)


def normalized_axes(visit: Visit) -> str | None:
    """Whether a normalization is over "channels" or a whole "example"; None for anything else."""
    operation, rank = visit.operation, len(visit.call.input_shapes[0])
    if getattr(operation, "order", 2) not in (2, None):
        return None
    axis = getattr(operation, "axis", -1)
    axes = {int(a) % rank for a in ([axis] if isinstance(axis, int) else axis or [-1])}
    if "Group" in type(operation).__name__ or axes == {visit.inputs[0].channel_axis % rank}:
        return "channels"
    return "example" if axes == set(range(1, rank)) else None


@signal_rule(
    *layer_classes(
        "LayerNormalization", "RMSNormalization", "GroupNormalization", "UnitNormalization"
    ),
    "LayerNorm",
    "Normalize",
    "RMSNorm",
)
def position_normalization(visit: Visit) -> Outcome:
    """Each example by itself: over its channels, and with groups over its positions too.

    Rows of unit length have entries of mean square 1/channels.
    """
    layer, signal = visit.operation, visit.inputs[0]
    gamma, beta = _scales(layer) if isinstance(layer, keras.Layer) else _given_scales(visit)
    epsilon = float(getattr(layer, "epsilon", 1e-6) or 1e-6)
    to_unit_length = type(layer).__name__ in ("UnitNormalization", "Normalize")
    over = normalized_axes(visit)
    if over is None:
        return unknown(visit, "it normalizes other dimensions than channels, or all of an example")
    keeps_mean = to_unit_length or "RMS" in type(layer).__name__
    if to_unit_length:
        entries = signal.channels * (
            math.prod(a.size or 1 for a in signal.axes) if over == "example" else 1
        )
        gamma = 1 / entries
    over_positions = "Group" in type(layer).__name__ or over == "example"
    total = signal.merged
    mean = np.zeros_like(total.mean) if keeps_mean else total.mean
    variance = np.asarray(total.second - mean**2)
    if over_positions:
        variance = np.full_like(variance, total.average(variance))
        mean = np.full_like(mean, total.average(mean))
    factor = gamma / (np.maximum(variance, 0.0) + epsilon)

    def normalized(moments: Moments) -> Moments:
        if not math.isfinite(moments.second_moment):
            return _renewed(moments, gamma, beta)
        # Each entry loses the mean over the channels: cross terms with the entry's own mean stay.
        left = moments.mean - mean
        far = moments.far - outer(moments.mean) + outer(left)
        centred = Moments(moments.axes, left, far, moments.excess, moments.radius)
        return centred.scaled(factor).shifted(beta)

    output = signal.each(normalized)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        parts = tuple(g * factor for g in gradient.parts)
        return only_first(gradient.with_parts(parts), len(visit.inputs))

    return Outcome((output,), pullback)


constant_role(
    Transparent(normalizes=True),
    *layer_classes("BatchNormalization", "GroupNormalization", "LayerNormalization"),
    *layer_classes("RMSNormalization", "UnitNormalization"),
    *("BatchNorm", "LayerNorm", "Normalize", "RMSNorm"),
)
