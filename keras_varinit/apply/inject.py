"""`inject`: contexts for the initializers of a built model, whose kernels are then redrawn."""

import dataclasses
from collections.abc import Iterator

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.analysis.analyze import with_signal_gains
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.result import Reading
from keras_varinit.apply.owners import owners
from keras_varinit.apply.report import DRAWN, Report, ReportRow
from keras_varinit.apply.transaction import (
    Change,
    commit,
    drawn_value,
    holds_own_draw,
    in_another_stream,
)
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.tensors import to_numpy
from keras_varinit.typing import Initializer, Layer, Model, Variable


@dataclasses.dataclass(frozen=True)
class _Owned:
    """A variable, the layer that created it and the attribute that stores its initializer."""

    layer: Layer
    attribute: str
    variable: Variable
    initializer: ContextualInitializer
    frozen: bool


def inject(model: keras.Model, *, force: bool = False) -> Report:
    """Gives every initializer of this library in a model its context and redraws its kernel.

    Only kernels that still equal their initializer's own draw are redrawn. Kernels that were
    trained, loaded or set since, and frozen ones, are listed as skipped, unless `force`. Each
    kernel gets its own copy of the initializer and its own random stream, derived from the seed and
    the kernel's place in the model. A second call changes nothing. If an error is raised, no weight
    and no initializer has changed.

    Args:
        model: A built `keras.Model` of any kind.
        force: Whether to also redraw kernels that have other values or are frozen.

    Returns:
        A `Report` with one row for each variable that an initializer of this library owns.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built, no weight layer has an initializer of this library, or an
            initializer cannot draw for its context.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((8,)), keras.layers.Dense(4, kernel_initializer="asv_forward")]
        >>> report = kv.inject(keras.Sequential(layers))
        >>> [row.status for row in report]
        ['drawn']
    """
    reading = read(model)
    owned = list(_owned_variables(model))
    _check_any(model, owned, reading)
    schemes = {id(item.variable): item.initializer for item in owned}
    kept = {id(item.variable) for item in owned if item.frozen and not force}
    reading = with_signal_gains(model, reading, schemes, kept)
    rows, changes = [], []
    for item, context, status in _decisions(model, owned, reading, force):
        row, change = _plan(item, context, status)
        rows.append(row)
        if change is not None:
            changes.append(change)
    commit(model, changes)
    return Report(tuple(rows), tuple(dict.fromkeys(reading.notes)))


def _owned_variables(model: Model) -> Iterator[_Owned]:
    for layer in [model, *keras_private.layers_of(model)]:
        for attribute, variable, initializer in owners(layer):
            # A frozen model trains nothing, whatever its layers' flags.
            frozen = not (model.trainable and variable.trainable)
            yield _Owned(layer, attribute, variable, initializer, frozen)


def _check_any(model: Model, owned: list[_Owned], reading: Reading) -> None:
    if any(reading.context_of(item.variable) is not None for item in owned):
        return
    if owned:
        attributes = ", ".join(f"{item.layer.name}.{item.attribute}" for item in owned[:5])
        reason = f"no known kernel belongs to its initializers of this library ({attributes})"
    else:
        reason = "none of its layers has an initializer of this library"
    raise ValueError(
        f"inject: model {model.name!r} has nothing to inject: {reason}. Build its layers with, for "
        'example, kernel_initializer="asv_backward".'
    )


def _decisions(
    model: Model, owned: list[_Owned], reading: Reading, force: bool
) -> list[tuple[_Owned, LayerContext | None, str]]:
    """Context and status of each variable.

    A kernel that is left alone may own the stream that the analysis now assigns to another kernel,
    if it was injected as part of another model and frozen. The other kernel then gets a new stream,
    so that the two differ.
    """
    decided = [
        (item, context, _status(item, context, force, reading.reason_to_leave(item.variable)))
        for item in owned
        for context in [reading.context_of(item.variable)]
    ]
    if not force:
        decided = _leaving_what_was_trained_around(model, decided, reading)
    kept = {
        item.initializer.context.stream
        for item, _, status in decided
        if status not in (DRAWN, _DONE) and item.initializer.context is not None
    }
    decisions = []
    for item, context, status in decided:
        if context is not None and status in (DRAWN, _DONE) and context.stream in kept:
            while context.stream in kept:
                context = in_another_stream(context)
            status = _status(item, context, force)
        decisions.append((item, context, status))
    return decisions


_AROUND = "skipped: injected before, and a kernel after it was trained, loaded or set since"


def _leaving_what_was_trained_around(
    model: Model, decided: list[tuple[_Owned, LayerContext | None, str]], reading: Reading
) -> list[tuple[_Owned, LayerContext | None, str]]:
    """Keeps kernels that were injected and not trained, but that precede trained ones.

    They were frozen as part of another model; the layers that follow have adapted to them.
    """
    again = [s == DRAWN and item.initializer.context is not None for item, _, s in decided]
    if not any(again):
        return decided
    ours = {id(item.variable): status == _CHANGED for item, _, status in decided}
    trained = {key for key, is_trained in ours.items() if is_trained}
    trained |= {key for key in _changed_since_drawn(model) if key not in ours}
    return [
        (item, context, _AROUND if is_again and reading.behind(item.variable) & trained else status)
        for is_again, (item, context, status) in zip(again, decided, strict=True)
    ]


def _changed_since_drawn(model: Model) -> Iterator[int]:
    """The `id` of each variable that differs from the draw of its initializer, one of Keras's."""
    for layer in [model, *keras_private.layers_of(model)]:
        attributes = dict(keras_private.initializers_of(layer))
        for variable in keras_private.own_variables(layer):
            initializer = getattr(layer, attributes.get(id(variable), ""), None)
            if initializer is None or isinstance(initializer, ContextualInitializer):
                continue
            if len(variable.shape) >= 2 and not _repeats(initializer, variable):
                yield id(variable)


def _repeats(initializer: Initializer, variable: Variable) -> bool:
    """Whether an initializer, called again, draws a variable's present value."""
    again = initializer(tuple(variable.shape), dtype=variable.dtype)
    return bool(np.array_equal(to_numpy(again), to_numpy(variable)))


def _plan(
    item: _Owned, context: LayerContext | None, status: str
) -> tuple[ReportRow, Change | None]:
    """The row of a variable, and its change if it is to be redrawn; assigns nothing."""
    if context is None:
        return _row(item, None, None, status), None
    initializer = item.initializer.with_context(context)
    row = _row(item, context, initializer.stddev(context.kernel_shape), status)
    if status != DRAWN:
        return row, None
    value = drawn_value(initializer, item.variable, context.path)
    return row, Change(item.variable, value, item.layer, item.attribute, initializer)


_DONE = "skipped: already drawn for this context"

_CHANGED = "skipped: trained, loaded or set since it was drawn"


def _status(
    item: _Owned, context: LayerContext | None, force: bool, reason: str | None = None
) -> str:
    if context is None:
        return f"skipped: {reason or 'its layer is not known to the analysis'}"
    if force:
        return DRAWN
    known = item.initializer.context
    if known is not None and known.draws_like(context):
        return _DONE
    if item.frozen:
        return "skipped: frozen (trainable=False)"
    if not holds_own_draw(item.initializer, item.variable):
        return _CHANGED
    return DRAWN


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
