"""Concatenation along an axis of positions or along the batch.

Each piece is padded with zeros to the whole; the moments of the whole are sums over pieces and
pairs of pieces. Where a class of positions contains entries of several pieces, two distant entries
fall into pieces independently, but two near ones nearly always into the same piece.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keras_varinit.maths.covariance import Moments, columns, near_pairs, rows, widen
from keras_varinit.maths.windows import LARGEST_OFFSET, AnyWindow, Array, Axes, Linear, Window
from keras_varinit.signals.gradient_maps import through_linear
from keras_varinit.signals.layouts import on_axes
from keras_varinit.signals.outcome import Gradient


class Mixture:
    """Pieces joined along the batch: each example comes from one of them."""

    def __init__(self, shares: Sequence[float], axes: Axes) -> None:
        self.shares, self.axes = shares, axes

    def placed(self, piece: int, moments: Moments) -> Moments:
        """A piece as part of the whole, 0 in the other examples."""
        share, moments = self.shares[piece], on_axes(moments, self.axes)
        far, excess = share**2 * moments.far, share * moments.excess
        excess = excess + share * (1 - share) * near_pairs(moments)[0]
        return Moments(moments.axes, share * moments.mean, far, excess, moments.radius)

    def cross(self, one: int, two: int, pair: Array, radius: tuple[int, ...]) -> Array | float:
        """Products of near entries of two pieces: 0, since no example contains both."""
        return 0.0

    def met(self, piece: int) -> Array:
        """The share of a piece in each class of positions."""
        return np.full([a.count for a in self.axes], self.shares[piece])

    def back(self, piece: int, gradient: Gradient) -> Gradient:
        """The gradient of a piece."""
        return gradient


class Placing:
    """Pieces joined along one axis of positions.

    Args:
        sizes: Size of each piece along the axis.
        sources: Position axes of each piece.
        axes: Position axes of the whole.
        number: Index of the joined axis.
    """

    def __init__(
        self, sizes: Sequence[int], sources: Sequence[Axes], axes: Axes, number: int
    ) -> None:
        self.axes, self.number, self.axis = axes, number, axes[number]
        self.owner = np.repeat(np.arange(len(sizes)), sizes)
        self.members = self.axis.classes(np.arange(len(self.owner)))
        self.counts = np.bincount(self.members, minlength=self.axis.count)
        shares = np.array([self._share(piece) for piece in range(len(sizes))])
        self.is_mixed = bool(np.any((shares > 0) & (shares < 1)))
        self.windows = []
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        for source, start, size in zip(sources, starts, sizes, strict=True):
            matrix = np.zeros((len(self.owner), size))
            matrix[np.arange(start, start + size), np.arange(size)] = 1.0
            windows: list[AnyWindow] = [
                Window("conv", 1, 1, 1, 0, a, b) for a, b in zip(source, axes, strict=True)
            ]
            windows[number] = Linear.of(matrix, source[number], self.axis)
            self.windows.append(windows)

    def placed(self, piece: int, moments: Moments) -> Moments:
        """A piece as part of the whole, padded with zeros."""
        windows = self.windows[piece]
        whole = moments.mapped(windows)
        # Excess of near pairs; pairs within the same piece are counted below.
        beyond = dataclasses.replace(moments, far=np.zeros_like(moments.far)).mapped(windows)
        result = Moments(whole.axes, whole.mean, whole.far, beyond.excess, whole.radius)
        if self.is_mixed:
            reach = list(result.radius)
            reach[self.number] = max(reach[self.number], min(LARGEST_OFFSET, len(self.owner) - 1))
            result = widen(result, tuple(reach))
        near = near_pairs(result)[0]
        excess = result.excess + near * (self._ratio(piece, piece, result.radius) - 1)
        return Moments(result.axes, result.mean, result.far, excess, result.radius)

    def cross(self, one: int, two: int, pair: Array, radius: tuple[int, ...]) -> Array:
        """Products of near entries of two pieces, from those of distant ones."""
        ratios = [self._ratio(*each, radius) for each in ((one, two), (two, one))]
        return np.asarray(pair * (ratios[0] + ratios[1]) / 2)

    def met(self, piece: int) -> Array:
        """The share of a piece in each class of positions."""
        shape = [1] * len(self.axes)
        shape[self.number] = -1
        counts = [a.count for a in self.axes]
        return np.broadcast_to(self._share(piece).reshape(shape), counts)

    def back(self, piece: int, gradient: Gradient) -> Gradient:
        """The gradient of a piece: the entries at its positions."""
        return through_linear(gradient, self.windows[piece])

    def _share(self, piece: int) -> Array:
        inside = np.bincount(self.members, self.owner == piece, minlength=self.axis.count)
        return np.asarray(inside / self.counts)

    def _ratio(self, one: int, two: int, radius: tuple[int, ...]) -> Array:
        """Ratio of the frequencies with which near and distant pairs lie in two pieces.

        It is indexed by offset and class along the axis, in the layout of `excess`.
        """
        reach, size = radius[self.number], len(self.owner)
        places = np.arange(size)
        first, second = self._share(one), self._share(two)
        table = []
        for offset in range(-reach, reach + 1):
            others = places + offset
            inside = (others >= 0) & (others < size)
            owners = self.owner[np.clip(others, 0, size - 1)]
            both = inside & (self.owner == one) & (owners == two)
            met = np.bincount(self.members, both, minlength=self.axis.count) / self.counts
            beside = self.axis.classes(self.axis.positions + offset)
            apart = first * second[np.maximum(beside, 0)]
            table.append(np.where(apart > 0, met / np.where(apart > 0, apart, 1.0), 1.0))
        ratio = np.array(table)
        shape = [1] * (2 * len(self.axes))
        shape[2 * self.number : 2 * self.number + 2] = ratio.shape
        return ratio.reshape(shape)


def joined(
    pieces: Sequence[Moments], places: Placing | Mixture, alike: Mapping[tuple[int, int], bool]
) -> Moments:
    """The moments of the whole.

    Args:
        pieces: Moments of each piece.
        places: Where the pieces go.
        alike: For each pair of pieces, whether they are related like two positions of one signal.
            Other pairs are independent.
    """
    placed = [places.placed(number, m) for number, m in enumerate(pieces)]
    radius = tuple(max(r) for r in zip(*(m.radius for m in placed), strict=True))
    placed = [widen(m, radius) for m in placed]
    first = placed[0]
    mean = np.sum([m.mean for m in placed], axis=0)
    far = np.sum([m.far for m in placed], axis=0)
    near = np.sum([near_pairs(m)[0] + m.excess for m in placed], axis=0)
    for (i, j), are_alike in alike.items():
        one, two = placed[i].mean, placed[j].mean
        weight = 1.0
        if are_alike:
            one, two = places.met(i), places.met(j)
            weight = (pieces[i].pair_moment + pieces[j].pair_moment) / 2
        cross = weight * (rows(one) * columns(two) + columns(one) * rows(two))
        far = far + cross
        beside = near_pairs(Moments(first.axes, first.mean, cross, first.excess, radius))[0]
        near = near + places.cross(i, j, beside, radius)
    whole = Moments(first.axes, np.asarray(mean), np.asarray(far), first.excess, radius)
    between, _, inside = near_pairs(whole)
    excess = np.where(inside, near - between, 0.0)
    return Moments(first.axes, whole.mean, whole.far, excess, radius)
