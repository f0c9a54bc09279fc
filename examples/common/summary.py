"""A study's records as text: mean and deviation over seeds, paired differences to a baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common import paired

Record = Mapping[str, Any]


def by_setting(records: Sequence[Record], *keys: str) -> dict[Any, list[Record]]:
    """Groups records by one setting, or by a tuple of several, in order of appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        values = tuple(record["settings"][key] for key in keys)
        groups.setdefault(values[0] if len(keys) == 1 else values, []).append(record)
    return groups


def final(record: Record, metric: str = "val_accuracy") -> float:
    """A metric after the last epoch."""
    return record["history"][metric][-1]


def diverged(record: Record) -> bool:
    """Whether the loss stopped being a finite number."""
    return not math.isfinite(final(record, "loss"))


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not 1."""
    return f"{count} {noun}" + "s" * (count != 1)


def over_seeds(title: str, seeds: int) -> str:
    """A plot's title, with what the lines and their bands are where there are several seeds."""
    return f"{title}: mean and range over {seeds} seeds" if seeds > 1 else title


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; a single value as it is."""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def difference(records: Sequence[Record], baseline: Sequence[Record]) -> str:
    """The paired difference of the final accuracies, seed by seed, or why there is none."""
    of_seed = {record["settings"]["seed"]: final(record) for record in baseline}
    pairs = [
        (final(record), of_seed[record["settings"]["seed"]])
        for record in records
        if record["settings"]["seed"] in of_seed
    ]
    if len(pairs) < 2:
        return "needs 2 seeds"
    found = paired.difference(*zip(*pairs, strict=True))
    return f"{found} {found.verdict}"


def geometric_mean(lines: Sequence[Sequence[float | None]]) -> np.ndarray:
    """By column; nothing where a value is zero or not finite in one of the lines."""
    values = np.array(lines, dtype=float)
    return np.exp(np.log(np.where(values > 0, values, np.nan)).mean(axis=0))


def comparison(records: Sequence[Record], baselines: Mapping[str, str]) -> str:
    """A line for each initializer.

    Args:
        records: All trainings; those of one initializer differ in the seed.
        baselines: By initializer the one that it is held against, perhaps itself.
    """
    groups = by_setting(records, "initializer")
    header = ("initializer", "final val. accuracy", "best epoch's", "diverged", "seconds (median)")
    rows = [
        (
            name,
            spread([final(record) for record in members]),
            spread([max(record["history"]["val_accuracy"]) for record in members]),
            f"{sum(map(diverged, members))}/{len(members)}",
            f"{statistics.median(record['seconds'] for record in members):.1f}",
            _against(name, members, baselines, groups),
        )
        for name, members in groups.items()
    ]
    return table((*header, "paired difference [95 % interval]"), rows)


def _against(
    name: str,
    members: Sequence[Record],
    baselines: Mapping[str, str],
    groups: Mapping[str, Sequence[Record]],
) -> str:
    baseline = baselines.get(name, name)
    if baseline == name or baseline not in groups:
        return ""
    return f"{difference(members, groups[baseline])} (to {baseline})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])
