"""Random biases: uniform within ±1/√fan_in of the kernel beside them (PyTorch's default).

With biases of 0, all kinks of a first ReLU layer on one-dimensional inputs are at 0, and the
network is linear on either side. U(-1/√n, 1/√n) spreads them.
"""

import math
from collections.abc import Sequence

import keras

from keras_varinit.initializers.base import (
    ContextualInitializer,
    Family,
    register,
)
from keras_varinit.initializers.draws import Draw, constant, independent
from keras_varinit.initializers.streams import stream_key


@register("fan_in_bias")
class FanInBias(ContextualInitializer):
    """Draws biases from U(-1/√fan_in, 1/√fan_in), for small ReLU networks of few inputs.

    `fan_in` is that of the kernel whose output the bias is added to; a bias cannot tell it from its
    own shape. Where an LSTM has `unit_forget_bias`, its forget gate stays at 1.

    Args:
        seed: Integer or None.
        context: Set by `inject`. Without it the biases are 0, Keras's default.

    Shape: any bias; the context's `kernel_shape` is that of the kernel.

    Units: 1/√fan_in is a bound; `stddev` is the standard deviation 1/√(3·fan_in).

    Raises:
        TypeError: `seed` is not an integer.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layer = keras.layers.Dense(4, bias_initializer="fan_in_bias")
        >>> layer.build((None, 16))
        >>> layer.bias_initializer.stddev((4,))  # not injected yet
        0.0

    Measured here (examples/RESULTS.md, the panel): no better than zeros, on a small table and on a
    sine.

    Reference: the default of PyTorch's `nn.Linear` and convolutions, for kernels and biases alike;
    Keras issue 20873 describes regression on one-dimensional inputs that needs it.
    """

    kinds = ("bias",)

    @property
    def refused_as_base(self) -> str:
        """Why no wrapper may scale the draws of this initializer."""
        return "it draws biases"

    @property
    def family(self) -> Family:
        """Distribution of an entry."""
        return "uniform"

    def stddev(self, shape: Sequence[int]) -> float:
        """Returns 1/√(3·fan_in), or 0 without a context."""
        context = self._context_for(shape)
        return 0.0 if context is None else 1 / math.sqrt(3 * context.fan_in)

    def neutral(self) -> keras.initializers.Initializer:
        """Returns zeros."""
        return keras.initializers.Zeros()

    def in_keras(self) -> keras.initializers.Initializer | None:
        """Returns zeros without a context."""
        return self.neutral() if self._context is None else None

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        context = self._context_for(shape)
        if context is None:
            return constant(shape, 0.0)
        # Keras draws an LSTM's bias in pieces, which must differ although their stream is one.
        key = stream_key(self._entropy, f"{context.stream}|{shape}")
        return independent(key, shape, "uniform", self.stddev(shape))
