"""Tables as text and as HTML."""

import dataclasses
import html
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

_WIDTH = 100  # of lines of prose below a table

_LONGEST_PATH = 72

_WRAPPED = 72  # longest line of a cell with prose

_WRAPPING = ("prose", "reason")

_FOOTNOTE = 40  # a longer text that several rows share stands once, below the table


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Its header.
        term: What it holds, explained below the table; "" if its header says it.
        kind: `"text"`, `"number"` (right-aligned), `"path"` (shortened if very long, in a folded
            table), `"prose"` (wrapped) or `"reason"` (what several rows share is a footnote).
        is_optional: Whether it is omitted if all its cells are empty.
    """

    name: str
    term: str = ""
    kind: str = "text"
    is_optional: bool = False


@dataclasses.dataclass(frozen=True)
class Gap:
    """A line of a table that stands for rows which are not shown."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells, the lines below them, and how both are shown.

    Args:
        columns: One for each cell of a row.
        rows: Rows of one string per column, or gaps.
        rest: Lines directly below the rows: of rows that are not shown.
        below: Lines below all that explains the rows: what the table adds up to.
        notes: Remarks, `"path: text"`; those that share their text are shown as one.
        whole: The table with all rows and complete paths, if this one is folded.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str] | Gap]
    below: Sequence[str] = ()
    rest: Sequence[str] = ()
    notes: Sequence[str] = ()
    whole: "Table | None" = None

    def text(self) -> str:
        """The table in aligned columns, two spaces apart, and the lines below it."""
        columns, rows, footnotes = self._settled()
        lines = list(_text_table(columns, rows)) if rows else []
        lines += self.rest
        if self.whole is not None:
            lines.append(f"(to_text() lists all {len(self.whole.rows)} rows)")
        lines += [line for text in footnotes for line in _wrapped(text)]
        terms = [(column.name, column.term) for column in columns if column.term and rows]
        if terms:
            width = max(len(name) for name, _ in terms)
            lines += ["", *(f"{name.ljust(width)}  {term}" for name, term in terms), ""]
        lines += self.below
        lines += [line for note in grouped(self.notes) for line in _wrapped(f"note: {note}")]
        return "\n".join(line.rstrip() for line in lines)

    def html(self) -> str:
        """The table as HTML; its whole form, if this one is folded, opens on a click."""
        columns, rows, footnotes = self._settled()
        terms = [f"{column.name}: {column.term}" for column in columns if column.term and rows]
        notes = [f"note: {note}" for note in grouped(self.notes)]
        parts = [_html_table(columns, rows)] if rows else []
        parts += [_paragraph(text) for text in (*self.rest, *footnotes)]
        if self.whole is not None:
            inner = _html_table(*self.whole._settled()[:2])  # noqa: SLF001 - of this class
            parts.append(
                f"<details><summary>all {len(self.whole.rows)} rows</summary>{inner}</details>"
            )
        parts += [_paragraph(text) for text in ("; ".join(terms), *self.below, *notes)]
        return f"<div>{''.join(parts)}</div>"

    def _settled(
        self,
    ) -> tuple[list[Column], list[Sequence[str] | Gap], list[str]]:
        """The columns and rows to show, and footnotes."""
        cells = [row for row in self.rows if not isinstance(row, Gap)]
        shown = [
            place
            for place, column in enumerate(self.columns)
            if not column.is_optional or any(row[place] for row in cells)
        ]
        marks, footnotes = self._footnotes(cells)
        rows: list[Sequence[str] | Gap] = []
        for row in self.rows:
            if not isinstance(row, Gap):
                row = [self._cell(place, row[place], marks) for place in shown]
            rows.append(row)
        return [self.columns[place] for place in shown], rows, footnotes

    def _cell(self, place: int, cell: str, marks: dict[str, str]) -> str:
        kind = self.columns[place].kind
        if kind == "reason":
            head, text = _head_and_text(cell)
            return f"{head} {marks[text]}".strip() if text in marks else cell
        return _shortened(cell) if kind == "path" and self.whole is not None else cell

    def _footnotes(self, cells: Sequence[Sequence[str]]) -> tuple[dict[str, str], list[str]]:
        """The mark of each text that becomes a footnote, and the footnotes."""
        places = [place for place, column in enumerate(self.columns) if column.kind == "reason"]
        counts = Counter(_head_and_text(row[place])[1] for place in places for row in cells)
        shared = [text for text, n in counts.items() if n > 1 and len(text) > _FOOTNOTE]
        marks = {text: f"[{number}]" for number, text in enumerate(shared, start=1)}
        return marks, [f"{mark} {text}" for text, mark in marks.items()]


def grouped(notes: Sequence[str]) -> Iterator[str]:
    """Notes, those that say the same of several paths as one."""
    paths: dict[str, list[str]] = {}
    for note in notes:
        path, _, text = note.partition(": ")
        paths.setdefault(text or note, []).append(path if text else "")
    for text, names in paths.items():
        if len(names) == 1:
            yield f"{names[0]}: {text}" if names[0] else text
            continue
        shown = ", ".join(names) if len(names) <= 3 else f"{names[0]}, …, {names[-1]}"
        yield f"{text} ({len(names)}: {shown})"


def _head_and_text(cell: str) -> tuple[str, str]:
    """Splits "skipped: why" into "skipped" and "why"; the head of other texts is empty."""
    head, separator, text = cell.partition(": ")
    return (head, text) if separator and " " not in head.removeprefix("not ") else ("", cell)


def _shortened(path: str) -> str:
    """A path without its middle, if it is very long."""
    if len(path) <= _LONGEST_PATH:
        return path
    head = _LONGEST_PATH // 3
    return f"{path[:head]}…{path[len(path) - (_LONGEST_PATH - head - 1) :]}"


def _lines(column: Column, cell: str) -> list[str]:
    if column.kind not in _WRAPPING:
        return [cell]
    return _wrapped(cell, _WRAPPED) or [""]


def _wrapped(text: str, width: int = _WIDTH) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _text_table(columns: Sequence[Column], rows: Sequence[Sequence[str] | Gap]) -> Iterator[str]:
    header = [[column.name] for column in columns]
    cells = [
        [_lines(column, cell) for column, cell in zip(columns, row, strict=True)]
        if not isinstance(row, Gap)
        else None
        for row in rows
    ]
    filled = [header, *(row for row in cells if row is not None)]
    widths = [max(len(line) for row in filled for line in row[n]) for n in range(len(columns))]
    yield from _aligned(columns, header, widths)
    for source, row in zip(rows, cells, strict=True):
        if isinstance(source, Gap):
            yield source.text
        elif row is not None:
            yield from _aligned(columns, row, widths)


def _aligned(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], widths: Sequence[int]
) -> Iterator[str]:
    """The lines of one row, whose cells may have several."""
    for number in range(max(map(len, cells))):
        line = [cell[number] if number < len(cell) else "" for cell in cells]
        yield "  ".join(
            text.rjust(width) if column.kind == "number" else text.ljust(width)
            for column, text, width in zip(columns, line, widths, strict=True)
        ).rstrip()


def _html_table(columns: Sequence[Column], rows: Sequence[Sequence[str] | Gap]) -> str:
    head = "".join(
        f"<th{_style(column)}{_title(column)}>{html.escape(column.name)}</th>" for column in columns
    )
    body = "".join(f"<tr>{_html_row(columns, row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_row(columns: Sequence[Column], row: Sequence[str] | Gap) -> str:
    if isinstance(row, Gap):
        return f'<td colspan="{len(columns)}" style="text-align:left">{html.escape(row.text)}</td>'
    return "".join(
        f"<td{_style(column)}>{html.escape(cell)}</td>"
        for column, cell in zip(columns, row, strict=True)
    )


def _style(column: Column) -> str:
    side = "right" if column.kind == "number" else "left"
    width = "min-width:20em" if column.kind in _WRAPPING else "white-space:nowrap"
    return f' style="text-align:{side};{width};padding:2px 8px;vertical-align:top"'


def _title(column: Column) -> str:
    return f' title="{html.escape(column.term)}"' if column.term else ""


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""
