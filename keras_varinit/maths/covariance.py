"""Second moments of a signal at every position and between positions, in a small form.

For a channel z of a layer's output, over random weights and inputs:

* `far[p, q]` = E z_p z'_q of two examples, by classes of positions; its layout is (n₁, n₁, n₂, n₂,
  …). Positions of one example that share no input have the same;
* `excess[o, p]` = E z_p z_{p+o} - far[p, p+o] of one example, for small offsets o, in the layout
  (w₁, n₁, w₂, n₂, …) with w = 2·radius + 1. Offset 0 is what an entry has over a pair;
* `mean[p]` = E z_p.

Moments are uncentred. Classes of positions are those of `axes.Axis`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.entry_laws import Shape
from keras_varinit.maths.laws import Law, OfFunction
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.windows import (
    AnyWindow,
    Array,
    Axes,
    AxisMap,
    Integers,
    aligned,
    apply,
    axis_map,
    grouped,
    reads_in_place,
)


@dataclasses.dataclass(frozen=True)
class Term:
    """A number times functions of signals, entry by entry."""

    coefficient: float
    factors: "tuple[tuple[Moments, Activation], ...]"


@dataclasses.dataclass(frozen=True)
class Moments:
    """The moments of one group of channels.

    Where `pre` is given the signal is `function` of it entry by entry. Entries have the `law`, or
    are Gaussian but for their `third` central moment, that of a typical one. Where `border` is
    given the signal has a number around another signal, whose law is that of its entries. `terms`
    are what the signal is a sum of, where it is one. `inverse` is E σ²·E 1/σ² over the channels of
    a kernel's output, `unequal` what normalizing them adds to gradients that go on through the
    kernel, and `scatter` the variance over kernels of their covariances E u_p u_{p+o}, in
    `excess`'s layout. `common` is a factor that all channels of a position share.
    """

    axes: Axes
    mean: Array
    far: Array
    excess: Array
    radius: tuple[int, ...]
    pre: "Moments | None" = None
    function: Activation | None = None
    third: float = 0.0
    border: "Border | None" = None
    terms: tuple[Term, ...] = ()
    inverse: float = 1.0
    unequal: float = 0.0
    scatter: Array | None = None
    law: Law | None = None
    common: "Any" = None

    @functools.cached_property
    def second(self) -> Array:
        """E z_p², by class of position."""
        return diagonal(self.far) + self.excess[self._offset_zero]

    @functools.cached_property
    def second_moment(self) -> float:
        """E z² over all positions."""
        return self.average(self.second)

    @functools.cached_property
    def pair_moment(self) -> float:
        """Mean of `far` over all pairs of positions."""
        return float(np.vdot(pair_weights(self.axes), self.far))

    @functools.cached_property
    def with_average(self) -> Array:
        """Mean of `far` over one of the two positions: E z_p times the channel's mean."""
        weights = position_weights(self.axes).ravel()
        return np.asarray((far_matrix(self.far) @ weights).reshape(self.mean.shape))

    def without_average(self) -> "Moments":
        """Every channel less its mean over examples and positions, which is random itself."""
        row = self.with_average
        far = self.far - (rows(row - self.pair_moment) + columns(row))
        mean = self.mean - self.average(self.mean)
        moved = Moments(self.axes, mean, far, self.excess, self.radius, scatter=self.scatter)
        return dataclasses.replace(moved, law=self.own_law)

    @functools.cached_property
    def variance(self) -> Array:
        """E z_p² - (E z_p)², by class of position."""
        return np.maximum(self.second - self.mean**2, 0.0)

    @functools.cached_property
    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation of an entry at a typical position."""
        return self.average(self.mean), math.sqrt(self.average(self.variance))

    @functools.cached_property
    def correlation(self) -> float:
        """Correlation of two far entries at typical positions."""
        mean, std = self.spread
        return (self.pair_moment - mean**2) / std**2 if std > 0 else 0.0

    @property
    def own_law(self) -> Law | None:
        """The law of its entries; None where they count as Gaussian."""
        if self.pre is not None and self.function is not None:
            return OfFunction(self.pre, self.function)
        return self.law

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of an entry, of mean 0 and variance 1; None where it counts as Gaussian."""
        law = self.own_law
        return None if law is None else law.shape

    @functools.cached_property
    def skewness(self) -> float:
        """Third central moment over σ³, within what an expansion to first order bears."""
        std = self.spread[1]
        return min(max(self.third / std**3, -1.0), 1.0) if std > 0 else 0.0

    @functools.cached_property
    def adjacent_correlation(self) -> float:
        """Correlation of two entries next to each other, averaged over the axes."""
        mean, std = self.spread
        near = [axis for axis, r in enumerate(self.radius) if r > 0]
        if not near or std == 0:
            return self.correlation
        far, others, inside = near_pairs(self)
        spreads = np.sqrt(self.variance).ravel()
        covariance = np.where(inside, far + self.excess - mean**2, 0.0)
        scale = np.where(inside, spreads[own_classes(self)] * spreads[others], 0.0)
        found = []
        for axis in near:
            offset = [r + (number == axis) for number, r in enumerate(self.radius)]
            place = tuple(i for o in offset for i in (o, slice(None)))
            total = self.average(scale[place])
            found.append(self.average(covariance[place]) / total if total > 0 else 0.0)
        return min(float(np.mean(found)), 1.0)

    @functools.cached_property
    def elsewhere(self) -> "dict[Any, Moments]":
        """What was made of it to join others, so that two uses of one signal stay one."""
        return {}

    @property
    def _offset_zero(self) -> tuple[int | slice, ...]:
        return self.offset_of((0,) * len(self.axes))

    def offset_of(self, offset: Sequence[int]) -> tuple[int | slice, ...]:
        """Where `excess` holds the pairs of that offset."""
        return tuple(
            i for r, o in zip(self.radius, offset, strict=True) for i in (r + o, slice(None))
        )

    def average(self, values: Array) -> float:
        """Mean over positions of a value by class."""
        return float(np.sum(self._weights * values))

    @functools.cached_property
    def _weights(self) -> Array:
        return position_weights(self.axes)

    def is_known(self) -> bool:
        """Whether the moments are numbers."""
        return math.isfinite(self.second_moment)

    def copied(self) -> "Moments":
        """Another signal of the same moments, which shares no entry with this one."""
        pre = None if self.pre is None else dataclasses.replace(self.pre)
        border = self.border
        if border is not None:
            border = dataclasses.replace(border, source=border.source.copied())
        return dataclasses.replace(self, pre=pre, border=border, terms=())

    def plain(self) -> "Moments":
        """The same moments without the law behind them."""
        if self.pre is None and self.border is None:
            return self
        return dataclasses.replace(self, pre=None, function=None, border=None, law=self.own_law)

    def scaled(self, factor: float | Array) -> "Moments":
        """Second moments times `factor`, given once or by class of position."""
        if np.ndim(factor) == 0:
            root = float(np.sqrt(factor))
            third, mean = self.third * root**3, self.mean * root
            far, excess = self.far * factor, self.excess * factor
            scatter = None if self.scatter is None else self.scatter * root**4
            moved = Moments(self.axes, mean, far, excess, self.radius, third=third, scatter=scatter)
            return dataclasses.replace(moved, law=self.own_law, common=self.common)
        scale = np.sqrt(np.broadcast_to(factor, self.mean.shape))
        own, others, *_ = _neighbours(self.axes, self.radius)
        both = scale.ravel()[own] * scale.ravel()[others]
        third = self.third * self.average(scale) ** 3
        mean, far, excess = self.mean * scale, self.far * outer(scale), self.excess * both
        scatter = None if self.scatter is None else self.scatter * both**2
        moved = Moments(self.axes, mean, far, excess, self.radius, third=third, scatter=scatter)
        return dataclasses.replace(moved, law=self.own_law, common=self.common)

    def shifted(self, constant: tuple[float, float]) -> "Moments":
        """Plus a random number of that mean and mean square, the same at every position."""
        mean, second = constant
        far = self.far + second if second else self.far
        if mean:
            far = far + mean * (rows(self.mean) + columns(self.mean))
        return dataclasses.replace(self.plain(), mean=self.mean + mean, far=far, terms=())

    def with_second(self, second: Array) -> "Moments":
        """With another E z_p²; pairs keep theirs."""
        excess = np.array(self.excess)  # a product of arrays without axes is a number
        excess[self._offset_zero] = second - diagonal(self.far)
        return dataclasses.replace(self.plain(), excess=excess, terms=(), law=None)

    def mapped(self, windows: Sequence[AnyWindow]) -> "Moments":
        """After a linear operation with a window along each axis."""
        if all(reads_in_place(window) for window in windows):
            law = self.own_law
            return Moments(self.axes, self.mean, self.far, self.excess, self.radius, law=law)
        maps = [axis_map(w, r) for w, r in zip(windows, self.radius, strict=True)]
        axes = tuple(w.outputs for w in windows)
        counts = [a.count for a in axes]
        mean = apply([m.means for m in maps], self.mean)
        far = apply([m.far for m in maps], grouped(self.far))
        excess = apply([m.excess for m in maps], grouped(self.excess))
        layout = [n for m, c in zip(maps, counts, strict=True) for n in (2 * m.radius + 1, c)]
        result = Moments(
            axes,
            mean,
            far.reshape([n for c in counts for n in (c, c)]),
            excess.reshape(layout),
            tuple(m.radius for m in maps),
        )
        matrices = aligned(maps, axes)
        if not matrices:
            return result
        near = apply(matrices, grouped(self.far)).reshape(layout)
        far_near, _, inside = near_pairs(result)
        return dataclasses.replace(
            result, excess=result.excess + np.where(inside, near - far_near, 0.0)
        )

    def weighted(self, windows: Sequence[AnyWindow], fan_in: float) -> "Moments":
        """After `fan_in` channels through windows of independent weights of variance 1."""
        after = self.mapped(windows)
        far, excess = after.far * fan_in, after.excess * fan_in
        common = self.common if all(map(reads_in_place, windows)) else None
        law = None if common is None else common.law
        mean = np.zeros_like(after.mean)
        return Moments(after.axes, mean, far, excess, after.radius, law=law, common=common)

    def spread_over(self, axes: Axes) -> "Moments":
        """Its averages, alike at all positions of other axes: what reshaping leaves of it."""
        even = uniform(axes, self.average(self.mean), self.second_moment, self.pair_moment)
        return dataclasses.replace(even, law=self.own_law, third=self.third)


@dataclasses.dataclass(frozen=True)
class Border:
    """The number `value` around `source`: (before, after) entries along each axis."""

    source: Moments
    pads: tuple[tuple[int, int], ...]
    value: float


def uniform(axes: Axes, mean: float, second: float, pair: float) -> Moments:
    """Equal moments everywhere: E z, E z² and, between positions and examples, E z_p z_q."""
    return Moments(
        axes,
        np.full([a.count for a in axes], mean),
        np.full([n for a in axes for n in (a.count, a.count)], pair),
        np.full([n for a in axes for n in (1, a.count)], second - pair),
        (0,) * len(axes),
    )


@functools.lru_cache(maxsize=512)
def position_weights(axes: Axes) -> Array:
    """Share of the positions in each class, over all axes."""
    return functools.reduce(lambda r, axis: r[..., None] * axis.weights, axes, np.ones(()))


@functools.lru_cache(maxsize=512)
def pair_weights(axes: Axes) -> Array:
    """Share of the pairs of positions in each pair of classes."""
    result = np.ones(())
    for axis in axes:
        result = result[..., None, None] * np.outer(axis.weights, axis.weights)
    return result


def diagonal(far: Array) -> Array:
    """`far` at equal classes."""
    for _ in range(far.ndim // 2):
        far = np.diagonal(far, axis1=0, axis2=1)  # the diagonal becomes the last dimension
    return np.asarray(far)


def rows(values: Array) -> Array:
    """values[p] in the layout of `far`."""
    return values.reshape([n for size in values.shape for n in (size, 1)])


def columns(values: Array) -> Array:
    """values[q] in the layout of `far`."""
    return values.reshape([n for size in values.shape for n in (1, size)])


def outer(values: Array) -> Array:
    """values[p]·values[q] in the layout of `far`."""
    return np.asarray(rows(values) * columns(values))


def own_classes(moments: Moments) -> Integers:
    """The flat class of p for each (offset, p) of `excess`."""
    return _neighbours(moments.axes, moments.radius)[0]


def near_pairs(moments: Moments) -> tuple[Array, Integers, npt.NDArray[np.bool_]]:
    """For each (offset o, p) of `excess`: far[p, p+o], the flat class of p+o, whether it exists."""
    _, others, inside, places = _neighbours(moments.axes, moments.radius)
    return np.take(moments.far, places), others, inside


def far_matrix(far: Array) -> Array:
    """`far` as a matrix over flat classes."""
    rank = far.ndim // 2
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    count = math.prod(far.shape[::2])
    return far.transpose(order).reshape(count, count)


@functools.lru_cache(maxsize=512)
def _neighbours(
    axes: Axes, radius: tuple[int, ...]
) -> tuple[Integers, Integers, npt.NDArray[np.bool_], Integers]:
    """For each (offset o, p): the flat classes of p and p+o, if it exists, its place in `far`."""
    rank = len(axes)
    own, others, places = (np.zeros((), np.int64) for _ in range(3))
    inside = np.ones((), bool)
    for number, (axis, r) in enumerate(zip(axes, radius, strict=True)):
        offsets = np.arange(-r, r + 1)[:, None]
        found = axis.classes(axis.positions[None, :] + offsets)
        here = np.broadcast_to(np.arange(axis.count), found.shape)
        shape = [1] * (2 * rank)
        shape[2 * number : 2 * number + 2] = found.shape
        here, there = here.reshape(shape), np.maximum(found, 0).reshape(shape)
        own = own * axis.count + here
        others = others * axis.count + there
        places = (places * axis.count + here) * axis.count + there
        inside = inside & (found >= 0).reshape(shape)
    return own, others, inside, places


def widen(moments: Moments, radius: tuple[int, ...]) -> Moments:
    """With excess up to larger offsets, where it is 0."""
    if moments.radius == radius:
        return moments
    pads: list[tuple[int, int]] = []
    for new, old in zip(radius, moments.radius, strict=True):
        pads += [(new - old, new - old), (0, 0)]
    scatter = None if moments.scatter is None else np.pad(moments.scatter, pads)
    excess = np.pad(moments.excess, pads)
    return dataclasses.replace(moments, excess=excess, radius=radius, scatter=scatter)


def axis_maps(moments: Moments, windows: Sequence[AnyWindow]) -> list[AxisMap]:
    """The matrices of windows for this signal."""
    return [axis_map(w, r) for w, r in zip(windows, moments.radius, strict=True)]
