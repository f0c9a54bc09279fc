"""Normalization, and layers of noise, which act as in training."""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import (
    FINITE,
    LINE,
    MAPS,
    VECTOR,
    VOLUME,
    Allowance,
    Case,
    conv,
    dense,
    line,
    maps,
    vector,
    volume,
)

L = keras.layers

# Behind a ReLU channels of low mean have small variances, and so large gradients.
STATISTICS = Allowance(0.06, 0.10, "statistics of a few examples count as those of the law")
AFTER_RELU = Allowance(0.08, 0.25, "channels of small variance get large gradients")


def between_maps(kind, layer, note="maps", allowance=STATISTICS, known=True):
    def back(u):
        return conv(64)(ops.relu(layer(u)))

    return Case(kind, maps, back, MAPS, allowance, note, examples=4, known=known)


def after_relu(kind, layer, note="after ReLU"):
    return Case(
        kind, maps, lambda u: conv(64)(layer(ops.relu(u))), MAPS, AFTER_RELU, note, examples=4
    )


def of_vectors(kind, layer, note="", allowance=FINITE):
    return Case(kind, vector, lambda u: dense()(layer(ops.relu(u))), VECTOR, allowance, note)


def few_channels(kind, units):
    """Rows of few entries have small variances now and then, and so large gradients."""
    return Case(
        kind, lambda x: dense(units)(x), lambda u: dense()(kind()(u)), VECTOR, FINITE, "few"
    )


def single(u):
    """Nothing is left of a channel by itself, so that the sum is what passes by."""
    return dense(64)(L.Add()([u, L.LayerNormalization(beta_initializer="ones")(dense(1)(u))]))


NORMALIZATIONS = (
    Case(L.LayerNormalization, vector, single, VECTOR, FINITE, "a single channel"),
    between_maps(L.BatchNormalization, lambda x: L.BatchNormalization()(x)),
    between_maps(
        L.BatchNormalization,
        lambda x: L.BatchNormalization(
            gamma_initializer=keras.initializers.Constant(0.5), beta_initializer="ones"
        )(x),
        "scaled and shifted",
    ),
    after_relu(L.BatchNormalization, lambda x: L.BatchNormalization()(x)),
    between_maps(L.GroupNormalization, lambda x: L.GroupNormalization(8)(x)),
    after_relu(L.GroupNormalization, lambda x: L.GroupNormalization(8)(x)),
    Case(
        L.GroupNormalization,
        maps,
        lambda u: conv(64)(L.AveragePooling2D(8)(L.GroupNormalization(48)(ops.relu(u)))),
        MAPS,
        Allowance(0.30, 0.30, "groups with more in common have larger deviations too"),
        "groups of two channels",
    ),
    between_maps(L.LayerNormalization, lambda x: L.LayerNormalization()(x)),
    after_relu(L.LayerNormalization, lambda x: L.LayerNormalization()(x)),
    of_vectors(L.LayerNormalization, lambda x: L.LayerNormalization()(x)),
    of_vectors(
        L.LayerNormalization,
        lambda x: L.LayerNormalization(
            gamma_initializer=keras.initializers.Constant(0.5), beta_initializer="ones"
        )(x),
        "scaled and shifted",
    ),
    few_channels(L.LayerNormalization, 8),
    few_channels(L.RMSNormalization, 6),
    of_vectors(L.RMSNormalization, lambda x: L.RMSNormalization()(x)),
    of_vectors(L.UnitNormalization, lambda x: L.UnitNormalization()(x)),
    of_vectors(L.UnitNormalization, lambda x: L.UnitNormalization(axis=-1)(x), "axis"),
    between_maps(L.UnitNormalization, lambda x: L.UnitNormalization(axis=-1)(x)),
    of_vectors("LayerNorm", lambda x: ops.layer_normalization(x, axis=-1)),
    of_vectors("RMSNorm", lambda x: ops.rms_normalization(x, axis=-1)),
    of_vectors("Normalize", lambda x: ops.normalize(x)),
    Case(
        "Normalize",
        vector,
        lambda u: dense()(ops.normalize(u, order=1)),
        VECTOR,
        FINITE,
        "order 1",
        known=False,
    ),
    between_maps("Normalize", lambda x: ops.normalize(x, axis=-1), "maps"),
    between_maps("LayerNorm", lambda x: ops.layer_normalization(x, axis=-1), "maps"),
    between_maps("RMSNorm", lambda x: ops.rms_normalization(x, axis=-1), "maps"),
)


MEANS, VARIANCES = np.linspace(-0.5, 1.0, 96), np.linspace(0.5, 2.0, 96)
BY_NUMBERS = (
    between_maps(
        "BatchNorm",
        lambda x: ops.batch_normalization(
            x, MEANS.astype("float32"), VARIANCES.astype("float32"), axis=-1
        ),
        known=False,
    ),
)

ROWS = Allowance(0.04, 0.05, "a row counts as wide")


def of_rows(kind, function, **options):
    return Case(
        kind, vector, lambda u: dense()(function(u)), VECTOR, ROWS, "inside a network", **options
    )


SOFTMAX = (
    of_rows("Softmax", ops.softmax),
    of_rows(L.Softmax, lambda u: L.Softmax()(u)),
    of_rows("LogSoftmax", ops.log_softmax, known=False),
)


def noisy(kind, layer, front=maps, shape=MAPS, rank=2, note=""):
    def back(u):
        return conv(64, rank=rank)(layer(ops.relu(u)))

    return Case(kind, front, back, shape, FINITE, note, examples=4)


def depthwise(x):
    """A channel's variance is that of its nine taps, so that small kernels have large gradients."""
    taps = L.DepthwiseConv2D(3, padding="same", depthwise_initializer="he_normal")
    return taps(ops.relu(conv(96)(x)))


def depthwise_block(x):
    """Depthwise kernels between normalized activations, as inverted residuals have them."""
    taps = L.DepthwiseConv2D(
        3, padding="same", depthwise_initializer="lecun_normal", use_bias=False
    )
    return L.BatchNormalization()(taps(ops.silu(L.BatchNormalization()(x))))


def grouped_block(x):
    """The same as a convolution whose groups have one channel each."""
    taps = conv(96, groups=96, use_bias=False)
    return L.BatchNormalization()(taps(ops.relu(L.BatchNormalization()(x))))


def conv_of_entries(x):
    return conv(96, 1)(x)


def pooled(x):
    return dense(32)(L.GlobalAveragePooling2D()(x))


def residual_blocks(x):
    """Four pairs of normalized kernels: 24 inputs make all their channels."""
    for _ in range(4):
        y = conv(96, 1)(ops.silu(L.BatchNormalization()(conv(192, 1)(x))))
        x = x + L.BatchNormalization()(y)
    return x


BORDERS = Allowance(0.12, 0.08, "channels have other variances at the border, which count as one")
FEW = Allowance(0.05, 0.10, "to second order in how unequal a kernel's inputs are")

NARROW = (
    Case(
        L.BatchNormalization,
        depthwise,
        lambda u: conv(64)(ops.relu(L.BatchNormalization()(u))),
        MAPS,
        FINITE,
        "few inputs a channel",
        examples=16,
    ),
    Case(
        L.BatchNormalization,
        conv_of_entries,
        lambda u: pooled(ops.silu(depthwise_block(u))),
        MAPS,
        BORDERS,
        "depthwise, one gradient for all positions",
        examples=64,
    ),
    Case(
        (L.BatchNormalization, L.Conv2D),
        conv_of_entries,
        lambda u: conv(64, 1)(ops.relu(grouped_block(u))),
        (8, 8, 8),
        FINITE,
        "groups of one channel, made of few inputs",
        examples=16,
    ),
    Case(
        L.BatchNormalization,
        conv_of_entries,
        lambda u: pooled(ops.silu(L.BatchNormalization()(residual_blocks(u)))),
        (4, 4, 24),
        FEW,
        "channels made of few inputs",
        examples=48,
        precision=0.02,
    ),
)

NOISE = (
    noisy(L.Dropout, lambda x: L.Dropout(0.3)(x)),
    noisy(L.Dropout, lambda x: L.AveragePooling2D(2)(L.Dropout(0.5)(x)), note="pooled"),
    noisy(L.AlphaDropout, lambda x: L.AlphaDropout(0.3)(x)),
    noisy(L.GaussianDropout, lambda x: L.GaussianDropout(0.4)(x)),
    noisy(L.GaussianNoise, lambda x: L.GaussianNoise(0.7)(x)),
    noisy(L.SpatialDropout1D, lambda x: L.SpatialDropout1D(0.25)(x), line, LINE, 1),
    noisy(L.SpatialDropout2D, lambda x: L.SpatialDropout2D(0.25)(x)),
    noisy(
        L.SpatialDropout2D,
        lambda x: L.AveragePooling2D(2)(L.SpatialDropout2D(0.5)(x)),
        note="pooled",
    ),
    noisy(L.SpatialDropout3D, lambda x: L.SpatialDropout3D(0.25)(x), volume, VOLUME, 3),
)

CASES = (*NORMALIZATIONS, *BY_NUMBERS, *SOFTMAX, *NARROW, *NOISE)
