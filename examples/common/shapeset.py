"""Shapeset-3×2: seeded grey images of one or two triangles, parallelograms and ellipses.

After the data set of Glorot & Bengio (2010): any number of images, with random position, size and
rotation of each object, and nine classes, which say what is in the picture and not what lies in
front. What their paper leaves open is chosen here: the range of sizes, the least angles, the grey
levels and how an edge is smoothed; see `draw`.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

SHAPES = ("triangle", "parallelogram", "ellipse")
#: What is in a picture, as indices of `SHAPES`: one object, or two in any order.
CONTENTS = ((0,), (1,), (2,), (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
CLASSES = tuple(" + ".join(SHAPES[shape] for shape in content) for content in CONTENTS)
SIZE = 32
#: Radius of the circle around an object's centre that holds it, in 32nds of the side.
RADII = (5.0, 11.0)
#: The object in front covers at most so much of the area of the other.
MOST_COVERED = 0.5
#: Background and objects differ by this grey level at least.
CONTRAST = 0.2

_BLOCK = 1000  # images drawn at a time, few enough for the processor's cache


@dataclasses.dataclass(frozen=True)
class Objects:
    """Objects of one shape, one in each picture; lengths in pixels, angles in radians.

    Attributes:
        shape: 0, 1 or 2: which of `SHAPES`.
        centres: `(number, 2)`, x and y.
        lines: `(number, k, 3)`: the normals and offsets (a, b, c) of linear forms a·x + b·y + c
            with x and y from the centre. Of a triangle three, each the distance from a side,
            positive inside. Of a parallelogram and an ellipse two: the distances from its middle
            lines, and the coordinates along its axes in units of the semi-axes.
        extents: `(number, 2)`: half the distances between the sides of a parallelogram, the
            semi-axes of an ellipse; of a triangle zeros.
        areas: `(number,)`, in square pixels.
    """

    shape: int
    centres: np.ndarray
    lines: np.ndarray
    extents: np.ndarray
    areas: np.ndarray

    def coverage(self, size: int = SIZE) -> np.ndarray:
        """How much of each pixel an object fills: `(number, size, size)`, from 0 to 1.

        An edge's pixel is filled by its centre's distance from the edge plus ½. Areas are right to
        1 % in the mean; a small triangle's corners add up to 7 %.
        """
        places = np.arange(size, dtype="float32") + 0.5
        x = places - self.centres[:, :1].astype("float32")
        y = places - self.centres[:, 1:].astype("float32")
        forms = [
            (a[:, None] * x)[:, None, :] + (b[:, None] * y + c[:, None])[:, :, None]
            for a, b, c in self.lines.astype("float32").transpose(1, 2, 0)
        ]
        if self.shape == 0:
            distance = np.minimum(np.minimum(forms[0], forms[1]), forms[2])
        elif self.shape == 1:
            sides = self.extents.astype("float32")[:, :, None, None]
            distance = np.minimum(sides[:, 0] - np.abs(forms[0]), sides[:, 1] - np.abs(forms[1]))
        else:
            distance = _distance_from_ellipse(*forms, self.extents.astype("float32"))
        distance += np.float32(0.5)
        return np.clip(distance, 0, 1, out=distance)


def draw(number: int, seed: int | tuple[int, ...], size: int = SIZE) -> tuple[np.ndarray, ...]:
    """Draws pictures; the same for the same arguments.

    The classes are as equally frequent as their number allows, in random order. Positions are
    uniform where the circle around an object fits into the picture, circles' radii uniform in
    `RADII`, rotations uniform. No angle of a triangle is below 30°, none of a parallelogram below
    50°; its shorter sides, and an ellipse's shorter axes, are 0.5 to 1 and 0.4 to 0.9 of the longer
    ones. Of two objects, the one in front is drawn again until it covers at most half of the
    other. The three grey levels lie at least `CONTRAST` apart.

    Args:
        number: Of pictures.
        seed: One number, or several.
        size: The side in pixels.

    Returns:
        Images, `(number, size, size)`, float32 from 0 to 1, and labels, indices of `CLASSES`.
    """
    images = np.empty((number, size, size), "float32")
    labels = np.random.default_rng(seed).permutation(np.arange(number) % len(CLASSES))
    seeds = np.random.SeedSequence(seed).spawn(-(-number // _BLOCK))
    for block, block_seed in enumerate(seeds):
        rows = slice(block * _BLOCK, (block + 1) * _BLOCK)
        rng = np.random.default_rng(block_seed)
        images[rows] = _draw_block(labels[rows], rng, size)
    return images, labels.astype("int32")


def draw_coverages(
    labels: np.ndarray, rng: np.random.Generator, size: int = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Where the objects of pictures lie.

    Args:
        labels: Indices of `CLASSES`.
        rng: Where the objects come from.
        size: The side in pixels.

    Returns:
        How much of each pixel the object behind fills, and how much the one in front, each
        `(number, size, size)`; the latter is zero in pictures of one object.
    """
    swap = rng.random(len(labels)) < 0.5
    contents = np.array([content if len(content) == 2 else (*content, -1) for content in CONTENTS])
    shapes = contents[labels]
    two = shapes[:, 1] >= 0
    shapes[two & swap] = shapes[two & swap, ::-1]
    behind = _coverages(shapes[:, 0], rng, size)
    front = np.zeros_like(behind)
    missing = np.flatnonzero(two)
    while len(missing):
        front[missing] = _coverages(shapes[missing, 1], rng, size)
        covered = np.einsum("nij,nij->n", behind[missing], front[missing])
        missing = missing[covered > MOST_COVERED * behind[missing].sum(axis=(1, 2))]
    return behind, front


def random_objects(shape: int, number: int, rng: np.random.Generator, size: int = SIZE) -> Objects:
    """Objects of a shape, each inside a picture of its own.

    Args:
        shape: Index of `SHAPES`.
        number: Of objects.
        rng: Where they come from.
        size: The pictures' side in pixels.
    """
    radii = rng.uniform(*RADII, number) * size / SIZE
    centres = radii[:, None] + rng.random((number, 2)) * (size - 2 * radii[:, None])
    turns = rng.uniform(0, 2 * np.pi, number)
    make = (_triangles, _parallelograms, _ellipses)[shape]
    return Objects(shape, centres, *make(radii, turns, rng))


class FreshShapes(keras.utils.PyDataset):
    """Batches of pictures as rows, never the same picture twice.

    Args:
        number: Pictures in an epoch; the last, incomplete batch is left out.
        batch_size: Pictures in a batch.
        seed: Decides all of them, with the epoch.
        standard: What is subtracted from each pixel, and what it is divided by then.
    """

    def __init__(
        self, number: int, batch_size: int, seed: int, standard: tuple[float, float]
    ) -> None:
        super().__init__()
        self._batches = number // batch_size
        self._batch_size, self._seed, self._standard = batch_size, seed, standard
        self._in_chunk = max(1, 2 * _BLOCK // batch_size)
        self._epoch = 0
        self._drawn: tuple[int, int] | None = None
        self._x = self._y = np.empty(0)

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chunk, place = divmod(index, self._in_chunk)
        if self._drawn != (self._epoch, chunk):
            count = self._in_chunk * self._batch_size
            images, self._y = draw(count, (self._seed, self._epoch, chunk))
            self._x = standardized(images, *self._standard)
            self._drawn = (self._epoch, chunk)
        rows = slice(place * self._batch_size, (place + 1) * self._batch_size)
        return self._x[rows], self._y[rows]

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch."""
        self.start_epoch(self._epoch + 1)

    def start_epoch(self, epoch: int) -> None:
        """Goes to an epoch, the first of which is 0."""
        self._epoch = epoch


def standardized(images: np.ndarray, shift: float, scale: float) -> np.ndarray:
    """Pictures as rows, `(number, size²)`, shifted and scaled."""
    rows = images.reshape(len(images), -1)
    rows -= np.float32(shift)
    rows /= np.float32(scale)
    return rows


def _draw_block(labels: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    behind, front = draw_coverages(labels, rng, size)
    levels = np.sort(rng.uniform(0, 1 - 2 * CONTRAST, (len(labels), 3)), axis=1)
    levels = rng.permuted(levels + CONTRAST * np.arange(3), axis=1).astype("float32")
    ground, first, second = levels.T[:, :, None, None]
    image = ground + (first - ground) * behind
    image += (second - image) * front
    return image


def _coverages(shapes: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    filled = np.empty((len(shapes), size, size), "float32")
    for shape in range(len(SHAPES)):
        rows = np.flatnonzero(shapes == shape)
        filled[rows] = random_objects(shape, len(rows), rng, size).coverage(size)
    return filled


def _triangles(
    radii: np.ndarray, turns: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Corners on the circle; an angle is half of the arc that it looks at."""
    arcs = np.pi / 3 + np.pi * rng.dirichlet(np.ones(3), len(radii))
    at = turns[:, None] + np.cumsum(arcs, axis=1)
    sides = at + arcs[:, [1, 2, 0]] / 2  # where the normal of the next side points
    half = np.cos(arcs[:, [1, 2, 0]] / 2)
    lines = np.stack([-np.cos(sides), -np.sin(sides), radii[:, None] * half], axis=2)
    areas = radii**2 / 2 * np.sin(arcs).sum(axis=1)
    return lines, np.zeros((len(radii), 2)), areas


def _parallelograms(
    radii: np.ndarray, turns: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Half the sides are p = (1, 0) and q = r·(cos α, sin α), turned, and scaled to the circle."""
    ratio = rng.uniform(0.5, 1, len(radii))
    angle = np.deg2rad(rng.uniform(50, 130, len(radii)))
    diagonal = np.sqrt(1 + ratio**2 + 2 * ratio * np.abs(np.cos(angle)))
    p = radii / diagonal
    q = ratio * p
    zero = np.zeros_like(turns)
    lines = np.stack(
        [
            np.stack([-np.sin(turns), np.cos(turns), zero], axis=1),
            np.stack([-np.sin(turns + angle), np.cos(turns + angle), zero], axis=1),
        ],
        axis=1,
    )
    extents = np.sin(angle)[:, None] * np.stack([q, p], axis=1)
    return lines, extents, 4 * p * q * np.sin(angle)


def _ellipses(
    radii: np.ndarray, turns: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    minor = radii * rng.uniform(0.4, 0.9, len(radii))
    zero = np.zeros_like(turns)
    lines = np.stack(
        [
            np.stack([np.cos(turns) / radii, np.sin(turns) / radii, zero], axis=1),
            np.stack([-np.sin(turns) / minor, np.cos(turns) / minor, zero], axis=1),
        ],
        axis=1,
    )
    return lines, np.stack([radii, minor], axis=1), np.pi * radii * minor


def _distance_from_ellipse(u: np.ndarray, v: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """To first order: (1 - ρ)/|∇ρ| with ρ² = u² + v², u and v in units of the semi-axes."""
    a, b = axes.T[:, :, None, None]
    radius = np.sqrt(u**2 + v**2)
    slope = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    return (1 - radius) * radius / np.maximum(slope, np.float32(1e-6))
