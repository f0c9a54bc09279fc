"""Positions along one axis of a map, and what windows do to pairs of them.

The moments of a signal depend on a position only through its distance from the borders, and only
near them. So a long axis is kept as a few classes: each of the first and last positions by itself,
and one class for all in between. A linear operation along an axis is then a small matrix, on pairs
of classes ("far" pairs) and on (offset, class) ("excess" of near pairs); matrices are averages over
the members of a class and are computed once for each kind of window.
"""

import dataclasses
import functools
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
    """An axis of `size` positions in at most `limit` classes; `size` None: without borders."""

    size: int | None
    limit: int

    @property
    def count(self) -> int:
        """Number of classes."""
        return 1 if self.size is None else min(self.size, self.limit)

    @property
    def weights(self) -> Array:
        """Share of the positions in each class; the sum is 1."""
        return _weights(self.size, self.limit)

    @property
    def positions(self) -> Integers:
        """One position of each class, the middle one where there are several."""
        return _positions(self.size, self.limit)

    def classes(self, positions: Integers) -> Integers:
        """The class of each position; -1 outside."""
        if self.size is None:
            return np.zeros_like(positions)
        border = (self.limit - 1) // 2
        inside = (positions >= 0) & (positions < self.size)
        if self.size <= self.limit:
            found = positions
        else:
            from_end = self.limit - (self.size - positions)
            found = np.where(positions < border, positions, np.maximum(border, from_end))
        return np.where(inside, found, -1)


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
    """What one output position reads along an axis.

    * "conv": independent weights, one per tap: output i reads i·stride + a·dilation - low;
    * "pool": the mean of the taps that lie inside the input;
    * "transposed": independent weights; output p reads i where p = i·stride + a·dilation - low;
    * "repeat": output p reads p // stride (nearest neighbour upsampling).
    """

    kind: Literal["conv", "pool", "transposed", "repeat"]
    taps: int
    stride: int
    dilation: int
    low: int
    inputs: Axis
    outputs: Axis

    def reads(self, outputs: Integers) -> Integers:
        """Input position of each (tap, output); out of range where there is none."""
        taps = np.arange(self.taps)[:, None] * self.dilation
        if self.kind == "repeat":
            return np.asarray(outputs[None, :] // self.stride)
        if self.kind == "transposed":
            ahead = outputs[None, :] + self.low - taps
            return np.where(ahead % self.stride == 0, ahead // self.stride, -1)
        return np.asarray(outputs[None, :] * self.stride + taps - self.low)

    def shares(self, valid: npt.NDArray[np.bool_], outputs: Integers) -> Array:
        """What each (tap, output) counts for: 1, or with others of a mean its share."""
        if self.kind == "pool":
            return np.asarray(valid / np.maximum(valid.sum(axis=0), 1))
        return valid.astype(float)


def in_place(window: "AnyWindow") -> bool:
    """Whether each output reads the input at its own position alone."""
    return (
        isinstance(window, Window)
        and (window.kind, window.taps, window.stride, window.low) == ("conv", 1, 1, 0)
        and window.inputs == window.outputs
    )


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear map along an axis with fixed coefficients, such as interpolation.

    Output p reads `table[p]`: pairs of an input position and its coefficient, as many for every
    output (of those without need the coefficient is 0). Where the size is unknown the table
    is that of one period: output p reads what p mod `period` does, p // `period` further.
    """

    inputs: Axis
    outputs: Axis
    taps: int
    positions: bytes
    coefficients: bytes
    kind: ClassVar[Literal["linear"]] = "linear"

    @classmethod
    def of(cls, matrix: Array, inputs: Axis, outputs: Axis) -> "Linear":
        """The map of a matrix (outputs, inputs)."""
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
        """For axes of unknown size: the rows of one period, in which input `first` counts as 0."""
        known = cls.of(matrix, inputs, outputs)
        places = np.frombuffer(known.positions, np.int64) - first
        return dataclasses.replace(known, positions=places.tobytes())

    @property
    def period(self) -> int:
        """Number of rows of the table."""
        return len(self.positions) // (8 * self.taps)

    @property
    def stride(self) -> float:
        """Inputs for each output."""
        if self.inputs.size is None or self.outputs.size is None:
            return 1 / self.period
        return self.inputs.size / self.outputs.size

    def reads(self, outputs: Integers) -> Integers:
        """Input position of each (tap, output); out of range where there is none."""
        found = self._table(self.positions, np.int64)[:, outputs % self.period]
        if self.outputs.size is None:
            return np.asarray(found + outputs // self.period)
        return np.where((outputs >= 0) & (outputs < self.outputs.size), found, -1)

    def shares(self, valid: npt.NDArray[np.bool_], outputs: Integers) -> Array:
        """The coefficient of each (tap, output)."""
        found = self._table(self.coefficients, np.float64)[:, outputs % self.period]
        return np.where(valid, found, 0.0)

    def _table(self, values: bytes, kind: type) -> npt.NDArray[Any]:
        return np.frombuffer(values, kind).reshape(-1, self.taps).T


AnyWindow = Window | Linear


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """The matrices of a window along one axis.

    `means` (outputs, inputs) acts on one position, `far` (outputs², inputs²) on pairs of classes,
    `excess` on (offset, class), with offsets up to `radius` behind it. `counts` is the mean number
    of entries read, by class of output. `aligned` takes pairs of classes to near pairs of outputs
    where `far`, a mean over all pairs, does not: where outputs of one class read several classes,
    or as those of a strided transposed window different taps.
    """

    means: Array
    far: Array
    excess: Array
    radius: int
    counts: Array
    aligned: Array | None = None


@functools.lru_cache(maxsize=4096)
def axis_map(window: AnyWindow, radius: int) -> AxisMap:
    """The matrices of a window, for a signal whose excess reaches to offsets of `radius`."""
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
    """Far pairs to near ones, along each axis; none where `far` says it all."""
    if all(each.aligned is None for each in maps):
        return []
    return [_aligned_along(each, target) for each, target in zip(maps, targets, strict=True)]


def grouped(values: Array) -> Array:
    """Each pair of dimensions as one."""
    shape = values.shape
    return values.reshape([a * b for a, b in zip(shape[::2], shape[1::2], strict=True)])


def apply(matrices: Sequence[Array], values: Array) -> Array:
    """A matrix along each dimension."""
    if len(matrices) == 2 and values.ndim == 2:
        return np.asarray(matrices[0] @ values @ matrices[1].T)
    for axis, matrix in enumerate(matrices):
        values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
    return np.array(values, order="C")  # which keeps an array without dimensions


def _aligned_along(each: AxisMap, target: Axis) -> Array:
    if each.aligned is not None:
        return each.aligned
    offsets = np.arange(-each.radius, each.radius + 1)[:, None]
    others = target.classes(target.positions[None, :] + offsets)
    pairs = np.arange(target.count)[None, :] * target.count + np.maximum(others, 0)
    return np.asarray(each.far[pairs.ravel()] * (others.ravel() >= 0)[:, None])


def _reads_several_classes(taps: Array, sizes: Integers) -> bool:
    """Whether some tap of a class of outputs reads what its main class of inputs is not."""
    read = np.abs(taps)
    total = read.sum(axis=-1)
    rest = total - read.max(axis=-1)
    return bool(np.any((rest > _MIXED * total) & (sizes > 1)))


def members_of(window: AnyWindow) -> Integers:
    """The outputs of a window; of an axis of unknown size some whole periods."""
    if window.outputs.size is not None:
        return np.arange(window.outputs.size)
    period = window.period if window.kind == "linear" else window.stride
    return np.arange(period * -(-24 // period))


def entries_read(window: AnyWindow, outputs: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """The input position of each (tap, output), and whether there is one."""
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
    # A recurrent layer's outputs are alike further than that, and stay so.
    return min(reach, max(radius, LARGEST_OFFSET))


def _reach(window: Linear, radius: int) -> int:
    """The farthest offset of two outputs that read entries at most `radius` apart."""
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
