"""Images and labels as arrays, from scikit-learn, TensorFlow Datasets or a folder."""

from __future__ import annotations

import dataclasses

import numpy as np

from common import folder, tfds_data
from common.data_options import VALIDATION_SPLITS
from common.errors import UserError, require

#: The share of the images that is kept for validation where a source has no such split.
VALIDATION_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Images:
    """Training and validation images, scaled, with integer labels, and a remark on the split."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    num_classes: int
    note: str = ""

    def __str__(self) -> str:
        height, width, channels = self.x_train.shape[1:]
        return (
            f"{self.name}: {len(self.x_train):,} training and {len(self.x_val):,} validation "
            f"images of {height}×{width}×{channels}, {self.num_classes} classes"
            + (f"\n{self.note}" if self.note else "")
        )


def load(
    data: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    scaling: str = "standardize",
) -> Images:
    """Loads a data set and scales it.

    The split into training and validation images does not depend on any seed, so every run of
    every call sees the same ones.

    Args:
        data: "digits", "folder" or the name of a data set of TensorFlow Datasets.
        data_dir: The folder of images for "folder", else where TensorFlow Datasets keeps its data.
        image_size: The side that images are resized to; `None` keeps the size they have.
        limit: Use at most so many training images, and so many validation images.
        scaling: "standardize": channels by the mean and deviation of the training images; "unit":
            all pixels to [0, 1], by the least and the largest of the training images.

    Returns:
        The images.

    Raises:
        UserError: When the data is not there and cannot be fetched, or is not usable.
    """
    if data == "digits":
        name, train, val, num_classes = _digits(image_size)
    elif data == "folder":
        name, train, val, num_classes = folder.load(data_dir, image_size, limit)
    else:
        name, train, val, num_classes = tfds_data.load_named(data, data_dir, image_size, limit)
    note = ""
    if val is None:
        train, val = _split(*train)
        if data == "folder":
            folders = "/, ".join(VALIDATION_SPLITS)
            note = (
                f"--data-dir {data_dir} has none of {folders}/: {VALIDATION_SHARE:.0%} of the "
                "images of each class in train/ are kept for validation."
            )
    x_train, y_train, x_val, y_val = (array[:limit] for array in (*train, *val))
    if len(x_train) < 2 or not len(x_val):
        raise UserError(
            f"{name} has too few images: {len(x_train)} for training, {len(x_val)} for validation."
        )
    if min(y_train.min(), y_val.min()) < 0:
        raise UserError(f"{name} has images without a label in its training or validation split.")
    scale = {"standardize": _standardize, "unit": _to_unit}[scaling]
    x_train, x_val = scale(x_train, x_val)
    return Images(name, x_train, y_train, x_val, y_val, num_classes, note)


def _digits(image_size: int | None) -> folder.Loaded:
    datasets = require("sklearn.datasets", "scikit-learn", "for --data digits")
    bunch = datasets.load_digits()
    x = bunch.images[..., None].astype("float32")
    if image_size is not None and image_size != x.shape[1]:
        from keras import ops

        resized = ops.image.resize(x, (image_size, image_size), data_format="channels_last")
        x = ops.convert_to_numpy(resized)
    return "digits", (x, bunch.target.astype("int32")), None, 10


def _split(x: np.ndarray, y: np.ndarray) -> tuple[folder.Arrays, folder.Arrays]:
    """Keeps the same share of each class for validation; both parts come out shuffled."""
    order = np.random.default_rng(0).permutation(len(y))
    held_out = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = order[y[order] == label]
        held_out[members[: round(VALIDATION_SHARE * len(members))]] = True
    train, val = order[~held_out[order]], order[held_out[order]]
    return (x[train], y[train]), (x[val], y[val])


def _standardize(x_train: np.ndarray, x_val: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axes = (0, 1, 2)
    mean = x_train.mean(axis=axes, dtype="float64").astype("float32")
    deviation = x_train.std(axis=axes, dtype="float64").astype("float32")
    deviation = np.where(deviation > 0, deviation, 1)
    return (x_train - mean) / deviation, (x_val - mean) / deviation


def _to_unit(x_train: np.ndarray, x_val: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = x_train.min(), x_train.max()
    span = high - low if high > low else np.float32(1)
    return (x_train - low) / span, np.clip((x_val - low) / span, 0, 1)
