"""What several signals become together: of two kernels, of one signal, of common parts."""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import (
    FINITE,
    LINE,
    MAPS,
    TOKENS,
    VECTOR,
    Allowance,
    Case,
    conv,
    dense,
    line,
    maps,
    tokens,
    vector,
)

L = keras.layers

GATED = Allowance(0.06, 0.06, "a product of three kernels' outputs depends on their widths")
# For v, the mean square of 128 centred ReLUs, E v·E 1/v is about 1 + (5.4 - 1)/128.
ROWS = Allowance(0.045, 0.045, "a row and its own size count as independent: widths are large")
MIXED = Allowance(0.08, 0.08, "borders between pieces lie inside a class of positions")


def of_two(kind, function, *, note="two Gaussians", front=vector, allowance=FINITE, known=True):
    """h of two kernels' outputs."""

    def back(u):
        return dense()(function(dense()(u), dense()(ops.relu(u))))

    return Case(kind, front, back, VECTOR, allowance, note, known=known)


def of_one(kind, function, *, note, allowance=FINITE):
    return Case(kind, vector, lambda u: dense()(function(u)), VECTOR, allowance, note)


def positive(x):
    return 0.5 + ops.softplus(x)


FUNCTIONS = (
    of_two("Maximum", ops.maximum),
    of_two("Minimum", ops.minimum),
    of_two("Fmax", ops.fmax),
    of_two("Fmin", ops.fmin),
    of_two("Hypot", ops.hypot),
    of_two("Logaddexp", ops.logaddexp),
    of_two("Logaddexp2", ops.logaddexp2),
    of_two("Arctan2", lambda a, b: ops.arctan2(a, positive(b)), note="a positive denominator"),
    of_two("Power", lambda a, b: positive(a) ** ops.tanh(b), note="a positive base"),
    of_two("Power", lambda a, b: a**b, note="a base of either sign", known=False),
    of_two(L.Maximum, lambda a, b: L.Maximum()([a, b])),
    of_two(L.Minimum, lambda a, b: L.Minimum()([ops.relu(a), ops.tanh(b)]), note="functions"),
    of_two("TrueDivide", lambda a, b: a / positive(b), note="a positive denominator"),
    of_two("Divide", lambda a, b: ops.divide(a, positive(b)), note="a positive denominator"),
    of_two("Divide", ops.divide, note="a denominator about 0", known=False),
    of_two("DivideNoNan", lambda a, b: ops.divide_no_nan(a, positive(b)), note="positive"),
    Case(
        L.Maximum,
        vector,
        lambda u: dense()(L.Maximum()([dense()(u) for _ in range(4)])),
        VECTOR,
        FINITE,
        "maxout of four",
    ),
    Case(
        L.Maximum,
        maps,
        lambda u: conv(64)(L.Maximum()([conv()(u), conv()(ops.relu(u))])),
        MAPS,
        FINITE,
        "maps",
        examples=4,
    ),
)

MASKS = (
    of_two("Where", lambda a, b: ops.where(a > 0.3, b, dense()(b)), note="a mask of its own"),
    of_two("Where", lambda a, b: ops.where(a > 0.3, a, b), note="the mask's own signal"),
    of_two(
        "Where",
        lambda a, b: ops.where(np.arange(128) % 4 == 0, a, 2 * b),
        note="a constant mask",
    ),
    of_one("Where", lambda u: ops.where(u > 0, u, 0.1 * u), note="one signal"),
    of_one(
        "Where",
        lambda u: ops.where(np.arange(128) % 4 == 0, ops.zeros_like(u), u),
        note="zeros of its shape",
    ),
    of_one("Where", lambda u: ops.where(u > 0.5, u, 0.2), note="a number"),
)

ONE_SIGNAL = (
    of_one("Maximum", lambda u: ops.maximum(u, 0.1 * u), note="one signal"),
    of_one("Minimum", lambda u: ops.minimum(u, ops.tanh(u)), note="one signal"),
    of_one("Multiply", lambda u: u * ops.cast(u > 0, u.dtype), note="its own mask"),
    of_one("TrueDivide", lambda u: u / (1 + ops.abs(u)), note="one signal"),
    of_one("Hypot", lambda u: ops.hypot(u, ops.relu(u)), note="one signal"),
)


def highway(u):
    gate = dense(activation="sigmoid")(u)
    return gate * dense(activation="relu")(u) + (1 - gate) * u


def gated_state(u):
    """A gated recurrent unit's step by hand."""
    gate, state = dense(activation="sigmoid")(u), dense(activation="tanh")(u)
    return gate * ops.tanh(u) + (1 - gate) * state


def twice(u):
    return (u + dense()(ops.relu(u))) + u


def around(u):
    """A long shortcut around two short ones."""
    x = u
    for _ in range(2):
        x = x + dense()(ops.relu(x))
    return x - 0.5 * u


def one_layer_twice(u):
    layer = dense()
    for _ in range(2):
        u = u + layer(ops.relu(u))
    return u


COMMON_PARTS = (
    of_one("Add", lambda u: highway(highway(u)), note="two highway layers", allowance=GATED),
    of_one("Add", gated_state, note="a gated state", allowance=GATED),
    of_one("Add", twice, note="a signal twice, in nested sums"),
    of_one("Subtract", around, note="a long shortcut"),
    of_one(L.Add, lambda u: L.Add()([u, dense()(u), u]), note="a signal twice, in one sum"),
    of_one("Multiply", lambda u: (u + dense()(u)) * dense()(u), note="a sum times a signal"),
    Case(
        "Add",
        vector,
        lambda u: dense()(one_layer_twice(u)),
        VECTOR,
        note="one layer again and again",
        known=False,
    ),
    Case(
        "Subtract",
        maps,
        lambda u: conv(64)(L.AveragePooling2D(3, 1, padding="same")(u) - u),
        MAPS,
        note="a map less its pooled self",
        known=False,
    ),
)


def normalized(u):
    """Layer normalization by hand."""
    x = ops.relu(u)
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    return centred * ops.rsqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + 1e-3)


def of_maps(kind, function, *, note, allowance=FINITE):
    return Case(kind, maps, lambda u: conv(64)(function(u)), MAPS, allowance, note, examples=4)


def pooled(u):
    return L.GlobalAveragePooling2D()(u)


def modulated(u):
    """FiLM: a scale and a shift per channel from the mean over the map."""
    x = ops.relu(u)
    scale, shift = (L.Reshape((1, 1, 96))(dense(96)(pooled(x))) for _ in range(2))
    return scale * x + shift


BROADCAST = (
    of_one("Multiply", normalized, note="layer normalization by hand", allowance=ROWS),
    of_one("TrueDivide", lambda u: u / ops.norm(u, axis=-1, keepdims=True), note="a norm"),
    of_maps("Add", modulated, note="scale and shift", allowance=GATED),
    of_maps("Multiply", lambda u: ops.relu(u) * conv(1, 1)(u), note="a gate for all channels"),
    of_maps(
        L.Multiply,
        lambda u: L.Multiply()([u, dense(96, activation="sigmoid")(pooled(u))]),
        note="a vector and a map",
    ),
    of_maps(
        "Add",
        lambda u: u + ops.mean(conv()(ops.relu(u)), axis=1, keepdims=True),
        note="a row on all rows",
    ),
)


def with_class_token(u):
    token = L.Reshape((1, 96))(dense(96)(L.GlobalAveragePooling1D()(u)))
    return ops.relu(ops.concatenate([token, 2 * u], axis=1))


SIDE_BY_SIDE = (
    Case("Concatenate", tokens, lambda u: dense()(with_class_token(u)), TOKENS, FINITE, "a token"),
    Case(
        "Concatenate",
        line,
        lambda u: conv(64, rank=1)(ops.concatenate([ops.relu(u), 2 * conv(96, rank=1)(u)], 1)),
        LINE,
        FINITE,
        "a longer line",
    ),
    Case(
        "Concatenate",
        line,
        lambda u: conv(64, rank=1)(
            L.AveragePooling1D(2)(ops.concatenate([ops.relu(u), ops.relu(conv(96, rank=1)(u))], 1))
        ),
        LINE,
        MIXED,
        "pooled",
    ),
    Case(
        "Concatenate",
        tokens,
        lambda u: dense()(ops.concatenate([ops.relu(u), np.full((8, 4, 96), 2.0, "float32")], 1)),
        TOKENS,
        FINITE,
        "numbers behind",
    ),
    Case(
        "Concatenate",
        tokens,
        lambda u: dense()(ops.concatenate([u, np.full((8, 10, 32), 2.0, "float32")], -1)),
        TOKENS,
        FINITE,
        "numbers as channels",
    ),
    Case(
        "Stack",
        tokens,
        lambda u: dense()(ops.relu(ops.stack([u, 2 * dense(96)(u), 3 * dense(96)(u)], axis=1))),
        TOKENS,
        FINITE,
        "of different scales",
    ),
    Case(
        "Stack",
        tokens,
        lambda u: dense()(
            pooled(ops.transpose(ops.relu(ops.stack([u, 2 * dense(96)(u)], axis=-1)), (0, 1, 3, 2)))
        ),
        TOKENS,
        FINITE,
        "behind the channels",
    ),
    Case(
        "Append",
        tokens,
        lambda u: dense()(ops.append(u, 2 * dense(96)(u), axis=1)),
        TOKENS,
        FINITE,
        "positions",
    ),
)

CASES = (*FUNCTIONS, *MASKS, *ONE_SIGNAL, *COMMON_PARTS, *BROADCAST, *SIDE_BY_SIDE)
