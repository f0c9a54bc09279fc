"""The report of `calibrate`, one row per kernel."""

import dataclasses
import math
from collections.abc import Iterator

from keras_varinit.tables import text_table
from keras_varinit.typing import Config

CALIBRATED = "calibrated"


@dataclasses.dataclass(frozen=True)
class CalibrationRow:
    """What happened to one kernel.

    Attributes:
        path: The kernel's path.
        layer: Name of its layer; "name#2" is the second call of a shared layer.
        scale: Factor on the kernel; 1 if it was left alone.
        before, after: Second moment E u² of the pre-activation u on the data, with the weights
            before and after. None if u was not observed; not finite if u is not.
        iterations: Number of corrections of the scale.
        status: "calibrated", or "skipped: " or "not converged: " followed by the reason.
    """

    path: str
    layer: str
    scale: float
    before: float | None
    after: float | None
    iterations: int
    status: str

    def to_dict(self) -> Config:
        """JSON primitives; numbers that are not finite are None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """Rows in the order in which the model computes; iterable, and `str` formats them as a table.

    `report[key]` is the first row of a kernel's path or of a layer, and `key in report` tells
    whether it has one. `walks` is the number of passes over the data, `examples` the number of
    examples in it.
    """

    rows: tuple[CalibrationRow, ...]
    target: float
    tolerance: float
    walks: int
    examples: int
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[CalibrationRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, item: object) -> bool:
        """Whether a row, or a row of a path or layer, is part of the report."""
        return any(item in (row.path, row.layer, row) for row in self.rows)

    def __getitem__(self, key: str) -> CalibrationRow:
        for row in self.rows:
            if key in (row.path, row.layer):
                return row
        raise KeyError(f"no row for {key!r}. Paths: {[row.path for row in self.rows]}")

    @property
    def calibrated(self) -> tuple[CalibrationRow, ...]:
        """The rows whose signal now has the target second moment."""
        return tuple(row for row in self.rows if row.status == CALIBRATED)

    @property
    def not_converged(self) -> tuple[CalibrationRow, ...]:
        """The rows whose signal does not have the target second moment."""
        return tuple(row for row in self.rows if row.status.startswith("not converged"))

    @property
    def skipped(self) -> tuple[CalibrationRow, ...]:
        """The rows whose kernels were left alone."""
        return tuple(row for row in self.rows if row.status.startswith("skipped"))

    def to_dict(self) -> Config:
        """JSON primitives; numbers that are not finite are None."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "target": self.target,
            "tolerance": self.tolerance,
            "walks": self.walks,
            "examples": self.examples,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        header = ("path", "layer", "scale", "before", "after", "iterations", "status")
        cells = []
        for row in self.rows:
            moments = (_shown(row.before), _shown(row.after))
            numbers = (f"{row.scale:.5g}", *moments, str(row.iterations))
            cells.append((row.path, row.layer, *numbers, row.status))
        summary = (
            f"{len(self.calibrated)} calibrated to {self.target:g} ± {self.tolerance:.2%}, "
            f"{len(self.not_converged)} not converged, {len(self.skipped)} skipped; "
            f"{self.examples} examples, {self.walks} walks"
        )
        below = (summary, *(f"note: {note}" for note in self.notes))
        return text_table(header, cells, right=(2, 3, 4, 5), below=below)


def _shown(moment: float | None) -> str:
    return "-" if moment is None else f"{moment:.4g}"
