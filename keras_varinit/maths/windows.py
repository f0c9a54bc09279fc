"""Positions along one axis, and windows on them: convolution, pooling, upsampling, interpolation.

The moments of a signal depend on a position only through its distance from the borders, and only
near them. A long axis is therefore reduced to a few classes: each of the first and last positions
by itself, and one class for all in between. A linear operation along an axis becomes a small matrix
on pairs of classes ("far" pairs) and one on (offset, class) ("excess" of near pairs). Matrices are
averages over the members of a class and are computed once for each window.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Integers = npt.NDArray[np.int64]

_CLASSES_BY_RANK = {1: 15, 2: 11, 3: 5}

LARGEST_OFFSET = 4

_MIXED = 0.15


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of `size` positions in at most `limit` classes; no borders if `size` is None."""

    size: int | None
    limit: int

    @property
    def count(self) -> int:
        """Number of classes."""
        return 1 if self.size is None else min(self.size, self.limit)

    @property
    def weights(self) -> Array:
        """Share of the positions in each class, which sum to 1: (classes,)."""
        return _weights(self.size, self.limit)

    @property
    def positions(self) -> Integers:
        """One position of each class, the middle one of several: (classes,)."""
        return _positions(self.size, self.limit)

    def classes(self, positions: Integers) -> Integers:
        """The class of each position; -1 outside."""
        if self.size is None:
            return np.zeros_like(positions)
        border = (self.limit - 1) // 2
        inside = (positions >= 0) & (positions < self.size)
        if self.size <= self.limit:
            classes = positions
        else:
            from_end = self.limit - (self.size - positions)
            classes = np.where(positions < border, positions, np.maximum(border, from_end))
        return np.where(inside, classes, -1)


def axes_of(sizes: tuple[int | None, ...]) -> tuple[Axis, ...]:
    """The axes of a map."""
    limit = _CLASSES_BY_RANK.get(len(sizes), 3)
    return tuple(Axis(size, limit) for size in sizes)


@functools.lru_cache(maxsize=512)
def _weights(size: int | None, limit: int) -> Array:
    axis = Axis(size, limit)
    if size is None:
        return np.ones(1)
    return np.bincount(axis.classes(np.arange(size)), minlength=axis.count) / size


@functools.lru_cache(maxsize=512)
def _positions(size: int | None, limit: int) -> Integers:
    axis = Axis(size, limit)
    if size is None or size <= limit:
        return np.arange(axis.count)
    border = (limit - 1) // 2
    ends = np.arange(size - (limit - border - 1), size)
    return np.concatenate([np.arange(border), [size // 2], ends])


@dataclasses.dataclass(frozen=True)
class Window:
    """The input positions that one output position reads along an axis.

    * "conv": independent weights, one per tap: output i reads i·stride + a·dilation - low;
    * "pool": the mean of the taps that lie inside the input;
    * "transposed": independent weights; output p reads i where p = i·stride + a·dilation - low;
    * "repeat": output p reads p // stride (nearest-neighbour upsampling).
    """

    kind: Literal["conv", "pool", "transposed", "repeat"]
    taps: int
    stride: int
    dilation: int
    low: int
    inputs: Axis
    outputs: Axis

    def reads(self, outputs: Integers) -> Integers:
        """Input position of each (tap, output), out of range if there is none: (taps, outputs)."""
        taps = np.arange(self.taps)[:, None] * self.dilation
        if self.kind == "repeat":
            return np.asarray(outputs[None, :] // self.stride)
        if self.kind == "transposed":
            ahead = outputs[None, :] + self.low - taps
            return np.where(ahead % self.stride == 0, ahead // self.stride, -1)
        return np.asarray(outputs[None, :] * self.stride + taps - self.low)

    def shares(self, valid: npt.NDArray[np.bool_], outputs: Integers) -> Array:
        """Weight of each (tap, output), 1 or its share of a mean: (taps, outputs)."""
        if self.kind == "pool":
            return np.asarray(valid / np.maximum(valid.sum(axis=0), 1))
        return valid.astype(float)


def reads_in_place(window: "AnyWindow") -> bool:
    """Whether each output reads only the input at its own position."""
    return (
        isinstance(window, Window)
        and (window.kind, window.taps, window.stride, window.low) == ("conv", 1, 1, 0)
        and window.inputs == window.outputs
    )


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear map along an axis with fixed coefficients, such as interpolation.

    The table has equally many (input position, coefficient) pairs for every output; unused ones
    have coefficient 0. For an axis of unknown size it covers one period: output p reads what p mod
    `period` does, p // `period` further.
    """

    inputs: Axis
    outputs: Axis
    taps: int
    positions: bytes
    coefficients: bytes
    kind: ClassVar[Literal["linear"]] = "linear"

    @classmethod
    def of(cls, matrix: Array, inputs: Axis, outputs: Axis) -> "Linear":
        """The map of a matrix: (outputs, inputs)."""
        used = np.abs(matrix) > 1e-12
        taps = max(int(used.sum(axis=1).max(initial=0)), 1)
        places = np.argsort(~used, axis=1, kind="stable")[:, :taps]
        values = np.where(
            np.take_along_axis(used, places, axis=1), np.take_along_axis(matrix, places, axis=1), 0
        )
        return cls(
            inputs, outputs, taps, places.astype(np.int64).tobytes(), values.astype(float).tobytes()
        )

    @classmethod
    def periodic(cls, matrix: Array, first: int, inputs: Axis, outputs: Axis) -> "Linear":
        """For axes of unknown size: rows of one period, in which input `first` is position 0."""
        known = cls.of(matrix, inputs, outputs)
        places = np.frombuffer(known.positions, np.int64) - first
        return dataclasses.replace(known, positions=places.tobytes())

    @property
    def period(self) -> int:
        """Number of rows of the table."""
        return len(self.positions) // (8 * self.taps)

    @property
    def stride(self) -> float:
        """Inputs per output."""
        if self.inputs.size is None or self.outputs.size is None:
            return 1 / self.period
        return self.inputs.size / self.outputs.size

    def reads(self, outputs: Integers) -> Integers:
        """Input position of each (tap, output), out of range if there is none: (taps, outputs)."""
        positions = self._table(self.positions, np.int64)[:, outputs % self.period]
        if self.outputs.size is None:
            return np.asarray(positions + outputs // self.period)
        return np.where((outputs >= 0) & (outputs < self.outputs.size), positions, -1)

    def shares(self, valid: npt.NDArray[np.bool_], outputs: Integers) -> Array:
        """The coefficient of each (tap, output): (taps, outputs)."""
        coefficients = self._table(self.coefficients, np.float64)[:, outputs % self.period]
        return np.where(valid, coefficients, 0.0)

    def _table(self, values: bytes, kind: type) -> npt.NDArray[Any]:
        return np.frombuffer(values, kind).reshape(-1, self.taps).T


AnyWindow = Window | Linear


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """The matrices of a window along one axis, from n classes of inputs to n' of outputs.

    `means` (n', n) acts on single positions, `far` (n'², n²) on pairs of classes, `excess` (w'·n',
    w·n) on (offset, class), with offsets of outputs up to `radius`. `counts` (n',) is the mean
    number of entries read. `aligned` (w'·n', n²) maps pairs of classes to near pairs of outputs if
    `far`, a mean over all pairs, does not: if outputs of one class read several classes, or
    different taps, as in strided transposed windows.
    """

    means: Array
    far: Array
    excess: Array
    radius: int
    counts: Array
    aligned: Array | None = None


@functools.lru_cache(maxsize=4096)
def axis_map(window: AnyWindow, radius: int) -> AxisMap:
    """The matrices of a window, for a signal whose excess has offsets up to `radius`."""
    source, target = window.inputs, window.outputs
    coherent = window.kind in ("pool", "repeat", "linear")
    outputs = members_of(window)
    reads, valid = entries_read(window, outputs)
    share = window.shares(valid, outputs)
    inside = (share != 0).sum(axis=0)
    classes = source.classes(reads)
    members = target.classes(outputs)
    sizes = np.bincount(members, minlength=target.count)

    taps = np.zeros((window.taps, target.count, source.count))
    for tap in range(window.taps):
        ok = valid[tap]
        np.add.at(taps[tap], (members[ok], classes[tap][ok]), share[tap][ok])
    taps /= sizes[None, :, None]
    means = taps.sum(axis=0)
    if coherent:
        far = np.kron(means, means)
    else:
        far = sum((np.kron(tap, tap) for tap in taps), np.zeros((target.count**2, source.count**2)))

    new_radius = _new_radius(window, radius)
    if target.size is not None:
        new_radius = min(new_radius, target.size - 1)
    width, new_width = 2 * radius + 1, 2 * new_radius + 1
    excess = np.zeros((new_width, target.count, width, source.count))
    alternates = window.kind == "transposed" or _reads_several_classes(taps, sizes)
    aligned = np.zeros((new_width, target.count, source.count, source.count))
    for offset in range(-new_radius, new_radius + 1):
        others = outputs + offset
        other_reads, other_valid = entries_read(window, others)
        in_range = np.ones(len(outputs), bool)
        if target.size is not None:
            in_range = (others >= 0) & (others < target.size)
        other_share = window.shares(other_valid, others)
        for a in range(window.taps):
            for b in range(window.taps) if coherent else (a,):
                apart = other_reads[b] - reads[a]
                ok = valid[a] & other_valid[b] & in_range & (np.abs(apart) <= radius)
                place = (offset + new_radius, members[ok], apart[ok] + radius, classes[a][ok])
                np.add.at(excess, place, share[a][ok] * other_share[b][ok])
                if alternates:
                    ok = valid[a] & other_valid[b] & in_range
                    pair = classes[a][ok], source.classes(other_reads[b])[ok]
                    weight = share[a][ok] * other_share[b][ok]
                    np.add.at(aligned, (offset + new_radius, members[ok], *pair), weight)
    excess /= sizes[None, :, None, None]
    aligned /= sizes[None, :, None, None]
    flat = excess.reshape(new_width * target.count, width * source.count)
    counts = np.bincount(members, inside, minlength=target.count) / sizes
    pairs = aligned.reshape(new_width * target.count, source.count**2) if alternates else None
    return AxisMap(means, far, flat, new_radius, counts, pairs)


def aligned(maps: Sequence[AxisMap], targets: Sequence[Axis]) -> list[Array]:
    """Matrices from far pairs to near ones along each axis; empty where `far` suffices."""
    if all(each.aligned is None for each in maps):
        return []
    return [_aligned_along(each, target) for each, target in zip(maps, targets, strict=True)]


def grouped(values: Array) -> Array:
    """Merges each pair of dimensions: (a, b, c, d) becomes (a·b, c·d)."""
    shape = values.shape
    return values.reshape([a * b for a, b in zip(shape[::2], shape[1::2], strict=True)])


def apply(matrices: Sequence[Array], values: Array) -> Array:
    """Applies one matrix along each dimension."""
    if len(matrices) == 2 and values.ndim == 2:
        return np.asarray(matrices[0] @ values @ matrices[1].T)
    for axis, matrix in enumerate(matrices):
        values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
    return np.array(values, order="C")  # keeps 0-d arrays, unlike ascontiguousarray


def _aligned_along(each: AxisMap, target: Axis) -> Array:
    if each.aligned is not None:
        return each.aligned
    offsets = np.arange(-each.radius, each.radius + 1)[:, None]
    others = target.classes(target.positions[None, :] + offsets)
    pairs = np.arange(target.count)[None, :] * target.count + np.maximum(others, 0)
    return np.asarray(each.far[pairs.ravel()] * (others.ravel() >= 0)[:, None])


def _reads_several_classes(taps: Array, sizes: Integers) -> bool:
    """Whether a tap of one class of outputs often reads outside its main class of inputs."""
    read = np.abs(taps)
    total = read.sum(axis=-1)
    rest = total - read.max(axis=-1)
    return bool(np.any((rest > _MIXED * total) & (sizes > 1)))


def members_of(window: AnyWindow) -> Integers:
    """All outputs of a window; for an axis of unknown size, some whole periods."""
    if window.outputs.size is not None:
        return np.arange(window.outputs.size)
    period = window.period if window.kind == "linear" else window.stride
    return np.arange(period * -(-24 // period))


def entries_read(window: AnyWindow, outputs: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Input position of each (tap, output) and whether it exists: (taps, outputs) each."""
    reads = window.reads(outputs)
    if window.inputs.size is None:
        valid = reads > -(10**6)
        if window.kind == "transposed":
            valid = (outputs[None, :] + window.low) % window.stride == (
                np.arange(window.taps)[:, None] * window.dilation
            ) % window.stride
        return reads, valid
    return reads, (reads >= 0) & (reads < window.inputs.size)


def _new_radius(window: AnyWindow, radius: int) -> int:
    if window.kind == "linear":
        reach = _reach(window, radius)
    elif window.kind == "pool":
        reach = (radius + (window.taps - 1) * window.dilation) // window.stride
    elif window.kind in ("repeat", "transposed"):
        reach = (radius + 1) * window.stride - 1
    else:
        reach = radius // window.stride
    # Outputs of recurrent layers correlate over larger offsets, which are kept.
    return min(reach, max(radius, LARGEST_OFFSET))


def _reach(window: Linear, radius: int) -> int:
    """The largest offset of two outputs that read entries at most `radius` apart."""
    outputs = members_of(window)
    reads, valid = entries_read(window, outputs)
    used = valid & (window.shares(valid, outputs) != 0)
    low = np.where(used, reads, 10**9).min(axis=0)
    high = np.where(used, reads, -(10**9)).max(axis=0)
    for offset in range(LARGEST_OFFSET, 0, -1):
        first, second = slice(None, -offset or None), slice(offset, None)
        apart = np.maximum(low[second] - high[first], low[first] - high[second])
        if np.any(used.any(axis=0)[first] & used.any(axis=0)[second] & (apart <= radius)):
            return offset
    return 0


Axes = tuple[Axis, ...]


def windows_in_place(axes: Axes) -> list[Window]:
    """Windows of one tap: each output reads its own position."""
    return [Window("conv", 1, 1, 1, 0, axis, axis) for axis in axes]


def number_of_positions(axes: Axes) -> float:
    """Positions of a map; infinite if a size is unknown."""
    return math.prod(math.inf if a.size is None else a.size for a in axes)
