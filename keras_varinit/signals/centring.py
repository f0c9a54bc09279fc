"""What a normalization over channels takes from a signal and from its gradient."""

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
    """Each entry less a mean over channels, and less `share` of what its channel has beyond that.

    Cross terms with the entry's own mean stay.
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
    """E of the squared gradient over that for many channels, n of which are Gaussian.

    The gradient is ⟂ to the normalized row, and to its mean where that is taken away: k = n - 1 or
    n - 2 directions are left. With n/χ² of as many degrees of freedom as the row has directions,
    k + 1, for the inverse variance, E = k/n·n/(k - 1). It is 0 where no direction is left, and NaN
    where there is no mean.
    """
    left = channels - (1 if keeps_mean else 2)
    if left <= 0:
        return 0.0
    return left / (left - 1) if left > 1 else math.nan
