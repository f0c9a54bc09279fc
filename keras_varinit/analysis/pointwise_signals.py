"""The engine's rules of activations, dropout and normalization: what acts on entries alone."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_varinit.analysis.axes import Array
from keras_varinit.analysis.centring import centred, in_common, inverse_of_few
from keras_varinit.analysis.common_factors import Common, after, around
from keras_varinit.analysis.curvature import Bend, bend_of, through_activation
from keras_varinit.analysis.moment_maps import Moments, uniform
from keras_varinit.analysis.nonlinear import activated, composed, law_of, squared_slopes
from keras_varinit.analysis.reader import call_argument
from keras_varinit.analysis.rules import Elementwise, layer_classes
from keras_varinit.analysis.signals import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    follows_channel_axes,
    only_first,
    signal_rule,
    unknown,
)
from keras_varinit.analysis.softmax_signals import softmax, softmax_axes
from keras_varinit.entry_laws import NODES, Shape, at
from keras_varinit.graph import own_variable
from keras_varinit.moments import Activation
from keras_varinit.pair_moments import is_homogeneous
from keras_varinit.values import view


def after_activation(signal: Signal, activation: Activation) -> Outcome:
    """F of every entry; a gradient comes back times E f'²."""

    def passed_on(moments: Moments) -> Moments:
        result = activated(moments, activation)
        if moments.common is None or result is moments:
            return result
        inner = moments.function and composed(moments.function, activation)
        common = after(moments.pre or moments, inner or activation)
        return dataclasses.replace(result, common=common)

    output = signal.each(passed_on)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return (None,)
        factors, far, adjacent, slope, common = [], 0.0, 0.0, 0.0, 0.0
        bend: Bend | None = None
        for _, moments in signal.parts:
            passed = _passed_back(moments, activation, gradient)
            factors.append(passed.squared_slope)
            far += passed.far / len(signal.parts)
            adjacent += passed.adjacent / len(signal.parts)
            slope += passed.slope / len(signal.parts)
            bend = passed.bend or bend
            common += passed.common / len(signal.parts)
        parts = tuple(g * f for g, f in zip(gradient.parts, factors, strict=True))
        back = gradient.less_coherent(far, adjacent).with_parts(parts)
        phases, in_step = gradient.times_phases(slope), gradient.in_step
        through = activation
        if gradient.through is not None:
            through = composed(activation, gradient.through)
        here, radial = around(signal.merged, activation)
        radial *= gradient.radial if is_homogeneous(activation) else 1.0
        back = dataclasses.replace(
            back,
            coherence=back.coherence + common * (1 - back.coherence),
            through=through,
            phases=phases,
            in_step=in_step,
            bend=bend,
            radial=radial,
            here=here,
        )
        return (back,)

    return Outcome((output,), pullback)


def acts_on_rows(activation: Activation) -> bool:
    """Whether a function is softmax or its like, which is the identity only in front of a loss."""
    return activation.name in ("softmax", "log_softmax", "sparsemax")


@follows_channel_axes
def elementwise(visit: Visit) -> Outcome:
    """A function of each entry of one signal."""
    role = visit.role
    if not isinstance(role, Elementwise):
        raise TypeError("the rule of element-wise functions met another role")
    if role.activation.name == "softmax" and not visit.at_output:
        return softmax(visit, softmax_axes(visit.operation, len(visit.output_shape)))
    if acts_on_rows(role.activation) and not visit.at_output:
        return unknown(visit, "it is not modelled inside a network")
    if len(visit.inputs) != 1 or visit.call.input_shapes[0] != visit.output_shape:
        return unknown(visit, "it is not a function of each entry of one signal")
    outcome = after_activation(visit.inputs[0], role.activation)
    if visit.inputs[0].is_known() and not is_integrable(visit.inputs[0], role.activation):
        return unknown(visit, "its second moment does not exist for a Gaussian signal")
    return outcome


@follows_channel_axes
@signal_rule(keras.layers.Activation)
def _activation(visit: Visit) -> Outcome:
    """Its function; a layer of `activation="linear"` has none."""
    if isinstance(visit.role, Elementwise):
        return elementwise(visit)
    return Outcome(visit.inputs, lambda gradients: gradients)


def is_integrable(signal: Signal, activation: Activation) -> bool:
    """Whether E f² exists: near a singularity the integral depends on where the nodes lie.

    At a jump it does too, by 1 % at most.
    """
    for _, moments in signal.parts:
        root, function = moments.pre or moments, moments.function
        whole = activation if function is None else composed(function, activation)
        if not is_homogeneous(whole) and not _has_second_moment(whole, *root.spread, root.shape):
            return False
    return True


@functools.lru_cache(maxsize=1024)
def _has_second_moment(
    activation: Activation, mean: float, std: float, shape: Shape | None
) -> bool:
    found = []
    for nodes, weights in _shifted_nodes():
        values = np.asarray(activation.function(mean + std * at(shape, nodes)), np.float64)
        found.append(float(np.sum(weights * values**2) / np.sum(weights)))
    if not all(math.isfinite(f) for f in found):
        return False
    return abs(found[0] - found[1]) <= 0.03 * abs(found[0])


@functools.cache
def _shifted_nodes() -> list[tuple[Array, Array]]:
    nodes = [np.arange(-9.0, 9.0, 0.01) + 0.01 * shift for shift in (0.0, 0.37)]
    return [(each, np.exp(-(each**2) / 2)) for each in nodes]


class _Passed(NamedTuple):
    """E f'² and E f', and the share of coherence left between far and adjacent entries.

    `bend` and `common`, what all positions have from their own part: see `curvature`.
    """

    squared_slope: float | Array
    slope: float
    far: float = 1.0
    adjacent: float = 1.0
    bend: Bend | None = None
    common: float = 0.0


def _passed_back(moments: Moments, activation: Activation, gradient: Gradient) -> _Passed:
    if moments.border is not None:
        source = moments.border.source
        passed = _passed_back(source, activation, gradient)
        return passed._replace(squared_slope=source.average(np.asarray(passed.squared_slope)))
    if moments.pre is not None and moments.function is not None:
        # The slope of the outer function where the inner one has one.
        function = composed(moments.function, activation)
        whole, inner = law_of(moments.pre, function), law_of(moments.pre, moments.function)
        before = squared_slopes(moments.pre, moments.function, inner)
        after = squared_slopes(moments.pre, function, whole)
        share = np.divide(after, before, out=np.zeros_like(after), where=before > 0)
        return _Passed(share, whole.slope / inner.slope if abs(inner.slope) > 1e-9 else 0.0)
    if not math.isfinite(moments.second_moment):
        return _Passed(math.nan, math.nan)
    law = law_of(moments, activation)
    if law.squared_slope <= 0:
        return _Passed(0.0, 0.0, 0.0, 0.0)
    own = through_activation(gradient.own, law)
    wider = law_of(moments, activation, 2**0.5)
    kept = 1 / own.factor
    return _Passed(
        squared_slopes(moments, activation, law) * own.factor,
        law.slope,
        law.slope_product(moments.correlation) / law.squared_slope * kept,
        law.slope_product(moments.adjacent_correlation) / law.squared_slope * kept,
        bend_of(gradient.coherence, law, wider, moments.correlation),
        own.coherent,
    )


def moments_of_variable(layer: Any, name: str) -> tuple[float, float]:
    """Mean and mean square of a layer's bias, or of another variable of its own; 0 without one."""
    variable = own_variable(layer, name)
    held = getattr(layer, f"{name}_initializer", None)
    if variable is None or isinstance(held, keras.initializers.Zeros):
        return 0.0, 0.0
    values = np.asarray(view(variable), np.float64)
    return float(np.mean(values)), float(np.mean(np.square(values)))


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
            return _renewed(visit, moments, gamma, beta)
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


def _renewed(
    visit: Visit,
    moments: Moments,
    gamma: float,
    beta: tuple[float, float],
    *,
    keeps_mean: bool = False,
) -> Moments:
    """Unit variance where nothing was known; the rest is supposed (see `propagation`)."""
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
    share = 0.0
    if over_positions:
        mean = np.full_like(mean, total.average(mean))
        groups = int(getattr(layer, "groups", 1) or 1)
        if not keeps_mean:
            # What a channel has at all positions is part of its group's mean.
            share = 1.0 if groups == -1 else groups / signal.channels
    common = None if over_positions else total.common
    # Rows of one size: the mean's square is that of a row's mean.
    size = 1.0 if common is None else common.mean(common.values) ** -2
    variance = np.asarray(centred(total, mean, share, size).second)
    if over_positions:
        variance = np.full_like(variance, total.average(variance))
    factor = gamma / (np.maximum(variance, 0.0) + epsilon)
    here, radial = 1.0, 1.0
    if not over_positions:
        typical = total.average(np.maximum(variance, 0.0))
        given = Common(np.ones_like(NODES)) if common is None else common
        ratio, here, radial = given.normalized(typical, epsilon)
        factor = factor * ratio
        if math.isnan(here):
            visit.note(
                f"{layer.name}: the mean of the inverse squares of a factor in front of it, and so "
                "of the gradients' squares, does not exist"
            )

    back = 1.0 if over_positions else inverse_of_few(signal.channels, keeps_mean=keeps_mean)
    if math.isnan(back):
        visit.note(
            f"{visit.operation.name}: it normalizes so few channels that the mean of their inverse "
            "variance, and so of the gradient's square, does not exist"
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
        # Of what gradients have in common at all positions the group's mean takes its share too.
        kept = 1 - share * in_common(gradient, signal) if share else 1.0
        parts = tuple(g * factor * back * kept for g in gradient.parts)
        left = (1 - share) / kept if kept > 0 else 0.0
        passed = gradient.less_coherent(left, left).with_parts(parts)
        passed = dataclasses.replace(passed, here=here, radial=radial)
        return only_first(passed, len(visit.inputs))

    return Outcome((output,), pullback)
