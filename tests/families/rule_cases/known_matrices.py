"""Products with matrices of known numbers, and with one matrix for all positions."""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import (
    FINITE,
    MAPS,
    TOKENS,
    VECTOR,
    Allowance,
    Case,
    dense,
    maps,
    tokens,
    vector,
)

L = keras.layers

# Neighborhoods differ in size and place; beyond fifteen positions all pairs count as the average.
AVERAGE_PAIR = Allowance(0.04, 0.05, "all pairs of positions count as alike")
TWO_HOPS = Allowance(0.03, 0.1, "gradients of positions count as alike")
HEAVY = Allowance(0.04, 0.15, "products have heavy tails, and slopes depend on them")


def graph(size, outputs=None):
    """Neighbors within a random graph, with the sums of rows far from alike."""
    rng = np.random.default_rng(size)
    adjacent = (rng.random((outputs or size, size)) < 0.3) + np.eye(outputs or size, size)
    return (adjacent / np.sqrt(adjacent.sum(axis=1, keepdims=True))).astype("float32")


def pooled(x):
    """What positions have in common decides the mean over them."""
    return dense(64)(L.GlobalAveragePooling1D()(dense(96)(x)))


def neighbors(size, note, allowance=FINITE, outputs=None):
    def back(u):
        return pooled(ops.matmul(graph(size, outputs), ops.relu(u)))

    return Case("Matmul", tokens, back, (size, 32), allowance, note)


def two_hops(u):
    x = ops.relu(dense(96)(ops.matmul(graph(10), ops.relu(u))))
    return pooled(ops.matmul(graph(10), x))


def transformed(u, other):
    """One matrix for all positions of an example, which another input gives."""
    matrix = L.Reshape((48, 48))(dense(48 * 48)(other))
    x = L.Dot(axes=(2, 1))([dense(48)(L.ReLU()(dense(96)(L.ReLU()(u)))), matrix])
    return dense(64)(L.GlobalAveragePooling1D()(L.ReLU()(dense(64)(x))))


CASES = (
    neighbors(10, "graph"),
    neighbors(10, "fewer positions", outputs=4),
    neighbors(10, "more positions", outputs=14),
    neighbors(24, "large graph", AVERAGE_PAIR),
    neighbors(24, "large graph, few left", AVERAGE_PAIR, outputs=5),
    Case("Matmul", tokens, two_hops, TOKENS, TWO_HOPS, "two hops"),
    Case(
        "Matmul",
        vector,
        lambda u: dense()(ops.relu(ops.matmul(u, graph(128)))),
        VECTOR,
        FINITE,
        "basis of channels",
    ),
    Case(
        "Matmul",
        maps,
        lambda u: dense()(ops.matmul(graph(8), u)),
        MAPS,
        note="along one of two dimensions",
        known=False,
    ),
    Case(
        L.Dot,
        tokens,
        transformed,
        [TOKENS, VECTOR],
        HEAVY,
        "a matrix for all positions",
    ),
)
