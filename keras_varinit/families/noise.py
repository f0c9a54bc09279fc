"""Dropout and noise, as in training: Dropout, SpatialDropout1D to 3D, AlphaDropout.

Also GaussianDropout and GaussianNoise.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.laws import Kind, Mixed, OfRoots
from keras_varinit.signals.layouts import position_axes
from keras_varinit.signals.outcome import Gradients, Outcome, Visit, only_first, unknown
from keras_varinit.signals.registry import (
    constant_role,
    follows_channel_axes,
    layer_classes,
    signal_rule,
)
from keras_varinit.signals.roles import Transparent

# Keras's AlphaDropout puts -scale·alpha of SELU where an entry is dropped.
_DROPPED = -1.7580993408473766


def _noisy(visit: Visit, change: Callable[[Moments], Moments], factor: float) -> Outcome:
    """Changes the moments; gradients are multiplied by a factor."""

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        return only_first(gradient and gradient.scaled(factor), len(visit.inputs))

    return Outcome((visit.inputs[0].each(change),), pullback)


@follows_channel_axes
@signal_rule(*layer_classes("Dropout"))
def _dropout(visit: Visit) -> Outcome:
    """Sets entries to 0 with probability p, divides others by 1 - p: E y² = E z²/(1 - p).

    With a noise shape of ones, as in stochastic depth, positions are dropped together.
    """
    kept, shape = 1 - float(visit.operation.rate), visit.operation.noise_shape
    rank = len(visit.output_shape)
    positions = position_axes(visit.inputs[0], rank)
    if shape is None or all(shape[a] != 1 for a in range(1, rank)):
        return _noisy(visit, lambda m: _dropped(m, kept), 1 / kept)
    if any(shape[a] != 1 for a in positions):
        return unknown(visit, f"dropout of the noise shape {tuple(shape)} is not modelled")
    return _noisy(visit, lambda m: _dropped_whole(m, kept), 1 / kept)


def _dropped(moments: Moments, kept: float) -> Moments:
    after = moments.with_second(moments.second / kept)
    return dataclasses.replace(after, law=_law(moments, kept))


def _law(moments: Moments, kept: float) -> Mixed:
    """The law of a mixture of kept entries and zeros."""
    return Mixed((Kind(kept, moments, 1 / kept), Kind(1 - kept, moments, 0.0, 0.0, 0.0)))


def _dropped_whole(moments: Moments, kept: float) -> Moments:
    """Drops all positions of a channel together: pair moments grow like second moments."""
    scaled = moments.scaled(1 / kept)
    law = _law(moments, kept)
    return Moments(moments.axes, moments.mean, scaled.far, scaled.excess, moments.radius, law=law)


@follows_channel_axes
@signal_rule(*layer_classes("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"))
def _spatial_dropout(visit: Visit) -> Outcome:
    """Drops whole channels."""
    kept = 1 - float(visit.operation.rate)
    return _noisy(visit, lambda m: _dropped_whole(m, kept), 1 / kept)


@follows_channel_axes
@signal_rule(*layer_classes("AlphaDropout"))
def _alpha_dropout(visit: Visit) -> Outcome:
    """Sets entries to α with probability p; the output a·y + b keeps mean 0 and variance 1.

    With q = 1 - p: a = (q·(1 + p·α²))^(-1/2), b = -a·α·p; E[y | z] = a·q·z.
    """
    if visit.operation.noise_shape is not None:
        return unknown(visit, "dropout of a noise shape is not modelled")
    rate = float(visit.operation.rate)
    kept = 1 - rate
    scale = 1 / math.sqrt(kept * (1 + rate * _DROPPED**2))
    shift = -scale * _DROPPED * rate

    def dropped(moments: Moments) -> Moments:
        mean = kept * moments.mean + rate * _DROPPED
        second = kept * moments.second + rate * _DROPPED**2
        after = scale**2 * second + 2 * scale * shift * mean + shift**2
        result = moments.plain().scaled((scale * kept) ** 2).with_second(after)
        gone = Kind(rate, moments, 0.0, scale * _DROPPED + shift, 0.0)
        law = Mixed((Kind(kept, moments, scale, shift), gone))
        return dataclasses.replace(result, mean=scale * mean + shift, law=law)

    return _noisy(visit, dropped, scale**2 * kept)


@follows_channel_axes
@signal_rule(*layer_classes("GaussianDropout"))
def _gaussian_dropout(visit: Visit) -> Outcome:
    """Multiplies each entry by noise of mean 1 and variance p/(1 - p)."""
    rate = float(visit.operation.rate)
    factor = 1 + rate / (1 - rate)

    def changed(moments: Moments) -> Moments:
        after = moments.with_second(moments.second * factor)
        noise = uniform((), 1.0, factor, 1.0)
        law = OfRoots((moments, noise), "product", np.multiply)
        return dataclasses.replace(after, law=law)

    return _noisy(visit, changed, factor)


@follows_channel_axes
@signal_rule(*layer_classes("GaussianNoise"))
def _gaussian_noise(visit: Visit) -> Outcome:
    variance = float(visit.operation.stddev) ** 2

    def changed(moments: Moments) -> Moments:
        after = moments.with_second(moments.second + variance)
        noise = uniform((), 0.0, variance, 0.0)
        law = OfRoots((moments, noise), "sum", np.add) if moments.own_law else None
        return dataclasses.replace(after, law=law)

    return _noisy(visit, changed, 1.0)


constant_role(
    Transparent(),
    *layer_classes("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"),
    *layer_classes("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
)
