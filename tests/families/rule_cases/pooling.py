"""Pooling: layers, operations, and means and maxima over axes."""

import keras
from keras import ops

from tests.families.rule_cases.case import (
    LINE,
    MAPS,
    TOKENS,
    VOLUME,
    Allowance,
    Case,
    conv,
    dense,
    line,
    maps,
    tokens,
    volume,
)

L = keras.layers

WINDOWS = Allowance(0.06, 0.10, "the entries of a window count as equicorrelated")


def pooled(kind, pool, note, front=maps, shape=MAPS, *, allowance=WINDOWS, rank=2, **options):
    """A ReLU, the pooling, a kernel."""

    def back(u):
        return conv(64, rank=rank)(pool(ops.relu(u)))

    return Case(kind, front, back, shape, allowance, note, **{"examples": 4, **options})


def pooled_before(kind, pool, note):
    """A ReLU behind the pooling."""
    return Case(kind, maps, lambda u: conv(64)(ops.relu(pool(u))), MAPS, WINDOWS, note, examples=4)


def to_vector(kind, pool, note="", front=maps, shape=MAPS, *, allowance=WINDOWS, **options):
    def back(u):
        return dense(128)(pool(ops.relu(u)))

    return Case(kind, front, back, shape, allowance, note, **options)


def shared(kind, pool, note):
    """The mean over the map gives all positions one gradient, which pooling adds up in phase."""

    def back(u):
        return dense(64)(L.GlobalAveragePooling2D()(conv(96)(pool(u))))

    return Case(kind, maps, back, (6, 6, 24), WINDOWS, note, examples=4)


WINDOWED = (
    pooled(L.AveragePooling2D, lambda x: L.AveragePooling2D(2)(x), "2"),
    pooled(L.AveragePooling2D, lambda x: L.AveragePooling2D(3, 2, "same")(x), "3 over 2"),
    pooled(L.AveragePooling2D, lambda x: L.AveragePooling2D(3, 1, "same")(x), "3 over 1"),
    pooled(L.MaxPooling2D, lambda x: L.MaxPooling2D(2)(x), "2"),
    pooled(L.MaxPooling2D, lambda x: L.MaxPooling2D(3, 2, "same")(x), "3 over 2"),
    pooled(L.MaxPooling2D, lambda x: L.MaxPooling2D(3, 1, "same")(x), "3 over 1"),
    pooled(
        L.MaxPooling2D,
        lambda x: L.MaxPooling2D(2)(L.MaxPooling2D(3, 1, "same")(x)),
        "a maximum of maxima",
    ),
    pooled_before(L.AveragePooling2D, lambda x: L.AveragePooling2D(2)(x), "before ReLU"),
    pooled_before(L.MaxPooling2D, lambda x: L.MaxPooling2D(3, 2, "same")(x), "before ReLU"),
    pooled(L.AveragePooling1D, lambda x: L.AveragePooling1D(3, 1)(x), "", line, LINE, rank=1),
    pooled(L.MaxPooling1D, lambda x: L.MaxPooling1D(2)(x), "", line, LINE, rank=1),
    pooled(L.AveragePooling3D, lambda x: L.AveragePooling3D(2)(x), "", volume, VOLUME, rank=3),
    pooled(L.MaxPooling3D, lambda x: L.MaxPooling3D(2)(x), "", volume, VOLUME, rank=3),
    pooled("AveragePool", lambda x: ops.average_pool(x, 2), ""),
    pooled("AveragePool", lambda x: ops.average_pool(x, 3, 1, padding="same"), "3 over 1"),
    pooled("MaxPool", lambda x: ops.max_pool(x, 2), ""),
    pooled("MaxPool", lambda x: ops.max_pool(x, 3, 2, padding="same"), "3 over 2"),
    shared(L.AveragePooling2D, lambda x: L.AveragePooling2D(3, 1, "same")(x), "one gradient"),
    shared(L.MaxPooling2D, lambda x: L.MaxPooling2D(3, 2, "same")(x), "one gradient"),
)

ADAPTIVE = (
    pooled(L.AdaptiveAveragePooling2D, lambda x: L.AdaptiveAveragePooling2D(4)(x), ""),
    pooled(L.AdaptiveMaxPooling2D, lambda x: L.AdaptiveMaxPooling2D(4)(x), ""),
    pooled(
        L.AdaptiveAveragePooling1D,
        lambda x: L.AdaptiveAveragePooling1D(8)(x),
        "",
        line,
        LINE,
        rank=1,
    ),
    pooled(
        L.AdaptiveMaxPooling1D,
        lambda x: L.AdaptiveMaxPooling1D(8)(x),
        "",
        line,
        LINE,
        rank=1,
    ),
    pooled(
        L.AdaptiveAveragePooling3D,
        lambda x: L.AdaptiveAveragePooling3D(2)(x),
        "",
        volume,
        VOLUME,
        rank=3,
    ),
    pooled(
        L.AdaptiveMaxPooling3D,
        lambda x: L.AdaptiveMaxPooling3D(2)(x),
        "",
        volume,
        VOLUME,
        rank=3,
    ),
)

GLOBAL = (
    to_vector(L.GlobalAveragePooling1D, lambda x: L.GlobalAveragePooling1D()(x), "", line, LINE),
    to_vector(L.GlobalAveragePooling2D, lambda x: L.GlobalAveragePooling2D()(x)),
    to_vector(
        L.GlobalAveragePooling3D, lambda x: L.GlobalAveragePooling3D()(x), "", volume, VOLUME
    ),
    to_vector(L.GlobalMaxPooling1D, lambda x: L.GlobalMaxPooling1D()(x), "", line, LINE),
    to_vector(L.GlobalMaxPooling2D, lambda x: L.GlobalMaxPooling2D()(x)),
    to_vector(L.GlobalMaxPooling3D, lambda x: L.GlobalMaxPooling3D()(x), "", volume, VOLUME),
    to_vector("Mean", lambda x: ops.mean(x, axis=(1, 2)), "map"),
    to_vector("Max", lambda x: ops.max(x, axis=(1, 2)), "map"),
    to_vector("Mean", lambda x: ops.mean(x, axis=1), "tokens", tokens, TOKENS),
    to_vector("Max", lambda x: ops.max(x, axis=1), "tokens", tokens, TOKENS),
)


def stream(x):
    """Six residual sums behind ReLU, as Inception-ResNet has them."""
    for _ in range(6):
        branch = conv(96, 1)(ops.relu(L.BatchNormalization()(conv(48, 1)(x))))
        x = ops.relu(x + 0.14 * branch)
    return x


RESIDUAL = (
    Case(
        L.MaxPooling2D,
        lambda x: conv(96, 1)(x),
        lambda u: conv(64, 1)(L.MaxPooling2D(3, 2)(stream(ops.relu(L.BatchNormalization()(u))))),
        (9, 9, 96),
        note="a residual stream behind ReLU",
        wrong="sums with what ReLU has cut off are skewed, and count as Gaussian",
        precision=0.03,
        draws=128,
        examples=16,
    ),
)

CASES = (*WINDOWED, *ADAPTIVE, *GLOBAL, *RESIDUAL)
