"""What a normalization over channels removes from a signal and from its gradient."""

import math

import numpy as np

from keras_varinit.maths.common_factors import bare_law
from keras_varinit.maths.covariance import Moments, outer
from keras_varinit.maths.windows import Array
from keras_varinit.signals.outcome import Gradient, Signal


def in_common(gradient: Gradient, signal: Signal) -> float:
    """The mean correlation of the gradients at two positions of a channel."""
    near = 1.0
    for axis in signal.axes:
        places = np.arange(axis.size or 0)
        apart = np.abs(places[:, None] - places)
        near *= float(np.mean(np.maximum(1 - apart * (1 - gradient.local), 0))) if axis.size else 0
    return gradient.coherence + (1 - gradient.coherence) * near


def centred(moments: Moments, mean: Array, share: float, size: float = 1.0) -> Moments:
    """Subtracts a mean over channels, and `share` of each channel's own mean over positions.

    Cross terms with the entry's own mean are kept.

    Args:
        moments: Moments of an entry, by class of position.
        mean: The mean over channels, by class of position.
        share: Share of the channel's deviation that is removed, in [0, 1].
        size: The mean square of the row sizes over the square of their mean.
    """
    left = moments.mean - mean
    deviation = moments.far - size * outer(moments.mean)
    if share > 0:
        nothing = np.zeros_like(left)
        own = Moments(moments.axes, nothing, deviation, moments.excess, moments.radius)
        deviation = deviation - share * (deviation - own.without_average().far)
    far = deviation + outer(left)
    law = moments.own_law if moments.common is None else bare_law(moments)
    return Moments(moments.axes, left, far, moments.excess, moments.radius, law=law)


def inverse_of_few(channels: int, *, keeps_mean: bool) -> float:
    """E g² for n Gaussian channels, relative to its limit for many channels.

    The gradient is orthogonal to the normalized row, and to the constant row if the mean is
    subtracted, which leaves k = n - 1 or n - 2 directions. The inverse variance is n/χ² with
    k + 1 degrees of freedom, so the ratio is k/n·n/(k - 1). It is 0 if no direction is left, and
    NaN if the expectation does not exist.
    """
    left = channels - (1 if keeps_mean else 2)
    if left <= 0:
        return 0.0
    return left / (left - 1) if left > 1 else math.nan
