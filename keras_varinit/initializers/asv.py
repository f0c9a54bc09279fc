"""ASV, Adaptive Signal Variance (Henmi, Zara, Hirohashi, Kato; arXiv 2008.06885).

For a layer with M inputs, M' outputs and ε connections, u = Wz has
Var(u) = (ε/M')·Var(w)·E z², where E z² = τ of the preceding stage. Unit variance at every u:

    forward:   Var(w_l) = M'_l / (τ_{l-1} · ε_l)

Backward, Var(∂z) = (ε/M)·Var(w)·Var(∂u), and Var(∂u) = γ·(variance of the gradient at the stage's
output). Unit variance at every stage's output:

    backward:  Var(w_l) = M_{l-1} / (γ_l · ε_l)

The authors' code caps the standard deviation at 3 times its value for τ = γ = ½.
"""

import math
from collections.abc import Mapping, Sequence

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import (
    ContextualInitializer,
    Family,
    neutral_fans,
    register,
)
from keras_varinit.initializers.distributions import (
    DISTRIBUTIONS,
    Distribution,
    drawn,
    mean_fan_in,
    mean_fan_out,
    variance_scaling,
)
from keras_varinit.initializers.draws import Draw
from keras_varinit.initializers.orthogonal import is_delta
from keras_varinit.typing import Config

_NEUTRAL_GAIN = 0.5


class _ASV(ContextualInitializer):
    """Variance 1/(gain · mean fan), capped."""

    _neutral_mode: str

    def __init__(
        self,
        distribution: Distribution = "normal",
        max_gain: float | None = 3.0,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(seed=seed, context=context)
        self._arguments.choice("distribution", distribution, DISTRIBUTIONS)
        self.distribution: Distribution = distribution
        self.max_gain = (
            None if max_gain is None else self._arguments.number("max_gain", max_gain, above=0)
        )

    @property
    def family(self) -> Family:
        """Distribution of an entry."""
        return self.distribution

    def stddev(self, shape: Sequence[int]) -> float:
        """Returns the standard deviation of every entry."""
        gain, mean_fan = self._gain_and_mean_fan(shape)
        neutral = math.sqrt(1 / (_NEUTRAL_GAIN * mean_fan))
        limit = math.inf if self.max_gain is None else self.max_gain * neutral
        if gain > 0:
            return min(math.sqrt(1 / (gain * mean_fan)), limit)
        if self.max_gain is None:
            place = "" if self.context is None else f" for {self.context.path!r}"
            raise ValueError(
                f"{self._name}: the gain{place} is 0 (an activation that passes no signal), "
                "so the variance is unbounded. Set `max_gain`. Received: max_gain=None."
            )
        return limit

    def reads_centre_only(self, shape: Sequence[int]) -> bool:
        """Whether the kernel is delta-orthogonal, so zero at every tap but the central one."""
        return self.distribution == "orthogonal" and is_delta(self._context_for(shape))

    def neutral(self) -> keras.initializers.Initializer:
        """Returns He's initialization, forward or backward."""
        return variance_scaling(1 / _NEUTRAL_GAIN, self._neutral_mode, self.distribution, self.seed)

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {
            "distribution": self.distribution,
            "max_gain": self.max_gain,
            **super().get_config(),
        }

    def _gain_and_mean_fan(self, shape: Sequence[int]) -> tuple[float, float]:
        raise NotImplementedError

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        return drawn(
            self._stream_key(),
            shape,
            self.distribution,
            self.stddev(shape),
            self._context_for(shape),
        )


@register("asv_forward")
class ASVForward(_ASV):
    """Keeps the forward signal at unit variance through convolution, activation and pooling.

    Var(w) = M'/(τ·ε): the inverse of the mean number of inputs per output times τ, the second
    moment of the preceding stage's output (½ after ReLU). ε is the exact number of connections,
    given zero padding, stride and dilation. If a spatial size is unknown, ε/M' is the fan-in far
    from any boundary.

    Args:
        distribution: `"normal"`, `"truncated_normal"` (at two standard deviations, rescaled),
            `"uniform"` or `"orthogonal"`; the variance is the same, except that borders do not
            count for the convolutions of the latter.
        max_gain: Limits the standard deviation to `max_gain` times its value for τ = ½. None for no
            limit. Defaults to 3, as in the authors' code.
        seed: Integer or None.
        context: Set by `inject`. Without it τ = ½, with the fan-in of the shape: He's forward
            initialization.

    Shape: any kernel; with a context the fans are the layer's true ones. An orthogonal kernel is
    the matrix of its summed axes by its filter axes, per group. Convolutions have it at the
    central tap, (n-1)//2 of n, larger by the root of the number of taps, and zeros elsewhere
    (delta-orthogonal). Without a context the matrix is all axes but the last by the last.
    Transposed convolutions with strides are drawn from a normal distribution.

    Units: `stddev` is a standard deviation; τ is a ratio of second moments; `max_gain` is a ratio
    of standard deviations.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.ASVForward().stddev((3, 3, 64, 64)), 5)  # √(2/576)
        0.05893

    Reference: Henmi, Zara, Hirohashi, Kato (2020), arXiv 2008.06885. Orthogonal draws: Saxe et al.
    (2014), arXiv 1312.6120; Xiao et al. (2018), arXiv 1806.05393 (tanh networks of up to 10,000
    convolutions, stride 1, at least as many filters as channels; here any number).
    """

    _neutral_mode = "fan_in"

    def _gain_and_mean_fan(self, shape: Sequence[int]) -> tuple[float, float]:
        context = self._context_for(shape)
        if context is None:
            return _NEUTRAL_GAIN, neutral_fans(shape)[0]
        return context.forward_gain, mean_fan_in(context, self.distribution)


@register("asv_backward")
class ASVBackward(_ASV):
    """Keeps the gradient at unit variance through pooling, activation and convolution.

    Var(w) = M/(γ·ε): the inverse of the mean number of outputs per input times γ, the fraction of
    gradient variance that the following activation and pooling pass back (½ for ReLU, (1-2^-T)/T
    with max pooling of T entries, 1/(2T²) with average pooling). If a spatial size is unknown, ε/M
    is the fan-out far from any boundary divided by the stride.

    Args:
        distribution: `"normal"`, `"truncated_normal"` (at two standard deviations, rescaled),
            `"uniform"` or `"orthogonal"`; the variance is the same, except that borders do not
            count for the convolutions of the latter.
        max_gain: Limits the standard deviation to `max_gain` times its value for γ = ½, which keeps
            a kernel before global average pooling from becoming huge. None for no limit. Defaults
            to 3, as in the authors' code.
        seed: Integer or None.
        context: Set by `inject`. Without it γ = ½, with the fan-out of the shape: He's backward
            initialization.

    Shape: any kernel; with a context the fans are the layer's true ones. An orthogonal kernel is
    the matrix of its summed axes by its filter axes, per group. Convolutions have it at the
    central tap, (n-1)//2 of n, larger by the root of the number of taps, and zeros elsewhere
    (delta-orthogonal). Without a context the matrix is all axes but the last by the last.
    Transposed convolutions with strides are drawn from a normal distribution.

    Units: `stddev` is a standard deviation; γ is a ratio of variances; `max_gain` is a ratio of
    standard deviations.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.ASVBackward().stddev((3, 3, 64, 128)), 5)  # √(2/1152)
        0.04167

    Reference: Henmi, Zara, Hirohashi, Kato (2020), arXiv 2008.06885. Orthogonal draws: Saxe et al.
    (2014), arXiv 1312.6120; Xiao et al. (2018), arXiv 1806.05393 (tanh networks of up to 10,000
    convolutions, stride 1, at least as many filters as channels; here any number).
    """

    _neutral_mode = "fan_out"

    def _gain_and_mean_fan(self, shape: Sequence[int]) -> tuple[float, float]:
        context = self._context_for(shape)
        if context is None:
            return _NEUTRAL_GAIN, neutral_fans(shape)[1]
        return context.backward_gain, mean_fan_out(context, self.distribution)
