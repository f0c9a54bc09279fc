"""The engine on maps: kernels of every kind, pooling, shapes."""

import keras
import pytest

from tests.analysis.chains import (
    APPROXIMATE,
    IMAGE,
    chain,
    check,
    check_all,
    check_maps,
    conv,
    dense,
    maps,
)

pytestmark = pytest.mark.once

L = keras.layers

CONVOLUTIONS = {
    "1D": lambda: (conv(rank=1), [conv(rank=1, k=4)], (9, 32)),
    "2D": lambda: (conv(), [conv()], (6, 6, 32)),
    "3D": lambda: (conv(64, rank=3), [conv(64, 2, rank=3)], (3, 4, 4, 16)),
    "valid, strides": lambda: (conv(padding="valid"), [conv(strides=2), conv(k=2)], (9, 8, 32)),
    "dilation": lambda: (
        conv(dilation_rate=2),
        [conv(k=2, dilation_rate=3, padding="valid")],
        (7, 7, 32),
    ),
    "groups": lambda: (conv(groups=4), [conv(groups=8), conv()], (5, 5, 32)),
    "depthwise": lambda: (
        conv(),
        [L.DepthwiseConv2D(3, depth_multiplier=2), conv(k=1)],
        (6, 6, 32),
    ),
    "separable": lambda: (conv(), [L.SeparableConv2D(96, 3, padding="same"), conv()], (6, 6, 32)),
    "transposed": lambda: (conv(), [L.Conv2DTranspose(96, 3, strides=2), conv()], (4, 5, 32)),
    "transposed same": lambda: (
        L.Conv2DTranspose(96, 4, strides=2, padding="same"),
        [L.Conv2DTranspose(96, 3, strides=2, padding="same"), conv()],
        (3, 3, 32),
    ),
    "einsum": lambda: (
        L.EinsumDense("abc,cd->abd", (None, 128)),
        [L.EinsumDense("abc,cde->abde", (None, 8, 16)), L.EinsumDense("abde,def->abf", (None, 64))],
        (6, 64),
    ),
}


@pytest.mark.slow
def test_kernels_of_every_kind():
    """Linear maps and ReLU: exact up to sampling."""
    check_all(CONVOLUTIONS, lambda case: check(case[0], chain(L.ReLU(), *case[1]), case[2]))


POOLINGS = {
    "average 2": lambda: L.AveragePooling2D(2),
    "average 3 same": lambda: L.AveragePooling2D(3, 2, padding="same"),
    "average 3/1": lambda: L.AveragePooling2D(3, 1, padding="same"),
    "max 2": lambda: L.MaxPooling2D(2),
    "max 3 same": lambda: L.MaxPooling2D(3, 2, padding="same"),
    "max 3/1": lambda: L.MaxPooling2D(3, 1, padding="same"),
}


def test_pooling_of_correlated_maps():
    check_all(POOLINGS, lambda pooling: check_maps(L.ReLU(), pooling, draws=48))


@pytest.mark.slow
def test_pooling_in_front_of_an_activation():
    check_all(POOLINGS, lambda pooling: check_maps(pooling, L.ReLU(), draws=56))


def test_pooling_over_all_positions():
    globals_ = {"average": L.GlobalAveragePooling2D, "max": L.GlobalMaxPooling2D}
    check_all(
        globals_,
        lambda pooling: check(
            maps, chain(L.ReLU(), pooling, dense()), IMAGE, APPROXIMATE, draws=64
        ),
    )


@pytest.mark.slow
def test_gradients_that_positions_share():
    """A mean over the map gives all positions one gradient, which pooling adds up in phase."""
    layers = {
        "average": lambda: L.AveragePooling2D(3, 1, padding="same"),
        "max": lambda: L.MaxPooling2D(3, 2, padding="same"),
        "average 2": lambda: L.AveragePooling2D(2),
        "upsampling": lambda: L.UpSampling2D(2),
        "stride": lambda: conv(96, strides=2),
    }

    def shared(layer):
        end = chain(conv(96), L.GlobalAveragePooling2D(), dense(64))
        check(maps, chain(layer, end), (6, 6, 24), APPROXIMATE, draws=72, error=0.04)

    check_all(layers, shared)


def test_pooling_along_a_line():
    lines = {"max": lambda: L.MaxPooling1D(2), "average": lambda: L.AveragePooling1D(3, 1)}
    check_all(
        lines,
        lambda pooling: check(
            chain(conv(rank=1), L.ReLU(), conv(rank=1)),
            chain(L.ReLU(), pooling, conv(rank=1)),
            (16, 32),
            APPROXIMATE,
        ),
    )


SHAPES = {
    "zero padding": lambda: [L.ZeroPadding2D(((1, 2), (0, 3))), conv(64, padding="valid")],
    "cropping": lambda: [L.Cropping2D(((1, 2), (0, 3))), conv(64)],
    "upsampling": lambda: [L.UpSampling2D(2), conv(64)],
    "flatten": lambda: [L.Flatten(), dense()],
    "reshape": lambda: [L.Reshape((16, 4, 96)), conv(64)],
    "reshape to tokens": lambda: [L.Reshape((64, 96)), dense(64)],
    "permute": lambda: [L.Permute((2, 1, 3)), conv(64)],
}


@pytest.mark.slow
def test_shapes():
    check_all(SHAPES, lambda layers: check(maps, chain(L.ReLU(), *layers), IMAGE, APPROXIMATE))
