"""Images that stay on the device, so that a batch is a few numbers for each image."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from common.batches import SeededBatches
from common.data import Images
from common.errors import UserError


class RowBatches(SeededBatches):
    """The batches of `SeededBatches`, as rows of numbers for `DeviceImages`."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        numbers, moves = self.draw(index)
        return rows(numbers, moves), self.y[numbers]


def rows(numbers: np.ndarray, moves: np.ndarray | None = None) -> np.ndarray:
    """What `DeviceImages` takes.

    Args:
        numbers: Which images, `(batch,)`.
        moves: From `batches.draw_moves`; `None` leaves the images as they are.

    Returns:
        Integers, `(batch, 4)`.
    """
    if moves is None:
        moves = np.zeros((len(numbers), 3), "int32")
    return np.concatenate([np.asarray(numbers, "int32")[:, None], moves], axis=1)


class DeviceImages(keras.layers.Layer):
    """Picks images by their number, shifts and mirrors them.

    All images are one variable in float32, on the device like any weight. Files of weights leave
    it out.

    Input shape:
        Integers `(batch, 4)`: the image's number, how far down and to the right the window is
        shifted, and whether it is mirrored.

    Output shape:
        `(batch, height, width, channels)`, bit for bit the images of `SeededBatches`.

    Args:
        x: Images, `(number, height, width, channels)`.
    """

    def __init__(self, x: np.ndarray) -> None:
        super().__init__(dtype="float32", autocast=False, name="device_images")
        number, self._height, self._width, channels = x.shape
        pixels = number * self._height * self._width
        if pixels >= 2**31:
            raise UserError(
                f"--data-on-device: {number:,} images of {self._height}×{self._width} are more "
                "pixels than 32 bits can count; leave the option out, or use --limit."
            )
        self._pixels = self.add_weight(
            name="pixels",
            shape=(pixels, channels),
            initializer=lambda shape, dtype: ops.convert_to_tensor(x.reshape(shape), dtype),
            trainable=False,
        )

    def call(self, inputs: Any) -> Any:
        """Gathers the pixels; those outside of an image are zero, the channel's mean."""
        inputs = ops.cast(inputs, "int32")
        number, down, right, mirrored = (inputs[:, n, None, None] for n in range(4))
        row = ops.arange(self._height, dtype="int32")[None, :, None] + down
        column = ops.arange(self._width, dtype="int32")[None, None, :]
        column = ops.where(mirrored == 1, self._width - 1 - column, column) + right
        inside = (row >= 0) & (row < self._height) & (column >= 0) & (column < self._width)
        place = (number * self._height + row) * self._width + column
        found = ops.take(self._pixels, ops.where(inside, place, 0), axis=0)
        return ops.where(inside[..., None], found, 0.0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Of the images."""
        return (input_shape[0], self._height, self._width, self._pixels.shape[-1])

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: the images are no state of the training."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing."""


def feeding(model: keras.Model, images: Images) -> keras.Model:
    """A model that takes `rows` of images in place of images, with the same weights.

    The validation images come after the training images.

    Args:
        model: Takes a batch of images.
        images: All that there are.
    """
    inputs = keras.Input((4,), dtype="int32", name="rows")
    every = np.concatenate([images.x_train, images.x_val])
    return keras.Model(inputs, model(DeviceImages(every)(inputs)))
