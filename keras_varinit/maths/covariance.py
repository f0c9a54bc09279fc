"""Second moments of a signal at and between positions, compressed to classes of positions.

For a channel z of a layer's output, over random weights and inputs (the mean-field or NNGP kernel):

* `mean[p]` = E z_p, in the layout (n₁, n₂, …) of class counts along the axes;
* `far[p, q]` = E z_p z'_q of two examples, in the layout (n₁, n₁, n₂, n₂, …). Positions of one
  example that share no input have the same value;
* `excess[o, p]` = E z_p z_{p+o} - far[p, p+o] of one example, for small offsets o, in the layout
  (w₁, n₁, w₂, n₂, …) with w = 2·radius + 1. Offset 0 is the position itself.

Moments are uncentred. Classes of positions are those of `windows.Axis`.

Reference: Xiao et al. (2018), arXiv:1806.05393 (mean-field theory of convolutional networks).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from keras_varinit.maths.common_factors import Common


@dataclasses.dataclass(frozen=True)
class Term:
    """A product: `coefficient` times functions of signals, entry by entry."""

    coefficient: float
    factors: "tuple[tuple[Moments, Activation], ...]"


@dataclasses.dataclass(frozen=True)
class Moments:
    """The moments of one group of channels; see the module for `mean`, `far` and `excess`.

    `radius`: largest offset of `excess` along each axis. `pre`, `function`: the signal is
    `function` of `pre` entry by entry. `law`: of the entries; without one they are Gaussian up to
    `third`, the third central moment of a typical entry. `border`: the signal is another one padded
    with a number, and the law is that of the inner entries. `terms`: a sum that the signal equals.
    `inverse`: E σ²·E 1/σ² over the channels of a kernel's output; `unequal`: what normalizing these
    adds to gradients that go on through the kernel. `scatter`: variance over kernels of their
    covariances E u_p u_{p+o}, in `excess`'s layout. `common`: a factor that all channels share.
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
    common: "Common | None" = None

    @functools.cached_property
    def second(self) -> Array:
        """E z_p²: (n₁, n₂, …)."""
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
        """Mean of `far` over one of the two positions, E z_p times the channel's mean: (n₁, …)."""
        weights = position_weights(self.axes).ravel()
        return np.asarray((far_matrix(self.far) @ weights).reshape(self.mean.shape))

    def without_average(self) -> "Moments":
        """Each channel minus its own mean over examples and positions, which is random."""
        row = self.with_average
        far = self.far - (rows(row - self.pair_moment) + columns(row))
        mean = self.mean - self.average(self.mean)
        moved = Moments(self.axes, mean, far, self.excess, self.radius, scatter=self.scatter)
        return dataclasses.replace(moved, law=self.own_law)

    @functools.cached_property
    def variance(self) -> Array:
        """E z_p² - (E z_p)²: (n₁, n₂, …)."""
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
        """The law of the entries; None if they count as Gaussian."""
        if self.pre is not None and self.function is not None:
            return OfFunction(self.pre, self.function)
        return self.law

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The standardized law of an entry; None if it counts as Gaussian."""
        law = self.own_law
        return None if law is None else law.shape

    @functools.cached_property
    def skewness(self) -> float:
        """Third central moment over σ³, clipped to where a first-order expansion holds."""
        std = self.spread[1]
        return min(max(self.third / std**3, -1.0), 1.0) if std > 0 else 0.0

    @functools.cached_property
    def adjacent_correlation(self) -> float:
        """Correlation of two adjacent entries, averaged over the axes."""
        mean, std = self.spread
        near = [axis for axis, r in enumerate(self.radius) if r > 0]
        if not near or std == 0:
            return self.correlation
        far, others, inside = near_pairs(self)
        spreads = np.sqrt(self.variance).ravel()
        covariance = np.where(inside, far + self.excess - mean**2, 0.0)
        scale = np.where(inside, spreads[own_classes(self)] * spreads[others], 0.0)
        correlations = []
        for axis in near:
            offset = [r + (number == axis) for number, r in enumerate(self.radius)]
            place = tuple(i for o in offset for i in (o, slice(None)))
            total = self.average(scale[place])
            correlations.append(self.average(covariance[place]) / total if total > 0 else 0.0)
        return min(float(np.mean(correlations)), 1.0)

    @functools.cached_property
    def elsewhere(self) -> "dict[Any, Any]":
        """Signals derived from this one for merging, so that two uses stay one object."""
        return {}

    @property
    def _offset_zero(self) -> tuple[int | slice, ...]:
        return _place_of(self.radius, (0,) * len(self.radius))

    def offset_of(self, offset: Sequence[int]) -> tuple[int | slice, ...]:
        """The index into `excess` of the pairs at an offset."""
        return _place_of(self.radius, tuple(offset))

    def average(self, values: Array) -> float:
        """Mean over positions of values by class, (n₁, n₂, …)."""
        return float(np.sum(self._weights * values))

    @functools.cached_property
    def _weights(self) -> Array:
        return position_weights(self.axes)

    def is_known(self) -> bool:
        """Whether the moments are finite."""
        return math.isfinite(self.second_moment)

    def copied(self) -> "Moments":
        """A different signal with the same moments."""
        pre = None if self.pre is None else dataclasses.replace(self.pre)
        border = self.border
        if border is not None:
            border = dataclasses.replace(border, source=border.source.copied())
        return dataclasses.replace(self, pre=pre, border=border, terms=())

    def plain(self) -> "Moments":
        """The same moments and law, without `pre` and `border`."""
        if self.pre is None and self.border is None:
            return self
        return dataclasses.replace(self, pre=None, function=None, border=None, law=self.own_law)

    def scaled(self, factor: float | Array) -> "Moments":
        """Second moments times `factor`, a number or (n₁, n₂, …)."""
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
        """Plus a random number with this mean and second moment, the same everywhere."""
        mean, second = constant
        far = self.far + second if second else self.far
        if mean:
            far = far + mean * (rows(self.mean) + columns(self.mean))
        return dataclasses.replace(self.plain(), mean=self.mean + mean, far=far, terms=())

    def with_second(self, second: Array) -> "Moments":
        """With another E z_p²; pairs keep their moments."""
        excess = np.array(self.excess)  # without axes, products are scalars
        excess[self._offset_zero] = second - diagonal(self.far)
        return dataclasses.replace(self.plain(), excess=excess, terms=(), law=None)

    def mapped(self, windows: Sequence[AnyWindow]) -> "Moments":
        """The output of a linear operation with one window along each axis."""
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
        """The output of windows over `fan_in` channels; weights are independent, of variance 1."""
        after = self.mapped(windows)
        far, excess = after.far * fan_in, after.excess * fan_in
        common = self.common if all(map(reads_in_place, windows)) else None
        law = None if common is None else common.law
        mean = np.zeros_like(after.mean)
        return Moments(after.axes, mean, far, excess, after.radius, law=law, common=common)

    def spread_over(self, axes: Axes) -> "Moments":
        """Averages, equal at all positions of other axes: the moments after a reshape."""
        even = uniform(axes, self.average(self.mean), self.second_moment, self.pair_moment)
        return dataclasses.replace(even, law=self.own_law, third=self.third)


@dataclasses.dataclass(frozen=True)
class Border:
    """`source` padded with the number `value`: (before, after) entries along each axis."""

    source: Moments
    pads: tuple[tuple[int, int], ...]
    value: float


def uniform(axes: Axes, mean: float, second: float, pair: float) -> Moments:
    """Equal moments everywhere: E z, E z², and E z_p z_q of other positions or examples."""
    return Moments(
        axes,
        np.full([a.count for a in axes], mean),
        np.full([n for a in axes for n in (a.count, a.count)], pair),
        np.full([n for a in axes for n in (1, a.count)], second - pair),
        (0,) * len(axes),
    )


@functools.lru_cache(maxsize=512)
def _place_of(radius: tuple[int, ...], offset: tuple[int, ...]) -> tuple[int | slice, ...]:
    return tuple(i for r, o in zip(radius, offset, strict=True) for i in (r + o, slice(None)))


@functools.lru_cache(maxsize=512)
def position_weights(axes: Axes) -> Array:
    """Share of the positions in each class: (n₁, n₂, …)."""
    return functools.reduce(lambda r, axis: r[..., None] * axis.weights, axes, np.ones(()))


@functools.lru_cache(maxsize=512)
def pair_weights(axes: Axes) -> Array:
    """Share of the pairs of positions in each pair of classes: (n₁, n₁, n₂, n₂, …)."""
    result = np.ones(())
    for axis in axes:
        result = result[..., None, None] * np.outer(axis.weights, axis.weights)
    return result


def diagonal(far: Array) -> Array:
    """far[p, p]: (n₁, n₂, …)."""
    for _ in range(far.ndim // 2):
        far = np.diagonal(far, axis1=0, axis2=1)  # the diagonal becomes the last dimension
    return np.asarray(far)


def rows(values: Array) -> Array:
    """values[p], in the layout of `far`: (n₁, 1, n₂, 1, …)."""
    return values.reshape([n for size in values.shape for n in (size, 1)])


def columns(values: Array) -> Array:
    """values[q], in the layout of `far`: (1, n₁, 1, n₂, …)."""
    return values.reshape([n for size in values.shape for n in (1, size)])


def outer(values: Array) -> Array:
    """values[p]·values[q], in the layout of `far`."""
    return np.asarray(rows(values) * columns(values))


def own_classes(moments: Moments) -> Integers:
    """The flat class of p for each (offset, p), in the layout of `excess`."""
    return _neighbours(moments.axes, moments.radius)[0]


def near_pairs(moments: Moments) -> tuple[Array, Integers, npt.NDArray[np.bool_]]:
    """In the layout of `excess`: far[p, p+o], the flat class of p+o, whether it exists."""
    _, others, inside, places = _neighbours(moments.axes, moments.radius)
    return np.take(moments.far, places), others, inside


def far_matrix(far: Array) -> Array:
    """`far` as a matrix over flat classes: (n₁·n₂·…, n₁·n₂·…)."""
    rank = far.ndim // 2
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    count = math.prod(far.shape[::2])
    return far.transpose(order).reshape(count, count)


@functools.lru_cache(maxsize=512)
def _neighbours(
    axes: Axes, radius: tuple[int, ...]
) -> tuple[Integers, Integers, npt.NDArray[np.bool_], Integers]:
    """For each (offset o, p): flat classes of p and p+o, if p+o exists, index into `far`."""
    rank = len(axes)
    own, others, places = (np.zeros((), np.int64) for _ in range(3))
    inside = np.ones((), bool)
    for number, (axis, r) in enumerate(zip(axes, radius, strict=True)):
        offsets = np.arange(-r, r + 1)[:, None]
        there = axis.classes(axis.positions[None, :] + offsets)
        here = np.broadcast_to(np.arange(axis.count), there.shape)
        shape = [1] * (2 * rank)
        shape[2 * number : 2 * number + 2] = there.shape
        inside = inside & (there >= 0).reshape(shape)
        here, there = here.reshape(shape), np.maximum(there, 0).reshape(shape)
        own = own * axis.count + here
        others = others * axis.count + there
        places = (places * axis.count + here) * axis.count + there
    return own, others, inside, places


def widen(moments: Moments, radius: tuple[int, ...]) -> Moments:
    """With `excess` padded to larger offsets, where it is 0."""
    if moments.radius == radius:
        return moments
    pads: list[tuple[int, int]] = []
    for new, old in zip(radius, moments.radius, strict=True):
        pads += [(new - old, new - old), (0, 0)]
    scatter = None if moments.scatter is None else np.pad(moments.scatter, pads)
    excess = np.pad(moments.excess, pads)
    return dataclasses.replace(moments, excess=excess, radius=radius, scatter=scatter)


def axis_maps(moments: Moments, windows: Sequence[AnyWindow]) -> list[AxisMap]:
    """The windows' matrices for this signal, one per axis."""
    return [axis_map(w, r) for w, r in zip(windows, moments.radius, strict=True)]
