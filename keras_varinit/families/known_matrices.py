"""Products with a matrix of known numbers: the neighbors of a graph, a basis, a running mean."""

import dataclasses
from typing import Any

import numpy as np

from keras_varinit.maths.covariance import Moments, near_pairs, outer, uniform
from keras_varinit.maths.windows import Array, axes_of
from keras_varinit.signals.layouts import (
    back_to,
    position_axes,
    signal_at,
    with_channel_axes,
    without_axes,
)
from keras_varinit.signals.outcome import Gradient, Gradients, Outcome, Signal, Visit, unknown


def with_matrix(visit: Visit, index: int, values: Array, *, signal_first: bool = True) -> Outcome:
    """`z @ w` or `w @ z` with a matrix w of known numbers.

    Along channels these count as exchangeable, so that the matrix counts by its sums. Along the
    only dimension of positions every pair is followed, or the average pair where they are many.
    """
    signal, shape = visit.inputs[index], visit.call.input_shapes[index]
    matrix = values if signal_first else np.swapaxes(values, -1, -2)
    axis = len(shape) - (1 if signal_first else 2)
    if matrix.ndim != 2 or axis == 0 or shape[axis] != matrix.shape[0]:
        return unknown(visit, "a product with known numbers that are not a matrix is not modelled")
    positions = position_axes(signal, len(shape))
    if axis in positions:
        if len(positions) > 1:
            return unknown(visit, "a matrix along one of several dimensions is not modelled")
        return _along_positions(visit, index, matrix.T)
    signal = with_channel_axes(signal, shape, (axis,))
    sums = matrix.sum(axis=0)
    spread, common = float(np.mean(np.sum(matrix**2, axis=0))), float(np.mean(sums**2))
    mean = float(np.mean(sums))

    def product(moments: Moments) -> Moments:
        together = outer(moments.mean)
        far = spread * (moments.far - together) + common * together
        result = Moments(
            moments.axes, moments.mean * mean, far, moments.excess * spread, moments.radius
        )
        second = spread * (moments.second - moments.mean**2) + common * moments.mean**2
        near = near_pairs(moments)[0] + moments.excess
        average = near_pairs(dataclasses.replace(moments.plain(), far=together))[0]
        near = spread * (near - average) + common * average
        excess = near - near_pairs(result)[0]
        return Moments(moments.axes, result.mean, far, excess, moments.radius).with_second(second)

    output = signal_at([(matrix.shape[1], product(signal.merged))], (axis,), len(shape))
    back_scale = float(np.mean(np.sum(matrix**2, axis=1)))

    def pullback(gradients: Gradients) -> Gradients:
        results: list[Any] = [None] * len(visit.inputs)
        gradient = gradients[0]
        if gradient is not None:
            part = gradient.parts[0] * back_scale
            passed = gradient.with_parts((part,) * len(signal.parts))
            results[index] = back_to(passed, signal, visit.inputs[index], len(shape))
        return results

    return Outcome((output,), pullback)


def _along_positions(visit: Visit, index: int, matrix: Array) -> Outcome:
    """y_p = Σ_k a_pk z_k along the positions; `matrix` is a, of shape (outputs, inputs)."""
    signal = visit.inputs[index]
    sums, products = matrix.sum(axis=1), matrix @ matrix.T
    axes = axes_of((len(matrix),))
    exact = axes[0].count == len(matrix) and signal.axes[0].count == matrix.shape[1]

    def mixed(moments: Moments) -> Moments:
        if exact:
            return _by_pair(moments, matrix)
        second, pair = _typical_pair(moments)
        # E y_p y_q = Σ_kl a_pk a_ql E z_k z_l, in which all pairs k ≠ l are alike.
        moved = pair * np.outer(sums, sums) + (second - pair) * products
        mean = float(sums.mean()) * moments.average(moments.mean)
        return uniform(axes, mean, float(np.diagonal(moved).mean()), _off_diagonal(moved))

    parts, channels = signal.each(mixed).parts, (signal.channel_axis, signal.other_axes)
    output = Signal(parts, *channels, alike=signal.alike)

    def pullback(gradients: Gradients) -> Gradients:
        results: list[Any] = [None] * len(visit.inputs)
        gradient = gradients[0]
        if gradient is not None:
            results[index] = _gradient(gradient, output, signal, matrix)
        return results

    return Outcome((output,), pullback)


def _by_pair(moments: Moments, matrix: Array) -> Moments:
    """All positions by themselves: E y yᵀ = a E z zᵀ aᵀ."""
    far, others, inside = near_pairs(moments)
    own = np.broadcast_to(np.arange(matrix.shape[1]), others.shape)
    together = np.array(moments.far)
    near = np.array(together)
    near[own[inside], others[inside]] = (far + moments.excess)[inside]
    apart = matrix @ together @ matrix.T
    moved = matrix @ near @ matrix.T
    second = np.diagonal(moved).copy()
    # Of one position in two examples only what these have in common is left.
    np.fill_diagonal(moved, np.diagonal(apart))
    return Moments(
        axes_of((len(matrix),)),
        matrix @ moments.mean,
        moved,
        (second - np.diagonal(moved))[None, :],
        (0,),
    )


def _typical_pair(moments: Moments) -> tuple[float, float]:
    """E z² and E z_k z_l of two positions, on average."""
    size = moments.axes[0].size or 1
    second = moments.second_moment
    mean_square = without_axes(moments, [0], pooled=False).second_moment
    return second, (size * mean_square - second) / (size - 1) if size > 1 else second


def _off_diagonal(values: Array) -> float:
    size = len(values)
    rest = float(values.sum() - np.trace(values))
    return rest / (size * (size - 1)) if size > 1 else float(values[0, 0])


def _gradient(gradient: Gradient, output: Signal, signal: Signal, matrix: Array) -> Gradient:
    """The gradient of z_k, Σ_p a_pk g_p, on average over positions."""
    sums, products = matrix.sum(axis=0), matrix.T @ matrix
    coherence = gradient.coherence
    moved = coherence * np.outer(sums, sums) + (1 - coherence) * products
    second = float(np.diagonal(moved).mean())
    parts = tuple(
        np.full_like(source.mean, after.average(part) * second)
        for part, (_, after), (_, source) in zip(
            gradient.parts, output.parts, signal.parts, strict=True
        )
    )
    return Gradient(parts, _off_diagonal(moved) / second if second > 0 else 0.0)
