"""Paired comparisons over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from common.errors import require


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """One of "better", "worse" and "undecided", where the interval holds zero."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Compares values with a baseline's, pair by pair: equal seeds, equal batches.

    Args:
        values: One for each seed.
        baseline: One for each seed, in the same order.

    Raises:
        ValueError: Fewer than two pairs, or unequal lengths.
    """
    pairs = [v - b for v, b in zip(values, baseline, strict=True)]
    if len(pairs) < 2:
        raise ValueError(f"a confidence interval needs two pairs or more, got {len(pairs)}.")
    t = require("scipy.stats", "scipy", "for confidence intervals").t
    mean = statistics.fmean(pairs)
    error = statistics.stdev(pairs) / len(pairs) ** 0.5
    half = float(t.ppf(0.975, len(pairs) - 1)) * error
    return Difference(mean, mean - half, mean + half, len(pairs))
