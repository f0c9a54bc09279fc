"""What the runs gave: rows in a CSV file as they end, and a table of them all."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Sequence

METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: an initializer with one seed."""

    initializer: str
    seed: int
    #: For each of `METRICS` a value per epoch.
    history: dict[str, list[float]]
    seconds: float

    @property
    def final_accuracy(self) -> float:
        """Validation accuracy after the last epoch."""
        return self.history["val_accuracy"][-1]

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being a finite number."""
        return not all(math.isfinite(loss) for loss in self.history["loss"])

    def epochs_to(self, accuracy: float) -> int | None:
        """Returns the first epoch with at least that validation accuracy, or `None`.

        Args:
            accuracy: A share between 0 and 1.
        """
        values = self.history["val_accuracy"]
        return next((epoch for epoch, v in enumerate(values, start=1) if v >= accuracy), None)


class CsvLog:
    """Writes a run's epochs to a file right when the run ends.

    Durations are not among the columns, so that equal runs give equal files.

    Args:
        path: The file, which is replaced.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._write("w", [("initializer", "seed", "epoch", *METRICS)])

    def add(self, run: Run) -> None:
        """Appends one row for each epoch of a run.

        Args:
            run: The run that ended.
        """
        columns = zip(*(run.history[metric] for metric in METRICS), strict=True)
        self._write(
            "a",
            [
                (run.initializer, run.seed, epoch, *(f"{value:.6g}" for value in values))
                for epoch, values in enumerate(columns, start=1)
            ],
        )

    def _write(self, mode: str, rows: Sequence[Sequence[object]]) -> None:
        with self._path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def format_table(runs: Sequence[Run], target_accuracy: float) -> str:
    """Formats one line for each initializer, in the order of the runs.

    Args:
        runs: All runs; those of one initializer differ in the seed.
        target_accuracy: The validation accuracy whose first epoch is reported.

    Returns:
        An aligned table of several lines.
    """
    groups = group(runs)
    header = (
        "initializer",
        "final val. accuracy",
        f"epochs to {target_accuracy:.1%} val. accuracy",
        "seconds per run (median)",
    )
    rows = [
        (
            name,
            _mean_and_deviation([run.final_accuracy for run in members], 4) + _diverged(members),
            _epochs(members, target_accuracy),
            # The first run of all warms the backend up, which a mean would hold against it.
            f"{statistics.median(run.seconds for run in members):.1f}",
        )
        for name, members in groups.items()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines)


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups runs by initializer, in order of appearance.

    Args:
        runs: Any runs.

    Returns:
        The runs of each initializer.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.initializer, []).append(run)
    return groups


def _epochs(members: Sequence[Run], target_accuracy: float) -> str:
    reached = [run.epochs_to(target_accuracy) for run in members]
    counted = [epochs for epochs in reached if epochs is not None]
    missing = f"not reached {len(members) - len(counted)}/{len(members)}"
    if not counted:
        return missing
    text = _mean_and_deviation(counted, 1)
    return text if len(counted) == len(members) else f"{text}, {missing}"


def _diverged(members: Sequence[Run]) -> str:
    number = sum(run.diverged for run in members)
    return f", diverged {number}/{len(members)}" if number else ""


def _mean_and_deviation(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"
