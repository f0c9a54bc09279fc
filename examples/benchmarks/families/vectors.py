"""Families for vectors and sets at toy size."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from .network import Network, mlp, model

L = keras.layers
WIDTH = 96


def _highway(x: Any) -> Any:
    for _ in range(4):
        closed = keras.initializers.Constant(-1.0)
        gate = L.Dense(WIDTH, activation="sigmoid", bias_initializer=closed)(x)
        x = gate * L.Dense(WIDTH, activation="relu")(x) + (1 - gate) * x
    return L.Dense(32)(x)


def _maxout(x: Any) -> Any:
    for _ in range(3):
        x = ops.max(L.Reshape((WIDTH, 3))(L.Dense(3 * WIDTH)(x)), axis=-1)
    return L.Dense(32)(x)


def _maxout_pair(x: Any) -> Any:
    for _ in range(3):
        x = ops.maximum(L.Dense(WIDTH)(x), L.Dense(WIDTH)(x))
    return L.Dense(32)(x)


def _cross(x: Any) -> Any:
    """DCN v2: x₀ ⊙ (W x + b) + x, beside a deep tower."""
    crossed = x
    for _ in range(3):
        crossed = x * L.Dense(WIDTH)(crossed) + crossed
    return L.Dense(1)(L.Concatenate()([crossed, mlp(x, WIDTH, WIDTH)]))


def _experts(x: Any) -> Any:
    """Four experts, weighed by a softmax over them."""
    gates = L.Dense(4, activation="softmax")(x)
    outputs = ops.stack([mlp(x, WIDTH, WIDTH) for _ in range(4)], axis=1)
    return L.Dense(32)(ops.sum(ops.expand_dims(gates, -1) * outputs, axis=1))


def _routed_experts(x: Any) -> Any:
    """The best two of four experts by a router, the others masked."""
    scores = ops.softmax(L.Dense(4, use_bias=False)(x), axis=-1)
    best, chosen = ops.top_k(scores, 2)
    best = best / ops.sum(best, axis=-1, keepdims=True)
    weights = ops.sum(ops.one_hot(chosen, 4) * ops.expand_dims(best, -1), axis=1)
    outputs = ops.stack([mlp(x, WIDTH, WIDTH) for _ in range(4)], axis=1)
    return L.Dense(32)(ops.einsum("be,bed->bd", weights, outputs))


def _towers() -> keras.Model:
    """Two towers; normalized, and their product in a head."""
    inputs, sides = [keras.Input((WIDTH,)), keras.Input((48,))], []
    for x in inputs:
        sides.append(L.UnitNormalization()(mlp(x, WIDTH, 64)))
    return keras.Model(inputs, L.Dense(16)(sides[0] * sides[1]))


def _siamese() -> keras.Model:
    inputs = [keras.Input((WIDTH,)) for _ in range(2)]
    tower = keras.Sequential([L.Dense(WIDTH, "relu"), L.Dense(64, "relu"), L.Dense(64)])
    u, v = tower(inputs[0]), tower(inputs[1])
    return keras.Model(inputs, mlp(L.Concatenate()([ops.abs(u - v), u * v]), WIDTH, 1))


def _dlrm() -> keras.Model:
    """Embeddings and a dense feature, all dot products between them, a tower on top."""
    dense = keras.Input((16,))
    ids = keras.Input((6,), dtype="int32")
    vectors = L.Embedding(200, 32)(ids)
    bottom = mlp(dense, 64, 32)
    features = L.Concatenate(axis=1)([L.Reshape((1, 32))(bottom), vectors])
    dots = L.Flatten()(ops.matmul(features, ops.transpose(features, (0, 2, 1))))
    return keras.Model([dense, ids], mlp(L.Concatenate()([bottom, dots]), 64, 1))


def _dlrm_data(rng: np.random.Generator, count: int) -> Any:
    dense = rng.standard_normal((count, 16), np.float32)
    return [dense, rng.integers(0, 200, (count, 6)).astype("int32")]


def _wide_and_deep() -> keras.Model:
    wide, deep = keras.Input((64,)), keras.Input((32,))
    x = mlp(deep, WIDTH, WIDTH, activation="relu")
    return keras.Model([wide, deep], L.Dense(1)(L.Concatenate()([wide, L.ReLU()(x)])))


def _factorization(x: Any) -> Any:
    """FM's pairwise term: ((Σ v)² − Σ v²) / 2, and the linear one."""
    v = L.Reshape((8, 16))(L.Dense(8 * 16)(x))
    pairs = 0.5 * (ops.square(ops.sum(v, axis=1)) - ops.sum(ops.square(v), axis=1))
    return L.Dense(1)(pairs) + L.Dense(1)(x)


def _normalized_pipeline(x: Any) -> Any:
    x = L.Normalization(mean=100.0, variance=2500.0)(x)
    return mlp(x, WIDTH, WIDTH, 16)


def _image_pipeline(x: Any) -> Any:
    x = L.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = L.Conv2D(32, 3, strides=2, activation="relu")(x)
    x = L.Conv2D(48, 3, strides=2, activation="relu")(x)
    return L.Dense(16)(L.Flatten()(x))


def _pixels(rng: np.random.Generator, count: int) -> Any:
    return rng.uniform(0, 255, (count, 20, 20, 3)).astype("float32")


def _point_net(x: Any) -> Any:
    """A perceptron shared by all points, the maximum over them."""
    for width in (64, 96):
        x = L.ReLU()(L.BatchNormalization()(L.Conv1D(width, 1)(x)))
    return mlp(L.GlobalMaxPooling1D()(L.Conv1D(128, 1)(x)), 64, 16)


def _deep_sets(x: Any) -> Any:
    x = L.Dense(64, activation="relu")(L.Dense(64, activation="relu")(x))
    return mlp(ops.sum(x, axis=1), 64, 16)


class Tied(L.Layer):
    """An autoencoder whose decoder has the encoder's kernel, transposed."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = L.Dense(units, activation="relu")

    def build(self, input_shape: Any) -> None:
        """Builds the encoder."""
        self.encoder.build(input_shape)

    def call(self, x: Any) -> Any:
        """The reconstruction."""
        return ops.matmul(self.encoder(x), ops.transpose(self.encoder.kernel))


def _tied(x: Any) -> Any:
    return L.Dense(32)(Tied(64)(L.Dense(WIDTH)(x)))


def _neural_ode(x: Any) -> Any:
    """One block, applied four times with a step of a quarter."""
    first, second = L.Dense(WIDTH, activation="tanh"), L.Dense(WIDTH)
    x = L.Dense(WIDTH)(x)
    for _ in range(4):
        x = x + 0.25 * second(first(x))
    return L.Dense(16)(x)


def _siren(x: Any) -> Any:
    """sin(30 x) in the first layer, sin x behind: the frequencies of lecun_normal are SIREN's."""
    x = ops.sin(30.0 * L.Dense(WIDTH)(x))
    for _ in range(3):
        x = ops.sin(L.Dense(WIDTH)(x))
    return L.Dense(3)(x)


def _nerf(x: Any) -> Any:
    """Sines and cosines of six octaves, and the input again in the middle."""
    octaves = [f(2.0**k * x) for k in range(6) for f in (ops.sin, ops.cos)]
    encoded = ops.concatenate([x, *octaves], axis=-1)
    y = L.ReLU()(mlp(encoded, WIDTH, WIDTH))
    y = L.ReLU()(mlp(L.Concatenate()([y, encoded]), WIDTH, WIDTH))
    return L.Dense(4)(y)


def _variational() -> keras.Model:
    """The sampling of a VAE: mean plus noise times exp of half the log-variance."""
    inputs, noise = keras.Input((WIDTH,)), keras.Input((16,))
    x = L.Dense(WIDTH, activation="relu")(inputs)
    z = L.Dense(16)(x) + noise * ops.exp(0.5 * L.Dense(16)(x))
    return keras.Model([inputs, noise], mlp(z, WIDTH, WIDTH))


def _film() -> keras.Model:
    """A condition scales and shifts the features."""
    inputs, condition = keras.Input((WIDTH,)), keras.Input((32,))
    x = L.Dense(WIDTH)(inputs)
    for _ in range(2):
        scale, shift = L.Dense(WIDTH)(condition), L.Dense(WIDTH)(condition)
        x = L.Dense(WIDTH)(L.ReLU()(x * (1.0 + scale) + shift))
    return keras.Model([inputs, condition], x)


def _hypersphere(x: Any) -> Any:
    """L2 normalization by hand, a temperature, and a head."""
    x = L.ReLU()(mlp(x, WIDTH, WIDTH))
    x = x / ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-6)
    return L.Dense(32)(x * math.sqrt(WIDTH))


def _capsules(x: Any) -> Any:
    """Primary capsules with the squash, and a vote of all of them."""
    v = L.Reshape((12, 8))(L.Dense(96, activation="relu")(x))
    squared = ops.sum(ops.square(v), axis=-1, keepdims=True)
    v = squared / (1.0 + squared) * v / ops.sqrt(squared + 1e-7)
    return L.Dense(16)(L.Flatten()(L.Dense(16)(v)))


def _self_normalizing(x: Any) -> Any:
    for _ in range(6):
        x = L.AlphaDropout(0.1)(L.Dense(WIDTH, activation="selu")(x))
    return L.Dense(16)(x)


def _tab_resnet(x: Any) -> Any:
    x = L.Dense(WIDTH)(x)
    for _ in range(4):
        y = L.Dense(2 * WIDTH, activation="relu")(L.BatchNormalization()(x))
        x = x + L.Dense(WIDTH)(L.Dropout(0.2)(y))
    return L.Dense(16)(L.ReLU()(L.BatchNormalization()(x)))


def _vector(body: Any, size: int = WIDTH, **options: Any) -> Network:
    return Network(lambda: model((size,), body), **options)


VECTORS: dict[str, Network] = {
    "highway network": _vector(_highway),
    "maxout": _vector(_maxout),
    "maxout of two": _vector(_maxout_pair),
    "deep and cross": _vector(_cross),
    "soft mixture of experts": _vector(_experts),
    "routed mixture of experts": _vector(_routed_experts),
    "two towers": Network(_towers),
    "siamese": Network(_siamese),
    "DLRM": Network(_dlrm, _dlrm_data),
    "wide and deep": Network(_wide_and_deep),
    "factorization machine": _vector(_factorization),
    "Normalization in front": _vector(_normalized_pipeline, mean=100.0, deviation=50.0),
    "Rescaling in front": Network(
        lambda: model((20, 20, 3), _image_pipeline), _pixels, mean=127.5, deviation=255 / 12**0.5
    ),
    "PointNet": Network(lambda: model((32, 3), _point_net)),
    "deep sets": Network(lambda: model((12, 16), _deep_sets)),
    "tied autoencoder": _vector(_tied),
    "neural ODE": _vector(_neural_ode),
    "SIREN": _vector(_siren, 3),
    "NeRF": _vector(_nerf, 3),
    "variational autoencoder": Network(_variational),
    "FiLM": Network(_film),
    "hypersphere": _vector(_hypersphere),
    "capsules": _vector(_capsules),
    "self-normalizing": _vector(_self_normalizing),
    "tabular ResNet": _vector(_tab_resnet, examples=64),
}
