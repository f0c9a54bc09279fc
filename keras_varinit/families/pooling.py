"""Pooling in 1D to 3D: MaxPooling, AveragePooling, GlobalMaxPooling, GlobalAveragePooling.

Also AdaptiveMaxPooling and AdaptiveAveragePooling, `ops.max_pool`, `average_pool` and adaptive
operations. `ops.max` and `ops.mean` over all positions are in `reduction` and use the rules here.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_varinit.families.pooling_windows import (
    adaptive_windows,
    as_the_backend_pads,
    chain_of,
    in_border,
    in_chain,
    pool_windows,
    pooled_signal,
    without_border,
)
from keras_varinit.maths.activated import (
    IDENTITY,
    floored,
    law_of,
    max_pooled,
    moments_of_kind,
    winning,
)
from keras_varinit.maths.algebra import combined
from keras_varinit.maths.covariance import Moments, far_matrix, position_weights, uniform
from keras_varinit.maths.laws import Kind, kinds_of
from keras_varinit.maths.maxima import maximum_over_positions
from keras_varinit.maths.mean_laws import ratio_of, with_mean_law
from keras_varinit.maths.overlaps import contested, overlaps, wins_both
from keras_varinit.maths.windows import (
    AnyWindow,
    Array,
    Window,
    number_of_positions,
)
from keras_varinit.signals.axis_maps import along_axes
from keras_varinit.signals.layouts import channel_axis_of, in_layout
from keras_varinit.signals.outcome import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    layout,
    not_modelled,
    only_first,
    unknown,
)
from keras_varinit.signals.registry import layer_classes, role_rule, signal_rule
from keras_varinit.signals.roles import Call, Pooling, Role, Unknown, per_dimension, spatial_shape
from keras_varinit.signals.taps import summed_back


@role_rule(*layer_classes("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"))
def _max_pooling_role(call: Call) -> Role:
    return Pooling("max", math.prod(_window_size(call)))


@role_rule(*layer_classes("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"))
def _average_pooling_role(call: Call) -> Role:
    return Pooling("average", math.prod(_window_size(call)))


def _window_size(call: Call) -> tuple[int, ...]:
    size = call.operation.pool_size
    return (size,) if isinstance(size, int) else tuple(size)


@role_rule(*layer_classes("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"))
def _global_max_pooling_role(call: Call) -> Role:
    return Pooling("max", _map_size(call))


@role_rule(
    *layer_classes("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D")
)
def _global_average_pooling_role(call: Call) -> Role:
    return Pooling("average", _map_size(call))


def _data_format(call: Call) -> str:
    """The data format of a layer or operation, by default Keras's setting."""
    return str(getattr(call.operation, "data_format", None) or keras.config.image_data_format())


def _map_size(call: Call) -> int | None:
    spatial = spatial_shape(call.input_shapes[0], _data_format(call))
    return None if None in spatial else math.prod(n for n in spatial if n is not None)


@role_rule(
    *layer_classes(
        "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"
    ),
    "AdaptiveAveragePool",
)
def _adaptive_average_pooling_role(call: Call) -> Role:
    return Pooling("average", _adaptive_size(call))


@role_rule(
    *layer_classes("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"),
    "AdaptiveMaxPool",
)
def _adaptive_max_pooling_role(call: Call) -> Role:
    return Pooling("max", _adaptive_size(call))


def _adaptive_size(call: Call) -> int | None:
    inputs = _map_size(call)
    outputs = spatial_shape(call.output_shapes[0], _data_format(call))
    if inputs is None or None in outputs:
        return None
    return max(1, round(inputs / math.prod(n for n in outputs if n is not None)))


@role_rule("MaxPool", "AveragePool")
def _raw_pooling_role(call: Call) -> Role:
    size = getattr(call.operation, "pool_size", None)
    if size is None:
        return Unknown()
    rank = len(call.input_shapes[0]) - 2
    kind = "max" if type(call.operation).__name__ == "MaxPool" else "average"
    return Pooling(kind, math.prod(per_dimension(size, rank)))


@signal_rule(*layer_classes("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"), "MaxPool")
def _max_pooling(visit: Visit) -> Outcome:
    signal = pooled_signal(visit)
    target, _ = layout(visit.output_shape, signal.channel_axis)
    return _maxima(visit, signal, pool_windows(visit, signal.axes, target))


@signal_rule(
    *layer_classes("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"),
    "AdaptiveMaxPool",
)
def _adaptive_max_pooling(visit: Visit) -> Outcome:
    signal = pooled_signal(visit)
    target, _ = layout(visit.output_shape, signal.channel_axis)
    windows = adaptive_windows(signal.axes, target)
    if windows is None:
        return not_modelled(visit, "adaptive pooling of a map of unknown size")
    if any(m.border is not None for _, m in signal.parts):
        return not_modelled(visit, "an adaptive maximum over padding")
    return _maxima(visit, signal, windows)


def _maxima(visit: Visit, signal: Signal, windows: Sequence[AnyWindow]) -> Outcome:
    """The maximum over each window; gradients pass back to the entries that attain it."""
    if not all(m.is_known() for _, m in signal.parts):
        return unknown(visit)
    if any(m.border and m.border.source.border for _, m in signal.parts):
        return not_modelled(visit, "a maximum over padding with different numbers")
    backs: dict[int, _Winners | _OfKinds] = {}

    def pooled(moments: Moments) -> Moments:
        back = backs[id(moments)] = _winners(moments, windows)
        chain = chain_of(moments, windows)
        maximum = back.maximum if chain is None else _winners(*chain).maximum
        return in_chain(maximum, chain or (moments, tuple(windows)))

    output = signal.each(pooled)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return (None,)
        parts = [
            backs[id(m)].back(g, gradient.adjacent)
            for (_, m), g in zip(signal.parts, gradient.parts, strict=True)
        ]
        kept = backs[id(signal.parts[0][1])].kept(gradient.adjacent)
        back = gradient.less_coherent(*kept).with_parts(tuple(parts))
        moments = signal.merged
        size = math.prod(w.taps for w in windows)
        through = winning(moments, max(moments.adjacent_correlation, 0.0), size)
        return (dataclasses.replace(back, through=through),)

    return Outcome((output,), pullback)


class _Winners:
    """The maximum for one group of channels, and its gradient at the entries."""

    def __init__(self, moments: Moments, windows: Sequence[AnyWindow]) -> None:
        self.border = moments.border
        self.source, self.windows = moments, tuple(windows)
        if self.border is not None:
            self.source = self.border.source
            kept = [w for w in windows if isinstance(w, Window)]
            self.windows = tuple(without_border(kept, self.border))
        self.maximum, passed, self.size = max_pooled(self.source, self.windows, self.border)
        before = law_of(self.source.pre or self.source, self.source.function or IDENTITY)
        slope = before.squared_slope
        self.shares = passed / slope if slope > 0 else np.zeros_like(passed)

    def kept(self, adjacent: float) -> tuple[float, float]:
        """Factors on the correlation of gradients at distant and at adjacent entries.

        For two distant entries that attain the maxima of N and N' windows, E N N' = (E N)², so
        the factor is (E N)²/E N². Adjacent entries share windows, in each of which only one of
        them can attain the maximum.
        """
        won = math.prod(n for w in self.windows for o, _, n in overlaps(w) if not o) / self.size
        square = won + adjacent * wins_both(self.windows, self.size)
        far = min(won**2 / square, 1.0) if square > 0 else 0.0
        return far, far * (1 - float(np.mean([contested(w) for w in self.windows])))

    def back(self, gradient: Array, adjacent: float) -> Array:
        """E g² at the entries, from E g² at the maxima, both by class of position."""
        incoming = gradient * self.shares
        # The gradients of two windows add up at an entry that attains both maxima.
        both = adjacent * wins_both(self.windows, self.size)
        weights = position_weights(self.maximum.axes)
        inner = summed_back(self.windows, self.source, incoming)
        return in_border(inner + both * float((weights * incoming).sum()), self.border)


def _winners(moments: Moments, windows: Sequence[AnyWindow]) -> "_Winners | _OfKinds":
    kinds = kinds_of(moments)
    return _OfKinds(moments, kinds, windows) if kinds else _Winners(moments, windows)


class _OfKinds:
    """`_Winners` for channels of several kinds, with a maximum for each kind."""

    def __init__(
        self, moments: Moments, kinds: Sequence[Kind], windows: Sequence[AnyWindow]
    ) -> None:
        self.kinds, self.source = kinds, moments
        self.winners = [_Winners(moments_of_kind(kind), windows) for kind in kinds]
        parts, shares = [w.maximum for w in self.winners], [k.share for k in kinds]
        self.maximum = combined(parts, shares)

    def kept(self, adjacent: float) -> tuple[float, float]:
        """The factors of the first kind."""
        return self.winners[0].kept(adjacent)

    def back(self, gradient: Array, adjacent: float) -> Array:
        """E g² at the entries, averaged over kinds by their weight in what follows."""
        weights = np.array([kind.share * kind.factor for kind in self.kinds])
        by_kind = [w.back(gradient, adjacent) for w in self.winners]
        return np.asarray(np.tensordot(weights / weights.sum(), np.stack(by_kind), axes=1))


@signal_rule(*layer_classes("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"))
@signal_rule("AveragePool")
def _average_pooling(visit: Visit) -> Outcome:
    signal = pooled_signal(visit)
    target, _ = layout(visit.output_shape, signal.channel_axis)
    windows = pool_windows(visit, signal.axes, target)
    return along_axes(visit, signal, as_the_backend_pads(windows))


@signal_rule(
    *layer_classes(
        "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"
    ),
    "AdaptiveAveragePool",
)
def _adaptive_average_pooling(visit: Visit) -> Outcome:
    signal = pooled_signal(visit)
    target, _ = layout(visit.output_shape, signal.channel_axis)
    windows = adaptive_windows(signal.axes, target)
    if windows is None:
        return not_modelled(visit, "adaptive pooling of a map of unknown size")
    return along_axes(visit, signal, windows)


def _whole_map(visit: Visit) -> Signal | None:
    """The input of a reduction over all positions; None, with a note, for other reductions."""
    operation, shape = visit.operation, visit.call.input_shapes[0]
    signal = in_layout(visit, channel_axis_of(operation, visit.inputs[0].channel_axis))
    if not isinstance(operation, keras.Layer):
        axis = operation.axis
        axes = [axis] if isinstance(axis, int) else list(axis or range(len(shape)))
        reduced = {a % len(shape) for a in axes}
        positions = set(range(1, len(shape))) - {signal.channel_axis % len(shape)}
        if reduced != positions:
            not_modelled(visit, "a reduction over axes other than the positions")
            return None
    if not math.isfinite(number_of_positions(signal.axes)):
        not_modelled(visit, "a reduction over a map of unknown size")
        return None
    return signal


@signal_rule(
    *layer_classes("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D")
)
def global_average(visit: Visit) -> Outcome:
    """The mean over all positions: E over all pairs, plus the excess of near pairs."""
    signal = _whole_map(visit)
    if signal is None:
        return unknown(visit)
    whole = signal
    count = number_of_positions(whole.axes)
    target, _ = layout(visit.output_shape, whole.channel_axis)
    rank = len(whole.axes)

    def averaged(moments: Moments) -> Moments:
        beyond = moments.excess.sum(axis=tuple(range(0, 2 * rank, 2)))
        second = moments.pair_moment + moments.average(beyond) / count
        mean = uniform(target, moments.average(moments.mean), second, moments.pair_moment)
        return with_mean_law(mean, moments, count)

    output = whole.each(averaged)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        parts = tuple(
            np.full_like(m.mean, float(np.mean(g)) * ratio_of(o, gradient.through) / count**2)
            for (_, m), (_, o), g in zip(whole.parts, output.parts, gradient.parts, strict=True)
        )
        return only_first(Gradient(parts, 1.0), len(visit.inputs))

    return Outcome((output,), pullback)


def common_parts(moments: Moments) -> Array:
    """(components, classes): loadings of the up to three strongest principal components."""
    weights = np.sqrt(position_weights(moments.axes)).ravel()
    mean = moments.mean.ravel()
    covariance = (far_matrix(moments.far) - np.outer(mean, mean)) * np.outer(weights, weights)
    # A ramp breaks ties, as between the axes of a cube, in the same way on every machine.
    ramp = np.linspace(0.0, 1.0, len(mean)) ** 2
    values, vectors = np.linalg.eigh(covariance + 1e-8 * np.trace(covariance) * np.diag(ramp))
    parts = np.flatnonzero(values > 0.01 * values[-1])[-3:]
    parts_by_class = (vectors[:, parts] * np.sqrt(np.maximum(values[parts], 0.0))).T / weights
    variance = moments.variance.ravel()
    total = np.maximum(np.sum(parts_by_class**2, axis=0), 1e-300)
    return np.asarray(parts_by_class[::-1] * np.sqrt(np.minimum(variance / total, 1.0)))


@signal_rule(*layer_classes("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"))
def global_max(visit: Visit) -> Outcome:
    """The maximum over all positions."""
    signal = _whole_map(visit)
    if signal is None or not all(m.is_known() for _, m in signal.parts):
        return unknown(visit)
    whole = signal
    if any(m.border and m.border.source.border for _, m in whole.parts):
        return not_modelled(visit, "a maximum over padding with different numbers")
    target, _ = layout(visit.output_shape, whole.channel_axis)
    shares: dict[int, Array] = {}

    def pooled(moments: Moments) -> Moments:
        kinds = kinds_of(moments)
        if kinds:
            members = [moments_of_kind(kind) for kind in kinds]
            mixture = combined([pooled(m) for m in members], [kind.share for kind in kinds])
            weights = np.array([kind.share * kind.factor for kind in kinds])
            own = np.stack([shares[id(m)] for m in members])
            shares[id(moments)] = np.tensordot(weights / weights.sum(), own, axes=1)
            return mixture
        border = moments.border
        source = moments if border is None else border.source
        root, function = source.pre or source, source.function or IDENTITY
        slope = law_of(root, function).squared_slope
        count = number_of_positions(root.axes)
        first, second, passed, pair = maximum_over_positions(
            function if border is None else floored(function, border.value),
            root.mean.ravel(),
            np.sqrt(root.variance).ravel(),
            common_parts(root),
            (count * position_weights(root.axes)).ravel(),
            root.shape,
        )
        share = passed / slope / count if slope > 0 else 0.0
        shares[id(moments)] = in_border(np.full_like(source.mean, share), border)
        # `pair` is due to the common components, which all positions share.
        return uniform(target, first, second, min(pair, second))

    output = whole.each(pooled)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return only_first(None, len(visit.inputs))
        parts = tuple(
            float(np.mean(g)) * shares[id(m)]
            for (_, m), g in zip(whole.parts, gradient.parts, strict=True)
        )
        moments = whole.merged
        count = number_of_positions(moments.axes)
        through = winning(moments, max(moments.correlation, 0.0), count)
        return only_first(Gradient(parts, 0.0, through=through), len(visit.inputs))

    return Outcome((output,), pullback)
