"""The report of `inject` and `initialize`, one row per variable."""

import dataclasses
from collections.abc import Iterator

from keras_varinit.context import LayerContext
from keras_varinit.tables import text_table

DRAWN = "drawn"


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """What happened to one variable.

    `stddev` is the target standard deviation √E[var] of an entry for that context, None if unknown;
    `status` is "drawn", or "skipped: " followed by the reason.
    """

    path: str
    layer: str
    initializer: str
    context: LayerContext | None
    stddev: float | None
    status: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows in model order; iterable, and `str` formats them as a table.

    `report[path]` is the row of a variable, and `path in report` tells whether it has one.
    """

    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, item: object) -> bool:
        """Whether a row, or the row of a path, is part of the report."""
        return any(item in (row.path, row) for row in self.rows)

    def __getitem__(self, path: str) -> ReportRow:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(f"no row for {path!r}. Paths: {[row.path for row in self.rows]}")

    @property
    def drawn(self) -> tuple[ReportRow, ...]:
        """The rows of variables that were drawn."""
        return tuple(row for row in self.rows if row.status == DRAWN)

    @property
    def skipped(self) -> tuple[ReportRow, ...]:
        """The rows of variables that were left alone."""
        return tuple(row for row in self.rows if row.status != DRAWN)

    def __str__(self) -> str:
        header = ("path", "initializer", "depth", "std", "status")
        cells = []
        for row in self.rows:
            depth = "-" if row.context is None else str(row.context.depth)
            stddev = "-" if row.stddev is None else f"{row.stddev:.5f}"
            cells.append((row.path, row.initializer, depth, stddev, row.status))
        summary = f"{len(self.drawn)} drawn, {len(self.skipped)} skipped"
        below = (summary, *(f"note: {note}" for note in self.notes))
        return text_table(header, cells, right=(2, 3), below=below)
