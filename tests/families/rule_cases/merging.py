"""Several signals become one: arithmetic of layers and of `keras.ops`, and concatenation."""

import keras
from keras import ops

from tests.families.rule_cases.case import FINITE, MAPS, VECTOR, Case, conv, dense, maps, vector

L = keras.layers


def joined(kind, function, *, note="two kernels", known=True, allowance=FINITE):
    """Two branches from u: one through a ReLU, the other through tanh, each with a kernel."""

    def back(u):
        one = dense(activation="relu")(ops.relu(u))
        other = dense()(ops.tanh(u))
        return dense()(function(one, other))

    return Case(kind, vector, back, VECTOR, allowance, note, known=known)


def of_one_signal(kind, function, *, note, known=True, allowance=FINITE):
    return Case(kind, vector, lambda u: dense()(function(u)), VECTOR, allowance, note, known=known)


SUMS = (
    joined("Add", lambda a, b: a + b),
    joined("Subtract", lambda a, b: a - b),
    joined("Multiply", lambda a, b: a * b),
    joined(L.Add, lambda a, b: L.Add()([a, b, a])),
    joined(L.Subtract, lambda a, b: L.Subtract()([a, b])),
    joined(L.Average, lambda a, b: L.Average()([a, b])),
    joined(L.Multiply, lambda a, b: L.Multiply()([a, b])),
    joined("Divide", lambda a, b: ops.divide(a, 1.0 + ops.square(b))),
    joined("TrueDivide", lambda a, b: a / (1.0 + ops.square(b))),
    joined("Divide", ops.divide, note="by what may be 0", known=False),
    joined("DivideNoNan", lambda a, b: ops.divide_no_nan(a, 1.0 + ops.square(b))),
    joined("Power", lambda a, b: (1.0 + a) ** ops.tanh(b)),
    joined("Maximum", ops.maximum),
    joined("Minimum", ops.minimum),
    joined("Fmax", ops.fmax),
    joined("Fmin", ops.fmin),
    joined("Hypot", ops.hypot),
    joined("Arctan2", lambda a, b: ops.arctan2(a, 1.0 + ops.square(b))),
    joined("Logaddexp", ops.logaddexp),
    joined("Logaddexp2", ops.logaddexp2),
    joined(L.Maximum, lambda a, b: L.Maximum()([a, b])),
    joined(L.Minimum, lambda a, b: L.Minimum()([a, b])),
    joined(L.Dot, lambda a, b: L.Dot(1)([a, b])),
    joined("Where", lambda a, b: ops.where(a > 0.5, a, b)),
    joined("Where", lambda a, b: ops.where(b > 0.5, a, 0.0), note="and a number"),
)

WITH_A_NUMBER = (
    of_one_signal("Add", lambda u: u + 0.7, note="a number"),
    of_one_signal("Subtract", lambda u: 0.7 - u, note="a number"),
    of_one_signal("Multiply", lambda u: 1.7 * u, note="a number"),
    of_one_signal("Divide", lambda u: ops.divide(u, 1.7), note="a number"),
    of_one_signal("TrueDivide", lambda u: u / 1.7, note="a number"),
    of_one_signal("Power", lambda u: ops.relu(u) ** 1.5, note="a number"),
    of_one_signal("Maximum", lambda u: ops.maximum(u, 0.3), note="a number"),
    of_one_signal("Minimum", lambda u: ops.minimum(0.3, u), note="a number"),
)

FUNCTIONS_OF_ONE_SIGNAL = (
    of_one_signal("Add", lambda u: u + ops.relu(u), note="one signal"),
    of_one_signal("Subtract", lambda u: u - ops.tanh(u), note="one signal"),
    of_one_signal("Multiply", lambda u: u * ops.sigmoid(u), note="one signal"),
    of_one_signal(L.Average, lambda u: L.Average()([u, ops.relu(u)]), note="one signal"),
)


def residual(u):
    return L.Add()([u, dense()(ops.relu(u))])


def excited(u):
    """Squeeze and excite: a gate per channel from the mean over the map."""
    squeezed = dense(48, activation="relu")(L.GlobalAveragePooling2D()(u))
    return u * L.Reshape((1, 1, 96))(dense(96, activation="sigmoid")(squeezed))


SHORTCUTS = (
    of_one_signal(L.Add, residual, note="shortcut"),
    of_one_signal(L.Add, lambda u: residual(residual(u)), note="two shortcuts"),
    Case(
        L.Add,
        maps,
        lambda u: conv(64)(L.Add()([u, conv(96)(ops.relu(u))])),
        MAPS,
        FINITE,
        "shortcut of maps",
        examples=4,
    ),
    Case("Multiply", maps, lambda u: conv(64)(excited(u)), MAPS, FINITE, "squeeze and excite"),
)

CONCATENATIONS = (
    joined(L.Concatenate, lambda a, b: L.Concatenate()([a, b])),
    joined("Concatenate", lambda a, b: ops.concatenate([a, b], axis=-1)),
    joined("Append", lambda a, b: ops.append(a, b, axis=-1)),
    joined("Hstack", lambda a, b: ops.hstack([a, b])),
    joined("Stack", lambda a, b: ops.stack([a, b], axis=1)),
    Case(
        "Vstack",
        vector,
        lambda u: dense()(ops.vstack([dense()(ops.relu(u)), u])),
        VECTOR,
        FINITE,
        "the batch",
    ),
    Case(
        L.Concatenate,
        maps,
        lambda u: conv(64)(L.Concatenate(axis=1)([ops.relu(u), conv(96)(u)])),
        MAPS,
        FINITE,
        "positions",
        examples=4,
    ),
    Case(
        L.Concatenate,
        maps,
        lambda u: conv(64)(L.Concatenate()([ops.relu(u), conv(32)(u), conv(64, 1)(u)])),
        MAPS,
        FINITE,
        "maps",
        examples=4,
    ),
)

CASES = (*SUMS, *WITH_A_NUMBER, *FUNCTIONS_OF_ONE_SIGNAL, *SHORTCUTS, *CONCATENATIONS)
