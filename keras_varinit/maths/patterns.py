"""Attention masks: the keys that each query sees, and sums over them."""

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Integers = npt.NDArray[np.int64]

Booleans = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """Row p sees the keys low_p ≤ q < high_p, except those that `mask` excludes.

    `lows` and `highs` are (rows,), `mask` is (rows, keys).
    """

    lows: Integers
    highs: Integers
    keys: int
    mask: Booleans | None = None

    @property
    def rows(self) -> int:
        """Number of queries."""
        return len(self.lows)

    @functools.cached_property
    def counts(self) -> Array:
        """Number of keys that each row sees: (rows,)."""
        return self.over_keys(np.ones(self.keys))

    @property
    def is_full(self) -> bool:
        """Whether every row sees all keys."""
        return bool(np.all(self.counts == self.keys))

    def seen(self, row: int) -> Booleans:
        """Whether a row sees each key: (keys,)."""
        places = np.arange(self.keys)
        band = (places >= self.lows[row]) & (places < self.highs[row])
        return np.asarray(band if self.mask is None else band & self.mask[row], np.bool_)

    def over_keys(self, values: Array) -> Array:
        """Σ of values (keys, …) over the keys of each row: (rows, …)."""
        if self.mask is not None:
            return np.asarray(self.mask.astype(np.float32) @ values.astype(np.float32), np.float64)
        total = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
        return np.asarray(total[self.highs] - total[self.lows])

    def over_rows(self, values: Array) -> Array:
        """Σ of values (rows, …) over the rows that see each key: (keys, …)."""
        if self.mask is not None:
            weights = self.mask.T.astype(np.float32)
            return np.asarray(weights @ values.astype(np.float32), np.float64)
        steps = np.zeros((self.keys + 1, *values.shape[1:]))
        np.add.at(steps, self.lows, values)
        np.subtract.at(steps, self.highs, values)
        return np.asarray(np.cumsum(steps, axis=0)[:-1])

    def restricted(self, mask: Booleans) -> "Pattern":
        """This pattern and `mask` (rows, keys); a row left without keys sees all."""
        places = np.arange(self.keys)
        seen = (places >= self.lows[:, None]) & (places < self.highs[:, None]) & mask
        if self.mask is not None:
            seen &= self.mask
        return of_mask(seen)


def everything(rows: int, keys: int) -> Pattern:
    """Full attention, without a mask."""
    return Pattern(np.zeros(rows, np.int64), np.full(rows, keys), keys)


def banded(rows: int, keys: int, *, causal: bool, window: int | None = None) -> Pattern:
    """Query p sees keys q ≤ p if causal; with a window, only those with |p - q| < window."""
    places = np.arange(rows)
    lows = np.zeros(rows, np.int64) if window is None else np.maximum(places - window + 1, 0)
    ahead = keys if window is None else window
    highs = np.minimum(places + (1 if causal else ahead), keys)
    lows = np.minimum(lows, keys)
    empty = highs <= lows
    return Pattern(np.where(empty, 0, lows), np.where(empty, keys, highs), keys)


def of_mask(mask: Booleans) -> Pattern:
    """A constant mask (rows, keys). A row that sees no key is uniform over all, as in Keras."""
    mask = np.array(mask, bool)
    mask[~mask.any(axis=1)] = True
    keys = mask.shape[1]
    lows = mask.argmax(axis=1)
    highs = keys - mask[:, ::-1].argmax(axis=1)
    is_band = bool(np.all(mask.sum(axis=1) == highs - lows))
    return Pattern(lows, highs, keys, None if is_band else mask)
