"""Text tables for reports."""

from collections.abc import Collection, Iterable, Sequence


def text_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[int] = (),
    optional: Collection[int] = (),
    below: Iterable[str] = (),
) -> str:
    """Formats rows as a table of aligned columns, two spaces apart.

    Args:
        header: Names of the columns.
        rows: Rows of one string per column.
        right: Indices of the right-aligned columns, those of numbers.
        optional: Indices of the columns that are omitted if all their cells are empty.
        below: Lines below the table.
    """
    cells = [tuple(header), *(tuple(row) for row in rows)]
    shown = [
        column
        for column in range(len(header))
        if column not in optional or any(line[column] for line in cells[1:])
    ]
    widths = {column: max(len(line[column]) for line in cells) for column in shown}
    lines = [
        "  ".join(
            line[column].rjust(widths[column])
            if column in right
            else line[column].ljust(widths[column])
            for column in shown
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in (*lines, *below))
