"""Orthogonal draws (Saxe et al. 2014), delta-orthogonal for convolutions (Xiao et al. 2018).

A semi-orthogonal matrix Q of r rows (inputs) and c columns (filters), uniform over all such
matrices (Haar), has entries of mean 0 and variance 1/max(r, c), any two of which are uncorrelated.
So

    W = σ·√max(r, c)·Q

has entries of variance σ², and E u² of u = Wᵀz is what independent entries give. Unlike those, W
keeps all directions of z alike: all singular values are equal.

A convolution has the matrix at its central tap alone, tap (n-1)//2 of n, and zeros elsewhere, so
that what it does to a map is orthogonal at every position. With ∏n taps,

    W_centre = σ·√(∏n·max(r, c))·Q,

so the mean square of all entries is σ², and E u² is what σ² at every tap gives where the window
lies inside the map. In contrast to independent taps, none of the signal is lost at borders: with
"same" padding the central tap of every window reads the map, not the padding. ("causal" padding is
another matter: there the first outputs read nothing else.)
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.context import LayerContext
from keras_varinit.initializers.draws import Draw, Entries, as_array, constant, independent
from keras_varinit.initializers.streams import Float32Array


@dataclasses.dataclass(frozen=True)
class _Matrices:
    """How a kernel is made of matrices.

    Args:
        window: The sizes of the kernel's spatial axes; () if it has none.
        spatial: The axes of the window.
        groups: Axes, each index of which has a matrix of its own.
        rows: Axes that are summed.
        columns: Axes that index filters.
        blocks: Number of blocks of the last column axis that have a matrix of their own.
    """

    window: tuple[int, ...]
    spatial: tuple[int, ...]
    groups: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    blocks: int = 1


def is_delta(context: LayerContext | None) -> bool:
    """Whether an orthogonal kernel with this context is zero at all taps but the central one."""
    if context is None or not context.spatial_axes:
        return False
    return _matrices_of(context) is not None


def draw_orthogonal(
    key: int, shape: tuple[int, ...], stddev: float, context: LayerContext | None
) -> Draw:
    """An orthogonal kernel; its entries have mean square σ².

    Without a context the matrix is that of Keras's `Orthogonal`: all axes but the last by the last.
    With one, its filter axes are the columns. Groups of a convolution, channels of a depthwise one,
    gates of a recurrent kernel and what else has a kernel of its own get matrices of their own. Two
    kinds are drawn as independent normal entries instead: a transposed convolution with strides,
    some of whose outputs the central tap does not reach, and einsum kernels of several groups whose
    axis cannot be told from the shape.

    The decomposition is computed in float64, so that the float32 result does not depend on the
    linear algebra library, save for rare differences in the last bit.

    Cost: O(max(r, c)·min(r, c)²) operations.
    """
    if 0 in shape:
        return constant(shape, 0.0)
    if context is None:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q = _scaled(_semi_orthogonal(key, 1, rows, columns), stddev)
        return Draw(shape, Entries(q.reshape(shape)))
    matrices = _matrices_of(context)
    if matrices is None:
        return independent(key, shape, "normal", stddev)
    sizes = {axis: shape[axis] for axis in range(len(shape))}
    rows = math.prod(sizes[axis] for axis in matrices.rows)
    columns = math.prod(sizes[axis] for axis in matrices.columns) // matrices.blocks
    groups = math.prod(sizes[axis] for axis in matrices.groups)
    q = _semi_orthogonal(key, groups * matrices.blocks, rows, columns)
    q = _scaled(q, stddev * math.sqrt(math.prod(matrices.window)))
    if matrices.blocks > 1:
        q = np.moveaxis(q, 0, 1).reshape(1, rows, -1)
    kernel = np.zeros(shape, np.float32)
    centre: list[int | slice] = [slice(None)] * len(shape)
    for axis, n in zip(matrices.spatial, matrices.window, strict=True):
        centre[axis] = slice((n - 1) // 2, (n - 1) // 2 + 1)
    order = (*matrices.spatial, *matrices.groups, *matrices.rows, *matrices.columns)
    place = kernel[tuple(centre)].transpose(order)
    place[...] = q.reshape(place.shape)
    return Draw(shape, Entries(kernel))


def _matrices_of(context: LayerContext) -> _Matrices | None:
    """The matrices of a kernel; None where independent entries are drawn instead."""
    shape, spatial, columns = context.kernel_shape, context.spatial_axes, context.filter_axes
    taken = {*spatial, *columns}
    rows = tuple(axis for axis in range(len(shape)) if axis not in taken)
    window = tuple(shape[axis] for axis in spatial)
    taps = math.prod(window)
    whole = _Matrices(window, spatial, (), rows, columns)
    count_in = taps * math.prod(shape[axis] for axis in rows)
    if not math.isclose(context.fan_in, count_in):
        # A transposed convolution with strides, or a look-up table, which sums nothing.
        return None if spatial else whole
    groups = taps * math.prod(shape[axis] for axis in columns) / context.fan_out
    if math.isclose(groups, 1):
        return whole
    if not math.isclose(groups, round(groups)):
        return None
    if len(columns) == 1:
        fits = shape[columns[0]] % round(groups) == 0
        return dataclasses.replace(whole, blocks=round(groups)) if fits else None
    if spatial:  # depthwise: (*window, channels, multiplier)
        separate = columns[:1] if shape[columns[0]] == round(groups) else None
    else:
        separate = _axes_of_product(shape, columns, round(groups))
    if separate is None:
        return None
    remaining = tuple(axis for axis in columns if axis not in separate)
    return dataclasses.replace(whole, groups=separate, columns=remaining)


def _axes_of_product(
    shape: Sequence[int], axes: Sequence[int], product: int
) -> tuple[int, ...] | None:
    """The axes whose sizes have a product, if only one choice of axes does."""
    candidates = [axis for axis in axes if shape[axis] > 1]
    chosen = [
        subset
        for count in range(1, len(candidates) + 1)
        for subset in itertools.combinations(candidates, count)
        if math.prod(shape[axis] for axis in subset) == product
    ]
    return chosen[0] if len(chosen) == 1 else None


def _semi_orthogonal(key: int, count: int, rows: int, columns: int) -> Float32Array:
    """Haar-distributed matrices with orthonormal columns, or rows if there are fewer of them.

    The signs of R's diagonal make the decomposition of a normal matrix unique, and Q uniform.
    """
    tall, short = max(rows, columns), min(rows, columns)
    normal = as_array(independent(key, (count, tall, short), "normal")).astype(np.float64)
    q, r = np.linalg.qr(normal)
    q *= np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[:, None, :]
    if rows < columns:
        q = np.swapaxes(q, -1, -2)
    return np.asarray(q, np.float32)


def _scaled(q: Float32Array, stddev: float) -> Float32Array:
    return q * np.float32(stddev * math.sqrt(max(q.shape[-2:])))
