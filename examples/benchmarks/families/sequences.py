"""Families for sequences and tokens at toy size."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from .network import Network, mlp, model, tokens

L = keras.layers
WIDTH, HEADS, LENGTH, VOCABULARY = 64, 4, 24, 100


class RMSNorm(L.Layer):
    """x / √(mean x² + ε) · γ, written by hand as Llama has it."""

    def build(self, input_shape: Any) -> None:
        """Makes γ."""
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")

    def call(self, x: Any) -> Any:
        """The normalized signal."""
        mean_square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(mean_square + 1e-6) * self.gamma


class Positions(L.Layer):
    """Adds a learned vector for each position."""

    def __init__(self, stddev: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stddev = stddev

    def build(self, input_shape: Any) -> None:
        """Makes the table."""
        normal = keras.initializers.RandomNormal(stddev=self.stddev, seed=0)
        shape = input_shape[1:]
        self.table = self.add_weight(shape=shape, initializer=normal, name="positions")

    def call(self, x: Any) -> Any:
        """The sum."""
        return x + self.table


class ClassToken(L.Layer):
    """Puts a learned token in front."""

    def build(self, input_shape: Any) -> None:
        """Makes the token."""
        normal = keras.initializers.RandomNormal(stddev=1.0, seed=0)
        shape = (1, 1, input_shape[-1])
        self.token = self.add_weight(shape=shape, initializer=normal, name="token")

    def call(self, x: Any) -> Any:
        """The longer sequence."""
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1)


def rotary(x: Any) -> Any:
    """Rotates pairs of (batch, positions, heads, size) by angles that grow with the position."""
    length, size = x.shape[1], x.shape[-1]
    frequencies = 10000.0 ** (-np.arange(0, size, 2) / size)
    angles = np.arange(length)[:, None] * frequencies[None]
    angles = np.concatenate([angles, angles], axis=-1)[None, :, None].astype("float32")
    first, second = ops.split(x, 2, axis=-1)
    turned = ops.concatenate([-second, first], axis=-1)
    return x * np.cos(angles) + turned * np.sin(angles)


def grouped_attention(x: Any, heads: int = HEADS, groups: int = 2) -> Any:
    """Causal grouped-query attention with rotary embeddings, all by hand."""
    length, size = x.shape[1], x.shape[-1] // heads
    q = rotary(L.Reshape((length, heads, size))(L.Dense(heads * size, use_bias=False)(x)))
    k = rotary(L.Reshape((length, groups, size))(L.Dense(groups * size, use_bias=False)(x)))
    v = L.Reshape((length, groups, size))(L.Dense(groups * size, use_bias=False)(x))
    k, v = (ops.repeat(t, heads // groups, axis=2) for t in (k, v))
    scores = ops.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(size)
    mask = np.tril(np.ones((1, 1, length, length), "float32"))
    weights = ops.softmax(scores + (1.0 - mask) * -1e9, axis=-1)
    y = ops.einsum("bhqk,bkhd->bqhd", weights, v)
    return L.Dense(x.shape[-1], use_bias=False)(L.Reshape((length, heads * size))(y))


def _swiglu(x: Any) -> Any:
    gate = L.Dense(2 * WIDTH, activation="silu", use_bias=False)(x)
    return L.Dense(WIDTH, use_bias=False)(gate * L.Dense(2 * WIDTH, use_bias=False)(x))


def _fused_swiglu(x: Any) -> Any:
    for _ in range(3):
        gate, value = ops.split(L.Dense(4 * WIDTH)(L.LayerNormalization()(x)), 2, axis=-1)
        x = x + L.Dense(WIDTH)(ops.silu(gate) * value)
    return L.Dense(WIDTH)(x)


def _llama() -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = L.Embedding(VOCABULARY, WIDTH)(inputs)
    for _ in range(2):
        x = x + grouped_attention(RMSNorm()(x))
        x = x + _swiglu(RMSNorm()(x))
    return keras.Model(inputs, L.Dense(VOCABULARY, use_bias=False)(RMSNorm()(x)))


def _gpt() -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = Positions(0.02)(L.Embedding(VOCABULARY, WIDTH)(inputs))
    for _ in range(2):
        y = L.LayerNormalization()(x)
        attention = L.MultiHeadAttention(HEADS, WIDTH // HEADS)
        x = L.Add()([x, attention(query=y, value=y, use_causal_mask=True)])
        x = L.Add()([x, mlp(L.LayerNormalization()(x), 4 * WIDTH, WIDTH, activation="gelu")])
    return keras.Model(inputs, L.Dense(VOCABULARY)(L.LayerNormalization()(x)))


def _bert() -> keras.Model:
    words = keras.Input((LENGTH,), dtype="int32")
    segments = keras.Input((LENGTH,), dtype="int32")
    padding = keras.Input((LENGTH,), dtype="int32")
    x = L.Embedding(VOCABULARY, WIDTH)(words) + L.Embedding(2, WIDTH)(segments)
    x = L.LayerNormalization()(Positions()(x))
    mask = ops.expand_dims(padding, 1)
    for _ in range(2):
        attention = L.MultiHeadAttention(HEADS, WIDTH // HEADS)
        y = attention(query=x, key=x, value=x, attention_mask=mask)
        x = L.LayerNormalization()(x + y)
        x = L.LayerNormalization()(x + mlp(x, 4 * WIDTH, WIDTH, activation="gelu"))
    pooled = L.Dense(WIDTH, activation="tanh")(x[:, 0, :])
    return keras.Model([words, segments, padding], [L.Dense(VOCABULARY)(x), L.Dense(2)(pooled)])


def _bert_data(rng: np.random.Generator, count: int) -> Any:
    words, segments = (rng.integers(0, n, (count, LENGTH)).astype("int32") for n in (VOCABULARY, 2))
    return [words, segments, np.ones((count, LENGTH), "int32")]


def _vit(x: Any) -> Any:
    x = L.Reshape((16, WIDTH))(L.Conv2D(WIDTH, 8, strides=8)(x))
    x = Positions(0.02)(ClassToken()(x))
    for _ in range(2):
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
        x = x + mlp(L.LayerNormalization()(x), 4 * WIDTH, WIDTH, activation="gelu")
    return L.Dense(32)(L.LayerNormalization()(x)[:, 0])


def _translator() -> keras.Model:
    """Encoder and decoder of the first Transformer: post-normalization, cross-attention."""
    source, target = keras.Input((LENGTH,), dtype="int32"), keras.Input((12,), dtype="int32")
    size = WIDTH // HEADS
    x = Positions()(L.Embedding(VOCABULARY, WIDTH)(source))
    x = L.LayerNormalization()(x + L.MultiHeadAttention(HEADS, size)(x, x))
    memory = L.LayerNormalization()(x + mlp(x, 4 * WIDTH, WIDTH))
    y = Positions()(L.Embedding(VOCABULARY, WIDTH)(target))
    own = L.MultiHeadAttention(HEADS, size)(y, y, use_causal_mask=True)
    y = L.LayerNormalization()(y + own)
    y = L.LayerNormalization()(y + L.MultiHeadAttention(HEADS, size)(query=y, value=memory))
    y = L.LayerNormalization()(y + mlp(y, 4 * WIDTH, WIDTH))
    return keras.Model([source, target], L.Dense(VOCABULARY)(y))


def _mixer(x: Any) -> Any:
    x = L.Reshape((16, WIDTH))(L.Conv2D(WIDTH, 8, strides=8)(x))
    for _ in range(3):
        y = L.Permute((2, 1))(L.LayerNormalization()(x))
        x = x + L.Permute((2, 1))(mlp(y, 64, 16, activation="gelu"))
        x = x + mlp(L.LayerNormalization()(x), 2 * WIDTH, WIDTH, activation="gelu")
    return L.Dense(32)(L.GlobalAveragePooling1D()(L.LayerNormalization()(x)))


def _gmlp(x: Any) -> Any:
    """The spatial gate: one half, mixed over positions, times the other."""
    for _ in range(2):
        y = L.Dense(4 * WIDTH, activation="gelu")(L.LayerNormalization()(x))
        kept, gate = ops.split(y, 2, axis=-1)
        gate = L.Permute((2, 1))(L.LayerNormalization()(gate))
        gate = L.Dense(LENGTH, bias_initializer="ones")(gate)
        x = x + L.Dense(WIDTH)(kept * L.Permute((2, 1))(gate))
    return L.Dense(WIDTH)(x)


def _linear_attention(x: Any) -> Any:
    """The feature map ELU + 1, summed over positions once: no softmax."""
    for _ in range(2):
        y = L.LayerNormalization()(x)
        q, k = (ops.elu(L.Dense(WIDTH)(y)) + 1.0 for _ in range(2))
        context = ops.einsum("bnd,bne->bde", k, L.Dense(WIDTH)(y))
        scale = 1.0 / (ops.einsum("bnd,bd->bn", q, ops.sum(k, axis=1)) + 1e-6)
        x = x + L.Dense(WIDTH)(ops.einsum("bnd,bde,bn->bne", q, context, scale))
    return L.Dense(WIDTH)(x)


def _temporal(x: Any) -> Any:
    """TCN: dilated causal convolutions with residual connections."""
    x = L.Conv1D(WIDTH, 1)(x)
    for rate in (1, 2, 4):
        y = x
        for _ in range(2):
            y = L.Conv1D(WIDTH, 3, padding="causal", dilation_rate=rate, activation="relu")(y)
            y = L.SpatialDropout1D(0.1)(y)
        x = L.ReLU()(L.Add()([x, y]))
    return L.Dense(16)(x[:, -1])


def _wavenet(x: Any) -> Any:
    x, skips = L.Conv1D(48, 2, padding="causal")(x), []
    for rate in (1, 2, 4, 8):
        a = L.Conv1D(48, 2, padding="causal", dilation_rate=rate, activation="tanh")(x)
        b = L.Conv1D(48, 2, padding="causal", dilation_rate=rate, activation="sigmoid")(x)
        y = L.Multiply()([a, b])
        skips.append(L.Conv1D(48, 1)(y))
        if rate < 8:  # of the last block the skip alone is read
            x = L.Add()([x, L.Conv1D(48, 1)(y)])
    x = L.Conv1D(48, 1, activation="relu")(L.ReLU()(L.Add()(skips)))
    return L.Conv1D(32, 1)(x)


def _attention_pooling(x: Any) -> Any:
    """Bahdanau's scores, their softmax over time, and the weighted sum."""
    x = L.Conv1D(WIDTH, 3, padding="same", activation="relu")(x)
    scores = L.Dense(1)(L.Dense(WIDTH, activation="tanh")(x))
    return L.Dense(32)(ops.sum(ops.softmax(scores, axis=1) * x, axis=1))


def _recurrent(kind: Any, bidirectional: bool = False) -> Any:
    def body(x: Any) -> Any:
        x = L.Dense(WIDTH)(x)
        for last in (False, True):
            layer = kind(WIDTH, return_sequences=not last)
            x = L.Bidirectional(layer)(x) if bidirectional else layer(x)
        return L.Dense(32)(L.Dense(WIDTH, activation="relu")(x))

    return body


def _conv_lstm(x: Any) -> Any:
    x = L.ConvLSTM2D(16, 3, padding="same", return_sequences=True)(x)
    x = L.ConvLSTM2D(16, 3, padding="same")(x)
    return L.Conv2D(4, 3, padding="same")(x)


def _conformer(x: Any) -> Any:
    """Half a feed-forward layer, attention, and a gated depthwise convolution."""
    for _ in range(2):
        x = x + 0.5 * mlp(L.LayerNormalization()(x), 4 * WIDTH, WIDTH, activation="silu")
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
        a, b = ops.split(L.Dense(2 * WIDTH)(L.LayerNormalization()(x)), 2, axis=-1)
        y = L.DepthwiseConv1D(7, padding="same")(a * ops.sigmoid(b))
        x = x + L.Dense(WIDTH)(ops.silu(L.BatchNormalization()(y)))
        x = L.LayerNormalization()(x)
    return L.Dense(WIDTH)(x)


def _text_cnn() -> keras.Model:
    """Kim's convolutions of three widths, the maximum over time."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = L.Embedding(VOCABULARY, WIDTH)(inputs)
    found = [L.GlobalMaxPooling1D()(L.Conv1D(WIDTH, n, activation="relu")(x)) for n in (3, 4, 5)]
    return keras.Model(inputs, L.Dense(16)(L.Dropout(0.5)(L.Concatenate()(found))))


def _sequence(body: Any, length: int = LENGTH) -> Network:
    return Network(lambda: model((length, WIDTH), body))


SEQUENCES: dict[str, Network] = {
    "SwiGLU blocks, fused": _sequence(_fused_swiglu),
    "Llama": Network(_llama, tokens(VOCABULARY, LENGTH)),
    "GPT": Network(_gpt, tokens(VOCABULARY, LENGTH)),
    "BERT": Network(_bert, _bert_data),
    "ViT": Network(lambda: model((32, 32, 3), _vit)),
    "Transformer, cross attention": Network(_translator, tokens(VOCABULARY, LENGTH, 12)),
    "MLP-Mixer, 3 blocks": Network(lambda: model((32, 32, 3), _mixer)),
    "gMLP": _sequence(_gmlp),
    "linear attention": _sequence(_linear_attention),
    "Conformer": _sequence(_conformer),
    "TCN": _sequence(_temporal),
    "WaveNet": _sequence(_wavenet),
    "attention pooling": _sequence(_attention_pooling),
    "text CNN": Network(_text_cnn, tokens(VOCABULARY, LENGTH)),
    "LSTM stack": _sequence(_recurrent(L.LSTM), 12),
    "GRU stack": _sequence(_recurrent(L.GRU), 12),
    "SimpleRNN stack": _sequence(_recurrent(L.SimpleRNN), 12),
    "bidirectional LSTM": _sequence(_recurrent(L.LSTM, True), 12),
    "ConvLSTM": Network(lambda: model((4, 10, 10, 8), _conv_lstm), examples=8),
}
