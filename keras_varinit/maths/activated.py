"""Moments after activations and max pooling: E f(u), E f(u)² and E f(u) f(u') at all positions."""

import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.maths.borders import activated_border, share_at_border
from keras_varinit.maths.covariance import (
    Border,
    Moments,
    axis_maps,
    near_pairs,
    outer,
    own_classes,
    uniform,
)
from keras_varinit.maths.entry_laws import Shape
from keras_varinit.maths.hermite import PointLaw, is_homogeneous, point_law
from keras_varinit.maths.laws import Kind
from keras_varinit.maths.maxima import MaximumLaw, maximum_law, steep_where_it_wins
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.scatter import added_by
from keras_varinit.maths.windows import AnyWindow, Array, apply

IDENTITY = Activation("linear", lambda s: s, ("linear",))


def activated(moments: Moments, activation: Activation) -> Moments:
    """f(u); u is Gaussian, has a law, or is itself a function of such a signal.

    E f(u_p)² is exact at each position. A pair has E f(u) f(u') of its correlation at a typical
    position, scaled by the root of the product of the two positions' second moments.
    """
    if activation.name == "linear":
        return moments
    if not moments.is_known():
        return uniform(moments.axes, math.nan, math.nan, math.nan)
    if moments.border is not None:
        source = activated(moments.border.source, activation)
        return activated_border(moments.border, source, activation)
    if moments.pre is not None and moments.function is not None:
        return activated(moments.pre, composed(moments.function, activation))
    law = law_of(moments, activation)
    first, second = _by_position(moments, activation, law)
    scale = np.sqrt(second / law.second) if law.second > 0 else np.zeros_like(second)
    std, mean = np.sqrt(moments.variance), moments.mean
    covariance = moments.far - outer(mean) if np.any(mean) else moments.far
    far = law.product(_correlation(covariance, outer(std))) * outer(scale)
    own, (far_near, others, inside) = own_classes(moments), near_pairs(moments)
    flat_mean, flat_std, flat_scale = mean.ravel(), std.ravel(), scale.ravel()
    covariance = far_near + moments.excess - flat_mean[own] * flat_mean[others]
    rho = _correlation(covariance, flat_std[own] * flat_std[others])
    near = (law.product(rho) + added_by(moments, law, rho)) * flat_scale[own] * flat_scale[others]
    result = Moments(moments.axes, first, far, near, moments.radius)
    excess = np.where(inside, near - near_pairs(result)[0], 0.0)
    result = Moments(moments.axes, first, far, excess, moments.radius).with_second(second)
    root = moments.plain()
    return Moments(
        moments.axes, first, far, result.excess, moments.radius, root, activation, law.third
    )


def moments_of_kind(kind: Kind) -> Moments:
    """Moments of the entries of one kind."""
    if (kind.scale, kind.shift) == (1.0, 0.0):
        return kind.source
    scale, shift = kind.scale, kind.shift
    line = Activation("affine", lambda s: scale * s + shift, ("affine", scale, shift))
    return activated(kind.source, line)


def composed(first: Activation, second: Activation) -> Activation:
    """second(first(u)) as one function."""
    if first.name == "linear":
        return second
    return Activation(
        f"{second.name} of {first.name}",
        lambda s: second.function(first.function(s)),
        (first, second),
    )


def law_of(moments: Moments, activation: Activation, times: float = 1.0) -> PointLaw:
    """`PointLaw` of f(u) at a typical position, or of f(times·u)."""
    mean, std = (times * value for value in moments.spread)
    skewness = 0.0 if moments.shape else float(f"{moments.skewness:.6f}")
    return point_law(activation, _rounded(mean), _rounded(std), skewness, moments.shape)


def _by_position(moments: Moments, activation: Activation, law: PointLaw) -> tuple[Array, Array]:
    """E f(u_p) and E f(u_p)², interpolated over standard deviations: (n₁, n₂, …) each.

    Where means are not proportional to standard deviations, as after a maximum, each pair of mean
    and standard deviation is evaluated.
    """
    mean, std = moments.spread
    spreads = np.sqrt(moments.variance)
    if std == 0 or not math.isfinite(std):
        return np.full_like(spreads, law.first), np.full_like(spreads, law.second)
    if np.max(np.abs(moments.mean - mean * spreads / std)) > 0.02 * std:
        return _by_pairs(moments.mean, spreads, activation, law)
    if np.ptp(spreads) <= 1e-9 * std:
        return np.full_like(spreads, law.first), np.full_like(spreads, law.second)
    if is_homogeneous(activation):
        return law.first * spreads / std, law.second * (spreads / std) ** 2
    grid = np.linspace(spreads.min(), spreads.max(), 7)
    kind = law.skewness, law.shape
    laws = [point_law(activation, _rounded(mean * s / std), _rounded(s), *kind) for s in grid]
    first = np.interp(spreads, grid, [each.first for each in laws])
    return first, np.interp(spreads, grid, [each.second for each in laws])


def squared_slopes(moments: Moments, activation: Activation, law: PointLaw) -> Array:
    """E f'(u_p)², interpolated as in `_by_position`: (n₁, n₂, …)."""
    mean, std = moments.spread
    spreads = np.sqrt(moments.variance)
    if std == 0 or not math.isfinite(std) or is_homogeneous(activation):
        return np.full_like(spreads, law.squared_slope)
    kind = law.skewness, law.shape
    if np.max(np.abs(moments.mean - mean * spreads / std)) > 0.02 * std:
        both = zip(moments.mean.ravel().tolist(), spreads.ravel().tolist(), strict=True)
        pairs = [(float(f"{m:.4g}"), float(f"{s:.4g}")) for m, s in both]
        squares = {p: point_law(activation, *p, *kind).squared_slope for p in set(pairs)}
        return np.array([squares[p] for p in pairs]).reshape(spreads.shape)
    if np.ptp(spreads) <= 1e-9 * std:
        return np.full_like(spreads, law.squared_slope)
    grid = np.linspace(spreads.min(), spreads.max(), 7)
    laws = [point_law(activation, _rounded(mean * s / std), _rounded(s), *kind) for s in grid]
    return np.interp(spreads, grid, [each.squared_slope for each in laws])


def _by_pairs(
    means: Array, spreads: Array, activation: Activation, typical: PointLaw
) -> tuple[Array, Array]:
    both = zip(means.ravel().tolist(), spreads.ravel().tolist(), strict=True)
    pairs = [(float(f"{mean:.4g}"), float(f"{std:.4g}")) for mean, std in both]
    kind = typical.skewness, typical.shape
    laws = {pair: point_law(activation, *pair, *kind) for pair in set(pairs)}
    first = np.array([laws[pair].first for pair in pairs])
    second = np.array([laws[pair].second for pair in pairs])
    return first.reshape(means.shape), second.reshape(means.shape)


def max_pooled(
    moments: Moments, windows: Sequence[AnyWindow], border: Border | None = None
) -> tuple[Moments, Array, float]:
    """The maximum over windows of f(u).

    Entries of a window count as equicorrelated with the window's mean correlation ρ. Two windows
    share a common part, whose correlation is that of the windows' means over ρ; covariance beyond
    it, of overlapping windows, enters to first order.

    Args:
        moments: Moments of f(u).
        windows: One along each axis.
        border: Padding with a value v, if any. Windows that reach into it have the maximum of
            max(v, f(u)) over the entries inside; no gradient passes where v wins.

    Returns:
        Moments of the maximum; E f'² at the winning entry, (n₁, n₂, …); mean size of a window.
    """
    root = moments if moments.pre is None else moments.pre
    function = IDENTITY if moments.function is None else moments.function
    means = root.mapped(windows)
    sizes = _window_sizes(root, windows)
    variance = np.maximum(_window_means(root, windows) - means.mean**2, 0.0)
    kinds = _Kinds(root, windows)
    rho = _within(means, sizes, variance, kinds.mean_std)
    size, typical_rho = means.average(sizes), means.average(rho)
    mean, std = means.average(means.mean), math.sqrt(means.average(variance))
    shape = root.shape
    typical = _maximum(function, mean, std, typical_rho, size, shape)

    first, second, passed = (np.empty_like(sizes) for _ in range(3))
    at_border = np.zeros_like(sizes) if border is None else share_at_border(windows, border.pads)
    value = 0.0 if border is None else border.value
    with_floor = floored(function, value)
    for index in np.ndindex(sizes.shape):
        total = np.zeros(3)
        for share, f in ((1 - at_border[index], function), (at_border[index], with_floor)):
            if share == 0:
                continue
            if sizes[index] == 0:
                total += share * np.array([value, value**2, 0.0])
                continue
            # Scale passes through a homogeneous f, so few laws serve all positions.
            factor = 1.0
            if is_homogeneous(f) and std > 0:
                factor = math.sqrt(variance[index]) / std or 1.0
            law = maximum_law(f, kinds.of(index, factor), float(f"{rho[index]:.6f}"), shape)
            total += share * np.array(
                [law.first * factor, law.second * factor**2, law.squared_slope]
            )
        first[index], second[index], passed[index] = total

    shared = typical_rho * std**2
    scale = np.sqrt(second / typical.second) if typical.second > 0 else np.zeros_like(second)
    spreads = np.sqrt(variance) / std if std > 0 else np.ones_like(variance)
    spreads = np.where(spreads > 0, spreads, 1.0)

    def product(covariance: Array) -> Array:
        common = typical.product(_correlation(covariance, np.full_like(covariance, shared)))
        beyond = np.maximum(covariance - shared, 0.0) * typical.slope**2
        return np.asarray(np.minimum(common + beyond, typical.second))

    far = product((means.far - outer(means.mean)) / outer(spreads)) * outer(scale)
    own_class, (far_near, others, exists) = own_classes(means), near_pairs(means)
    flat_mean, flat_scale, flat_spread = means.mean.ravel(), scale.ravel(), spreads.ravel()
    covariance = far_near + means.excess - flat_mean[own_class] * flat_mean[others]
    covariance = covariance / (flat_spread[own_class] * flat_spread[others])
    near = product(covariance) * flat_scale[own_class] * flat_scale[others]
    result = Moments(means.axes, first, far, near, means.radius)
    excess = np.where(exists, near - near_pairs(result)[0], 0.0)
    result = Moments(means.axes, first, far, excess, means.radius).with_second(second)
    return result, passed, size


def winning(moments: Moments, correlation: float, size: float) -> Activation | None:
    """A maximum over `size` entries as a function of one entry; see `maxima`."""
    if moments.pre is not None or moments.border is not None or not moments.is_known():
        return None
    mean, std = moments.spread
    law = _maximum(IDENTITY, mean, std, correlation, size, moments.shape)
    return steep_where_it_wins(law)


def floored(function: Activation, value: float) -> Activation:
    """max(value, f)."""
    return Activation(
        f"{function.name} or {value}",
        lambda s: np.maximum(function.function(s), value),
        (function, value),
    )


def _maximum(
    function: Activation, mean: float, std: float, rho: float, size: float, shape: Shape | None
) -> MaximumLaw:
    entries = ((_rounded(mean), _rounded(std), _rounded(size)),)
    return maximum_law(function, entries, float(f"{rho:.6f}"), shape)


class _Kinds:
    """Entries of windows, grouped by mean and standard deviation: these differ near borders."""

    def __init__(self, moments: Moments, windows: Sequence[AnyWindow]) -> None:
        maps = axis_maps(moments, windows)
        self.counts = [each.means * each.counts[:, None] for each in maps]
        self.means, self.stds = moments.mean, np.sqrt(moments.variance)
        self.mean_std = apply([each.means for each in maps], self.stds)

    def of(self, index: tuple[int, ...], scale: float) -> tuple[tuple[float, float, float], ...]:
        """Mean and standard deviation, over `scale`, and number of each kind in a window.

        Kinds are binned in steps of 3 % of the largest standard deviation.
        """
        number = np.ones(())
        for counts, place in zip(self.counts, index, strict=True):
            number = number[..., None] * counts[place]
        inside = number > 1e-9
        number, means, stds = number[inside], self.means[inside] / scale, self.stds[inside] / scale
        step = 0.03 * float(stds.max()) or 1.0
        kinds = np.round(np.stack([means, stds]) / step)
        entries = []
        for kind in set(zip(*kinds.tolist(), strict=True)):
            same = np.all(kinds == np.array(kind)[:, None], axis=0)
            total = float(number[same].sum())
            mean = float(number[same] @ means[same]) / total
            # The quadrature's step is 3 % of the largest, too.
            std = max(math.sqrt(float(number[same] @ stds[same] ** 2) / total), 1.3 * step)
            entries.append(
                (_rounded(mean), _rounded(std if stds.max() > 0 else 0.0), _rounded(total))
            )
        return tuple(sorted(entries))


def _within(means: Moments, sizes: Array, variance: Array, mean_std: Array) -> Array:
    """Mean correlation of two entries of a window, from the variance of the window's mean."""
    others = np.maximum(sizes * (sizes - 1), 1e-12)
    pairs = (sizes**2 * (means.second - means.mean**2) - sizes * variance) / others
    scale = np.maximum((sizes * mean_std) ** 2 - sizes * variance, 0.0) / others
    rho = _correlation(pairs, np.where(sizes > 1, scale, 0.0))
    return np.where(sizes > 1 + 1e-9, np.maximum(rho, 0.0), 0.0)


def _window_sizes(moments: Moments, windows: Sequence[AnyWindow]) -> Array:
    """Number of entries of each window inside the input: (n₁, n₂, …)."""
    sizes = np.ones(())
    for each in axis_maps(moments, windows):
        sizes = sizes[..., None] * each.counts
    return sizes


def _window_means(moments: Moments, windows: Sequence[AnyWindow]) -> Array:
    """Mean of E u² over each window: (n₁, n₂, …)."""
    values = moments.second
    for axis, each in enumerate(axis_maps(moments, windows)):
        values = np.moveaxis(np.tensordot(each.means, values, axes=(1, axis)), 0, axis)
    return np.asarray(values)


def _correlation(covariance: Array, scale: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        if scale.size and np.min(scale) > 0:
            rho = covariance / scale
        else:
            rho = np.where(scale > 0, covariance / np.where(scale > 0, scale, 1.0), 0.0)
    return np.clip(rho, -1.0, 1.0)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
