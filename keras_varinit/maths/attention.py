"""Moments of softmax attention: o_p = Σ_q A_pq v_q, with A the softmax over keys q of s·q_p·k_q.

Averages are over the independent weights that make queries, keys and values. Conditional on q_p the
logits of a row are Gaussian. What keys have in common shifts a whole row and cancels, so that a
row's logits have variance σ² = s²·|q_p|²·(E k² - E k k'), where |q_p|² = d·E q²·χ²_d/d. A value is
v = common + own part; with S = E Σ_q A_pq² the output has E o² = S·E own² + E v v'.
"""

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.patterns import Pattern

Array = npt.NDArray[np.float64]

Integers = npt.NDArray[np.int64]

_STEP = 1 / 8

_NODES = np.arange(-8.5, 8.5 + _STEP / 2, _STEP)

_DENSITY = _STEP * np.exp(-(_NODES**2) / 2) / math.sqrt(2 * math.pi)

_RADII, _COUNTS = 5, 24

# Above it one key takes all the weight, and the integrals would need a finer grid.
LARGEST_VARIANCE = 1e4


def shares(variance: float, counts: Array) -> Array:
    """E Σ A², E Σ A³, E (Σ A²)² and E Σ A⁴ of a softmax over n independent logits N(0, variance).

    With 1/Zᵏ = ∫ tᵏ⁻¹ e^{-tZ} dt / (k-1)! and Z = Σ e^l, E Σ A^k is
    n·∫ tᵏ⁻¹ E[e^{kl} e^{-t e^l}] (E e^{-t e^l})^{n-1} dt / (k-1)!, and E A²A'² has
    two such factors.

    Args:
        variance: Variance of a logit.
        counts: n, of any shape.

    Returns:
        The four moments, along a new first axis; NaN for a variance above `LARGEST_VARIANCE`.
    """
    counts = np.asarray(counts, np.float64)
    if not math.isfinite(variance) or variance > LARGEST_VARIANCE:
        return np.full((4, *counts.shape), math.nan)
    least = np.stack([1 / counts, counts**-2, counts**-2, counts**-3])
    if variance <= 0:
        return least
    logs, one, powers = _transforms(float(f"{variance:.5g}"))
    n = counts[..., None]
    others = np.log(np.maximum(one, 1e-300))
    rest, two_less = np.exp((n - 1) * others), np.exp(np.maximum(n - 2, 0.0) * others)
    squared, cubed, fourth = (
        counts * np.sum(power * rest, axis=-1) / math.factorial(k + 1)
        for k, power in enumerate(powers)
    )
    both = counts * (counts - 1) * np.sum(powers[0] ** 2 * two_less, axis=-1) / 6
    sums = np.stack([squared, cubed, fourth + both, fourth]) * (logs[1] - logs[0])
    return np.asarray(np.clip(sums, least, 1.0))


@functools.lru_cache(maxsize=256)
def _transforms(variance: float) -> tuple[Array, Array, list[Array]]:
    """The grid of log t; E e^{-t e^l}; E (t e^l)^k e^{-t e^l} for k = 2, 3, 4: (grid,) each."""
    std = math.sqrt(variance)
    # Logits are within 8.5 σ, so Z < n e^{8.5σ}; the grid serves up to e^20 keys.
    logs = np.arange(-8.5 * std - 25.0, 8.5 * std + 5.0, 0.3)
    scaled = np.exp(np.minimum(logs[:, None] + std * _NODES[None, :], 100.0))
    weighted = np.exp(-scaled) * _DENSITY
    return logs, weighted.sum(axis=1), [(weighted * scaled**k).sum(axis=1) for k in (2, 3, 4)]


@functools.lru_cache(maxsize=64)
def _radii(size: float) -> tuple[Array, Array]:
    """Nodes and weights of χ²_d/d, d = `size`, which has mean 1: (radii,) each."""
    # Gauss quadrature of the gamma law of shape d/2 (generalized Laguerre, Golub-Welsch).
    shape = size / 2
    n = np.arange(_RADII)
    diagonal = 2 * n + shape
    beside = np.sqrt(n[1:] * (n[1:] + shape - 1))
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return values / shape, vectors[0] ** 2


def row_shares(variances: Array, counts: Array, size: float) -> Array:
    """`shares` of rows whose logits have variance `variances`·χ²_d/d, d = `size`.

    Args:
        variances: Mean variance of each row's logits, of a shape that broadcasts with `counts`.
        counts: n of each row.
        size: d.

    Returns:
        The four moments, along a new first axis.
    """
    variances, counts = np.broadcast_arrays(variances, counts)
    if not np.all(np.isfinite(variances)):
        return np.full((4, *counts.shape), math.nan)
    low, high = float(variances.min()), float(variances.max())
    even = high <= 1.01 * low + 1e-9
    grid = np.array([high]) if even else np.geomspace(max(low, high / 50), high, 6)
    distinct, place = np.unique(counts, return_inverse=True)
    place = place.reshape(counts.shape)
    some = distinct
    if len(distinct) > _COUNTS:
        some = np.unique(np.round(np.geomspace(distinct[0], distinct[-1], _COUNTS)))
    radii, weights = (np.ones(1), np.ones(1)) if size > 512 else _radii(size)
    tables = np.stack(
        [
            sum(w * shares(variance * r, some) for r, w in zip(radii, weights, strict=True))
            for variance in grid
        ],
        axis=1,
    )
    logs = np.log(tables)
    if some is not distinct:
        between = [[np.interp(np.log(distinct), np.log(some), row) for row in t] for t in logs]
        logs = np.asarray(between)
    if even:
        return np.asarray(np.exp(logs[:, 0, place]))
    spot = np.interp(variances, grid, np.arange(len(grid)))
    below = np.minimum(spot.astype(int), len(grid) - 2)
    part = spot - below
    mixed = (1 - part) * logs[:, below, place] + part * logs[:, below + 1, place]
    return np.asarray(np.exp(mixed))


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Second moments of the entries of queries, keys or values along one axis of positions.

    `classes`: class of each position, (positions,). `second`: E z², (classes,). `pair`: E z_p z_q
    of two positions of an example, (classes, classes). `near`: what its neighbours add to the sum
    of a position's pairs, (classes,).
    """

    classes: Integers
    second: Array
    pair: Array
    near: Array

    @functools.cached_property
    def indicator(self) -> Array:
        """One-hot classes: (positions, classes)."""
        return np.eye(len(self.second))[self.classes]

    @functools.cached_property
    def weights(self) -> Array:
        """Share of the positions in each class: (classes,)."""
        return np.asarray(self.indicator.mean(axis=0))

    @property
    def mean_pair(self) -> float:
        """E z_p z_q, p ≠ q, over all positions."""
        count = len(self.classes)
        if count < 2:
            return float(self.second.mean())
        per_class = self.indicator.sum(axis=0)
        total = per_class @ self.pair @ per_class + per_class @ (self.near - np.diag(self.pair))
        return float(total / (count * (count - 1)))

    @property
    def mean_second(self) -> float:
        """E z² over all positions."""
        return float(self.weights @ self.second)

    def gram(self, places: Integers) -> Array:
        """E z_p z_q of some positions, with centred rows and columns: (places, places)."""
        classes = self.classes[places]
        gram = self.pair[np.ix_(classes, classes)]
        beside = np.arange(len(places) - 1)
        near = self.near[classes] / 2
        gram[beside, beside + 1] += near[:-1]
        gram[beside + 1, beside] += near[1:]
        np.fill_diagonal(gram, self.second[classes])
        gram = gram - gram.mean(axis=0)
        return np.asarray(gram - gram.mean(axis=1, keepdims=True))

    def within(self, pattern: Pattern) -> tuple[Array, Array]:
        """E z² and E z z' of two positions among the keys that each row sees: (rows,) each."""
        seen = pattern.over_keys(self.indicator)
        counts = pattern.counts
        second = seen @ self.second / counts
        pairs = np.einsum("pc,cd,pd->p", seen, self.pair, seen)
        pairs += seen @ (self.near - np.diag(self.pair))
        return second, np.where(counts > 1, pairs / np.maximum(counts * (counts - 1), 1), 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Logits:
    """The logits of each row: their variance and their sensitivity to queries and keys; (rows,).

    `variance`: of a row's logits, to be multiplied by χ²_d/d, d = `size`. `to_query`: E over the
    keys of (dl/dq)² for an entry of the query, without what keys have in common. `to_key`:
    E (dl/dk)² for an entry of a key.
    """

    variance: Array
    to_query: Array
    to_key: Array
    size: float = math.inf


def products(query: Tokens, key: Tokens, pattern: Pattern, scale: float, size: float) -> Logits:
    """Logits s·q·k of `size` entries, `scale` = s²: σ² = s²·d·E q²·(E k² - E k k')."""
    second, pair = key.within(pattern)
    own = np.maximum(second - pair, 0.0)
    of_query = query.second[query.classes]
    return Logits(scale * size * of_query * own, scale * own, scale * of_query, size)


_ROWS, _KEYS = 12, 96


def unevenness(key: Tokens, value: Tokens, pattern: Pattern) -> Array:
    """How much more alike two keys of similar tokens are than any two, in square: (rows,).

    With C and D the second moments of keys and values at a row's positions, centred, it is
    Σ C_pq D_pq/n² over tr C·tr D/n², minus 1/(n - 1), its value for unrelated C and D.
    """
    some = np.unique(np.round(np.linspace(0, pattern.rows - 1, _ROWS)).astype(int))
    if pattern.is_full:
        some = some[:1]
    by_row = []
    for row in some:
        places = np.flatnonzero(pattern.seen(int(row)))
        if len(places) > _KEYS:
            places = places[np.linspace(0, len(places) - 1, _KEYS).astype(int)]
        count = len(places)
        keys, values = key.gram(places), value.gram(places)
        total = np.trace(keys) * np.trace(values)
        share = float(np.sum(keys * values)) / total if count > 2 and total > 0 else 0.0
        by_row.append(max(share - 1 / (count - 1), 0.0) if share else 0.0)
    return np.asarray(np.interp(np.arange(pattern.rows), some, by_row))


class Attending:
    """Softmax attention of queries to the keys that a pattern lets through.

    Args:
        query: Moments of the queries' entries, by position.
        key: Those of the keys.
        value: Those of the values.
        pattern: The keys that each query sees.
        logits: Variance and sensitivities of the logits.
        value_size: Entries of a value.
        kept: Share of the weights that dropout keeps.
        width: Entries of the tokens that keys and values are both computed from. Unrelated tokens
            still differ from orthogonal by 1/√width, so keys of tokens that resemble each other
            are favoured together, by σ²/width.
    """

    def __init__(
        self,
        query: Tokens,
        key: Tokens,
        value: Tokens,
        pattern: Pattern,
        logits: Logits,
        value_size: float,
        kept: float = 1.0,
        width: float = math.inf,
    ) -> None:
        self.query, self.key, self.value = query, key, value
        self.pattern, self.logits, self.value_size, self.kept, self.width = (
            pattern,
            logits,
            value_size,
            kept,
            width,
        )
        self.counts = pattern.counts
        self.value_second, self.value_pair = value.within(pattern)
        self.own_value = np.maximum(self.value_second - self.value_pair, 0.0)
        self.squares, self.cubes, self.fourths, alone = row_shares(
            logits.variance, self.counts, logits.size
        )
        # E Σ ∂²(A A')/∂l∂l' over pairs of keys: the effect of a correlation of their logits.
        swayed = 1 - 5 * self.squares + 4 * self.cubes + 6 * (self.fourths - alone)
        self.swayed = np.maximum(swayed, 0.0)
        # Narrow tokens of a deep stack have both effects; the larger one covers both.
        self.uneven = np.maximum(unevenness(key, value, pattern), 1 / width)

    def second(self) -> Array:
        """E o², by class of query: (classes,)."""
        rows = self.squares * self.value_second / self.kept + (1 - self.squares) * self.value_pair
        alike = self.swayed * self.logits.variance * self.own_value / self.width
        return self._by_query(np.minimum(rows + alike, self.value_second / self.kept))

    def pair(self) -> Array:
        """E o_p o_p' of two queries, by their classes: (classes, classes).

        Independent rows have E Σ A_pq A_p'q = Σ 1/n n' over the keys of both. Correlated queries
        attend to the same keys more often, by (S n)^ρ: exact for equal queries, and e^{ρσ²} for
        many keys.
        """
        rows, value = self._mean_rows(), self.value
        seen = rows @ value.indicator
        same_key = rows * (value.second - np.diag(value.pair))[value.classes] @ rows.T
        own = np.maximum(value.second - value.mean_pair, 0.0)[value.classes]
        more = (rows * own @ rows.T) * (self._boosts() - 1)
        alike = self._by_query(self.swayed * self.logits.variance * self.own_value) / self.width
        more = more + np.maximum(self._correlations, 0.0) * np.sqrt(np.outer(alike, alike))
        return np.asarray(seen @ value.pair @ seen.T + same_key + more)

    def _by_query(self, rows: Array) -> Array:
        indicator = self.query.indicator
        return np.asarray(rows @ indicator / indicator.sum(axis=0))

    def _mean_rows(self) -> Array:
        """E A_pq = 1/n on the keys of a row, averaged over the rows of a class: (classes, keys)."""
        indicator = self.query.indicator / self.query.indicator.sum(axis=0)
        return np.asarray(self.pattern.over_rows(indicator / self.counts[:, None]).T)

    @functools.cached_property
    def _sharpness(self) -> Array:
        """log(S·n), by class of query: (classes,)."""
        return self._by_query(np.log(np.maximum(self.squares * self.counts, 1.0)))

    @functools.cached_property
    def _correlations(self) -> Array:
        """ρ of two queries, by their classes: (classes, classes)."""
        spread = np.sqrt(np.maximum(self.query.second, 1e-300))
        return np.asarray(np.clip(self.query.pair / np.outer(spread, spread), -1.0, 1.0))

    def _boosts(self) -> Array:
        """(S n)^ρ of two queries, by their classes: (classes, classes)."""
        both = (self._sharpness[:, None] + self._sharpness[None, :]) / 2
        return np.asarray(np.exp(self._correlations * both))

    def _mean_boost(self) -> float:
        weights = self.query.weights
        return float(weights @ self._boosts() @ weights)

    def backward(self, gradient: Array, coherence: float) -> dict[str, tuple[Array, float]]:
        """Squared gradients at logits, queries, keys and values, each with its coherence.

        A value gets g_v = Σ_p A_pq g_p. A logit gets A_pq (w_q - Σ A w) with w_q = g·v_q, in which
        what the values have in common cancels: E Σ_q = (S - 2 E Σ A³ + E (Σ A²)²)·d_v·g²·E own².
        These sum to 0 over a row, so what keys have in common does not reach the query.

        Args:
            gradient: E g² at an entry of the output, by class of query: (classes,).
            coherence: E g_p g_p' of two queries over E g².

        Returns:
            E of the squared gradient at an entry, (classes,), and its coherence, by name.
        """
        g = gradient[self.query.classes]
        n, keys = self.counts, self.pattern.keys
        squares, boost = self.squares, self._mean_boost()
        pattern = self.pattern
        alone = pattern.over_rows(g * squares / n / self.kept)
        root = np.sqrt(g) / n
        crossed = pattern.over_rows(root) ** 2 - pattern.over_rows(root**2)
        to_value = alone + coherence * boost * np.maximum(crossed, 0.0)
        across = float(np.sum(g * (1 - squares))) / max(keys * (keys - 1), 1)
        across += coherence * float(np.sum(np.sqrt(g)) ** 2 - np.sum(g)) / keys**2
        slopes = np.maximum(squares - 2 * self.cubes + self.fourths, 0.0)
        noise = (1 / self.kept - 1) * self.value_second
        spread = self.value_size * g * (self.own_value + noise)
        to_query = (slopes + (1 - squares) ** 2 * self.uneven) * spread * self.logits.to_query
        spread = slopes * spread
        spread_on_logits = spread
        kept_together = coherence * float(np.mean(boost / (n * squares)))
        spread = spread * self.logits.to_key
        to_key = pattern.over_rows(spread / n)
        alike = max(self.query.mean_pair / max(self.query.mean_second, 1e-300), 0.0)
        joint = np.sqrt(spread * alike * boost / np.maximum(squares, 1e-300)) / n
        together = pattern.over_rows(joint) ** 2 - pattern.over_rows(joint**2)
        to_key = to_key + coherence * np.maximum(together, 0.0)
        return {
            "logits": (self._by_query(spread_on_logits / keys), kept_together),
            "query": (self._by_query(to_query), min(kept_together, 1.0)),
            "key": (self._by_key(to_key, self.key), 0.0),
            "value": (self._by_key(to_value, self.value), _ratio(across, float(np.mean(to_value)))),
        }

    def _by_key(self, values: Array, tokens: Tokens) -> Array:
        return np.asarray(values @ tokens.indicator / tokens.indicator.sum(axis=0))


def _ratio(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
