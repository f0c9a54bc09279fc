"""The report of `calibrate`, one row per kernel."""

import dataclasses
from typing import ClassVar

from keras_varinit.results import Results, Row
from keras_varinit.tables import Column

CALIBRATED = "calibrated"


@dataclasses.dataclass(frozen=True)
class CalibrationRow(Row):
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


@dataclasses.dataclass(frozen=True, repr=False)
class CalibrationReport(Results[CalibrationRow]):
    """Rows in the order in which the model computes; see `Results` for what all reports share.

    A row is found by its kernel's path and by its layer's name.

    Attributes:
        rows: A `CalibrationRow` for each kernel.
        target: Second moment that was aimed at.
        tolerance: Largest relative deviation from it.
        walks: Number of passes over the data.
        examples: Number of examples in the data.
        notes: Explanations of what was not observed.
    """

    rows: tuple[CalibrationRow, ...]
    target: float
    tolerance: float
    walks: int
    examples: int
    notes: tuple[str, ...] = ()

    _row: ClassVar[type[Row]] = CalibrationRow
    _columns: ClassVar[tuple[Column, ...]] = (
        Column("path", kind="path"),
        Column("layer"),
        Column("scale", "factor on the kernel", "number"),
        Column("before", "second moment of the pre-activation on the data", "number"),
        Column("after", "the same with the new weights", "number"),
        Column("iterations", "corrections of the scale", "number"),
        Column("status", kind="reason"),
    )
    _main: ClassVar[str] = "kernels"

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

    def _keys(self, row: CalibrationRow) -> tuple[str, ...]:
        return row.path, row.layer

    def _cells(self, row: CalibrationRow) -> tuple[str, ...]:
        moments = (_shown(row.before), _shown(row.after))
        numbers = (f"{row.scale:.5g}", *moments, str(row.iterations))
        return (row.path, row.layer, *numbers, row.status)

    def _label(self, row: CalibrationRow) -> str:
        return row.status

    def _summary(self) -> tuple[str, ...]:
        return (
            f"{len(self.calibrated)} calibrated to {self.target:g} ± {self.tolerance:.2%}, "
            f"{len(self.not_converged)} not converged, {len(self.skipped)} skipped; "
            f"{self.examples} examples, {self.walks} walks",
        )


def _shown(moment: float | None) -> str:
    return "-" if moment is None else f"{moment:.4g}"
