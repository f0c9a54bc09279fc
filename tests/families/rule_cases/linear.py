"""Kernels without windows: dense layers, einsum, products with a variable, embeddings."""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import FINITE, TOKENS, VECTOR, Case, dense, tokens, vector

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class Product(L.Layer):
    """A kernel of its own, and what `function` makes of the input and it."""

    def __init__(self, shape, function, **options):
        super().__init__(**options)
        self.shape, self.function = shape, function

    def build(self, _):
        self.kernel = self.add_weight(shape=self.shape, initializer="he_normal", name="kernel")

    def call(self, x):
        return self.function(x, self.kernel)


def product(kind, shape, function, note="", front=vector, over=VECTOR):
    return Case(
        kind,
        front,
        lambda u: dense()(ops.relu(Product(shape, function)(ops.relu(u)))),
        over,
        FINITE,
        note,
    )


def einsum(equation, shape):
    return L.EinsumDense(equation, shape, kernel_initializer="he_normal")


def words(rng, count):
    return rng.integers(0, 50, (count, 12))


def embedded(x):
    return L.Embedding(50, 64, embeddings_initializer="he_normal")(x)


@keras.saving.register_keras_serializable("tests")
class Placed(L.Layer):
    """Adds a row of a table to each place, which `rows` says; they are no input of the model."""

    def __init__(self, rows, added=lambda x, row: x + row, **options):
        super().__init__(**options)
        self.rows, self.added = np.asarray(rows), added
        self.table = L.Embedding(int(self.rows.max()) + 1, 64, embeddings_initializer="he_normal")

    def build(self, shape):
        self.places = self.add_weight(
            shape=self.rows.shape, dtype="int32", initializer="zeros", trainable=False, name="rows"
        )
        self.places.assign(self.rows)
        self.table.build(self.rows.shape)

    def call(self, x):
        return self.added(x, self.table(self.places))


def placed(rows, note, *added, kinds=()):
    """Averages over places, which are as large as the places are alike."""
    return Case(
        (L.Embedding, *kinds),
        lambda x: dense(64)(Placed(rows, *added)(embedded(x))),
        lambda u: dense(64)(L.GlobalAveragePooling1D()(dense(64)(u))),
        (12,),
        FINITE,
        note,
        inputs=words,
    )


CASES = (
    Case(
        L.Dense,
        vector,
        lambda u: dense()(dense(activation="tanh")(dense(activation="relu")(u))),
        VECTOR,
        FINITE,
    ),
    Case(
        L.EinsumDense,
        lambda x: einsum("abc,cd->abd", (10, 128))(x),
        lambda u: einsum("abde,def->abf", (10, 64))(
            ops.relu(einsum("abc,cde->abde", (10, 8, 16))(ops.relu(u)))
        ),
        TOKENS,
        FINITE,
    ),
    product("Matmul", (128, 96), ops.matmul),
    product("Dot", (128, 96), ops.dot),
    product("Tensordot", (128, 96), lambda x, k: ops.tensordot(x, k, 1)),
    product("Einsum", (128, 96), lambda x, k: ops.einsum("bc,cd->bd", x, k)),
    product(
        "Einsum", (96, 80), lambda x, k: ops.einsum("cd,btc->btd", k, x), "turned", tokens, TOKENS
    ),
    Case(
        L.Embedding,
        embedded,
        lambda u: dense(64)(L.GlobalAveragePooling1D()(dense(activation="relu")(u))),
        (12,),
        FINITE,
        inputs=words,
    ),
    placed([[*range(12)]], "places that differ"),
    placed([[0, 1, 2] * 4], "places four of which are alike"),
    placed([*range(12)], "places without a batch"),
    placed([0], "one row for all places"),
    placed([0, 1, 2] * 4, "places without a batch, four alike"),
    placed(
        [0, 1, 2] * 4,
        "a batch of one in front",
        lambda x, row: x + ops.expand_dims(0.5 * row, 0),
        kinds=("ExpandDims",),
    ),
    placed([*range(12)], "a factor without a batch", lambda x, row: x * row),
    placed([0, 1, 2] * 4, "a factor without a batch, four alike", lambda x, row: x * row),
)
