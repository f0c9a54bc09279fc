"""Chrono initialization of the gates of recurrent layers (Tallec and Ollivier, ICLR 2018).

A forget gate f makes the state decay as f^t. For it to last for a time τ, σ(b_f) = 1 - 1/τ, so
b_f = log(τ - 1). With times uniform up to the longest dependence T:

    LSTM:  b_f = log U(1, T - 1),  b_i = -b_f,  all others 0
    GRU:   b_z = log U(1, T - 1),               all others 0

The paper's GRU has h' = g·h̃ + (1 - g)·h and b_g = -log U(1, T - 1). Keras has
h' = z·h + (1 - z)·h̃, so z = 1 - g forgets, and the sign is that of the LSTM's b_f.
"""

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import (
    ContextualInitializer,
    register,
)
from keras_varinit.initializers.streams import Float32Array, random_stream
from keras_varinit.typing import Config

_LSTM, _GRU = 4, 3


@register("chrono_bias")
class ChronoBias(ContextualInitializer):
    """Draws the gate biases of LSTM and GRU for dependences of up to T steps.

    LSTM (i, f, c, o): b_f = log U(1, T-1), b_i = -b_f, b_c = b_o = 0. GRU (z, r, h):
    b_z = log U(1, T-1), b_r = b_h = 0, as z is the gate that keeps the state in Keras; with
    `reset_after`, where biases have two rows that are added, the second row is 0. For
    `unit_forget_bias` see below.

    Args:
        max_steps: T, the longest dependence in steps. None for the length of the sequence that the
            layer reads (the context's `steps`). The longest dependence of a task may be shorter.
        seed: Integer or None.
        context: Set by `inject`. Without it, for other layers, and where T is unknown or at most 2,
            the bias is Keras's default: 0, and 1 for an LSTM's forget gate if `unit_forget_bias`.

    `inject` and `initialize` set `unit_forget_bias` of an LSTM whose forget gate they draw to
    False, so that its configuration says what its bias is.

    Shape: `(4u,)`, `(3u,)` or `(2, 3u)`.

    Units: biases are in units of the gate's pre-activation. `stddev` is None, as the gates have
    laws of their own, and 0 where the bias is Keras's default.

    Raises:
        TypeError, ValueError: `max_steps` is not a positive integer, or `seed` not an integer.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layer = keras.layers.LSTM(8, bias_initializer=kv.ChronoBias(max_steps=500))

    Measured here (examples/RESULTS.md, the panel): an LSTM on the adding problem over 60 and 120
    steps and a GRU that reads images pixel by pixel, 64 steps, learn faster than with Keras's
    default.

    Reference: C. Tallec, Y. Ollivier (2018), "Can recurrent neural networks warp time?", ICLR.
    There: an LSTM of 128 units on copy and adding tasks, T the length of the task's dependence.
    """

    kinds = ("bias",)

    def __init__(
        self,
        max_steps: int | None = None,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(seed=seed, context=context)
        self.max_steps = self._arguments.count_or_none("max_steps", max_steps)

    @property
    def refused_as_base(self) -> str:
        """Why no wrapper may scale the draws of this initializer."""
        return "it draws biases"

    @property
    def sets_forget_gate(self) -> bool:
        """Whether the context is an LSTM's and T is known."""
        return self._longest() is not None and self._gates() == _LSTM

    def stddev(self, shape: Sequence[int]) -> float | None:
        """Returns None, or 0 where the bias is Keras's default."""
        context = self._context_for(shape)
        return 0.0 if context is None or self._longest() is None else None

    def neutral(self) -> keras.initializers.Initializer:
        """Returns zeros."""
        return keras.initializers.Zeros()

    def in_keras(self) -> keras.initializers.Initializer:
        """Returns zeros."""
        return self.neutral()

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {"max_steps": self.max_steps, **super().get_config()}

    def _gates(self) -> int | None:
        return None if self._context is None else self._context.gates

    def _longest(self) -> int | None:
        """T if it is known, greater than 2, and the layer has a gate to draw."""
        if self._context is None or self._gates() not in (_LSTM, _GRU):
            return None
        steps = self._context.steps if self.max_steps is None else self.max_steps
        return None if steps is None or steps <= 2 else steps

    def _sample(self, shape: tuple[int, ...]) -> Float32Array:
        bias = np.zeros(shape, np.float32)
        context, longest, gates = self._context_for(shape), self._longest(), self._gates()
        # Keras calls for a part of the bias where it sets the forget gate itself.
        is_whole = context is not None and shape[-1] == context.kernel_shape[-1]
        if longest is None or gates is None or not is_whole:
            return bias
        units = shape[-1] // gates
        times = random_stream(self._stream_key(), 0).uniform(1, longest - 1, units)
        forget = np.log(times).astype(np.float32)
        if gates == _LSTM:
            bias[..., units : 2 * units] = forget
            bias[..., :units] = -forget
        else:
            bias.reshape(-1, shape[-1])[0, :units] = forget
        return bias
