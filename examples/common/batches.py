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
        self.x, self.y = x, y
        self._batch_size = min(batch_size, len(x))
        self._seed = seed
        self._augment = augment
        self._epoch = 0
        self._shuffle()

    def __len__(self) -> int:
        return len(self.x) // self._batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        numbers, moves = self.draw(index)
        x = self.x[numbers]
        return x if moves is None else move(x, moves), self.y[numbers]

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Which images a batch has, and how `move` is to move them, if at all."""
        start = index * self._batch_size
        numbers = self._order[start : start + self._batch_size]
        if self._augment == "none":
            return numbers, None
        rng = np.random.default_rng((self._seed, self._epoch, index))
        mirror = self._augment == "flip"
        return numbers, draw_moves(len(numbers), self.x.shape[1], rng, mirror)

    def on_epoch_end(self) -> None:
        """Draws the next epoch's order."""
        self.start_epoch(self._epoch + 1)

    def start_epoch(self, epoch: int) -> None:
        """Draws the order of an epoch, the first of which is 0."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._shuffle()

    def _shuffle(self) -> None:
        self._order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self.x))


def draw_moves(number: int, height: int, rng: np.random.Generator, mirror: bool) -> np.ndarray:
    """Draws by how much each image is shifted, up to an eighth of its side, and mirrored.

    Args:
        number: Of images.
        height: Of an image.
        rng: Where the shifts come from.
        mirror: Whether to mirror half of them left and right.

    Returns:
        Integers, `(number, 3)`: down, right, and 1 for a mirrored image, else 0.
    """
    reach = max(1, height // 8)
    shifts = rng.integers(0, 2 * reach + 1, size=(2, number)) - reach
    mirrored = rng.random(number) < 0.5 if mirror else np.zeros(number, bool)
    return np.stack([*shifts, mirrored], axis=1).astype("int32")


def move(x: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Shifts the window onto each image, and mirrors what it shows.

    Args:
        x: Images, `(number, height, width, channels)`.
        moves: From `draw_moves`.

    Returns:
        New images; what lies outside of the old ones is zero, the channel's mean.
    """
    number, height, width = x.shape[:3]
    reach = int(np.abs(moves[:, :2]).max(initial=0))
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    down, right, mirrored = moves.T[:, :, None]
    rows = (reach + down + np.arange(height))[:, :, None]
    columns = np.arange(width)
    columns = reach + right + np.where(mirrored == 1, columns[::-1], columns)
    return padded[np.arange(number)[:, None, None], rows, columns[:, None, :]]
