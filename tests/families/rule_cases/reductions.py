"""Sums, means, extremes, norms and variances over positions or channels."""

import keras
from keras import ops

from tests.families.rule_cases.case import (
    FINITE,
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

COMMON = Allowance(0.08, 0.10, "what all channels have in common counts as its mean")
WINDOW = Allowance(0.06, 0.10, "the entries of a map count as jointly Gaussian")


def of_tokens(kind, function, note="", allowance=FINITE, end=dense):
    return Case(kind, tokens, lambda u: end()(function(ops.relu(u))), TOKENS, allowance, note)


def of_maps(kind, function, note="", allowance=WINDOW, end=dense, **options):
    return Case(
        kind, maps, lambda u: end()(function(ops.relu(u))), MAPS, allowance, note, **options
    )


def scaled(kind, statistic, note, front=vector, shape=VECTOR, **options):
    """The signal times a statistic of its channels, which alone would give the next kernel one."""

    def back(u):
        x = ops.relu(u)
        return dense()(x * (0.3 + statistic(x)))

    return Case(kind, front, back, shape, COMMON, note, **options)


CASES = (
    of_maps("Mean", lambda x: ops.mean(x, axis=(1, 2)), "positions"),
    of_maps("Sum", lambda x: ops.sum(x, axis=(1, 2)), "positions"),
    of_maps("Sum", lambda x: ops.sum(x, axis=1), "one axis", end=lambda: conv(64, rank=1)),
    of_tokens("Sum", lambda x: ops.sum(x, axis=1, keepdims=True), "tokens, kept"),
    of_maps("Max", lambda x: ops.max(x, axis=(1, 2)), "positions"),
    of_tokens("Amax", lambda x: ops.amax(x, axis=1), "tokens"),
    of_tokens("Min", lambda x: ops.min(ops.tanh(x) - x, axis=1), "tokens"),
    of_tokens("Amin", lambda x: ops.amin(ops.tanh(x) - x, axis=1), "tokens"),
    scaled("Mean", lambda x: ops.mean(x, axis=-1, keepdims=True), "channels"),
    scaled("Var", lambda x: ops.var(x, axis=-1, keepdims=True), "channels"),
    scaled("Std", lambda x: ops.std(x, axis=-1, keepdims=True), "channels"),
    # Keras hands JAX the axis as a list, which JAX refuses.
    scaled("Norm", lambda x: ops.norm(x, axis=-1, keepdims=True), "channels", not_on=("jax",)),
    scaled(
        "Mean",
        lambda x: ops.rsqrt(1e-3 + ops.mean(ops.square(x), axis=-1, keepdims=True)),
        "rms by hand",
    ),
    scaled("Sum", lambda x: ops.sum(x, axis=-1, keepdims=True), "channels"),
    scaled("Max", lambda x: ops.max(x, axis=-1, keepdims=True), "channels", tokens, (10, 256)),
    scaled("Min", lambda x: -ops.min(-x, axis=-1, keepdims=True), "channels", tokens, (10, 256)),
)
