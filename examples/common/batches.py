"""Batches whose order and augmentation depend on nothing but a seed and the epoch."""

from __future__ import annotations

import keras
import numpy as np


class SeededBatches(keras.utils.PyDataset):
    """Shuffled, augmented batches that are the same for every model trained with a seed.

    Keras' own shuffling draws from the backend's global generator, whose state depends on how
    many weights were drawn before; with this class two initializers see the same batches.

    Args:
        x: Images, `(number, height, width, channels)`.
        y: Integer labels.
        batch_size: Images in a batch; the last, incomplete batch of an epoch is left out.
        seed: Decides the order and the augmentation.
        augment: "none", "shift" (by up to an eighth of the side) or "flip" (shift and mirror).
    """

    def __init__(
        self, x: np.ndarray, y: np.ndarray, batch_size: int, seed: int, augment: str = "none"
    ) -> None:
        super().__init__()
        self._x, self._y = x, y
        self._batch_size = min(batch_size, len(x))
        self._seed = seed
        self._augment = augment
        self._epoch = 0
        self._shuffle()

    def __len__(self) -> int:
        return len(self._x) // self._batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * self._batch_size
        rows = self._order[start : start + self._batch_size]
        x = self._x[rows]
        if self._augment != "none":
            rng = np.random.default_rng((self._seed, self._epoch, index))
            x = augment(x, rng, mirror=self._augment == "flip")
        return x, self._y[rows]

    def on_epoch_end(self) -> None:
        """Draws the next epoch's order."""
        self.start_epoch(self._epoch + 1)

    def start_epoch(self, epoch: int) -> None:
        """Draws the order of an epoch, the first of which is 0."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._shuffle()

    def _shuffle(self) -> None:
        self._order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._x))


def augment(x: np.ndarray, rng: np.random.Generator, mirror: bool) -> np.ndarray:
    """Shifts each image by up to an eighth of its side, and mirrors half of them if asked.

    Args:
        x: Images, `(number, height, width, channels)`.
        rng: Where the shifts come from.
        mirror: Whether to mirror left and right.

    Returns:
        New images; what is shifted in is zero, the channel's mean.
    """
    number, height, width = x.shape[:3]
    reach = max(1, height // 8)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    down, right = rng.integers(0, 2 * reach + 1, size=(2, number, 1))
    rows = (down + np.arange(height))[:, :, None]
    columns = right + np.arange(width)
    if mirror:
        columns = np.where(rng.random((number, 1)) < 0.5, columns[:, ::-1], columns)
    return padded[np.arange(number)[:, None, None], rows, columns[:, None, :]]
