"""A study's records as text: mean and deviation over seeds, paired differences to a baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
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


def over_epochs(record: Record) -> float:
    """The validation accuracy's mean over all epochs: high where a network learns fast.

    A training that diverged counts with the epochs that it had.
    """
    return statistics.fmean(record["history"]["val_accuracy"])


def difference(
    records: Sequence[Record],
    baseline: Sequence[Record],
    value: Callable[[Record], float] = final,
) -> str:
    """The paired difference of a value, seed by seed, or why there is none."""
    of_seed = {record["settings"]["seed"]: value(record) for record in baseline}
    pairs = [
        (value(record), of_seed[record["settings"]["seed"]])
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


#: What initializers are compared by.
VALUES = (final, over_epochs)


def comparison(records: Sequence[Record], baselines: Mapping[str, str]) -> str:
    """A line for each initializer: accuracy at the end, and over all epochs, which tells speed.

    Args:
        records: All trainings; those of one initializer differ in the seed.
        baselines: By initializer the one that it is held against, perhaps itself.
    """
    groups = by_setting(records, "initializer")
    header = (
        *("initializer", "final val. accuracy", "mean over epochs", "diverged", "seconds (median)"),
        *("baseline", "paired difference [95 % interval]", "that of the mean over epochs"),
    )
    rows = []
    for name, members in groups.items():
        baseline = baselines.get(name, name)
        against = groups.get(baseline) if baseline != name else None
        differences = [difference(members, against, v) if against else "" for v in VALUES]
        rows.append(
            (
                name,
                *(spread([value(record) for record in members]) for value in VALUES),
                f"{sum(map(diverged, members))}/{len(members)}",
                f"{statistics.median(record['seconds'] for record in members):.1f}",
                *(baseline if against else "", *differences),
            )
        )
    return table(header, rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])
