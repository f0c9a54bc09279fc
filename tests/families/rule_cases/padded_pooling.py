"""Pooling that reads padding, pooling to a given size, and global pooling that keeps its axes."""

import keras
from keras import ops

from tests.families.rule_cases.case import (
    LINE,
    MAPS,
    VOLUME,
    Allowance,
    Case,
    conv,
    dense,
    line,
    maps,
    volume,
)

L = keras.layers

IN_PHASE = Allowance(0.03, 0.10, "pairs of positions have one correlation, and neighbours another")
WINDOWS = Allowance(0.06, 0.10, "the entries of a window count as equicorrelated")


def behind(kind, function, note, front=maps, shape=MAPS, *, rank=2, activation="relu", **options):
    """An activation, the padding and the pooling, a kernel."""

    def back(u):
        return conv(64, rank=rank)(function(L.Activation(activation)(u)))

    return Case(kind, front, back, shape, WINDOWS, note, **{"examples": 4, **options})


def before(kind, function, note):
    """Padding and pooling of signed values, and a ReLU behind them."""

    def back(u):
        return conv(64)(ops.relu(function(u)))

    return Case(kind, maps, back, MAPS, WINDOWS, note, examples=4)


def stem(x):
    return L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(x))


def one_after_the_other(x):
    padded = L.ZeroPadding2D(((1, 0), (0, 1)))(x)
    return L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(L.Identity()(padded)))


def with_an_activation_between(x):
    return L.MaxPooling2D(3, 2)(L.LeakyReLU(0.3)(L.ZeroPadding2D(1)(x)))


def of_other_numbers(x):
    widths = ((0, 0), (1, 1), (1, 1), (0, 0))
    return ops.max_pool(ops.pad(x, widths, constant_values=0.4), 3, 2)


PADDED = (
    behind((L.ZeroPadding2D, L.MaxPooling2D), stem, "stem"),
    before((L.ZeroPadding2D, L.MaxPooling2D), stem, "signed stem"),
    behind((L.ZeroPadding2D, L.MaxPooling2D), stem, "tanh stem", activation="tanh"),
    before(L.ZeroPadding2D, one_after_the_other, "two paddings"),
    before(L.ZeroPadding2D, with_an_activation_between, "activation between"),
    before(("Pad", "MaxPool"), of_other_numbers, "numbers"),
    before((L.ZeroPadding2D, L.GlobalMaxPooling2D),
           lambda x: L.GlobalMaxPooling2D(keepdims=True)(L.ZeroPadding2D(1)(x)), "signed"),
    before((L.ZeroPadding2D, L.AveragePooling2D),
           lambda x: L.AveragePooling2D(3, 2)(L.ZeroPadding2D(1)(x)), "zeros in a mean"),
    behind((L.ZeroPadding1D, L.MaxPooling1D),
           lambda x: L.MaxPooling1D(4, 3)(L.ZeroPadding1D(2)(x)), "", line, LINE,
           rank=1, activation="tanh"),
    behind((L.ZeroPadding3D, L.MaxPooling3D),
           lambda x: L.MaxPooling3D(3, 2)(L.ZeroPadding3D(1)(x)), "", volume, VOLUME, rank=3),
)  # fmt: skip


def channels_first(function):
    """A function of maps whose channels come first, between transpositions."""
    return lambda x: ops.transpose(function(ops.transpose(x, (0, 3, 1, 2))), (0, 2, 3, 1))


def mean_to(*size):
    return lambda x: ops.adaptive_average_pool(x, size, "channels_first")


def maximum_to(*size):
    return lambda x: ops.adaptive_max_pool(x, size, "channels_first")


ADAPTIVE = (
    behind(L.AdaptiveAveragePooling2D, lambda x: L.AdaptiveAveragePooling2D(3)(x), "overlapping"),
    behind(L.AdaptiveMaxPooling2D, lambda x: L.AdaptiveMaxPooling2D(3)(x), "overlapping"),
    behind(L.AdaptiveMaxPooling2D, lambda x: L.AdaptiveMaxPooling2D((8, 2))(x), "one axis"),
    behind("AdaptiveAveragePool", channels_first(mean_to(3, 4)), ""),
    behind("AdaptiveMaxPool", channels_first(maximum_to(3, 4)), ""),
    behind("MaxPool", channels_first(lambda x: ops.max_pool(x, 2, 1, "same", "channels_first")),
           "channels first"),
    behind("AveragePool",
           channels_first(lambda x: ops.average_pool(x, 2, 1, "same", "channels_first")),
           "channels first"),
    behind((L.ZeroPadding2D, L.MaxPooling2D), channels_first(
        lambda x: L.MaxPooling2D(3, 2, data_format="channels_first")(
            L.ZeroPadding2D(1, data_format="channels_first")(x))), "channels first"),
)  # fmt: skip


def global_over(kind, function, note="", *, known=True):
    shape = MAPS if known else (None, None, 24)

    def back(u):
        return dense()(function(ops.relu(u)))

    return Case(kind, maps, back, shape, WINDOWS, note, known=known)


GLOBAL = (
    global_over(L.GlobalAveragePooling2D, lambda x: L.GlobalAveragePooling2D(keepdims=True)(x),
                "axes kept"),
    global_over(L.GlobalMaxPooling2D, lambda x: L.GlobalMaxPooling2D(keepdims=True)(x),
                "axes kept"),
    global_over("Mean", lambda x: ops.mean(x, axis=(1, 2), keepdims=True), "axes kept"),
    global_over(L.GlobalAveragePooling2D, lambda x: L.GlobalAveragePooling2D()(x), "unknown size",
                known=False),
    global_over(L.GlobalMaxPooling2D, lambda x: L.GlobalMaxPooling2D()(x), "unknown size",
                known=False),
)  # fmt: skip

SHARED = tuple(
    Case(
        L.AveragePooling2D,
        maps,
        lambda u, p=pool: dense(64)(L.GlobalAveragePooling2D()(conv(96)(p(u)))),
        (5, 5, 24),
        IN_PHASE,
        f"{note}, one gradient",
        examples=4,
    )
    for note, pool in {
        "3 over 1": lambda x: L.AveragePooling2D(3, 1, "same")(x),
        "3 over 2": lambda x: L.AveragePooling2D(3, 2, "same")(x),
        "2 twice": lambda x: L.AveragePooling2D(2, 1)(L.AveragePooling2D(2, 1)(x)),
    }.items()
)

CASES = (*PADDED, *ADAPTIVE, *GLOBAL, *SHARED)
