"""Padding, cropping, upsampling: entries at other positions, some repeated or left out."""

import keras
from keras import ops

from tests.families.rule_cases.case import (
    LINE,
    MAPS,
    VOLUME,
    Allowance,
    Case,
    conv,
    line,
    maps,
    volume,
)

L = keras.layers

POSITIONS = Allowance(0.04, 0.05, "positions count by classes, and widths as large")


def moved(kind, function, note="", front=maps, shape=MAPS, *, rank=2, known=True, **options):
    def back(u):
        return conv(64, rank=rank, **options)(function(ops.relu(u)))

    return Case(kind, front, back, shape, POSITIONS, note, examples=4, known=known)


def in_line(kind, function, note="", **options):
    return moved(kind, function, note, line, LINE, rank=1, **options)


def in_volume(kind, function, note="", **options):
    return moved(kind, function, note, volume, VOLUME, rank=3, **options)


CASES = (
    in_line(L.ZeroPadding1D, lambda x: L.ZeroPadding1D((1, 3))(x), padding="valid"),
    moved(L.ZeroPadding2D, lambda x: L.ZeroPadding2D(((1, 2), (0, 3)))(x), padding="valid"),
    in_volume(L.ZeroPadding3D, lambda x: L.ZeroPadding3D(((1, 0), 1, (0, 2)))(x)),
    moved("Pad", lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0))), padding="valid"),
    in_line(L.Cropping1D, lambda x: L.Cropping1D((1, 3))(x)),
    moved(L.Cropping2D, lambda x: L.Cropping2D(((1, 2), (0, 3)))(x)),
    in_volume(L.Cropping3D, lambda x: L.Cropping3D(((1, 0), (1, 0), (0, 1)))(x)),
    in_line(L.UpSampling1D, lambda x: L.UpSampling1D(2)(x)),
    moved(L.UpSampling2D, lambda x: L.UpSampling2D((2, 3))(x)),
    moved(L.UpSampling2D, lambda x: L.UpSampling2D(2, interpolation="bilinear")(x), "interpolated"),
    in_volume(L.UpSampling3D, lambda x: L.UpSampling3D((2, 1, 2))(x)),
    moved(L.ZeroPadding2D, lambda x: L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(x)), "stem"),
)
