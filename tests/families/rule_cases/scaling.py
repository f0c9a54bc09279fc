"""Arithmetic with known numbers: arrays, variables, layers that rescale."""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import (
    FINITE,
    MAPS,
    TOKENS,
    VECTOR,
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
SIGNED = RANDOM.standard_normal(128).astype("float32")
PLACES = RANDOM.uniform(0.0, 2.0, (10, 1)).astype("float32")
MASK = (RANDOM.uniform(size=(8, 8, 1)) < 0.6).astype("float32")


@keras.saving.register_keras_serializable("tests")
class Affine(L.Layer):
    """γ·x + β with weights that are no kernels, as in ConvNeXt's layer scale."""

    def build(self, shape):
        near = keras.initializers.RandomUniform(0.5, 1.5, seed=3)
        self.gamma = self.add_weight(shape=shape[-1:], initializer=near, name="gamma")
        self.beta = self.add_weight(shape=shape[-1:], initializer=near, name="beta")

    def call(self, x):
        return x * self.gamma + self.beta


def of_vectors(kind, function, note="", **options):
    back = lambda u: dense()(function(ops.relu(u)))  # noqa: E731
    return Case(kind, vector, back, VECTOR, FINITE, note, **options)


def of_tokens(kind, function, note=""):
    return Case(kind, tokens, lambda u: dense()(function(ops.relu(u))), TOKENS, FINITE, note)


def of_maps(kind, function, note=""):
    return Case(
        kind, maps, lambda u: conv(64)(function(ops.relu(u))), MAPS, FINITE, note, examples=4
    )


CASES = (
    of_vectors("Multiply", lambda x: x * CHANNELS, "array"),
    of_vectors("Multiply", lambda x: ops.multiply(SIGNED, x), "signed array"),
    of_vectors("Multiply", lambda x: ops.tanh(x * CHANNELS), "array, then a function"),
    of_vectors("Add", lambda x: x + SIGNED, "array"),
    of_vectors("Add", lambda x: ops.tanh(ops.add(SIGNED, x)), "array, then a function"),
    of_vectors("Subtract", lambda x: ops.subtract(SIGNED, x), "array"),
    of_vectors("Divide", lambda x: ops.divide(x, CHANNELS), "array"),
    of_vectors("TrueDivide", lambda x: x / CHANNELS, "array"),
    of_tokens("Multiply", lambda x: x * PLACES, "by position"),
    of_tokens("Add", lambda x: x + PLACES, "by position"),
    of_maps("Multiply", lambda x: x * MASK, "mask"),
    of_vectors(("Multiply", "Add"), lambda x: Affine()(x), "variables"),
    of_vectors(L.Rescaling, lambda x: L.Rescaling(0.3, 0.5)(x)),
    of_vectors(L.Rescaling, lambda x: L.Rescaling(CHANNELS.tolist(), 0.1)(x), "by channel"),
    of_vectors(L.Normalization, lambda x: L.Normalization(mean=0.4, variance=2.5)(x)),
    of_vectors(
        L.Normalization,
        lambda x: L.Normalization(mean=SIGNED.tolist(), variance=CHANNELS.tolist())(x),
        "by channel",
    ),
    of_vectors(
        L.Normalization,
        lambda x: L.Normalization(mean=0.4, variance=2.5, invert=True)(x),
        "inverted",
    ),
)
