"""Signal-preserving variances, from the library's own signal engine (`analysis.propagate`).

The engine computes the gain g of a kernel, E u² = g·Var(w) for its output u, given the variances of
the kernels that precede it. So

    Var(w) = target / g.

g accounts for what per-layer formulas neglect: the covariance between positions, exact borders,
residual sums and concatenations.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import keras

from keras_varinit.arguments import is_real
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
    variance_scaling,
)
from keras_varinit.initializers.draws import Draw, constant
from keras_varinit.initializers.orthogonal import is_delta
from keras_varinit.typing import Config

BranchShare: TypeAlias = float | Literal["1/L"] | None

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

    With `branch_share`, the branches of a residual network add a share of their stream each. Where
    x_{b+1} = s(x_b) + F_b(x_b), the kernel that ends branch b has the variance for which

        E F_b² = branch_share · E s(x_b)²,

    whatever lies between it and the addition. With a share of 1/L the stream grows by at most
    (1 + 1/L)^L < e over L branches. Behind a normalization at a branch's end the kernel's scale has
    no effect; there γ² is solved for instead, provided that γ is this initializer's too, as it is
    in `initialize`. Elsewhere γ is 1.

    Args:
        distribution: `"normal"`, `"truncated_normal"` (at two standard deviations, rescaled),
            `"uniform"` or `"orthogonal"` (delta-orthogonal for convolutions).
        target: Target second moment of the layer's output, greater than 0. Defaults to 1.
        branch_share: None, a number greater than 0, or `"1/L"`, L being the number of residual
            additions on the longest path of the stream. Where the engine does not know the branch
            or its stream, its end's output has the second moment share·target. Defaults to None:
            `target` at the ends of branches too.
        seed: Integer or None.
        context: Set by `inject`. Without it g = fan_in/2, with the fan-in of the shape: He's
            initialization times `target`. Where the engine does not know the layer's input (the
            report says so), and for recurrent kernels, g = τ·ε/M' as in `ASVForward`.

    Shape: any kernel; with a context the fans are the layer's true ones. Orthogonal kernels: see
    `ASVForward`.

    Units: `stddev` is a standard deviation (0 for γ, which is not random), `target` a second
    moment, `branch_share` a ratio of second moments.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(8)]
        >>> model = keras.Sequential(layers)
        >>> report = kv.initialize(model, "signal_preserving", seed=0)
        >>> [round(p.forward, 6) for p in kv.analyze(model).predicted.values()]
        [1.0, 1.0]

    Measured here (examples/RESULTS.md, the panel): better than Keras's default in plain
    convolutional networks of 8 and 34 layers and in 32 dense layers with ReLU, worse in
    autoencoders and U-Nets of fewer than 16 layers, and, on all kernels, in a vision transformer.
    In residual networks without normalization zeros at the ends of branches do as well as shares of
    1/L. Orthogonal draws learn faster than normal ones in deep dense networks.

    Reference: this library; the recursion is that of mean-field theory (Poole et al. 2016; Xiao et
    al. 2018) with borders, strides and pooling. Shares of 1/L: as a factor 1/√L on the branches,
    Radford et al. (2019); solved by the engine, this library.
    """

    kinds = ("kernel", "scale")

    def __init__(
        self,
        distribution: Distribution = "normal",
        target: float = 1.0,
        branch_share: BranchShare = None,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(seed=seed, context=context)
        self._arguments.choice("distribution", distribution, DISTRIBUTIONS)
        self.distribution: Distribution = distribution
        self.target = self._arguments.number("target", target, above=0)
        if branch_share is not None and branch_share != "1/L":
            wanted = 'None, a number greater than 0 or "1/L"'
            is_number = is_real(branch_share)
            self._arguments.require(
                is_number and math.isfinite(branch_share) and branch_share > 0,
                "branch_share",
                branch_share,
                wanted,
                ValueError if is_number or isinstance(branch_share, str) else TypeError,
            )
            branch_share = float(branch_share)
        self.branch_share: BranchShare = branch_share

    @property
    def family(self) -> Family:
        """Distribution of an entry."""
        return self.distribution

    @property
    def needs_signal(self) -> bool:
        """Whether the context must contain the signal engine's gain."""
        return True

    def share(self, context: LayerContext) -> float | None:
        """The share that the branch of a kernel or γ is to add; None if it ends no branch."""
        if self.branch_share is None or not context.branch_end:
            return None
        if context.kind == "kernel" and context.normalized is not None:
            return None  # γ decides
        if isinstance(self.branch_share, str):
            return 1 / max(context.branches, 1)
        return self.branch_share

    def stddev(self, shape: Sequence[int]) -> float:
        """Returns the standard deviation of every entry, 0 for γ."""
        context = self._context_for(shape)
        if context is not None and context.kind == "scale":
            return 0.0
        share = None if context is None else self.share(context)
        if context is not None and share is not None and context.branch_gain is not None:
            return math.sqrt(share / context.branch_gain)
        return math.sqrt((share or 1.0) * self.target / self._gain(shape, context))

    def _scale(self, context: LayerContext) -> float:
        """γ of a normalization."""
        share = self.share(context)
        return 1.0 if share is None else math.sqrt(share / (context.branch_gain or 1.0))

    def _gain(self, shape: Sequence[int], context: LayerContext | None) -> float:
        """E u² for a kernel of variance 1."""
        if context is None:
            gain = _NEUTRAL_GAIN * neutral_fans(shape)[0]
        elif context.signal_gain is not None:
            gain = context.signal_gain
        else:
            fan_in = mean_fan_in(context, self.distribution)
            gain = (context.forward_gain or _NEUTRAL_GAIN) * fan_in
        return gain

    def reads_centre_only(self, shape: Sequence[int]) -> bool:
        """Whether the kernel is delta-orthogonal, so zero at every tap but the central one."""
        return self.distribution == "orthogonal" and is_delta(self._context_for(shape))

    def neutral(self) -> keras.initializers.Initializer:
        """Returns He's initialization with the scale of `target`."""
        return variance_scaling(self.target / _NEUTRAL_GAIN, "fan_in", self.distribution, self.seed)

    def in_keras(self) -> keras.initializers.Initializer | None:
        """Returns Keras's initializer of γ; None for kernels."""
        context = self._context
        if context is None or context.kind != "scale":
            return None
        return keras.initializers.Constant(self._scale(context))

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        own = {"distribution": self.distribution, "target": self.target}
        return {**own, "branch_share": self.branch_share, **super().get_config()}

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        context = self._context_for(shape)
        if context is not None and context.kind == "scale":
            return constant(shape, self._scale(context))
        return drawn(
            self._stream_key(),
            shape,
            self.distribution,
            self.stddev(shape),
            self._context_for(shape),
        )
