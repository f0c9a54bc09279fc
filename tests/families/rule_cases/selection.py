"""Parts of a signal: slices, single positions, halves of the channels."""

import keras
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


def of_vectors(kind, function, note="", **options):
    return Case(kind, vector, lambda u: dense()(function(u)), VECTOR, FINITE, note, **options)


def of_tokens(kind, function, note="", **options):
    back = lambda u: dense()(function(ops.relu(u)))  # noqa: E731
    return Case(kind, tokens, back, TOKENS, FINITE, note, **options)


def of_maps(kind, function, note=""):
    return Case(
        kind, maps, lambda u: conv(64)(function(ops.relu(u))), MAPS, FINITE, note, examples=4
    )


def gated(parts):
    """One half gates the other, as in SwiGLU."""
    one, other = parts
    return ops.silu(one) * other


def stopped(x):
    """Nothing comes back through one of two branches."""
    return ops.relu(x) + ops.stop_gradient(dense()(ops.tanh(x)))


def straight_through(x):
    """Values of tanh with the slopes of the identity."""
    return x + ops.stop_gradient(ops.tanh(x) - x)


CASES = (
    of_vectors("StopGradient", stopped),
    of_vectors("StopGradient", straight_through, "straight through", known=False),
    of_maps("Fliplr", ops.fliplr),
    of_maps("Flipud", ops.flipud),
    of_tokens("GetItem", lambda x: x[:, 0], "first token"),
    of_tokens("GetItem", lambda x: x[:, -1], "last token"),
    of_tokens("GetItem", lambda x: x[:, 2:8:2], "tokens"),
    of_tokens("GetItem", lambda x: x[:, None, :, :48], "half the channels"),
    of_tokens("GetItem", lambda x: x[..., ::-1], "backwards", not_on=("torch",)),
    of_maps("GetItem", lambda x: x[:, 1:7, ::2], "maps"),
    of_vectors("GetItem", lambda x: x[:, :64] * ops.tanh(x[:, 64:]), "gated"),
    of_vectors("Split", lambda x: gated(ops.split(x, 2, axis=-1)), "gated"),
    of_vectors("Split", lambda x: sum(ops.split(x, 4, axis=-1)), "sum"),
    of_tokens("Split", lambda x: ops.split(x, [3, 7], axis=1)[1], "tokens"),
    of_vectors("ArraySplit", lambda x: ops.array_split(x, 3, axis=-1)[1], "channels"),
    of_tokens("Unstack", lambda x: ops.unstack(x, axis=1)[3], "one token"),
    of_tokens("Unstack", lambda x: sum(ops.unstack(x, axis=1)), "sum"),
    of_tokens("Slice", lambda x: ops.slice(x, (0, 2, 16), (8, 5, 48))),
    of_tokens("Take", lambda x: ops.take(x, 4, axis=1), "one token"),
    of_tokens("Take", lambda x: ops.take(x, [2, 3, 4], axis=1), "tokens"),
)
