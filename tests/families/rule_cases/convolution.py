"""Kernels with windows."""

import keras
from keras import ops

from tests.families.rule_cases.case import LINE, Allowance, Case, conv, line
from tests.families.rule_cases.linear import Product

L = keras.layers

IMAGE = (6, 6, 32)
HE = {"kernel_initializer": "he_normal"}
DEEPER = Allowance(0.03, 0.04, "widths count as large")


def between(kind, layer, note="", shape=IMAGE, rank=2, *, front=None, allowance=DEEPER, k=3):
    """A convolution, a ReLU, the layer, another convolution."""

    def back(u):
        return conv(64, k, rank=rank)(layer(ops.relu(u)))

    first = (lambda x: conv(96, rank=rank)(x)) if front is None else front
    return Case(kind, first, back, shape, allowance, note, examples=4)


def separable(rank, *arguments, **options):
    made = getattr(L, f"SeparableConv{rank}D")
    kernels = {"depthwise_initializer": "he_normal", "pointwise_initializer": "he_normal"}
    return made(*arguments, padding="same", **kernels, **options)


def depthwise(rank, *arguments, **options):
    made = getattr(L, f"DepthwiseConv{rank}D")
    return made(*arguments, depthwise_initializer="he_normal", **options)


def recurrent(rank, shape):
    """Convolutions over steps: a state of maps, which the engine does not follow."""
    made = getattr(L, f"ConvLSTM{rank}D")

    def back(u):
        return conv(32, rank=rank)(made(24, 3, padding="same", **HE)(ops.relu(u)))

    def front(x):
        return L.Dense(32, **HE)(x)

    return Case(made, front, back, shape, known=False)


STATES = (recurrent(1, (3, 8, 16)), recurrent(2, (3, 5, 5, 16)), recurrent(3, (2, 3, 3, 3, 16)))

CASES = (
    *STATES,
    between(L.Conv1D, lambda x: conv(64, 4, rank=1)(x), "", (9, 32), 1),
    between(L.Conv1D, lambda x: conv(64, 3, rank=1, padding="causal")(x), "causal", (9, 32), 1),
    between(L.Conv2D, lambda x: conv(64)(x)),
    between(
        L.Conv2D,
        lambda x: conv(64, strides=2, padding="valid")(x),
        "valid over 2",
        (9, 8, 32),
        front=lambda x: conv(padding="valid")(x),
    ),
    between(
        L.Conv2D,
        lambda x: conv(64, 2, dilation_rate=3, padding="valid")(x),
        "dilated",
        (7, 7, 32),
        front=lambda x: conv(dilation_rate=2)(x),
    ),
    between(L.Conv2D, lambda x: conv(64, groups=8)(x), "groups", front=lambda x: conv(groups=4)(x)),
    between(L.Conv3D, lambda x: conv(48, 2, rank=3)(x), "", (3, 4, 4, 16), 3),
    between(L.DepthwiseConv1D, lambda x: depthwise(1, 3, depth_multiplier=2)(x), "", (9, 32), 1),
    between(L.DepthwiseConv2D, lambda x: depthwise(2, 3, depth_multiplier=2)(x), k=1),
    between(L.SeparableConv1D, lambda x: separable(1, 64, 3)(x), "", (9, 32), 1),
    between(L.SeparableConv2D, lambda x: separable(2, 64, 3)(x)),
    between(
        L.Conv1DTranspose,
        lambda x: L.Conv1DTranspose(64, 4, strides=2, padding="same", **HE)(x),
        "",
        (9, 32),
        1,
    ),
    between(
        L.Conv2DTranspose,
        lambda x: L.Conv2DTranspose(64, 3, strides=2, **HE)(x),
        "valid",
        (4, 5, 32),
    ),
    between(
        L.Conv2DTranspose,
        lambda x: L.Conv2DTranspose(64, 3, strides=2, padding="same", **HE)(x),
        "same",
        (3, 3, 32),
        front=lambda x: L.Conv2DTranspose(64, 4, strides=2, padding="same", **HE)(x),
    ),
    between(
        L.Conv3DTranspose,
        lambda x: L.Conv3DTranspose(32, 2, strides=2, **HE)(x),
        "",
        (2, 2, 3, 16),
        3,
    ),
    between(
        "Conv",
        lambda x: Product((3, 3, 96, 64), lambda x, k: ops.conv(x, k, padding="same"))(x),
    ),
    between(L.Conv1D, lambda x: conv(64, 4, rank=1)(x), "correlated", LINE, 1, front=line),
)
