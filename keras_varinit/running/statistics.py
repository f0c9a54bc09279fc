"""Moments and histograms of signals, accumulated over batches.

A tensor is summarized on its device as a short vector, so that little is copied; the vectors of all
batches are merged on the host in float64. Entries are divided by the largest one before they are
squared, so that a signal of 1e-30 or 1e30 has a second moment too.
"""

import dataclasses
import functools
import math

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.maths.quadrature import Activation
from keras_varinit.typing import AnyArray, ArrayLike, Config, Tensor

Array = npt.NDArray[np.float64]

BINS = 81  # odd, so that zeros lie in the middle of a bin

LIMIT = 4.0  # histograms range from -LIMIT to LIMIT in units of the root mean square

_EDGES = np.linspace(-LIMIT, LIMIT, BINS + 1).astype("float32")

_SAMPLE = 1 << 14  # entries per batch that go into a histogram

_HEAD = 5  # numbers of a summary that precede the histogram

LENGTH = _HEAD + BINS + 2

FLAT_SLOPE = 1e-2

ZERO_SLOPE = 1e-6


def stride_for(shape: tuple[int, ...]) -> int:
    """The stride at which to sample a tensor's entries; coprime to its size, to cover all axes."""
    size = math.prod(shape)
    stride = max(1, size // _SAMPLE)
    while math.gcd(stride, max(1, size)) != 1:
        stride += 1
    return stride


def summarize(tensor: Tensor, scale: ArrayLike, stride: ArrayLike) -> ArrayLike:
    """Summarizes a tensor as a vector: non-finite count, largest, mean, variance, scale, *counts.

    Mean and variance are those of the finite entries divided by the largest. The histogram's unit
    is `scale`, or the root mean square if `scale` is 0.

    Args:
        tensor: Any shape.
        scale: Unit of the histogram; 0 for the root mean square.
        stride: See `stride_for`.

    Returns:
        A float32 tensor, (LENGTH,).
    """
    ops = keras.ops
    flat = ops.reshape(ops.cast(tensor, "float32"), (-1,))
    finite = ops.isfinite(flat)
    flat = ops.where(finite, flat, ops.zeros_like(flat))
    weight = ops.cast(finite, "float32")
    count = ops.maximum(ops.sum(weight), 1.0)
    largest = ops.max(ops.abs(flat))
    unit = ops.where(largest > 0, largest, ops.ones_like(largest))
    z = flat / unit
    mean = ops.sum(z) / count
    variance = ops.sum(ops.square(z - mean) * weight) / count
    rms = ops.sqrt(variance + mean * mean) * unit
    rms = ops.where(rms > 0, rms, ops.ones_like(rms))
    scale = ops.where(scale > 0, scale, rms)
    ordered = ops.sort(ops.reshape(flat[::stride] / scale, (-1,)))
    below = ops.cast(_searchsorted(ordered, ops.convert_to_tensor(_EDGES)), "float32")
    sampled = ops.cast(ops.convert_to_tensor(ops.shape(ordered)[0]), "float32")
    cumulated = ops.concatenate([ops.zeros((1,), "float32"), below, ops.reshape(sampled, (1,))])
    head = ops.stack([ops.sum(1.0 - weight), largest, mean, variance, scale])
    return ops.concatenate([head, cumulated[1:] - cumulated[:-1]])


def _searchsorted(ordered: Tensor, values: Tensor) -> ArrayLike:
    """`ops.searchsorted`, which in Keras 3.10 fails on TensorFlow's symbolic tensors.

    Args:
        ordered: (entries,), ascending.
        values: (values,).
    """
    if keras.backend.backend() != "tensorflow":
        return keras.ops.searchsorted(ordered, values)
    import tensorflow as tf

    return tf.searchsorted(ordered, values)


def summarize_on_host(tensor: Tensor, scale: float, stride: int) -> npt.NDArray[np.float32]:
    """`summarize` in NumPy, for tensors in the host's memory, where compiling would be slow."""
    flat = np.asarray(tensor).astype(np.float32, copy=False).reshape(-1)
    finite = np.isfinite(flat)
    count = int(np.count_nonzero(finite))
    nonfinite = flat.size - count
    if nonfinite:
        flat = np.where(finite, flat, np.float32(0))
    largest = max(float(np.max(flat)), -float(np.min(flat)))
    z = flat / np.float32(largest or 1.0)
    mean = float(np.sum(z)) / max(count, 1)
    centred = z - np.float32(mean)
    variance = float(np.sum(np.square(centred, out=centred), where=finite)) / max(count, 1)
    rms = math.sqrt(variance + mean * mean) * (largest or 1.0)
    scale = float(scale) or rms or 1.0
    ordered = np.sort(flat[::stride] / np.float32(scale))
    cumulated = np.concatenate([[0], np.searchsorted(ordered, _EDGES), [len(ordered)]])
    head = [nonfinite, largest, mean, variance, scale]
    return np.concatenate([head, np.diff(cumulated)]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of entries, (bins,), between `edges`, (bins + 1,), in the signal's own units.

    `below` and `above` count the entries beyond the first and the last edge.
    """

    edges: Array
    counts: Array
    below: float
    above: float

    @property
    def density(self) -> Array:
        """Probability density, (bins,); entries beyond the edges count towards the total."""
        total = float(self.counts.sum()) + self.below + self.above
        return self.counts / (max(total, 1.0) * np.diff(self.edges))

    def to_dict(self) -> Config:
        """JSON primitives."""
        return {
            "edges": [float(v) for v in self.edges],
            "counts": [int(v) for v in self.counts],
            "below": int(self.below),
            "above": int(self.above),
        }


class RunningMoments:
    """Count, mean, variance and histogram of a signal, accumulated over batches."""

    def __init__(self) -> None:
        self.count = 0
        self.nonfinite = 0
        self.mean = 0.0
        self.squares = 0.0  # Σ (x - mean)²
        self.scale = 0.0
        self.histogram_counts = np.zeros(BINS + 2)

    def add(self, summary: npt.NDArray[np.float32], size: int) -> None:
        """Adds the summary, (LENGTH,), of a tensor with `size` entries."""
        nonfinite, largest, mean, variance, scale = (float(v) for v in summary[:_HEAD])
        count = size - round(nonfinite)
        self.nonfinite += round(nonfinite)
        self.scale = scale
        self.histogram_counts += summary[_HEAD:]
        if count <= 0:
            return
        self._merge(count, mean * largest, variance * largest * largest * count)

    def _merge(self, count: int, mean: float, squares: float) -> None:
        """Adds `count` entries with that mean and that Σ (x - mean)²: Chan's parallel algorithm."""
        total = self.count + count
        delta = mean - self.mean
        self.squares += squares + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def add_values(self, values: AnyArray) -> None:
        """Adds the entries of an array."""
        values = values.astype(np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            self._merge(values.size, float(values.mean()), float(values.var()) * values.size)

    @property
    def variance(self) -> float:
        """The variance of the finite entries; NaN if there are none."""
        return self.squares / self.count if self.count else math.nan

    @property
    def second_moment(self) -> float:
        """The mean of the squares of the finite entries."""
        return self.variance + self.mean**2

    def histogram(self) -> Histogram:
        """The histogram in the signal's own units."""
        edges = _EDGES.astype(np.float64) * (self.scale or 1.0)
        counts = self.histogram_counts
        return Histogram(edges, counts[1:-1].copy(), float(counts[0]), float(counts[-1]))


@dataclasses.dataclass(frozen=True)
class FlatParts:
    """Where an activation function is flat, below `low` and above `high`, and where constant.

    `is_off_below` says that it is constantly 0 below 0, as ReLU is: such entries are off and do not
    count as saturated.
    """

    low: float
    high: float
    constant_low: float
    constant_high: float
    is_off_below: bool

    @property
    def saturates(self) -> bool:
        """Whether it is flat on both sides."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@functools.lru_cache(maxsize=256)
def flat_parts(function: Activation) -> FlatParts:
    """The outer parts of the real line on which a function is flat or constant.

    Flat means a slope below 1/100 of the largest, constant one below 1e-6 of it.
    """
    inner = np.arange(-2000, 2001) / 100
    outer = np.geomspace(20.5, 1e4, 200)
    grid = np.concatenate([-outer[::-1], inner, outer])
    with np.errstate(all="ignore"):
        values = np.asarray(function.function(grid), np.float64)
        slopes = np.abs(np.diff(values) / np.diff(grid))
    slopes = np.where(np.isfinite(slopes), slopes, np.inf)
    inside = slopes[(grid[:-1] >= -20) & (grid[:-1] < 20)]
    top = float(np.max(inside[np.isfinite(inside)], initial=0.0))
    if top == 0.0:
        return FlatParts(-math.inf, math.inf, -math.inf, math.inf, False)
    low, high = _ends(grid, slopes < FLAT_SLOPE * (1 - 1e-6) * top)
    constant_low, constant_high = _ends(grid, slopes < ZERO_SLOPE * top)
    is_off = constant_low == 0.0 and abs(values[0]) < 1e-6
    return FlatParts(low, high, constant_low, constant_high, is_off)


def _ends(grid: Array, is_flat: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Where the flat part on the left ends, and where the one on the right begins.

    Args:
        grid: (points,), ascending.
        is_flat: (points - 1,), for the intervals between them.
    """
    steep = np.flatnonzero(~is_flat)
    first, last = int(steep[0]), int(steep[-1])
    low = float(grid[first]) if first > 0 else -math.inf
    high = float(grid[last + 1]) if last + 1 < len(is_flat) else math.inf
    return low, high


def count_flat(before: Tensor, bounds: ArrayLike, axis: int) -> ArrayLike:
    """Counts saturated entries, and tells which channels are alive.

    Args:
        before: An activation's input.
        bounds: (4,): low, high, constant_low and constant_high of `FlatParts`.
        axis: The channel axis.

    Returns:
        A float32 tensor, (2 + channels,): the numbers of entries up to `low` and from `high` on;
        then for each channel 1 if the function is not constant at one of its entries, else 0.
    """
    ops = keras.ops
    before = ops.cast(before, "float32")
    low = ops.sum(ops.cast(before <= bounds[0], "float32"))
    high = ops.sum(ops.cast(before >= bounds[1], "float32"))
    constant = ops.logical_or(before <= bounds[2], before >= bounds[3])
    others = tuple(n for n in range(len(before.shape)) if n != axis % len(before.shape))
    alive = ops.cast(ops.logical_not(ops.all(constant, axis=others)), "float32")
    return ops.concatenate([ops.stack([low, high]), ops.reshape(alive, (-1,))])


class Flatness:
    """Counts saturated entries and channels that were ever alive, accumulated over batches."""

    def __init__(self, parts: FlatParts) -> None:
        self.parts = parts
        self.entries = 0
        self.flat = 0.0
        self.alive: npt.NDArray[np.bool_] | None = None

    def add(self, counts: npt.NDArray[np.float32], size: int) -> None:
        """Adds the counts, (2 + channels,), of `count_flat` for a tensor with `size` entries."""
        low, high, *_ = (float(v) for v in counts[:2])
        self.entries += size
        self.flat += high + (0.0 if self.parts.is_off_below else low)
        alive = counts[2:] > 0
        self.alive = alive if self.alive is None else self.alive | alive

    @property
    def dead_fraction(self) -> float:
        """Fraction of channels where the function had no slope at any example and position."""
        return 0.0 if self.alive is None else float(1.0 - self.alive.mean())

    @property
    def saturated_fraction(self) -> float | None:
        """Fraction of entries where the function is flat; None for unbounded functions."""
        if not self.parts.saturates:
            return None
        return self.flat / max(1, self.entries)
