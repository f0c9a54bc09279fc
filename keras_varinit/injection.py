"""Giving the initializers of a built model their contexts, and redrawing their kernels."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_varinit import graph
from keras_varinit.analysis import Analysis, analyze
from keras_varinit.context import LayerContext
from keras_varinit.initializers import ContextualInitializer

DRAWN = "drawn"


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """What happened to one variable.

    `stddev` is the target standard deviation √E[var] of an entry for that context, None where it is
    not known; `status` is "drawn" or "skipped: " with the reason.
    """

    path: str
    layer: str
    initializer: str
    context: LayerContext | None
    stddev: float | None
    status: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The rows of `inject`, in the model's order: iterable, `report[path]`, readable in print."""

    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> ReportRow:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(f"no row for {path!r}. Paths: {[row.path for row in self.rows]}")

    @property
    def drawn(self) -> tuple[ReportRow, ...]:
        """The rows whose kernels were redrawn."""
        return tuple(row for row in self.rows if row.status == DRAWN)

    @property
    def skipped(self) -> tuple[ReportRow, ...]:
        """The rows whose kernels were left alone."""
        return tuple(row for row in self.rows if row.status != DRAWN)

    def __str__(self) -> str:
        header = ("path", "initializer", "depth", "std", "status")
        cells = [header]
        for row in self.rows:
            depth = "-" if row.context is None else str(row.context.depth)
            stddev = "-" if row.stddev is None else f"{row.stddev:.5f}"
            cells.append((row.path, row.initializer, depth, stddev, row.status))
        widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
        lines.append(f"{len(self.drawn)} drawn, {len(self.skipped)} skipped")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(line.rstrip() for line in lines)


@dataclasses.dataclass(frozen=True)
class _Owned:
    """A variable, the layer that created it and the attribute that holds its initializer."""

    layer: Any
    attribute: str
    variable: Any
    initializer: ContextualInitializer


@dataclasses.dataclass(frozen=True)
class _Change:
    """A planned redraw."""

    owned: _Owned
    initializer: ContextualInitializer
    value: npt.NDArray[Any]


def inject(model: Any, *, force: bool = False) -> Report:
    """Gives every initializer of this library in a model its context and redraws its kernel.

    Only kernels that such an initializer owns and that still hold its own draw are touched: one
    that was trained, loaded or set since, or that is frozen, is left alone and listed, unless
    `force`. Each kernel gets its own copy of the initializer and its own random stream, from the
    seed and the kernel's place in the model. A second call changes nothing. An error changes no
    weight and no initializer.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        force: Whether to redraw also kernels that hold other values, or that are frozen.

    Returns:
        A `Report` with one row for each variable that an initializer of this library owns.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: it is not built, has no weight layer with an initializer of this library, or an
            initializer cannot draw for its context.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((8,)), keras.layers.Dense(4, kernel_initializer="asv_forward")]
        >>> report = kv.inject(keras.Sequential(layers))
        >>> [row.status for row in report]
        ['drawn']
    """
    analysis = analyze(model)
    owned = list(_owned_variables(model))
    _check_any(model, owned, analysis)
    rows, changes = [], []
    for item in owned:
        row, change = _plan(item, analysis, force)
        rows.append(row)
        if change is not None:
            changes.append(change)
    _commit(model, changes)
    return Report(tuple(rows), analysis.notes)


def _owned_variables(model: Any) -> Iterator[_Owned]:
    for layer in [model, *graph.layers_of(model)]:
        claimed: set[int] = set()
        unnamed = []
        for attribute, initializer in graph.initializer_attributes(layer, ContextualInitializer):
            variable = graph.variable_of_initializer(layer, attribute)
            if variable is None:
                unnamed.append((attribute, initializer))
                continue
            claimed.add(id(variable))
            yield _Owned(layer, attribute, variable, initializer)
        for attribute, initializer in unnamed:
            for variable in graph.own_variables(layer):
                if id(variable) not in claimed and _holds_own_draw(initializer, variable):
                    claimed.add(id(variable))
                    yield _Owned(layer, attribute, variable, initializer)
                    break


def _check_any(model: Any, owned: list[_Owned], analysis: Analysis) -> None:
    if any(analysis.context_of(item.variable) is not None for item in owned):
        return
    if owned:
        found = ", ".join(f"{item.layer.name}.{item.attribute}" for item in owned[:5])
        reason = f"none of its initializers of this library ({found}) belongs to a known kernel"
    else:
        reason = "none of its layers has an initializer of this library"
    raise ValueError(
        f"inject: model {model.name!r} has nothing to inject: {reason}. Build its layers with, for "
        'example, kernel_initializer="asv_backward".'
    )


def _plan(item: _Owned, analysis: Analysis, force: bool) -> tuple[ReportRow, _Change | None]:
    """Decides on one variable and draws its new value; changes nothing."""
    variable, context = item.variable, analysis.context_of(item.variable)
    if context is None:
        return _row(item, None, None, "skipped: its layer is not known to the analysis"), None
    initializer = item.initializer.with_context(context)
    try:
        stddev = initializer.stddev(context.kernel_shape)
        status = _status(item, context, force)
        if status != DRAWN:
            return _row(item, context, stddev, status), None
        value = graph.to_numpy(initializer(variable.shape, dtype=variable.dtype))
    except Exception as error:
        error.add_note(
            f"inject: no weight was changed; this was for {context.path!r} of layer "
            f"{context.layer!r}, kernel shape {context.kernel_shape}."
        )
        raise
    if not np.all(np.isfinite(np.asarray(value, np.float32))):
        raise ValueError(
            f"inject: {type(initializer).__name__} drew values for {context.path!r} that are not "
            f"finite in dtype {variable.dtype} (target standard deviation {stddev}). No weight "
            "was changed."
        )
    return _row(item, context, stddev, DRAWN), _Change(item, initializer, value)


def _status(item: _Owned, context: LayerContext, force: bool) -> str:
    if force:
        return DRAWN
    known = item.initializer.context
    if known is not None and known.draws_like(context):
        return "skipped: already drawn for this context"
    if not item.variable.trainable:
        return "skipped: frozen (trainable=False)"
    if not _holds_own_draw(item.initializer, item.variable):
        return "skipped: trained, loaded or set since it was drawn"
    return DRAWN


def _holds_own_draw(initializer: ContextualInitializer, variable: Any) -> bool:
    """Whether a variable holds, bit for bit, what its initializer draws."""
    drawn = graph.to_numpy(initializer(variable.shape, dtype=variable.dtype))
    return bool(np.array_equal(drawn, graph.to_numpy(variable)))


def _row(
    item: _Owned, context: LayerContext | None, stddev: float | None, status: str
) -> ReportRow:
    return ReportRow(
        path=item.variable.path if context is None else context.path,
        layer=item.layer.name,
        initializer=type(item.initializer).__name__,
        context=context,
        stddev=stddev,
        status=status,
    )


def _commit(model: Any, changes: list[_Change]) -> None:
    """Applies all changes, or none: on any error every variable and initializer is put back."""
    averages = graph.moving_averages(model)
    undo: list[tuple[Any, Any]] = []
    replaced: list[_Owned] = []
    try:
        for change in changes:
            variable = change.owned.variable
            for target in (variable, averages.get(id(variable))):
                if target is not None:
                    undo.append((target, graph.to_numpy(target)))
                    graph.assign(target, change.value)
            replaced.append(change.owned)
            graph.replace_initializer(
                change.owned.layer, change.owned.attribute, change.initializer
            )
    except BaseException:
        for target, value in reversed(undo):
            graph.assign(target, value)
        for owned in replaced:
            graph.replace_initializer(owned.layer, owned.attribute, owned.initializer)
        raise
