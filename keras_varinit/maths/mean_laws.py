"""The law of a mean over several entries (average pooling) that are not Gaussian.

The k entries of a mean are modelled as T(√ρ·c + √(1-ρ)·eᵢ) with a common c and independent eᵢ.
Conditional on c their mean is Gaussian up to its skewness, which enters by a Cornish-Fisher
expansion. ρ follows from the variance of the mean.
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

# Means over more entries count as Gaussian unless the entries have a common part.
_MOST = 400


@dataclasses.dataclass(frozen=True, eq=False)
class OfMean:
    """The law of the mean over `count` entries of `source`; `mean` holds the mean's moments."""

    source: Moments
    count: float
    mean: Moments

    @functools.cached_property
    def _correlation(self) -> float:
        """ρ: correlation of the Gaussians behind two entries."""
        spread, total = self.source.spread[1], self.mean.spread[1]
        ratio = (total / spread) ** 2 if spread > 0 else 1.0
        pair_correlation = (self.count * ratio - 1) / (self.count - 1) if self.count > 1 else 1.0
        pair_correlation = min(max(pair_correlation, 0.0), 1.0)
        rho = correlations_behind(self.source.shape, np.array(pair_correlation))
        return float(np.clip(rho, 0.0, 1.0))

    @functools.cached_property
    def _conditional(self) -> tuple[Array, Array, Array]:
        """An entry's mean, variance and third central moment given c, at `_OUTER`."""
        rho = self._correlation
        places = math.sqrt(rho) * _OUTER[:, None] + math.sqrt(1 - rho) * _INNER[None, :]
        values = at(self.source.shape, places)
        mean = values @ _INNER_WEIGHTS
        centred = values - mean[:, None]
        return mean, centred**2 @ _INNER_WEIGHTS, centred**3 @ _INNER_WEIGHTS

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of the mean; None where it counts as Gaussian."""
        if self.source.shape is None or (self.count > _MOST and self._correlation < 0.01):
            return None
        (common, noise), weights = sample(2)
        values = self._values(common, noise, self.count)
        return shape_of(values, weights, np.ones_like(values))

    def _values(self, common: Array, noise: Array, count: float) -> Array:
        mean, variance, third = (np.interp(common, _OUTER, each) for each in self._conditional)
        variance, third = variance / count, third / count**2
        skewness = np.divide(third, variance**1.5, out=0 * third, where=variance > 1e-12)
        # Cornish-Fisher expansion to first order.
        return mean + np.sqrt(variance) * (noise + np.clip(skewness, -2, 2) / 6 * (noise**2 - 1))

    def kept_together(self, through: Activation | None) -> float:
        """E[f'(mean)²·w] / E f'(mean)², with w an entry's own squared slope (E w = 1).

        It differs from 1 because entries that pass gradients on differ in size from those that do
        not. f is `through`; the ratio is 1 where f or the law is unknown.
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
        weighted = float(weights @ (slopes * slopes_at(shape, places)))
        alone = float(weights @ slopes)
        return weighted / alone if alone > 0 else 1.0


def with_mean_law(mean: Moments, source: Moments, count: float) -> Moments:
    """Moments of a mean over `count` entries, with its law where the entries have one."""
    if source.own_law is None or not mean.is_known() or not count > 1:
        return mean
    law: Law = OfMean(source, count, mean)
    return dataclasses.replace(mean, law=law)


def ratio_of(mean: Moments, through: Activation | None) -> float:
    """`OfMean.kept_together` for a mean with such a law; otherwise 1."""
    return mean.law.kept_together(through) if isinstance(mean.law, OfMean) else 1.0
