"""The compressed maps of moments against the recursion on full matrices of positions.

The oracle keeps E z_p z_q of one example (`same`) and of two examples (`two`) for every pair of
positions, and walks over taps with plain loops. Maps of at most 15 (11²) positions have a class per
position, so there the compressed form is exact.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from keras_varinit.families.pooling import common_parts
from keras_varinit.maths.activated import activated, max_pooled
from keras_varinit.maths.algebra import added, combined, multiplied
from keras_varinit.maths.covariance import Moments, far_matrix, near_pairs, own_classes, uniform
from keras_varinit.maths.quadrature import named_activation
from keras_varinit.maths.windows import Window, axes_of

pytestmark = pytest.mark.once

RELU = named_activation("relu")


@dataclasses.dataclass
class Full:
    """Moments at every position of a map, as matrices over all pairs of positions."""

    sizes: tuple[int, ...]
    mean: np.ndarray
    same: np.ndarray
    two: np.ndarray

    @classmethod
    def noise(cls, sizes, mean=0.0, variance=1.0):
        count = math.prod(sizes)
        pairs = np.full((count, count), mean**2)
        return cls(sizes, np.full(count, mean), pairs + variance * np.eye(count), pairs)

    def through(self, matrices, sizes):
        """Σ over taps of A·K·Aᵀ: taps have weights of their own."""
        same = sum(a @ self.same @ a.T for a in matrices)
        two = sum(a @ self.two @ a.T for a in matrices)
        return Full(sizes, sum(a @ self.mean for a in matrices), same, two)

    def relu(self):
        """The arc-cosine kernel on zero-mean Gaussians."""

        def kernel(pairs):
            scale = np.sqrt(np.outer(self.same.diagonal(), self.same.diagonal()))
            rho = np.divide(pairs, scale, out=np.zeros_like(pairs), where=scale > 0).clip(-1, 1)
            angle = np.arccos(rho)
            return scale / (2 * math.pi) * (np.sin(angle) + (math.pi - angle) * rho)

        mean = np.sqrt(self.same.diagonal() / (2 * math.pi))
        return Full(self.sizes, mean, kernel(self.same), kernel(self.two))


def taps_along(kind, size, outputs, k, stride, dilation, low):
    """One matrix (outputs, inputs) per tap, or a single one for a mean, by plain loops."""
    if kind == "repeat":
        return [np.array([[float(p // stride == i) for i in range(size)] for p in range(outputs)])]
    matrices = [np.zeros((outputs, size)) for _ in range(k)]
    for tap in range(k):
        for p in range(outputs):
            for i in range(size):
                read = i == p * stride + tap * dilation - low
                written = p == i * stride + tap * dilation - low
                matrices[tap][p, i] = float(written if kind == "transposed" else read)
    if kind != "pool":
        return matrices
    total = sum(matrices)
    return [total / total.sum(axis=1, keepdims=True)]


def padded(size, k, stride, dilation, padding):
    """Outputs and zeros in front, as Keras's 'same' and 'valid' have them."""
    reach = (k - 1) * dilation + 1
    if padding == "valid":
        return (size - reach) // stride + 1, 0
    outputs = math.ceil(size / stride)
    return outputs, max((outputs - 1) * stride + reach - size, 0) // 2


def step(kind, sizes, k=1, stride=1, dilation=1, padding="valid", low=None):
    """The matrices over all positions, the windows, and the new sizes, alike along all axes."""
    target = []
    for size in sizes:
        if kind == "repeat":
            target.append((size * stride, 0))
        elif kind == "transposed":
            full = (size - 1) * stride + (k - 1) * dilation + 1
            cut = max(full - size * stride, 0) if padding == "same" else 0
            target.append((full - cut, cut // 2))
        elif low is not None:  # zeros on both sides, or with low < 0 cropping
            target.append((size + 2 * low, low))
        else:
            target.append(padded(size, k, stride, dilation, padding))
    outputs = tuple(n for n, _ in target)
    per_axis = [
        taps_along(kind, size, n, k, stride, dilation, low)
        for size, (n, low) in zip(sizes, target, strict=True)
    ]
    matrices = []
    for chosen in itertools.product(*per_axis):
        whole = np.ones((1, 1))
        for matrix in chosen:
            whole = np.kron(whole, matrix)
        matrices.append(whole)
    windows = [
        Window(kind, k, stride, dilation, low, source, axis)
        for source, axis, (_, low) in zip(axes_of(sizes), axes_of(outputs), target, strict=True)
    ]
    return matrices, windows, outputs


def both(sizes, mean=0.0, variance=1.0):
    compressed = uniform(axes_of(sizes), mean, variance + mean**2, mean**2)
    return Full.noise(sizes, mean, variance), compressed


def walked(full, compressed, *steps):
    """A chain of linear steps and "relu", on both forms."""
    for each in steps:
        if each == "relu":
            full, compressed = full.relu(), activated(compressed, RELU)
            continue
        matrices, windows, sizes = step(sizes=full.sizes, **each)
        weights = each["kind"] in ("conv", "transposed") and each.get("low") is None
        full = full.through(matrices, sizes)
        if weights:
            full.mean = np.zeros_like(full.mean)
            compressed = compressed.weighted(windows, 1)
        else:
            compressed = compressed.mapped(windows)
    return full, compressed


def op(kind, **options):
    return {"kind": kind, **options}


def flat_position(index, sizes):
    return int(np.ravel_multi_index(index, sizes))


def assert_agree(compressed: Moments, full: Full, rtol):
    """At a position of each class: the moments of it, of its near pairs and of all far pairs."""
    sizes = full.sizes
    places = list(itertools.product(*[a.positions for a in compressed.axes]))
    flat = [flat_position(p, sizes) for p in places]
    scale = rtol * np.abs(full.same).max()
    np.testing.assert_allclose(compressed.mean.ravel(), full.mean[flat], rtol, scale)
    np.testing.assert_allclose(compressed.second.ravel(), full.same.diagonal()[flat], rtol, scale)
    far = far_matrix(compressed.far)
    np.testing.assert_allclose(far, full.two[np.ix_(flat, flat)], rtol, scale)
    near_far, _, inside = near_pairs(compressed)
    own = np.broadcast_to(own_classes(compressed), compressed.excess.shape)
    seen = np.zeros((len(flat), math.prod(sizes)), bool)
    for index in np.ndindex(compressed.excess.shape):
        if not inside[index]:
            continue
        number = own[index]
        other = [
            p + o - r for p, o, r in zip(places[number], index[::2], compressed.radius, strict=True)
        ]
        at = flat_position(other, sizes)
        seen[number, at] = True
        got = near_far[index] + compressed.excess[index]
        assert got == pytest.approx(full.same[flat[number], at], rel=rtol, abs=scale)
    # What is not near has nothing beyond a far pair.
    np.testing.assert_allclose(full.same[flat][~seen], full.two[flat][~seen], rtol=rtol, atol=scale)


LINEAR = {
    "same": [op("conv", k=3, padding="same")],
    "valid": [op("conv", k=3)],
    "stride": [op("conv", k=3, stride=2, padding="same")],
    "dilation": [op("conv", k=2, dilation=2, padding="same")],
    "even": [op("conv", k=4, padding="same")],
    "pool": [op("pool", k=2, stride=2)],
    "pool same": [op("pool", k=3, stride=2, padding="same")],
    "overlap": [op("pool", k=3, stride=1, padding="same")],
    "overlap, conv": [op("pool", k=2, stride=1), op("conv", k=3, padding="same")],
    "overlap, stride": [op("pool", k=3, stride=1), op("conv", k=3, stride=2, padding="same")],
    "overlap, pool": [op("pool", k=3, stride=1), op("pool", k=2, stride=2)],
    "padding": [op("conv", low=2)],
    "cropping": [op("conv", low=-2)],
    "repeat": [op("repeat", stride=2)],
    "repeat, conv": [op("repeat", stride=2), op("conv", k=3, padding="same")],
    "repeat, pool": [op("repeat", stride=2), op("pool", k=2, stride=2)],
    "transposed": [op("transposed", k=3, stride=2)],
    "transposed same": [op("transposed", k=3, stride=2, padding="same")],
    "transposed, pool": [op("transposed", k=4, stride=2, padding="same"), op("pool", k=2)],
    "padding, conv, pool": [op("conv", low=1), op("conv", k=3), op("pool", k=2, stride=2)],
}


@pytest.mark.parametrize("sizes", [(7,), (5, 4)], ids=["1-D", "2-D"])
def test_linear_steps_are_exact_on_small_maps(sizes):
    for name, steps in LINEAR.items():
        if len(sizes) > 1 and name == "cropping":
            continue
        full, compressed = walked(*both(sizes, mean=0.7, variance=1.3), *steps)
        try:
            assert_agree(compressed, full, 1e-10)
        except AssertionError as error:
            raise AssertionError(name) from error


def average(full):
    return full.same.diagonal().mean()


@pytest.mark.parametrize("sizes", [(40,), (12, 13)], ids=["1-D", "2-D"])
def test_linear_steps_keep_averages_on_large_maps(sizes):
    """Classes stand for several positions: averages of entries and far pairs within 1 %.

    Within 2 % the mean over the map.
    """
    for name, steps in LINEAR.items():
        if name == "repeat, pool":  # a class averages over the phases of a repetition
            continue
        full, compressed = walked(*both(sizes, mean=0.7, variance=1.3), *steps)
        assert compressed.second_moment == pytest.approx(average(full), rel=0.01), name
        assert compressed.pair_moment == pytest.approx(full.two.mean(), rel=0.01), name
        # The mean over all positions, which global pooling takes.
        beyond = compressed.excess.sum(axis=tuple(range(0, 2 * len(sizes), 2)))
        whole = compressed.pair_moment + compressed.average(beyond) / math.prod(full.sizes)
        assert whole == pytest.approx(full.same.mean(), rel=0.02), name


CHAIN = [op("conv", k=3, padding="same"), "relu"] * 3


@pytest.mark.parametrize(("sizes", "rtol"), [((9,), 2e-3), ((6, 5), 2e-3)], ids=["1-D", "2-D"])
def test_three_convolutions_with_relu_follow_the_arc_cosine_kernel(sizes, rtol):
    """Relative to the largest entry, since the series of ReLU is cut."""
    full, compressed = walked(*both(sizes), *CHAIN)
    assert_agree(compressed, full, rtol)


def test_relu_chains_with_pooling_follow_the_arc_cosine_kernel():
    steps = [*CHAIN, op("pool", k=2, stride=2), op("conv", k=3, padding="same"), "relu"]
    for sizes in ((10, 10), (20, 20)):
        full, compressed = walked(*both(sizes), *steps)
        assert compressed.second_moment == pytest.approx(average(full), rel=0.01), sizes
        assert compressed.pair_moment == pytest.approx(full.two.mean(), rel=0.01), sizes


def test_overlapping_means_before_relu_keep_near_pairs():
    """White noise averaged over overlapping windows: neighbours share entries and so correlate."""
    steps = [op("pool", k=3, stride=1, padding="same"), "relu", op("pool", k=2, stride=2)]
    for sizes in ((12,), (30,), (7, 6)):
        full, compressed = walked(*both(sizes), *steps)
        assert compressed.second_moment == pytest.approx(average(full), rel=5e-3), sizes


def test_sums_products_and_mixtures_of_signals():
    sizes = (6,)
    one = walked(*both(sizes), op("conv", k=3, padding="same"), "relu")
    two = walked(*both(sizes), op("pool", k=2, stride=1, padding="same"), "relu")

    def check(compressed, mean, same, pairs):
        assert_agree(compressed, Full(sizes, mean, same, pairs), 2e-3)

    cross = np.outer(one[0].mean, two[0].mean)
    for sign in (1, -1):
        check(
            added(one[1], two[1], sign),
            one[0].mean + sign * two[0].mean,
            one[0].same + two[0].same + sign * (cross + cross.T),
            one[0].two + two[0].two + sign * (cross + cross.T),
        )
    check(
        multiplied(one[1], two[1]),
        one[0].mean * two[0].mean,
        one[0].same * two[0].same,
        one[0].two * two[0].two,
    )
    check(
        combined([one[1], two[1]], [1, 3]),
        (one[0].mean + 3 * two[0].mean) / 4,
        (one[0].same + 3 * two[0].same) / 4,
        (one[0].two + 3 * two[0].two) / 4,
    )


def simulated_maps(rng, sizes, count):
    """Convolutions of ReLU'd noise with random kernels: Gaussian maps of correlated positions."""
    full, compressed = walked(*both(sizes), *CHAIN, op("conv", k=3, padding="same"))
    factor = np.linalg.cholesky(full.same + 1e-9 * np.eye(math.prod(sizes)))
    return compressed, rng.standard_normal((count, math.prod(sizes))) @ factor.T


@pytest.mark.parametrize(("k", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_max_pooling_of_correlated_maps_matches_simulation(k, stride):
    """Means of 20 000 Gaussian maps: 4 standard errors; 2 % for equicorrelated windows."""
    sizes, rng = (8, 8), np.random.default_rng(0)
    compressed, maps = simulated_maps(rng, sizes, 20_000)
    compressed = activated(compressed, RELU)
    values = np.maximum(maps, 0).reshape(-1, *sizes)
    _, windows, outputs = step("pool", sizes, k, stride, padding="valid")
    result, _, size = max_pooled(compressed, windows)
    assert size == k * k
    pooled = np.stack(
        [
            values[:, a * stride : a * stride + k, b * stride : b * stride + k].max(axis=(1, 2))
            for a, b in np.ndindex(outputs)
        ],
        axis=1,
    )

    def check(samples, want, allowance):
        error = np.std(samples) / math.sqrt(len(samples))
        assert abs(samples.mean() - want) < 4 * error + allowance * want

    check((pooled**2).mean(axis=1), result.second_moment, 0.02)
    check(pooled.mean(axis=1), result.average(result.mean), 0.02)
    # Neighbouring windows, and all pairs of windows, to first order.
    beyond = result.excess.sum(axis=(0, 2))
    whole = result.pair_moment + result.average(beyond) / math.prod(outputs)
    check(pooled.mean(axis=1) ** 2, whole, 0.05)


def test_far_windows_of_maps_with_borders_matches_simulation():
    """Padding makes the border weaker. 4 standard errors; 5 % for one correlation everywhere."""
    sizes, rng = (8, 8), np.random.default_rng(1)
    padding = [op("conv", k=3, padding="same"), "relu"]
    full, compressed = walked(*both(sizes), *padding * 4, op("conv", k=3, padding="same"))
    factor = np.linalg.cholesky(full.same + 1e-9 * np.eye(64))
    maps = (rng.standard_normal((20_000, 64)) @ factor.T).reshape(-1, *sizes)
    _, windows, _ = step("pool", sizes, 2, 2, padding="valid")
    result, _, _ = max_pooled(activated(compressed, RELU), windows)
    pooled = np.maximum(maps, 0).reshape(-1, 4, 2, 4, 2).max(axis=(2, 4)).reshape(-1, 16)
    want = far_matrix(result.far)
    for p, q in itertools.product(range(16), repeat=2):
        apart = max(abs(p // 4 - q // 4), abs(p % 4 - q % 4))
        if apart > 1:
            products = pooled[:, p] * pooled[:, q]
            error = np.std(products) / math.sqrt(len(products))
            assert abs(products.mean() - want[p, q]) < 4 * error + 0.05 * want[p, q], (p, q)


def test_a_residual_stream_is_skewed():
    """Three sums of a rectified stream and Gaussian noise, against its density on a grid."""
    grid = np.linspace(-12, 12, 4001)
    gap = grid[1] - grid[0]
    noise = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * gap
    fresh = uniform(axes_of((3,)), 0.0, 1.0, 0.0)
    stream, density = activated(fresh, RELU), noise
    for _ in range(3):
        rectified = np.where(grid > 0, density, 0.0)
        rectified[len(grid) // 2] += 1 - rectified.sum()
        density = np.convolve(rectified, noise, "same")
        stream = activated(added(stream, fresh.copied()), RELU)
        positive = np.maximum(grid, 0)
        assert stream.second_moment == pytest.approx(np.sum(density * positive**2), rel=0.01)
        assert stream.average(stream.mean) == pytest.approx(np.sum(density * positive), rel=0.01)


def test_the_common_parts_of_a_cube_do_not_depend_on_rounding():
    axes = axes_of((4, 4, 4))
    window = [Window("conv", 3, 1, 1, 1, axis, axis) for axis in axes]
    moments = uniform(axes, 0.0, 1.0, 0.0)
    for _ in range(2):
        moments = activated(moments.weighted(window, 1.0), RELU)
    noise = 1 + 1e-14 * np.random.default_rng(0).standard_normal(moments.far.shape)
    rounded = dataclasses.replace(moments, far=moments.far * noise)
    for one, other in zip(common_parts(moments), common_parts(rounded), strict=True):
        np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-4)
