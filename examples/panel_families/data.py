"""Data for the panel that comes with Python and scikit-learn, or is made up.

Each set is the same in every call. The parts of text and photographs are cut out of places that do
not touch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable

import numpy as np
from common import data as image_data
from common.errors import UserError, require
from common.population import Arrays, Task

TEST, VALIDATION = 400, 300
_COUNTS = (3000, VALIDATION, TEST)


def _parts(x: np.ndarray, y: np.ndarray, shares: tuple[float, float] | None = None) -> list[Arrays]:
    """Splits rows at random into those to train on, to validate on and to test on."""
    validation, test = (
        (VALIDATION, TEST) if shares is None else (round(share * len(x)) for share in shares)
    )
    order = np.random.default_rng(0).permutation(len(x))
    ends = np.split(order, [len(x) - validation - test, len(x) - test])
    return [(x[rows], y[rows]) for rows in ends]


def _standardized(parts: list[Arrays], axes: tuple[int, ...]) -> list[Arrays]:
    x = parts[0][0]
    mean, deviation = x.mean(axis=axes), x.std(axis=axes)
    deviation = np.where(deviation > 0, deviation, 1)
    return [((x - mean) / deviation, y) for x, y in parts]


def _typed(part: Arrays) -> Arrays:
    x, y = part
    whole = np.issubdtype(y.dtype, np.integer)
    of_tokens = np.issubdtype(x.dtype, np.integer)
    return (
        np.ascontiguousarray(x, "int32" if of_tokens else "float32"),
        np.ascontiguousarray(y, "int32" if whole else "float32"),
    )


def _task(name: str, parts: list[Arrays], metric: str) -> Task:
    return Task(name, *map(_typed, parts), metric)  # type: ignore[arg-type]


def _datasets() -> object:
    return require("sklearn.datasets", "scikit-learn", "for the panel's data")


@functools.cache
def digits() -> Task:
    """Handwritten digits, 8×8."""
    bunch = _datasets().load_digits()
    parts = _parts(bunch.images[..., None] / 16, bunch.target)
    return _task("digits", _standardized(parts, (0, 1, 2)), "accuracy")


@functools.cache
def flat_digits() -> Task:
    """Handwritten digits as 64 numbers."""
    return _reshaped(digits(), "digits", (64,))


@functools.cache
def pixels_in_a_row() -> Task:
    """Handwritten digits, pixel after pixel: 64 steps."""
    return _reshaped(digits(), "digits, pixel after pixel", (64, 1))


@functools.cache
def shuffled_pixels() -> Task:
    """Handwritten digits, pixel after pixel in an order that has nothing to do with the image."""
    task = pixels_in_a_row()
    order = np.random.default_rng(1).permutation(64)
    parts = [(x[:, order], y) for x, y in (task.train, task.validation, task.test)]
    return _task("digits, pixels shuffled", parts, "accuracy")


def _reshaped(task: Task, name: str, shape: tuple[int, ...]) -> Task:
    parts = [(x.reshape(-1, *shape), y) for x, y in (task.train, task.validation, task.test)]
    return _task(name, parts, "accuracy")


def _crops(size: int = 16) -> list[np.ndarray]:
    """Squares of scikit-learn's two photographs at half resolution; the parts lie side by side."""
    photographs = _datasets().load_sample_images().images
    rng = np.random.default_rng(0)
    parts = []
    for low, high, count in zip((0, 0.7, 0.84), (0.7, 0.84, 1), _COUNTS, strict=True):
        squares = []
        for photograph in photographs:
            rows, columns = (side // 2 for side in photograph.shape[:2])
            half = photograph[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 3) / 255
            half = half.mean(axis=(1, 3))[:, round(low * columns) : round(high * columns)]
            windows = np.lib.stride_tricks.sliding_window_view(half, (size, size), axis=(0, 1))
            squares.append(windows[::3, ::3].reshape(-1, 3, size, size))
        every = np.concatenate(squares).transpose(0, 2, 3, 1)
        parts.append(every[rng.permutation(len(every))[:count]])
    return parts


def _moved(name: str, zoom: int, size: int, counts: tuple[int, int, int]) -> Task:
    """Handwritten digits at random places of larger images, under noise."""
    bunch = _datasets().load_digits()
    rng = np.random.default_rng(1)
    images, side = np.kron(bunch.images / 16, np.ones((zoom, zoom))), 8 * zoom
    parts = []
    for (x, y), count in zip(_parts(images, bunch.target), counts, strict=True):
        rows = rng.integers(len(x), size=count) if count > len(x) else np.arange(count)
        frames = 0.1 * rng.standard_normal((count, size, size))
        for frame, row, (top, left) in zip(
            frames, rows, rng.integers(size - side + 1, size=(count, 2)), strict=True
        ):
            frame[top : top + side, left : left + side] += x[row]
        parts.append((frames[..., None], y[rows]))
    return _task(name, _standardized(parts, (0, 1, 2)), "accuracy")


@functools.cache
def moved_digits() -> Task:
    """Handwritten digits at random places of 12×12 pixels, under noise."""
    return _moved("moved digits", 1, 12, _COUNTS)


@functools.cache
def large_moved_digits() -> Task:
    """Handwritten digits, enlarged to 24×24, at random places of 32×32 pixels, under noise."""
    return _moved("large moved digits", 3, 32, (10_000, VALIDATION, TEST))


@functools.cache
def flat_moved_digits() -> Task:
    """The same as 144 numbers."""
    return _reshaped(moved_digits(), "moved digits", (144,))


@functools.cache
def noisy_photographs() -> Task:
    """Squares of photographs with noise of half their deviation, which is to be taken away."""
    rng = np.random.default_rng(1)
    clean = _standardized([(crops, crops) for crops in _crops()], (0, 1, 2))
    parts = [(x + 0.5 * rng.standard_normal(x.shape), x) for x, _ in clean]
    return _task("noisy photographs", parts, "error")


@functools.cache
def folder(path: str) -> Task:
    """Images in a folder: train/<class>/*.png (or .jpg), and val/ or test/ alike.

    Half of the latter are for validation.

    Args:
        path: The folder.
    """
    images = image_data.load("folder", path, 32)
    half = len(images.x_val) // 2
    parts = [
        (images.x_train, images.y_train),
        (images.x_val[:half], images.y_val[:half]),
        (images.x_val[half:], images.y_val[half:]),
    ]
    return _task(images.name, parts, "accuracy")


@functools.cache
def flat_folder(path: str) -> Task:
    """Images in a folder as rows of numbers.

    Args:
        path: As of `folder`.
    """
    task = folder(path)
    return _reshaped(task, task.name, (task.train[0][0].size,))


@functools.cache
def noisy_folder(path: str) -> Task:
    """Images in a folder with noise of half their deviation, which is to be taken away.

    Args:
        path: As of `folder`.
    """
    task = folder(path)
    rng = np.random.default_rng(1)
    parts = [
        (x + 0.5 * rng.standard_normal(x.shape, dtype="float32"), x)
        for x, _ in (task.train, task.validation, task.test)
    ]
    return _task(f"{task.name}, noisy", parts, "error")


@functools.cache
def digits_again() -> Task:
    """Handwritten digits, which are to be reconstructed."""
    task = digits()
    parts = [(x, x) for x, _ in (task.train, task.validation, task.test)]
    return _task("digits", parts, "error")


def _characters(name: str, text: str, context: int = 48) -> Task:
    """Rows of a text, each with the characters that follow."""
    kept = np.frombuffer(text.encode("ascii", "ignore"), np.uint8)
    ids = np.unique(kept, return_inverse=True)[1]
    count = (len(ids) - 1) // context
    if count < 2000:
        raise UserError(f"The text {name} has {len(text):,} characters, which are too few.")
    x, y = (ids[n : n + count * context].reshape(count, context) for n in (0, 1))
    tenth = count // 10
    validation, test = slice(-2 * tenth, -tenth), slice(-tenth, None)
    rng = np.random.default_rng(0)
    parts = [(x[: -2 * tenth], y[: -2 * tenth])]
    for part, most in ((validation, VALIDATION // 2), (test, TEST // 2)):
        rows = rng.permutation(tenth)[:most]
        parts.append((x[part][rows], y[part][rows]))
    return _task(name, parts, "nats")


@functools.cache
def python_reference() -> Task:
    """Characters of Python's reference, as `help()` shows it."""
    topics = importlib.import_module("pydoc_data.topics").topics
    return _characters("Python's reference", "\n".join(topics.values()))


@functools.cache
def python_sources() -> Task:
    """Characters of some modules of the standard library."""
    names = ("argparse", "ast", "datetime", "inspect", "logging", "pathlib", "tarfile", "typing")
    text = "\n".join(inspect.getsource(importlib.import_module(name)) for name in names)
    return _characters("Python's sources", text)


@functools.cache
def diabetes() -> Task:
    """Progress of a disease out of ten numbers."""
    bunch = _datasets().load_diabetes()
    target = (bunch.target - bunch.target.mean()) / bunch.target.std()
    parts = _parts(bunch.data, target[:, None], (0.2, 0.3))
    return _task("diabetes", _standardized(parts, (0,)), "error")


@functools.cache
def breast_cancer() -> Task:
    """Benign or malign, out of thirty numbers."""
    bunch = _datasets().load_breast_cancer()
    parts = _parts(bunch.data, bunch.target, (0.2, 0.3))
    return _task("breast cancer", _standardized(parts, (0,)), "nats")


def _curve(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Task:
    rng = np.random.default_rng(0)
    parts = []
    for count in (256, VALIDATION, TEST):
        x = rng.uniform(-1, 1, (count, 1))
        parts.append((x, function(x)))
    return _task(name, parts, "error")


@functools.cache
def sine() -> Task:
    """Two periods of a sine."""
    return _curve("sine", lambda x: np.sin(2 * np.pi * x))


@functools.cache
def chirp() -> Task:
    """A sine whose frequency grows."""
    return _curve("chirp", lambda x: np.sin(np.pi * (x + 2) ** 2))


@functools.cache
def adding(steps: int) -> Task:
    """Two of many numbers are marked: their sum (Hochreiter & Schmidhuber 1997).

    Args:
        steps: How many numbers there are.
    """
    rng = np.random.default_rng(steps)
    parts = []
    for count in (4000, VALIDATION, TEST):
        numbers, marks = rng.uniform(size=(count, steps)), np.zeros((count, steps))
        half = steps // 2
        for columns in (rng.integers(half, size=count), rng.integers(half, steps, size=count)):
            marks[np.arange(count), columns] = 1
        target = (numbers * marks).sum(axis=1, keepdims=True) - 1
        parts.append((np.stack([numbers, marks], axis=-1), target))
    return _task(f"adding problem, {steps} steps", parts, "error")
