"""The report of `inject` and `initialize`, one row per variable."""

import dataclasses
from typing import ClassVar

from keras_varinit.context import LayerContext
from keras_varinit.results import Results, Row
from keras_varinit.tables import Column

DRAWN = "drawn"

PLANNED = "planned: drawn by create_weights"


@dataclasses.dataclass(frozen=True)
class ReportRow(Row):
    """What happened to one variable.

    `stddev` is the target standard deviation √E[var] of an entry for that context, None if unknown;
    `status` is "drawn", "planned: …" for a weight that has no value yet, or "skipped: " followed by
    the reason.
    """

    path: str
    layer: str
    initializer: str
    context: LayerContext | None
    stddev: float | None
    status: str


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Results[ReportRow]):
    """Rows in model order, with notes; see `Results` for what all reports share.

    Attributes:
        rows: A `ReportRow` for each variable.
        notes: Explanations of unknown quantities, and of what was corrected.
    """

    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()

    _row: ClassVar[type[Row]] = ReportRow
    _columns: ClassVar[tuple[Column, ...]] = (
        Column("path", kind="path"),
        Column("initializer"),
        Column("depth", "weight layers from the input to this one", "number"),
        Column("std", "target standard deviation of an entry", "number"),
        Column("status", kind="reason"),
    )
    _main: ClassVar[str] = "kernels"
    _others: ClassVar[str] = "other weights"

    @property
    def drawn(self) -> tuple[ReportRow, ...]:
        """The rows of variables that were drawn."""
        return tuple(row for row in self.rows if row.status == DRAWN)

    @property
    def planned(self) -> tuple[ReportRow, ...]:
        """The rows of variables that have no value yet, and will be drawn when they get one."""
        return tuple(row for row in self.rows if row.status == PLANNED)

    @property
    def skipped(self) -> tuple[ReportRow, ...]:
        """The rows of variables that were left alone."""
        return tuple(row for row in self.rows if row.status not in (DRAWN, PLANNED))

    def _cells(self, row: ReportRow) -> tuple[str, ...]:
        depth = "-" if row.context is None else str(row.context.depth)
        stddev = "-" if row.stddev is None else f"{row.stddev:.5f}"
        return row.path, row.initializer, depth, stddev, row.status

    def _is_main(self, row: ReportRow) -> bool:
        return row.context is not None and row.context.kind == "kernel"

    def _label(self, row: ReportRow) -> str:
        return row.status

    def _summary(self) -> tuple[str, ...]:
        summary = f"{len(self.drawn)} drawn, {len(self.skipped)} skipped"
        return (f"{len(self.planned)} planned, {summary}" if self.planned else summary,)
