"""Other shapes for the same entries: split, joined, turned and repeated dimensions."""

import keras
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

POSITIONS = Allowance(0.04, 0.05, "positions count by classes, and widths as large")


@keras.saving.register_keras_serializable("tests")
class Repeated(L.Layer):
    """Each entry at five positions."""

    def call(self, x):
        return ops.tanh(ops.broadcast_to(x[:, None], (ops.shape(x)[0], 5, x.shape[-1])))


def of_maps(kind, function, note="", end=lambda: conv(64), **options):
    """Correlated positions, in another shape, and a kernel."""
    options = {"examples": 4, **options}
    return Case(
        kind, maps, lambda u: end()(function(ops.relu(u))), MAPS, POSITIONS, note, **options
    )


def of_vectors(kind, function, note="", end=dense, **options):
    return Case(
        kind, vector, lambda u: end()(function(ops.relu(u))), VECTOR, POSITIONS, note, **options
    )


def of_tokens(kind, function, note="", end=dense, **options):
    return Case(
        kind, tokens, lambda u: end()(function(ops.relu(u))), TOKENS, POSITIONS, note, **options
    )


RESHAPED = (
    of_maps(L.Flatten, lambda x: L.Flatten()(x), end=dense),
    of_maps("Ravel", lambda x: ops.reshape(ops.ravel(x), (-1, 8 * 8 * 96)), end=dense, known=False),
    of_maps(L.Reshape, lambda x: L.Reshape((16, 4, 96))(x), "maps"),
    of_maps(L.Reshape, lambda x: L.Reshape((64, 96))(x), "tokens", end=dense),
    of_maps("Reshape", lambda x: ops.reshape(x, (-1, 64, 96)), "tokens", end=dense),
    of_vectors(L.Reshape, lambda x: L.Reshape((8, 16))(x), "positions from channels"),
    of_tokens("Reshape", lambda x: ops.reshape(x, (-1, 10 * 96)), "flat"),
    of_tokens("Reshape", lambda x: ops.reshape(x, (-1, 10, 4, 24)), "heads"),
    of_tokens(
        "Reshape",
        lambda x: ops.reshape(ops.relu(ops.reshape(x, (-1, 10, 4, 24))), (-1, 10, 96)),
        "heads and back",
    ),
)

TURNED = (
    of_maps(L.Permute, lambda x: L.Permute((2, 1, 3))(x), "positions"),
    of_tokens(L.Permute, lambda x: L.Permute((2, 1))(x), "channels"),
    of_maps("Transpose", lambda x: ops.transpose(x, (0, 2, 1, 3)), "positions"),
    of_tokens("Transpose", lambda x: ops.transpose(x, (0, 2, 1)), "channels"),
    of_tokens(
        "Transpose",
        lambda x: ops.transpose(
            ops.tanh(ops.transpose(ops.reshape(x, (-1, 10, 4, 24)), (0, 2, 1, 3))), (0, 2, 1, 3)
        ),
        "heads",
    ),
    of_maps("Swapaxes", lambda x: ops.swapaxes(x, 1, 2)),
    of_maps("Moveaxis", lambda x: ops.moveaxis(x, 1, 2)),
)

ONES = (
    of_tokens("ExpandDims", lambda x: ops.expand_dims(x, 2)),
    of_vectors("ExpandDims", lambda x: ops.expand_dims(x, 1), "a step"),
    of_tokens("Squeeze", lambda x: ops.squeeze(ops.tanh(ops.expand_dims(x, 2)), 2)),
    of_vectors("BroadcastTo", lambda x: Repeated()(x)),
    of_tokens("Repeat", lambda x: ops.repeat(x, 3, axis=1)),
    of_vectors(L.RepeatVector, lambda x: L.RepeatVector(5)(x)),
    of_vectors(
        L.RepeatVector,
        lambda x: L.GlobalAveragePooling1D()(dense()(L.RepeatVector(5)(x))),
        "one gradient",
    ),
)

STEPS = (
    of_tokens(L.TimeDistributed, lambda x: L.TimeDistributed(dense(64))(x)),
    Case(
        L.TimeDistributed,
        lambda x: L.TimeDistributed(conv(32))(x),
        lambda u: L.TimeDistributed(conv(32))(ops.relu(u)),
        (3, 6, 6, 32),
        POSITIONS,
        "maps",
        examples=4,
    ),
)

CASES = (*RESHAPED, *TURNED, *ONES, *STEPS)
