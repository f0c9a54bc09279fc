"""Padding of every mode, interpolation, other orders of positions, patches as channels."""

import keras
from keras import ops

from tests.families.rule_cases.case import LINE, MAPS, Allowance, Case, conv, line, maps

L = keras.layers

POSITIONS = Allowance(0.04, 0.05, "positions count by classes, and widths as large")


def moved(kind, function, note="", front=maps, shape=MAPS, *, rank=2, known=True, **options):
    """A ReLU, the operation, a kernel."""

    def back(u):
        return conv(64, rank=rank, **options)(function(ops.relu(u)))

    return Case(kind, front, back, shape, POSITIONS, note, examples=4, known=known)


def shared(kind, function, note=""):
    """The mean over the map gives all positions one gradient, which a linear map adds in phase."""

    def back(u):
        mapped = function(u)
        return L.Dense(64)(L.GlobalAveragePooling2D()(conv(96)(mapped)))

    return Case(kind, maps, back, (6, 6, 24), POSITIONS, f"{note} one gradient".strip(), examples=4)


def pad(**options):
    return lambda x: ops.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)), **options)


def resized(size, **options):
    return lambda x: ops.image.resize(x, size, **options)


def enlarged(interpolation):
    return lambda x: L.UpSampling2D(2, interpolation=interpolation)(x)


PADDING = (
    moved("Pad", pad(mode="reflect"), "reflect"),
    moved("Pad", pad(mode="symmetric"), "symmetric"),
    moved("Pad", pad(constant_values=1.5), "constant"),
    moved("Pad", lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (16, 8))), "channels"),
    moved(
        "Pad", lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 9)), constant_values=0.5), "all"
    ),
    moved(
        "Pad",
        lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)), mode="reflect"),
        "reflected channels",
        known=False,
    ),
    shared("Pad", pad(mode="reflect"), "reflect"),
)

INTERPOLATION = (
    moved(L.UpSampling2D, enlarged("bilinear"), "bilinear"),
    moved(L.UpSampling2D, enlarged("bicubic"), "bicubic"),
    moved(L.UpSampling2D, enlarged("lanczos3"), "lanczos3"),
    shared(L.UpSampling2D, enlarged("nearest"), "nearest"),
    shared(L.UpSampling2D, enlarged("bilinear"), "bilinear"),
    moved("Resize", resized((12, 5)), "bilinear"),
    moved("Resize", resized((4, 4), antialias=True), "antialias"),
    moved("Resize", resized((3, 13), interpolation="nearest"), "nearest"),
    moved("Resize", resized((11, 11), interpolation="bicubic"), "bicubic"),
    moved("Resize", resized((4, 6), crop_to_aspect_ratio=True), "cropped", known=False),
    moved(L.Resizing, lambda x: L.Resizing(6, 14)(x), "bilinear"),
    moved(L.Resizing, lambda x: L.Resizing(4, 4, pad_to_aspect_ratio=True)(x), "pad", known=False),
)  # fmt: skip

ORDER = (
    moved("Flip", lambda x: ops.flip(x, axis=1), padding="valid"),
    moved("Flip", lambda x: ops.flip(x, axis=(-1, 2)), "channels"),
    moved("Roll", lambda x: ops.roll(x, (2, -3), axis=(1, 2)), padding="valid"),
    moved("Roll", lambda x: ops.roll(x, 5), "flattened", known=False),
    moved(
        L.UpSampling1D,
        lambda x: ops.flip(L.UpSampling1D(3)(x), axis=1),
        "flipped",
        line,
        LINE,
        rank=1,
    ),
    moved(
        ("CropImages"), lambda x: ops.image.crop_images(x, 1, 2, target_height=5, target_width=4)
    ),
    moved(L.CenterCrop, lambda x: L.CenterCrop(5, 4)(x)),
    moved(L.CenterCrop, lambda x: L.CenterCrop(12, 4)(x), "smaller", known=False),
    moved("PadImages", lambda x: ops.image.pad_images(x, 1, 2, target_height=10, target_width=13)),
)

PATCHES = (
    moved("SpaceToDepth", lambda x: ops.space_to_depth(x, 2)),
    moved("DepthToSpace", lambda x: ops.depth_to_space(x, 2)),
    moved("ExtractPatches", lambda x: ops.image.extract_patches(x, 4), k=1),
    moved("ExtractPatches", lambda x: ops.image.extract_patches(x, 3, 2, padding="same"), "same"),
    shared("SpaceToDepth", lambda x: ops.space_to_depth(x, 2)),
    shared("DepthToSpace", lambda x: ops.depth_to_space(x, 2)),
    shared("ExtractPatches", lambda x: ops.image.extract_patches(x, 3, 2)),
)

CASES = (*PADDING, *INTERPOLATION, *ORDER, *PATCHES)
