"""Signals with rows: logits and weights of hand-written attention.

A product of queries and keys is a `RowSignal`, which also records its factors, because softmax
depends on the variation along a row of logits. Scaling, masks, softmax and dropout pass the rows
on, and the product with the values uses them. Other operations see plain moments.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.families.attention.masks import FROM_DATA, UnknownError
from keras_varinit.maths.attention import row_shares
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.patterns import Booleans, Pattern
from keras_varinit.maths.windows import Array
from keras_varinit.signals.outcome import Gradient, Outcome, Signal, Visit
from keras_varinit.signals.registry import row_rule_of

# Masked logits are at most this.
_HIDDEN = -1e3


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a tensor of logits, or of attention weights.

    Dimensions are counted from the right.

    Args:
        query: Moments of the queries, with the axes of blocks first.
        key: Moments of the keys, with the axes of blocks first.
        pattern: Which keys each query attends to.
        row_axes: Dimensions of the queries.
        key_axes: Dimensions of the keys.
        block_axes: Dimensions of positions that queries and keys share.
        scale: Square of the factor on the logits.
        size: Number of entries of a query or a key.
        spread: Effective size that determines how much the norms of rows vary.
        kept: Share of the weights that dropout keeps.
        are_weights: Whether softmax has been applied.
        source: The input of the keys' kernel; see `narrowness`.
    """

    query: Moments
    key: Moments
    pattern: Pattern
    row_axes: tuple[int, ...]
    key_axes: tuple[int, ...]
    block_axes: tuple[int, ...] = ()
    scale: float = 1.0
    size: float = 1.0
    spread: float = math.inf
    kept: float = 1.0
    are_weights: bool = False
    source: tuple[int, float] | None = None

    def shares(self) -> Array:
        """E Σ A², E Σ A³, E (Σ A²)² and E Σ A⁴, averaged over rows."""
        own = max(self.key.second_moment - self.key.pair_moment, 0.0)
        variance = self.scale * self.size * self.query.second_moment * own
        counts = self.pattern.counts
        shares = row_shares(np.full_like(counts, variance), counts, self.spread)
        return np.asarray(shares.mean(axis=1))


@dataclasses.dataclass(frozen=True)
class RowSignal(Signal):
    """A signal with rows; `each` drops them."""

    rows: Rows | None = None

    def each(self, function: Callable[[Moments], Moments]) -> Signal:
        """Applies `function` to each group and drops the rows."""
        return self.plain().each(function)

    def plain(self) -> Signal:
        """The signal without rows."""
        return Signal(self.parts, self.channel_axis, self.other_axes)


@dataclasses.dataclass(frozen=True)
class RowGradient(Gradient):
    """The gradient of logits or weights.

    Args:
        sources: E g² and coherence for "query" and "key", computed by the product with the values.
        centred: Whether each row sums to 0.
    """

    sources: Mapping[str, tuple[Array, float]] | None = None
    centred: bool = False


def rows_of(visit: Visit, number: int = 0) -> Rows | None:
    """The rows of an input, or None."""
    signal = visit.inputs[number]
    return signal.rows if isinstance(signal, RowSignal) else None


def with_rows(signal: Signal, rows: Rows) -> RowSignal:
    """Adds rows to a signal."""
    return RowSignal(signal.parts, signal.channel_axis, signal.other_axes, rows=rows)


def masked(visit: Visit, number: int, rows: Rows, values: npt.NDArray[Any]) -> Outcome:
    """Restricts rows to the entries that a mask, an array over the whole tensor, keeps."""
    seen = _as_pattern(values, rows, len(visit.output_shape))
    pattern = rows.pattern.restricted(seen) if not np.all(seen) else rows.pattern
    return passed_on(visit, number, dataclasses.replace(rows, pattern=pattern))


def passed_on(visit: Visit, number: int, rows: Rows, factor: float = 1.0) -> Outcome:
    """Replaces the rows, and multiplies second moments and those of gradients by `factor`."""
    signal = visit.inputs[number]
    output = with_rows(Signal.scaled(signal, factor) if factor != 1.0 else signal, rows)

    def pullback(gradients: Any) -> Any:
        gradient, results = gradients[0], [None] * len(visit.inputs)
        if gradient is not None:
            parts = tuple(g * factor for g in gradient.parts)
            results[number] = dataclasses.replace(gradient, parts=parts)
        return results

    return Outcome((output,), pullback)


def _as_pattern(values: npt.NDArray[Any], rows: Rows, rank: int) -> Booleans:
    """A mask over the whole tensor as an array (rows, keys)."""
    values = np.asarray(values != 0).reshape((1,) * (rank - values.ndim) + values.shape)
    last = [*rows.row_axes, *rows.key_axes]
    values = np.moveaxis(values, last, range(-len(last), 0))
    sizes = [a.size for a in rows.query.axes[len(rows.block_axes) :]]
    sizes += [a.size for a in rows.key.axes[len(rows.block_axes) :]]
    values = values.reshape(-1, *values.shape[values.ndim - len(last) :])
    if not np.all(values == values[:1]):
        raise UnknownError("its mask differs among heads, windows or examples")
    full = np.broadcast_to(values[0], [n or 1 for n in sizes])
    return full.reshape(rows.pattern.rows, rows.pattern.keys)


def known_numbers(visit: Visit, value: Any, number: int | None) -> npt.NDArray[Any] | None:
    """The value of an operand without weights, from `value` or its input number; else None."""
    if number is None:
        return np.asarray(keras.ops.convert_to_numpy(value))
    if visit.values and visit.values[number] is not None:
        return np.asarray(visit.values[number])
    known = None if visit.masks is None else visit.masks.of(visit.call.node, number)
    if known is None:
        return None
    if known.from_data:
        visit.note(FROM_DATA)
    return known.values


def hides(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """The logits that an additive mask keeps; None if the values are not a mask."""
    kept = values == 0
    return np.asarray(kept) if np.all(kept | (values <= _HIDDEN)) else None


def outcome_of_rows(visit: Visit) -> Outcome | None:
    """The outcome by an operation's row rule; None without rows or without a rule."""
    if not any(isinstance(s, RowSignal) for s in visit.inputs):
        return None
    rule = row_rule_of(visit.operation)
    return None if rule is None else rule(visit)
