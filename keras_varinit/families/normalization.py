"""Normalization: BatchNormalization, LayerNormalization, RMSNormalization, GroupNormalization.

Also UnitNormalization, `ops.layer_normalization`, `rms_normalization` and `normalize`. For
`Normalization`, which is adapted to data, see `scaling`.
"""

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from keras_varinit.keras_private import own_variable
from keras_varinit.maths.common_factors import Common
from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.entry_laws import NODES
from keras_varinit.signals.centring import centred, in_common, inverse_of_few
from keras_varinit.signals.constants import moments_of_variable
from keras_varinit.signals.outcome import Gradients, Outcome, Signal, Visit, only_first, unknown
from keras_varinit.signals.registry import constant_role, layer_classes, signal_rule
from keras_varinit.signals.roles import Transparent
from keras_varinit.tensors import view
from keras_varinit.tracing.reader import call_argument
from keras_varinit.typing import Layer


def _scales(visit: Visit, layer: Layer) -> tuple[float, tuple[float, float]]:
    """Mean square of γ (1 without γ), and (mean, mean square) of β."""
    gamma = own_variable(layer, "gamma")
    if gamma is None:
        gamma = own_variable(layer, "scale")
    scale = 1.0
    planned = None if gamma is None else visit.scale_of(gamma)
    if planned is not None:
        scale = planned
    elif gamma is not None and not isinstance(
        getattr(layer, "gamma_initializer", None), keras.initializers.Ones
    ):
        scale = float(np.mean(np.square(np.asarray(view(gamma), np.float64))))
    return scale, moments_of_variable(layer, "beta")


@signal_rule(keras.layers.BatchNormalization)
def _batch_normalization(visit: Visit) -> Outcome:
    """Batch normalization in training: statistics are over examples and positions."""
    layer, signal = visit.operation, visit.inputs[0]
    rank = len(visit.call.input_shapes[0])
    if layer.axis % rank != signal.channel_axis % rank:
        return unknown(visit, "it normalizes along positions, not channels")
    gamma, beta = _scales(visit, layer)
    factors: dict[int, float] = {}

    def normalized(moments: Moments) -> Moments:
        if not math.isfinite(moments.second_moment):
            factors[id(moments)] = math.nan
            return _renewed(visit, moments, gamma, beta)
        centred = moments.without_average()
        factors[id(moments)] = gamma / (max(centred.second_moment, 0.0) + layer.epsilon)
        return centred.scaled(factors[id(moments)]).shifted(beta)

    output = signal.each(normalized)
    back = _per_part(signal, factors, len(visit.inputs))
    here, unequal = signal.parts[0][1].inverse, signal.parts[0][1].unequal
    if math.isnan(here):
        visit.note(
            f"{visit.operation.name}: its channels have so few inputs that the mean of their "
            "inverse variances, and so of the squared gradients, does not exist"
        )

    def pullback(gradients: Gradients) -> Gradients:
        # Channels of small variance have large gradients, which cancel with their small kernels.
        first, *others = back(gradients)
        first = first and first.scaled(1 + unequal)
        bend = gradients[0] and gradients[0].bend
        bend = bend and dataclasses.replace(bend, normalized=True)
        first_back = first and dataclasses.replace(first, here=here, bend=bend)
        return (first_back, *others)

    return Outcome((output,), pullback)


def _renewed(
    visit: Visit,
    moments: Moments,
    gamma: float,
    beta: tuple[float, float],
    *,
    keeps_mean: bool = False,
) -> Moments:
    """Unit variance after an unknown signal, with an assumed correlation (see `predict`)."""
    alike = visit.renewed()
    mean = math.sqrt(gamma * alike) if keeps_mean else 0.0
    return uniform(moments.axes, mean, gamma, gamma * alike).shifted(beta)


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


def _scales_of_operation(visit: Visit) -> tuple[float, tuple[float, float]]:
    """`_scales` of a raw operation, which takes γ and β as arguments; NaN if they are signals."""
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
    """Whether a normalization is over "channels" or a whole "example"; None for other axes."""
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
    """Normalizes each example over channels, or over positions and channels of a group.

    Unit normalization gives entries of mean square 1/channels.
    """
    layer, signal = visit.operation, visit.inputs[0]
    is_layer = isinstance(layer, keras.Layer)
    gamma, beta = _scales(visit, layer) if is_layer else _scales_of_operation(visit)
    epsilon = float(getattr(layer, "epsilon", 1e-6) or 1e-6)
    to_unit_length = type(layer).__name__ in ("UnitNormalization", "Normalize")
    over = normalized_axes(visit)
    if over is None:
        return unknown(visit, "it normalizes over neither the channels nor a whole example")
    if signal.alike:
        return unknown(visit, "one of its summands is the same in all channels")
    keeps_mean = to_unit_length or "RMS" in type(layer).__name__
    if to_unit_length:
        entries = signal.channels * (
            math.prod(a.size or 1 for a in signal.axes) if over == "example" else 1
        )
        gamma = 1 / entries
    over_positions = "Group" in type(layer).__name__ or over == "example"
    if signal.channels == 1 and not (over_positions or keeps_mean):
        return _without_signal(visit, beta)
    total = signal.merged
    mean = np.zeros_like(total.mean) if keeps_mean else total.mean
    share = 0.0
    if over_positions:
        mean = np.full_like(mean, total.average(mean))
        groups = int(getattr(layer, "groups", 1) or 1)
        if not keeps_mean:
            # A channel's own mean over positions is part of its group's mean.
            share = 1.0 if groups == -1 else groups / signal.channels
    common = None if over_positions else total.common
    # With a common factor, moments are rescaled to rows of equal size.
    size = 1.0 if common is None else common.mean(common.values) ** -2
    variance = np.asarray(centred(total, mean, share, size).second)
    if over_positions:
        variance = np.full_like(variance, total.average(variance))
    factor = gamma / (np.maximum(variance, 0.0) + epsilon)
    here, radial = 1.0, 1.0
    if not over_positions:
        typical = total.average(np.maximum(variance, 0.0))
        row_size = Common(np.ones_like(NODES)) if common is None else common
        ratio, here, radial = row_size.normalized(typical, epsilon)
        factor = factor * ratio
        if math.isnan(here) and math.isfinite(typical):
            visit.note(
                f"{layer.name}: the mean of the inverse square of a preceding factor, and so of "
                "the squared gradients, does not exist"
            )

    back = 1.0 if over_positions else inverse_of_few(signal.channels, keeps_mean=keeps_mean)
    if math.isnan(back):
        visit.note(
            f"{visit.operation.name}: it normalizes so few channels that the mean of their inverse "
            "variance, and so of the squared gradients, does not exist"
        )

    def normalized(moments: Moments) -> Moments:
        if not math.isfinite(moments.second_moment):
            return _renewed(visit, moments, gamma, beta, keeps_mean=keeps_mean)
        return centred(moments, mean, share, size).scaled(factor).shifted(beta)

    output = signal.each(normalized)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        # Subtracting the group's mean also removes part of the coherent gradient.
        kept = 1 - share * in_common(gradient, signal) if share else 1.0
        parts = tuple(g * factor * back * kept for g in gradient.parts)
        left = (1 - share) / kept if kept > 0 else 0.0
        passed = gradient.less_coherent(left, left).with_parts(parts)
        passed = dataclasses.replace(passed, here=here, radial=radial)
        return only_first(passed, len(visit.inputs))

    return Outcome((output,), pullback)


def _without_signal(visit: Visit, beta: tuple[float, float]) -> Outcome:
    """A single channel minus its mean, which is itself."""
    visit.note(f"{visit.operation.name}: it normalizes a single channel, of which 0 is left")
    mean, second = beta
    signal = visit.inputs[0]
    output = signal.each(lambda m: uniform(m.axes, mean, second, second))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        return only_first(gradient and gradient.scaled(0.0), len(visit.inputs))

    return Outcome((output,), pullback)


constant_role(
    Transparent(normalizes=True),
    *layer_classes("BatchNormalization", "GroupNormalization", "LayerNormalization"),
    *layer_classes("RMSNormalization", "UnitNormalization"),
    *("BatchNorm", "LayerNorm", "Normalize", "RMSNorm"),
)
