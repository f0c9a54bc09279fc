"""Signal-preserving variances, from the library's own signal engine (`analysis.propagate`).

The engine computes the gain g of a kernel, E u² = g·Var(w) for its output u, given the variances of
the kernels that precede it. So

    Var(w) = target / g.

g accounts for what per-layer formulas neglect: the covariance between positions, exact borders,
residual sums and concatenations.
"""

import math
from collections.abc import Mapping, Sequence

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import (
    ContextualInitializer,
    Family,
    Float32Array,
    neutral_fans,
    register,
)
from keras_varinit.initializers.distributions import (
    DISTRIBUTIONS,
    Distribution,
    drawn,
    mean_fan_in,
    variance_scaling,
)
from keras_varinit.initializers.orthogonal import is_delta
from keras_varinit.typing import Config

_NEUTRAL_GAIN = 0.5


@register("signal_preserving")
class SignalPreserving(ContextualInitializer):
    """Gives every weight layer's output the second moment `target`.

    Var(w) = target/g, where g is the second moment of the layer's output for a kernel of variance
    1. The signal engine computes it through activations, pooling, normalization, residual sums and
    concatenations, including the covariance between positions. The choice for deep networks without
    normalization, plain or residual.

    `target` is the mean over draws. Where E f(√q·s)² grows faster than q, as for SiLU (as q^1.17
    near q = 1) and GELU (q^1.14), it is an unstable fixed point: at finite width, the deviation of
    a single draw grows with every layer. Tens of such layers in a row need normalization, or
    `calibrate`.

    Args:
        distribution: `"normal"`, `"truncated_normal"` (at two standard deviations, rescaled),
            `"uniform"` or `"orthogonal"` (delta-orthogonal for convolutions).
        target: Target second moment of the layer's output, greater than 0. Defaults to 1.
        seed: Integer or None.
        context: Set by `inject`. Without it g = fan_in/2, with the fan-in of the shape: He's
            initialization times `target`. Where the engine does not know the layer's input (the
            report says so), and for recurrent kernels, g = τ·ε/M' as in `ASVForward`.

    Shape: any kernel; with a context the fans are the layer's true ones. Orthogonal kernels: see
    `ASVForward`.

    Units: `stddev` is a standard deviation, `target` a second moment.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(8)]
        >>> model = keras.Sequential(layers)
        >>> report = kv.initialize(model, "signal_preserving", seed=0)
        >>> [round(p.forward, 6) for p in kv.analyze(model).predicted.values()]
        [1.0, 1.0]

    Reference: this library; the recursion is that of mean-field theory (Poole et al. 2016; Xiao et
    al. 2018) with borders, strides and pooling.
    """

    def __init__(
        self,
        distribution: Distribution = "normal",
        target: float = 1.0,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(seed=seed, context=context)
        self._arguments.choice("distribution", distribution, DISTRIBUTIONS)
        self.distribution: Distribution = distribution
        self.target = self._arguments.number("target", target, above=0)

    @property
    def family(self) -> Family:
        """Distribution of an entry."""
        return self.distribution

    @property
    def needs_signal(self) -> bool:
        """Whether the context must contain the signal engine's gain."""
        return True

    def stddev(self, shape: Sequence[int]) -> float:
        """Returns the standard deviation of every entry."""
        context = self._context_for(shape)
        if context is None:
            gain = _NEUTRAL_GAIN * neutral_fans(shape)[0]
        elif context.signal_gain is not None:
            gain = context.signal_gain
        else:
            fan_in = mean_fan_in(context, self.distribution)
            gain = (context.forward_gain or _NEUTRAL_GAIN) * fan_in
        return math.sqrt(self.target / gain)

    def reads_centre_only(self, shape: Sequence[int]) -> bool:
        """Whether the kernel is delta-orthogonal, so zero at every tap but the central one."""
        return self.distribution == "orthogonal" and is_delta(self._context_for(shape))

    def neutral(self) -> keras.initializers.Initializer:
        """Returns He's initialization with the scale of `target`."""
        return variance_scaling(self.target / _NEUTRAL_GAIN, "fan_in", self.distribution, self.seed)

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {"distribution": self.distribution, "target": self.target, **super().get_config()}

    def _sample(self, shape: tuple[int, ...]) -> Float32Array:
        return drawn(
            self._stream_key(),
            shape,
            self.distribution,
            self.stddev(shape),
            self._context_for(shape),
        )
