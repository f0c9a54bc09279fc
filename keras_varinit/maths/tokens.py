"""Attention on moments of maps: converts maps to rows of tokens for `attention`, and back."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from keras_varinit.maths.attention import Attending, Logits, Tokens, products
from keras_varinit.maths.covariance import Moments, far_matrix, position_weights, uniform
from keras_varinit.maths.patterns import Pattern
from keras_varinit.maths.windows import Array, Axes, Integers


def size_of(axes: Axes) -> int | None:
    """Number of positions along some axes; None if a size is unknown."""
    sizes = [axis.size for axis in axes]
    return None if None in sizes else math.prod(n for n in sizes if n is not None)


def classes_of(axes: Axes) -> Integers:
    """The flat class of every position: (positions,)."""
    result = np.zeros((), np.int64)
    for axis in axes:
        members = axis.classes(np.arange(axis.size or 1))
        result = result[..., None] * axis.count + members
    return np.asarray(result.ravel(), np.int64)


def tokens_of(moments: Moments) -> Tokens:
    """All positions of a map as one row of tokens."""
    near = moments.excess.sum(axis=tuple(range(0, moments.excess.ndim, 2)))
    own = moments.second - _diagonal_of_far(moments)
    return Tokens(
        classes_of(moments.axes),
        moments.second.ravel(),
        far_matrix(moments.far),
        np.asarray(near - own).ravel(),
    )


def _diagonal_of_far(moments: Moments) -> Array:
    return np.diag(far_matrix(moments.far)).reshape(moments.mean.shape)


LogitsOf = Callable[[Tokens, Tokens, Pattern], Logits]


def of_products(scale: float, size: float, spread: float | None = None) -> LogitsOf:
    """Logits s·q·k of `size` entries, `scale` = s²; `spread` is the d of a row's χ²_d/d."""

    def logits(query: Tokens, key: Tokens, pattern: Pattern) -> Logits:
        row_logits = products(query, key, pattern, scale, size)
        return row_logits if spread is None else dataclasses.replace(row_logits, size=spread)

    return logits


class Attention:
    """Softmax attention along some of the axes of positions, as moments of maps.

    Args:
        query: Moments of the queries.
        key: Moments of the keys.
        value: Moments of the values.
        pattern: The keys that each query sees, by flat positions along the attended axes.
        logits: Makes `Logits` of queries and keys.
        value_size: Entries of a value.
        attended: Indices of the attended axes; all by default.
        kept: Share of the weights that dropout keeps.
        width: Channels of the tokens that keys and values are both computed from.
    """

    def __init__(
        self,
        query: Moments,
        key: Moments,
        value: Moments,
        pattern: Pattern,
        logits: LogitsOf,
        value_size: float,
        attended: Sequence[int] | None = None,
        kept: float = 1.0,
        width: float = math.inf,
    ) -> None:
        count = len(query.axes)
        self._whole = (query, key, value)
        self._others = [] if attended is None else [n for n in range(count) if n not in attended]
        self._rows = [_typical(m, self._others) for m in self._whole]
        queries, keys, values = (tokens_of(m) for m in self._rows)
        row = logits(queries, keys, pattern)
        self._attending = Attending(queries, keys, values, pattern, row, value_size, kept, width)

    @property
    def mixed(self) -> Moments:
        """The moments of the outputs."""
        second, pair = self._attending.second(), self._attending.pair()
        axes = self._rows[0].axes
        if not self._others:
            return of_tokens(axes, np.zeros_like(second), second, pair)
        # Positions of different rows attend to different values.
        weights = position_weights(axes).ravel()
        across = self._whole[2].pair_moment
        rest = [self._whole[0].axes[n] for n in self._others]
        share = 1 / (size_of(tuple(rest)) or math.inf)
        mean_pair = share * float(weights @ pair @ weights) + (1 - share) * across
        return uniform(self._whole[0].axes, 0.0, float(weights @ second), mean_pair)

    def weights(self) -> tuple[float, float]:
        """E A and E A² over all pairs of a query and a key."""
        rows = self._attending
        keys = rows.pattern.keys
        return 1 / keys, float(np.mean(rows.squares)) / (keys * rows.kept)

    def backward(self, gradient: Array, coherence: float) -> dict[str, tuple[Array, float]]:
        """Squared gradients by class, and their coherence, at logits, queries, keys and values."""
        own = self._whole[0]
        weights = position_weights(own.axes)
        if self._others:
            per_row = np.full(self._rows[0].mean.shape, float(np.sum(weights * gradient)))
        else:
            per_row = gradient
        gradients = self._attending.backward(per_row.ravel(), coherence)
        logits, alike_rows = gradients["logits"]
        results = {"logits": (logits, alike_rows)}
        for name, whole, row in zip(
            ("query", "key", "value"), self._whole, self._rows, strict=True
        ):
            second, coherent = gradients[name]
            shaped = second.reshape(row.mean.shape)
            if self._others:
                mean = float(np.sum(position_weights(row.axes) * shaped))
                shaped = np.full(whole.mean.shape, mean)
            results[name] = (shaped, coherent)
        return results


def of_tokens(axes: Axes, mean: Array, second: Array, pair: Array) -> Moments:
    """A map from flat classes: E z and E z² (classes,), E z z' of pairs (classes, classes)."""
    counts = [axis.count for axis in axes]
    order = [i for n in range(len(axes)) for i in (n, n + len(axes))]
    far = pair.reshape([*counts, *counts]).transpose(order)
    excess = (second - np.diag(pair)).reshape([n for c in counts for n in (1, c)])
    return Moments(axes, mean.reshape(counts), far, excess, (0,) * len(axes))


def _typical(moments: Moments, numbers: Sequence[int]) -> Moments:
    """Averages over equal positions of some axes, which are removed."""
    for number in sorted(numbers, reverse=True):
        weights = moments.axes[number].weights
        mean = np.tensordot(moments.mean, weights, axes=(number, 0))
        pairs = np.diagonal(moments.far, axis1=2 * number, axis2=2 * number + 1)
        far = np.tensordot(pairs, weights, axes=(pairs.ndim - 1, 0))
        own = np.take(moments.excess, moments.radius[number], axis=2 * number)
        excess = np.tensordot(own, weights, axes=(2 * number, 0))
        axes = tuple(a for n, a in enumerate(moments.axes) if n != number)
        radius = tuple(r for n, r in enumerate(moments.radius) if n != number)
        moments = Moments(axes, np.asarray(mean), np.asarray(far), np.asarray(excess), radius)
    return moments
