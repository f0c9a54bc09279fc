"""Reports in print: one way to set tables as text."""

from collections.abc import Collection, Iterable, Sequence


def text_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[int] = (),
    optional: Collection[int] = (),
    below: Iterable[str] = (),
) -> str:
    """A header and rows in columns as wide as their widest cell, two spaces apart.

    Args:
        header: The names of the columns.
        rows: One string per column each.
        right: Numbers of the columns that are set to the right, those of numbers.
        optional: Numbers of the columns that are left out where all their cells are empty.
        below: Lines under the table.
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
