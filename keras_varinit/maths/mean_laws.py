"""The law of means over several entries, where those are not Gaussian.

The k entries of a mean count as T(√ρ·c + √(1-ρ)·eᵢ) with a common c and independent eᵢ; given c
their mean is Gaussian but for its skewness. ρ is what gives the mean the variance that it has.
"""

import dataclasses
import functools
import math

import numpy as np

from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.entry_laws import Array, Shape, at, sample, shape_of, slopes_at, slopes_of
from keras_varinit.maths.hermite import correlations_behind
from keras_varinit.maths.laws import Law
from keras_varinit.maths.quadrature import Activation

_INNER, _INNER_WEIGHTS = np.polynomial.hermite_e.hermegauss(32)

_INNER_WEIGHTS = _INNER_WEIGHTS / math.sqrt(2 * math.pi)

_OUTER = np.arange(-8.0, 8.01, 0.25)

# Means of more entries than that, without a part in common, are Gaussian.
_MOST = 400


@dataclasses.dataclass(frozen=True, eq=False)
class OfMean:
    """The mean over `count` entries of a signal; `mean` are its moments."""

    source: Moments
    count: float
    mean: Moments

    @functools.cached_property
    def _correlation(self) -> float:
        """ρ of the entries' roots."""
        spread, total = self.source.spread[1], self.mean.spread[1]
        ratio = (total / spread) ** 2 if spread > 0 else 1.0
        among = (self.count * ratio - 1) / (self.count - 1) if self.count > 1 else 1.0
        among = min(max(among, 0.0), 1.0)
        return float(np.clip(correlations_behind(self.source.shape, np.array(among)), 0.0, 1.0))

    @functools.cached_property
    def _given(self) -> tuple[Array, Array, Array]:
        """Mean, variance and third central moment of an entry given c, at `_OUTER`."""
        rho = self._correlation
        places = math.sqrt(rho) * _OUTER[:, None] + math.sqrt(1 - rho) * _INNER[None, :]
        values = at(self.source.shape, places)
        mean = values @ _INNER_WEIGHTS
        left = values - mean[:, None]
        return mean, left**2 @ _INNER_WEIGHTS, left**3 @ _INNER_WEIGHTS

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of the mean; None where it is Gaussian."""
        if self.source.shape is None or (self.count > _MOST and self._correlation < 0.01):
            return None
        (common, noise), weights = sample(2)
        values = self._values(common, noise, self.count)
        return shape_of(values, weights, np.ones_like(values))

    def _values(self, common: Array, noise: Array, count: float) -> Array:
        mean, variance, third = (np.interp(common, _OUTER, each) for each in self._given)
        variance, third = variance / count, third / count**2
        skewness = np.divide(third, variance**1.5, out=0 * third, where=variance > 1e-12)
        # Cornish and Fisher's expansion to first order.
        return mean + np.sqrt(variance) * (noise + np.clip(skewness, -2, 2) / 6 * (noise**2 - 1))

    def kept_together(self, through: Activation | None) -> float:
        """E of a function's squared slope at the mean, weighed by the entries' own, over its mean.

        Entries whose own slope is small differ in size from those that pass gradients on.
        """
        shape = self.source.shape
        if through is None or shape is None or self.count < 2:
            return 1.0
        rho, k = self._correlation, self.count
        (common, own, noise), weights = sample(3)
        places = math.sqrt(rho) * common + math.sqrt(1 - rho) * own
        values = (at(shape, places) + (k - 1) * self._values(common, noise, k - 1)) / k
        mean, std = self.mean.spread
        total = math.sqrt(float(weights @ values**2)) or 1.0
        points = mean + std * values / total
        slopes = slopes_of(through.function, points, 1e-3 * std) ** 2
        weighed = float(weights @ (slopes * slopes_at(shape, places)))
        alone = float(weights @ slopes)
        return weighed / alone if alone > 0 else 1.0


def with_mean_law(mean: Moments, source: Moments, count: float) -> Moments:
    """The moments of a mean, with its law where the entries have one."""
    if source.own_law is None or not mean.is_known() or not count > 1:
        return mean
    law: Law = OfMean(source, count, mean)
    return dataclasses.replace(mean, law=law)


def ratio_of(mean: Moments, through: Activation | None) -> float:
    """`OfMean.kept_together` of a mean that has such a law."""
    return mean.law.kept_together(through) if isinstance(mean.law, OfMean) else 1.0
