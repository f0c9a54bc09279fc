"""What `calibrate` did, kernel by kernel."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from keras_varinit.tables import text_table

CALIBRATED = "calibrated"


@dataclasses.dataclass(frozen=True)
class CalibrationRow:
    """What happened to one kernel.

    Attributes:
        path: The kernel's path.
        layer: The layer that has it; with "#2" where a shared layer is called again.
        scale: What the kernel was multiplied by; 1 where it was left alone.
        before, after: Second moment E u² of the pre-activation u on the data, with the weights
            before and after. None where it was not seen; not a number or infinite where u was.
        iterations: How many times the scale was corrected.
        status: "calibrated", or "skipped: " or "not converged: " with the reason.
    """

    path: str
    layer: str
    scale: float
    before: float | None
    after: float | None
    iterations: int
    status: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-plain values; numbers that are not finite are None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """The rows in the order in which the model computes: iterable, readable in print.

    `report[key]` is the first row of that kernel's path or that layer, and `key in report` says
    whether there is one. `walks` counts how many
    times the model was run over all the data, `examples` how many there are.
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
        """Whether it has that row, or a row of that path or layer."""
        return any(item in (row.path, row.layer, row) for row in self.rows)

    def __getitem__(self, key: str) -> CalibrationRow:
        for row in self.rows:
            if key in (row.path, row.layer):
                return row
        raise KeyError(f"no row for {key!r}. Paths: {[row.path for row in self.rows]}")

    @property
    def calibrated(self) -> tuple[CalibrationRow, ...]:
        """The rows whose signal has the wanted second moment now."""
        return tuple(row for row in self.rows if row.status == CALIBRATED)

    @property
    def not_converged(self) -> tuple[CalibrationRow, ...]:
        """The rows whose signal has not."""
        return tuple(row for row in self.rows if row.status.startswith("not converged"))

    @property
    def skipped(self) -> tuple[CalibrationRow, ...]:
        """The rows whose kernels were left alone."""
        return tuple(row for row in self.rows if row.status.startswith("skipped"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-plain values; numbers that are not finite are None."""
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
