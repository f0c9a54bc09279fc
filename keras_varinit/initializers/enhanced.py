"""Enhanced ("variety") initialization: every filter draws its own variance (Sharkansky).

Filters drawn from one distribution are statistically alike. Here a filter's variance is itself
random, σ'² = σ²·g with E g = 1, so a layer keeps the base initializer's mean variance σ².

Normal base N(0, σ²), eq. 3.1.5: a squared entry is distributed as σ²·χ²(1) = Gamma(½, 2σ²), which
becomes the law of the filter's variance. Gamma(k, σ²/k) generalizes it (mean σ², and the base
itself as k → ∞), so g ~ Gamma(k, 1/k).

Uniform base U(-a, a), eqs. 3.2.2-3.2.4: the filter is U(-√3|t|, √3|t|), whose variance is t², with
t ~ U(-a, a); E t² = a²/3 = σ². With v = |t|/a ~ U(0, 1), g = 3v². This is the case k = ½ of
g = (k+1)/k · v^{1/k}, which also has mean 1 and the base as its limit. (The report prints a'
without the root that its own derivation gives.)

Naive variant, eq. 3.1.1 with its misprint corrected: g ~ U(1-δ, 1+δ).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import keras
import numpy as np

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import (
    ContextualInitializer,
    register,
)
from keras_varinit.initializers.draws import Draw, independent
from keras_varinit.initializers.laws import reseeded
from keras_varinit.initializers.streams import random_stream
from keras_varinit.initializers.wrapping import Wrapper, draw_of
from keras_varinit.typing import Config, FloatArray

Granularity = Literal["filter", "position"]


class EnhancedBase(Wrapper):
    """The sampler that `Enhanced` and its presets share."""

    def __init__(
        self,
        initializer: str | Config | keras.initializers.Initializer,
        granularity: Granularity,
        concentration: float,
        delta: float | None,
        seed: int | None,
        context: LayerContext | Mapping[str, object] | None,
    ) -> None:
        super().__init__(initializer, seed, context)
        self.granularity = self._arguments.choice(
            "granularity", granularity, ("filter", "position")
        )
        self.concentration = self._arguments.number("concentration", concentration, above=0)
        self.delta = (
            None if delta is None else self._arguments.number("delta", delta, above=0, at_most=1)
        )
        if self.delta is not None and self.concentration != 0.5:
            raise ValueError(
                f"{self._name}: `delta` picks the naive uniform law of the variance, which has no "
                f"`concentration`. Received: delta={delta!r}, concentration={concentration!r}."
            )

    def stddev(self, shape: Sequence[int]) -> float | None:
        """Returns the base's standard deviation, since the mean of a filter's variance is σ²."""
        return self._law(shape).stddev

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        law, key = self._law(shape), self._stream_key()
        factors = self._variance_factors(random_stream(key, 0), shape, law.family)
        if law.family in ("orthogonal", "other") or law.stddev is None:
            drawn = self._unscaled(shape)
        else:
            distribution = "uniform" if law.family == "uniform" else "normal"
            drawn = independent(key, shape, distribution, law.stddev)
        return drawn.multiplied(np.sqrt(factors).astype(np.float32))

    def _unscaled(self, shape: tuple[int, ...]) -> Draw:
        base = reseeded(self.initializer, self._stream_key() % 2**31)
        if isinstance(base, ContextualInitializer):
            base = base.with_context(self._context_for(shape))
        return draw_of(base, shape)

    def _variance_factors(
        self, generator: np.random.Generator, shape: tuple[int, ...], family: str
    ) -> FloatArray:
        """Draws g for each filter (and position); its shape broadcasts against the kernel's."""
        varying = self._varying_axes(shape)
        size = tuple(n if axis in varying else 1 for axis, n in enumerate(shape))
        k = self.concentration
        if self.delta is not None:
            return generator.uniform(1 - self.delta, 1 + self.delta, size)
        if family == "uniform":
            return (k + 1) / k * generator.random(size) ** (1 / k)
        return generator.standard_gamma(k, size) / k

    def _varying_axes(self, shape: tuple[int, ...]) -> set[int]:
        context = self._context_for(shape)
        if context is None:
            filters, positions = {len(shape) - 1}, set(range(len(shape) - 2))
        else:
            filters, positions = set(context.filter_axes), set(context.spatial_axes)
        return filters | positions if self.granularity == "position" else filters


@register("enhanced")
class Enhanced(EnhancedBase):
    """Gives every filter of a base initializer's kernel its own random variance.

    A filter is drawn with variance σ²·g, where σ² is the base's variance and E g = 1, so the
    layer's mean variance is the base's. For a normal base g ~ Gamma(k, 1/k), k = `concentration`
    (k = ½: the filter's variance is σ²·χ²(1)); for a uniform one g = (k+1)/k·v^{1/k}, v ~ U(0, 1)
    (k = ½: the filter is U(-√3|t|, √3|t|) with t drawn from the base); with `delta`, the naive
    variant, g ~ U(1-δ, 1+δ). A truncated normal base gives untruncated normal filters. Any other
    base is drawn as it is, and each filter is multiplied by √g, g ~ Gamma(k, 1/k).

    Args:
        initializer: The base: a string id, config or initializer object, of Keras or of this
            library, that is zero-mean and takes a `seed`. With a context it uses the layer's true
            fans.
        granularity: `"filter"`: one g per filter. `"position"`: one per filter and position of the
            window, so each sub-vector along the input channels has its own.
        concentration: k > 0. The larger, the closer to the base, and the faster small residual
            networks started (examples/RESULTS.md). Defaults to 0.5, as in the reference.
        delta: 0 < δ <= 1 for the naive variant, relative to σ²; None for the Gamma law.
        seed: Integer or None. None takes the base's own seed if it has one.
        context: Set by `inject`. Without it the last axis indexes filters, and fans are counted
            from the shape as Keras does.

    Shape: any; filters and positions come from the context's `filter_axes` and `spatial_axes`.

    Units: `stddev` is a standard deviation; `concentration` and `delta` concern the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; the base is not
            zero-mean or takes no seed; `delta` is combined with `concentration`.

    Example:
        >>> import keras_varinit as kv
        >>> kernel = kv.Enhanced("he_normal", concentration=2.0, seed=0)((3, 3, 16, 32))
        >>> tuple(kernel.shape)
        (3, 3, 16, 32)

    Reference: M. Sharkansky, "Enhancing performance of deep convolutional neural networks
    initialization methods", eqs. 3.1.1, 3.1.5, 3.1.6, 3.2.4, 3.2.6.
    """

    def __init__(
        self,
        initializer: str | Config | keras.initializers.Initializer,
        granularity: Granularity = "filter",
        concentration: float = 0.5,
        delta: float | None = None,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(initializer, granularity, concentration, delta, seed, context)

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {
            "initializer": self._base_config(),
            "granularity": self.granularity,
            "concentration": self.concentration,
            "delta": self.delta,
            **super().get_config(),
        }
