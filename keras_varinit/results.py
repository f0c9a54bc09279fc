"""What all reports share: rows to iterate over, to look up, to print and to export."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar, overload

from keras_varinit.arguments import did_you_mean
from keras_varinit.tables import Column, Gap, Table
from keras_varinit.typing import Config, Dataframe

_MOST_ROWS = 60  # a table with more is folded

_ENDS = 25  # rows at the beginning and the end of a table that is too long even then

_MOST_NAMES = 10  # in an error message


class Row:
    """A row of a report: a dataclass."""

    def to_dict(self) -> Config:
        """The fields as JSON primitives; numbers that are not finite are None."""
        return {name: _plain(value) for name, value in _fields(self).items()}

    def to_record(self) -> dict[str, Any]:
        """The fields as one line of a dataframe; a context's are named "context.depth" and so on.

        Histograms are left out.
        """
        return dict(_flat(_fields(self)))


RowT = TypeVar("RowT", bound=Row)


class Results(Generic[RowT]):
    """Rows, in the order of the model: iterable, indexed by number or by path, printed as a table.

    `print(report)`, and a report at the end of a notebook's cell, show its table. The table of a
    long model is folded: kernels have a line each and the other rows are counted; `to_text()` has
    all of them. `path in report` tells whether a path has a row, `report[path]` is the first such.
    """

    _columns: ClassVar[tuple[Column, ...]] = ()
    _main: ClassVar[str] = "rows"  # what is shown when the table is folded
    _others: ClassVar[str] = "other rows"
    _names: ClassVar[str] = "Paths"
    _row: ClassVar[type[Row]]

    rows: Any  # a sequence of the rows

    def __iter__(self) -> Iterator[RowT]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, item: object) -> bool:
        """Whether a row, or the row of a path, is part of the report."""
        return any(item == row or item in self._keys(row) for row in self.rows)

    @overload
    def __getitem__(self, key: str | int) -> RowT: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[RowT, ...]: ...

    def __getitem__(self, key: str | int | slice) -> RowT | tuple[RowT, ...]:
        """The first row of a path, the row with a number, or the rows of a slice.

        Raises:
            KeyError: no row has this path.
            IndexError: there are fewer rows.
        """
        if not isinstance(key, str):
            rows: tuple[RowT, ...] = tuple(self.rows)
            return rows[key]
        for row in self:
            if key in self._keys(row):
                return row
        names = [self._keys(row)[0] for row in self.rows]
        listed = ", ".join(map(repr, names[:_MOST_NAMES]))
        rest = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        hint = did_you_mean(key, {name for row in self.rows for name in self._keys(row)})
        raise KeyError(f"no row for {key!r}. {self._names}: [{listed}{rest}].{hint}")

    def to_text(self) -> str:
        """The table with every row and complete paths, however long the model is."""
        return self._table(tuple(self.rows)).text()

    def to_dict(self) -> Config:
        """JSON primitives, as `json.dumps` takes them; numbers that are not finite are None."""
        fields = {name: _plain(value) for name, value in _fields(self).items()}
        return {**fields, "rows": [row.to_dict() for row in self]}

    def to_dataframe(self) -> Dataframe:
        """A `pandas.DataFrame` with one line per row.

        Numbers stay as they are, and None becomes a missing value. The fields of contexts get
        columns of their own ("context.depth"), and histograms are left out.

        Raises:
            ImportError: pandas is not installed; it is in the extra `pandas`.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__}.to_dataframe needs pandas, which is not installed. Install "
                "it with the extra `pandas`: python -m pip install 'keras-varinit[pandas]'; or "
                "use to_dict()."
            ) from error
        if not len(self):
            kind: Any = self._row
            return pandas.DataFrame(columns=[field.name for field in dataclasses.fields(kind)])
        return pandas.DataFrame.from_records([row.to_record() for row in self])

    def __str__(self) -> str:
        return self._folded().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._folded().html()

    def _folded(self) -> Table:
        """The table, if it is long with the main rows alone, and of these the first and last."""
        rows: list[RowT] = list(self.rows)
        if len(rows) <= _MOST_ROWS:
            return self._table(rows)
        main = [row for row in rows if self._is_main(row)] or rows
        others = [row for row in rows if not self._is_main(row)] if len(main) < len(rows) else []
        shown: list[RowT | Gap] = list(main)
        if len(main) > _MOST_ROWS:
            hidden = main[_ENDS:-_ENDS]
            shown[_ENDS:-_ENDS] = [Gap(f"… {self._counted(hidden, self._main)}")]
        rest = [f"and {self._counted(others, self._others)}"] if others else []
        return self._table(shown, rest, self._table(rows))

    def _table(
        self,
        rows: Sequence[RowT | Gap],
        rest: Sequence[str] = (),
        whole: Table | None = None,
    ) -> Table:
        cells = [row if isinstance(row, Gap) else self._cells(row) for row in rows]
        return Table(self._columns, cells, self._summary(), rest, self._notes(), whole)

    def _counted(self, rows: Sequence[RowT], name: str) -> str:
        """A number of rows and how many there are of each label."""
        labels = Counter(self._label(row) for row in rows)
        common = [(label, count) for label, count in labels.most_common(4) if label]
        parts = [f"{count} {label}" for label, count in common]
        more = len(rows) - sum(count for _, count in common)
        parts += [f"{more} more"] if more and parts else []
        return f"{len(rows)} {name}" + (f": {'; '.join(parts)}" if parts else "")

    # What a report is made of.

    def _keys(self, row: RowT) -> tuple[str, ...]:
        """The names by which a row is found; the first one stands in error messages."""
        return (getattr(row, "path", ""),)

    def _cells(self, row: RowT) -> tuple[str, ...]:
        """A row's cells, as many as there are columns."""
        raise NotImplementedError

    def _is_main(self, row: RowT) -> bool:
        """Whether a row is shown when the table is folded."""
        return True

    def _label(self, row: RowT) -> str:
        """By what the rows that are not shown are counted."""
        return ""

    def _summary(self) -> tuple[str, ...]:
        """Lines below the table."""
        return ()

    def _notes(self) -> tuple[str, ...]:
        """Remarks below these lines."""
        return tuple(getattr(self, "notes", ()))


def _fields(item: Any) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def _plain(value: Any) -> Any:
    """JSON primitives."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _flat(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields with plain values; those of a dataclass within by dotted names."""
    for name, value in fields.items():
        if not dataclasses.is_dataclass(value):
            yield name, value
        elif not hasattr(value, "counts"):
            yield from _flat({f"{name}.{key}": inner for key, inner in _fields(value).items()})
