"""Scaling the last kernel of residual branches: depth rule, Fixup, zero rule.

A residual network computes x_{b+1} = s(x_b) + F_b(x_b) for branches b = 1…L. If a branch's last
kernel is independent and zero-mean, E x_{b+1}² = E s(x_b)² + E F_b², so the stream grows with every
branch unless the last kernels are small:

    depth:  last kernel × 1/√L                               (Radford et al. 2019)
    fixup:  last kernel 0, other m-1 kernels × L^{-1/(2m-2)},
            kernels of the model's output 0                  (Zhang, Dauphin, Ma 2019)
    zero:   last kernel 0                                    (De & Smith 2020)

as factors on the base initializer's standard deviation.
"""

from collections.abc import Mapping
from typing import Literal

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import register
from keras_varinit.initializers.wrapping import ScaledWrapper
from keras_varinit.typing import Config

Rule = Literal["depth", "fixup", "zero"]

_RULES = ("depth", "fixup", "zero")


@register("residual_scaled")
class ResidualScaled(ScaledWrapper):
    """Makes the last kernel of every residual branch small, or zero.

    With L residual additions on the path and m kernels in the branch, the base's standard deviation
    is multiplied by

    * `"depth"`: 1/√L for the kernel that ends a branch, so that L branches together add as much as
      one would;
    * `"fixup"`: 0 for the kernel that ends a branch and for kernels of the model's output;
      L^{-1/(2m-2)} for the other m-1 kernels of the branch, so that a step of gradient descent
      changes the model's output equally at any depth;
    * `"zero"`: 0 for the kernel that ends a branch, which then starts as the identity.

    All other kernels are the base's. A kernel that a normalization follows directly is never
    zeroed: the normalization undoes any scale, and would divide zeros by its epsilon. Zero its γ
    instead, with `BranchEndZeros`.

    Args:
        initializer: The base: a string id, config or initializer object, of Keras or of this
            library, that is zero-mean and takes a `seed`. Defaults to `"glorot_uniform"`, Keras's
            default. Fixup is published for `"he_normal"`.
        rule: `"depth"`, `"fixup"` or `"zero"`. Defaults to `"depth"`.
        seed: Integer or None. None takes the base initializer's own seed if it has one.
        context: Set by `inject`. Without it the base initializer, bit for bit.

    Shape: any that the base initializer takes.

    Units: the factors apply to the *standard deviation*, 1/√L being 1/L on the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is not one of its choices; the base
            is not zero-mean or takes no seed.

    Example:
        >>> import dataclasses, keras, keras_varinit as kv
        >>> layers = [keras.Input((64,)), keras.layers.Dense(64)]
        >>> (context,) = kv.analyze(keras.Sequential(layers)).contexts.values()
        >>> end = dataclasses.replace(context, branches=16, branch_size=2, branch_end=True)
        >>> scaled = kv.ResidualScaled("lecun_normal", context=end)
        >>> scaled.stddev((64, 64))  # √(1/64) / √16
        0.03125

    Measured here (examples/RESULTS.md, the panel): `"zero"` is better than Keras's default in a
    causal language model, a vision transformer, a ConvNeXt and a ResNet-56 without normalization,
    and is what `Recommended` takes; `"depth"` gains little where both have their best learning
    rate.

    Reference: A. Radford et al. (2019), "Language models are unsupervised multitask learners"
    (GPT-2: base N(0, 0.02²), pre-norm transformers, two branches per block); H. Zhang, Y. Dauphin,
    T. Ma (2019), arXiv 1901.09321 (He's initialization, ResNets without normalization, with scalar
    biases and multipliers that are a matter of architecture); S. De, S. Smith (2020), arXiv
    2002.10444 (a scalar multiplier of 0, ResNets without normalization).
    """

    def __init__(
        self,
        initializer: str | Config | keras.initializers.Initializer = "glorot_uniform",
        rule: Rule = "depth",
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(initializer, seed, context)
        self.rule = self._arguments.choice("rule", rule, _RULES)

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {"initializer": self._base_config(), "rule": self.rule, **super().get_config()}

    def _factor(self, context: LayerContext) -> float:
        if self.rule == "fixup" and context.role == "head":
            return 0.0
        branches = max(context.branches, 1)
        if context.branch_end:
            if self.rule == "depth":
                return float(branches**-0.5)
            return 1.0 if context.normalized is not None else 0.0
        if self.rule == "fixup" and context.branch_size > 1:
            return float(branches ** (-0.5 / (context.branch_size - 1)))
        return 1.0
