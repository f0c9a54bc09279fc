"""Functions of signals that are not Gaussian: scaled one-sided ones, sums, products, means.

Counted as Gaussian, each of these numbers is off by 10 % to 700 %.
"""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import (
    MAPS,
    TOKENS,
    VECTOR,
    Allowance,
    Case,
    conv,
    dense,
    maps,
    tokens,
    vector,
)

L = keras.layers

RANDOM = np.random.default_rng(7)
CHANNELS = RANDOM.uniform(0.2, 2.0, 128).astype("float32")
OF_MAPS = RANDOM.uniform(0.2, 2.0, 96).astype("float32")
PLACES = RANDOM.uniform(0.0, 2.0, (10, 1)).astype("float32")
MASK = (RANDOM.uniform(size=(8, 8, 1)) < 0.6).astype("float32")
FIRST = np.arange(10)[:, None] < 6

LAW = Allowance(0.04, 0.05, "laws are known up to how positions depend on each other; widths")
# |x|² of 32 inputs has a variance of 2/32 of its mean squared, that of 96 units 2/96.
NARROW = Allowance(0.09, 0.12, "second moments of |x|² over 32 inputs and 96 units")
POWERS = Allowance(0.18, 0.16, "fourth powers of products of three kernels in a row, of 128 units")


def of_vectors(kind, function, note, allowance=LAW, **options):
    back = lambda u: dense()(function(u))  # noqa: E731
    return Case(kind, vector, back, VECTOR, allowance, note, **options)


def of_tokens(kind, function, note, allowance=LAW, **options):
    return Case(kind, tokens, lambda u: dense()(function(u)), TOKENS, allowance, note, **options)


def of_maps(kind, function, note, end=lambda: conv(64)):
    return Case(kind, maps, lambda u: end()(function(u)), MAPS, LAW, note, examples=4)


SCALED = (
    of_tokens("Multiply", lambda u: ops.tanh(ops.relu(u) * PLACES), "places, then a function"),
    of_maps("Multiply", lambda u: ops.tanh(ops.relu(u) * MASK), "mask, then a function"),
    of_vectors("Multiply", lambda u: ops.exp(-ops.relu(u) * CHANNELS), "array, then exp"),
    of_vectors("Subtract", lambda u: ops.relu(ops.relu(u) - CHANNELS), "array, then ReLU"),
    of_maps(
        L.MaxPooling2D, lambda u: L.MaxPooling2D(2)(ops.relu(u) * OF_MAPS), "of scaled channels"
    ),
    of_maps(
        L.MaxPooling2D, lambda u: L.MaxPooling2D(2)(ops.relu(u) + OF_MAPS), "of moved channels"
    ),
    of_vectors(L.Dropout, lambda u: ops.tanh(L.Dropout(0.5)(2 * ops.relu(u))), "then a function"),
    of_vectors(
        L.BatchNormalization,
        lambda u: ops.relu(L.BatchNormalization()(ops.relu(u))),
        "between two ReLUs",
        examples=64,
    ),
    of_tokens(
        L.RMSNormalization,
        lambda u: ops.square(L.RMSNormalization()(ops.relu(u))),
        "of a ReLU, then a square",
        NARROW,
    ),
    of_tokens(
        L.LayerNormalization,
        lambda u: ops.tanh(L.LayerNormalization()(ops.relu(u))),
        "of a ReLU, then a function",
        NARROW,
    ),
)

MOVED = (
    of_tokens(
        "Squeeze", lambda u: ops.tanh(ops.squeeze(ops.relu(ops.expand_dims(u, 2)), 2)), "law"
    ),
    of_maps(L.Flatten, lambda u: ops.tanh(L.Flatten()(ops.relu(u))), "then a function", dense),
    of_tokens("Where", lambda u: ops.tanh(ops.where(FIRST, ops.relu(u), -1.0)), "known places"),
)


def difference(u):
    return ops.relu(dense()(u)) - ops.relu(dense()(u))


def squared(u):
    x = difference(u)
    return x * x


COMBINED = (
    of_vectors("Subtract", lambda u: ops.square(difference(u)), "of ReLUs, squared"),
    of_vectors("Multiply", squared, "a difference of ReLUs, squared"),
    of_vectors("Add", lambda u: ops.tanh(ops.relu(dense()(u)) + ops.relu(dense()(u))), "two ReLUs"),
    of_vectors(
        L.Add,
        lambda u: ops.tanh(L.Add()([ops.relu(dense()(u)) for _ in range(3)])),
        "three ReLUs, then a function",
    ),
    of_vectors("Multiply", lambda u: ops.tanh(dense()(u) * dense()(u)), "then a function"),
    of_vectors("Multiply", lambda u: ops.square(dense()(u) * dense()(u)), "squared", POWERS),
    of_vectors(
        "Add",
        lambda u: ops.clip(ops.relu(u) + ops.relu(dense()(u)) - 1.0, 0.0, 1.0),
        "shifted and clipped",
    ),
    of_vectors(
        "Where",
        lambda u: ops.tanh(ops.where(dense()(u) > 0.0, ops.relu(dense()(u)), 2.0)),
        "a signal's mask, then a function",
    ),
)

MEANS = (
    of_maps(
        L.AveragePooling2D,
        lambda u: ops.tanh(L.AveragePooling2D(2)(ops.relu(u))),
        "of a ReLU, then a function",
    ),
    of_maps(
        L.AveragePooling2D,
        lambda u: ops.square(L.AveragePooling2D(2)(ops.relu(u))),
        "of a ReLU, squared",
    ),
    of_tokens("Max", lambda u: ops.max(ops.relu(u) + ops.relu(dense(96)(u)), axis=1), "of a sum"),
    of_tokens("Max", lambda u: ops.max(u * dense(96)(u), axis=1), "of a product", NARROW),
)


def gate(u, **options):
    """One number for all channels of a position."""
    return dense(1, activation="sigmoid", **options)(u)


GATES = (
    of_vectors(L.LayerNormalization, lambda u: L.LayerNormalization()(u * gate(u)), "one gate"),
    of_tokens(
        L.LayerNormalization,
        lambda u: L.LayerNormalization()(dense(96)(u * gate(u))),
        "one gate, then a kernel",
        NARROW,
    ),
    of_tokens(L.RMSNormalization, lambda u: L.RMSNormalization()(u * gate(u)), "gates", NARROW),
    of_tokens(L.Dense, lambda u: ops.tanh(dense()(u * gate(u))), "of gated rows, then a function"),
    of_tokens(
        L.Dense,
        lambda u: ops.square(dense()(u * gate(u))),
        "of gated rows, squared",
        POWERS,
    ),
)


def gated_by_hand(u):
    x = u * gate(u)
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3)


UNKNOWN = (
    of_tokens("Mean", lambda u: gated_by_hand(u), "the size of gated rows"),
    of_tokens(
        "Norm",
        lambda u: ops.norm(u * gate(u), axis=-1, keepdims=True) * u,
        "gated rows",
        not_on=("jax",),  # Keras hands JAX the axis as a list, which JAX refuses
    ),
)

CASES = (
    *(*SCALED, *MOVED, *COMBINED, *MEANS, *GATES),
    *(Case(c.kinds, c.front, c.back, c.shape, note=c.note, known=False) for c in UNKNOWN),
)
