"""Minimal networks around single operations whose effect on the signal is easily taken wrong."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from .network import Network, mlp, model

L = keras.layers
WIDTH = 96


class Scale(L.Layer):
    """`x * w` or `x + w`, with a weight for each channel."""

    def __init__(self, value: float, add: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value, self.add = value, add

    def build(self, input_shape: Any) -> None:
        """Makes the weight."""
        constant = keras.initializers.Constant(self.value)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=constant, name="gamma")

    def call(self, x: Any) -> Any:
        """The product or the sum."""
        return x + self.gamma if self.add else x * self.gamma


def _between(
    operation: Callable[[Any], Any],
    shape: tuple[int | None, ...] = (WIDTH,),
    width: int = WIDTH,
    **options: Any,
) -> Network:
    """A Dense layer, the operation, and two more."""
    return Network(
        lambda: model(shape, lambda x: mlp(operation(L.Dense(width)(x)), WIDTH, WIDTH)), **options
    )


def _images(operation: Callable[[Any], Any], side: int = 12, channels: int = 32) -> Network:
    """A convolution, the operation, and another convolution."""

    def body(x: Any) -> Any:
        x = L.Conv2D(channels, 3, padding="same")(x)
        x = operation(x)
        return L.Conv2D(channels, 3, padding="same")(x)

    return Network(lambda: model((side, side, channels), body))


def _inputs(layer: Callable[[], Any], mean: float, deviation: float) -> Network:
    """A layer that brings raw data to unit scale."""
    return Network(
        lambda: model((WIDTH,), lambda x: mlp(layer()(x), WIDTH, WIDTH)),
        mean=mean,
        deviation=deviation,
    )


def _attention(length: int | None, known: bool = True, **call: Any) -> Network:
    """Self-attention called with keywords; keywords whose value is None get the tokens."""

    def body(x: Any) -> Any:
        x = L.Dense(WIDTH)(x)
        named = {name: x if value is None else value for name, value in call.items()}
        return L.Dense(WIDTH)(L.MultiHeadAttention(4, WIDTH // 4)(**named))

    def data(rng: np.random.Generator, count: int) -> Any:
        return rng.standard_normal((count, length or 24, WIDTH), np.float32)

    return Network(lambda: model((length, WIDTH), body), data, known=known)


def _padded() -> keras.Model:
    """Keys and values from another sequence, a mask that hides half of it, all by keywords."""
    queries, memory = keras.Input((12, WIDTH)), keras.Input((20, WIDTH))
    q, m = L.Dense(WIDTH)(queries), L.Dense(WIDTH)(memory)
    mask = np.zeros((1, 12, 20), bool)
    mask[:, :, :10] = True
    y = L.MultiHeadAttention(4, WIDTH // 4)(
        query=q, value=m, key=m, attention_mask=ops.convert_to_tensor(mask)
    )
    return keras.Model([queries, memory], L.Dense(WIDTH)(y))


def _split(x: Any) -> Any:
    gate, value = ops.split(x, 2, axis=-1)
    return ops.silu(gate) * value


def _sum_of_halves(x: Any) -> Any:
    first, second = ops.split(x, 2, axis=-1)
    return first + second


def _slices(x: Any) -> Any:
    n = x.shape[-1] // 2
    return x[:, :n] * x[:, n:]


def _mixer(x: Any) -> Any:
    """Two blocks of MLP-Mixer and the average over patches."""
    for _ in range(2):
        y = L.Permute((2, 1))(L.LayerNormalization()(x))
        x = x + L.Permute((2, 1))(mlp(y, 64, 16, activation="gelu"))
        x = x + mlp(L.LayerNormalization()(x), 2 * WIDTH, WIDTH, activation="gelu")
    return L.Dense(WIDTH)(L.GlobalAveragePooling1D()(L.LayerNormalization()(x)))


def _two_towers() -> keras.Model:
    inputs = [keras.Input((WIDTH,)) for _ in range(2)]
    tower = keras.Sequential([L.Dense(WIDTH, "relu"), L.Dense(WIDTH)])
    u, v = tower(inputs[0]), tower(inputs[1])
    return keras.Model(inputs, mlp(ops.abs(u - v), WIDTH, WIDTH))


def _highway(x: Any) -> Any:
    for _ in range(3):
        gate = L.Dense(WIDTH, activation="sigmoid")(x)
        x = gate * L.Dense(WIDTH, activation="relu")(x) + (1 - gate) * x
    return x


def _squeeze_excite(x: Any) -> Any:
    y = L.GlobalAveragePooling2D(keepdims=True)(x)
    y = L.Conv2D(8, 1, activation="relu")(y)
    return x * L.Conv2D(x.shape[-1], 1, activation="sigmoid")(y)


def _grouped_query(x: Any) -> Any:
    x = L.Dense(WIDTH)(x)
    return L.Dense(WIDTH)(L.GroupQueryAttention(WIDTH // 8, 8, 2)(x, x))


def _tokens(make: Callable[[Any], Any]) -> Network:
    return Network(lambda: model((16, WIDTH), make))


class Probe(L.Layer):
    """One learned query that attends to all positions, as SigLIP pools."""

    def build(self, input_shape: Any) -> None:
        """Makes the query and the attention."""
        normal = keras.initializers.RandomNormal(stddev=1.0, seed=0)
        shape = (1, 1, input_shape[-1])
        self.probe = self.add_weight(shape=shape, initializer=normal, name="probe")
        self.attention = L.MultiHeadAttention(4, input_shape[-1] // 4)
        self.attention.build(shape, input_shape)

    def call(self, x: Any) -> Any:
        """What the query finds."""
        query = ops.repeat(self.probe, ops.shape(x)[0], axis=0)
        return self.attention(query=query, value=x)


VECTOR = np.random.default_rng(0).uniform(0.0, 0.2, WIDTH).astype("float32")

OPERATIONS: dict[str, Network] = {
    "x * variable": _between(lambda x: Scale(0.1)(x)),
    "x + variable": _between(lambda x: Scale(5.0, add=True)(x)),
    "x * array": _between(lambda x: x * VECTOR),
    "x + array": _between(lambda x: x + 10 * VECTOR),
    "x * tensor": _between(lambda x: ops.multiply(ops.convert_to_tensor(VECTOR), x)),
    "Rescaling": _inputs(lambda: L.Rescaling(1 / 255), 0.0, 255.0),
    "Normalization": _inputs(lambda: L.Normalization(mean=3.0, variance=7.0), 3.0, 7.0**0.5),
    "softmax between": _between(lambda x: L.Softmax()(x), known=False),
    "softmax activation": _between(lambda x: L.Dense(WIDTH, activation="softmax")(x), known=False),
    "fused SwiGLU": _between(_split, width=2 * WIDTH),
    "sum of halves": _between(_sum_of_halves, width=2 * WIDTH),
    "product of slices": _between(_slices, width=2 * WIDTH),
    "ZeroPadding, MaxPooling": _images(
        lambda x: L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(L.ReLU()(x)))
    ),
    "attention by keywords": _attention(24, query=None, key=None, value=None),
    "cross attention, mask": Network(_padded),
    "causal mask, 24": _attention(24, query=None, value=None, use_causal_mask=True),
    "causal mask, 256": _attention(256, query=None, value=None, use_causal_mask=True),
    "h[:, 0]": _tokens(lambda x: L.Dense(WIDTH)(L.Dense(WIDTH)(x)[:, 0])),
    "x[:, -1]": _tokens(lambda x: L.Dense(WIDTH)(L.Dense(WIDTH)(x)[:, -1])),
    "max over channels": _tokens(lambda x: L.Dense(WIDTH)(ops.max(L.Dense(WIDTH)(x), axis=-1))),
    "mean over channels": _tokens(lambda x: L.Dense(WIDTH)(ops.mean(L.Dense(WIDTH)(x), axis=-1))),
    "attention, unknown length": _attention(None, known=False, query=None, value=None),
    "MLP-Mixer": _tokens(_mixer),
    "bilinear upsampling": _images(lambda x: L.UpSampling2D(2, interpolation="bilinear")(x)),
    "abs(u - v)": Network(_two_towers),
    "highway": _between(_highway),
    "squeeze and excite": _images(lambda x: _squeeze_excite(L.ReLU()(x))),
    "GroupQueryAttention": _tokens(_grouped_query),
    "attention by a probe": _tokens(lambda x: L.Dense(WIDTH)(Probe()(L.Dense(WIDTH)(x)))),
}
