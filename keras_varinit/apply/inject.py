"""`inject`: contexts for the initializers of a built model, whose kernels are then redrawn."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TypeAlias

import keras

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.planned import with_signal_gains
from keras_varinit.analysis.result import Reading
from keras_varinit.apply.beside import Kernels
from keras_varinit.apply.neutral import settle
from keras_varinit.apply.owners import owners
from keras_varinit.apply.report import DRAWN, Report, ReportRow
from keras_varinit.apply.transaction import (
    Change,
    as_called,
    commit,
    drawn_value,
    holds_own_draw,
    moved,
    moves_until_free,
)
from keras_varinit.apply.weightless import with_planned
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.laws import reseeded
from keras_varinit.typing import Layer, Model, Variable


@dataclasses.dataclass(frozen=True)
class _Owned:
    """A variable, the layer that created it and the attribute that stores its initializer.

    `initializer` is what will draw, `drew` what drew the present value.
    """

    layer: Layer
    attribute: str
    variable: Variable
    initializer: ContextualInitializer
    frozen: bool
    drew: ContextualInitializer

    def seeded(self, seed: int) -> "_Owned":
        """The same with an initializer of that seed."""
        return dataclasses.replace(self, initializer=reseeded(self.initializer, seed))


class NothingToInjectError(ValueError):
    """No weight of the model has an initializer of this library that the analysis can use."""


Decision: TypeAlias = tuple[_Owned, LayerContext | None, str]


def inject(model: keras.Model, *, force: bool = False) -> Report:
    """Gives every initializer of this library in a model its context and redraws its weight.

    Only weights that still equal their initializer's own draw are redrawn. Kernels that were
    trained, loaded or set since, and frozen ones, are listed as skipped, unless `force`. Biases and
    normalization scales γ beside such kernels are skipped too, since zeros and ones do not show
    whether they are still a draw. Each weight gets its own copy of the initializer and its own
    random stream, derived from the seed and its place in the model; kernels that are drawn together
    (`Mimetic`) get one seed. A second call changes nothing. If an error is raised, no weight and no
    initializer has changed: what was redrawn by then is restored by drawing it again.

    Sharded weights (`keras.distribution`) are checked and drawn shard by shard, each host drawing
    its own; all hosts must call. In a model built `without_weights` the draws are planned.

    Args:
        model: A built `keras.Model` of any kind.
        force: Whether to also redraw kernels that have other values or are frozen.

    Returns:
        A `Report` with one row for each variable that an initializer of this library owns.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built, no weight layer has an initializer of this library, one for
            biases or γ is on a kernel, or an initializer cannot draw for its context.

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
    decisions = _with_one_seed_per_group(_decisions(model, owned, reading, force))
    for item, context, status in decisions:
        row, change = _plan(item, context, status, force)
        rows.append(row)
        if change is not None:
            changes.append(change)
    commit(model, changes)
    settle(model)
    return Report(with_planned(model, rows), tuple(dict.fromkeys(reading.notes)))


def _owned_variables(model: Model) -> Iterator[_Owned]:
    for layer in [model, *keras_private.layers_of(model)]:
        for attribute, variable, initializer in owners(layer):
            # A frozen model trains nothing, whatever its layers' flags.
            frozen = not (model.trainable and variable.trainable)
            yield _Owned(layer, attribute, variable, initializer, frozen, initializer)


def _check_any(model: Model, owned: list[_Owned], reading: Reading) -> None:
    contexts = [(item, reading.surroundings_of(item.variable)) for item in owned]
    for item, context in contexts:
        if context is not None and context.kind == "kernel" and not _is_for(item, context):
            name, purpose = type(item.initializer).__name__, item.initializer.purpose()
            raise ValueError(
                f"inject: {name} {purpose}, but {context.path!r} is a kernel. Give "
                f"{item.layer.name}.{item.attribute} another initializer."
            )
    if any(context is not None and _is_for(item, context) for item, context in contexts):
        return
    if owned:
        attributes = ", ".join(f"{item.layer.name}.{item.attribute}" for item in owned[:5])
        reason = f"no known kernel belongs to its initializers of this library ({attributes})"
    else:
        reason = "none of its layers has an initializer of this library"
    raise NothingToInjectError(
        f"inject: model {model.name!r} has nothing to inject: {reason}. Build its layers with, for "
        'example, kernel_initializer="asv_backward".'
    )


def _is_for(item: _Owned, context: LayerContext) -> bool:
    return context.kind in item.initializer.kinds


def _decisions(model: Model, owned: list[_Owned], reading: Reading, force: bool) -> list[Decision]:
    """Context and status of each variable.

    A kernel that is left alone may own the stream that the analysis now assigns to another kernel,
    if it was injected as part of another model and frozen. The other kernel then gets a new stream,
    so that the two differ.
    """
    decided = [
        (item, context, _status(item, context, force, reading.reason_to_leave(item.variable)))
        for item in owned
        for context in [reading.surroundings_of(item.variable)]
    ]
    if not force:
        kernels = Kernels(model, reading, {id(each.variable): each.initializer for each in owned})
        decided = _leaving_what_was_trained_around(kernels, decided, reading)
        decided = _leaving_what_is_beside_trained_kernels(kernels, decided)
    kept = [
        item.initializer.context
        for item, _, status in decided
        if status not in (DRAWN, _DONE) and item.initializer.context is not None
    ]
    streams = {context.stream for context in kept}
    groups = {context.group for context in kept if context.role in _ATTENTION} - {None}

    def is_taken(context: LayerContext) -> bool:
        is_part = context.role in _ATTENTION and context.group in groups
        return context.stream in streams or is_part

    decisions = []
    for item, context, status in decided:
        if context is not None and status in (DRAWN, _DONE):
            moves = moves_until_free(context, is_taken)
            if moves:
                context = moved(context, moves)
                status = _status(item, context, force)
        decisions.append((item, context, status))
    return decisions


_ATTENTION = ("query", "key", "value", "attention_output")


_AROUND = "skipped: injected before, and a kernel after it was trained, loaded or set since"


_BESIDE = "skipped: the kernel beside it was trained, loaded or set since it was drawn"


def _leaving_what_was_trained_around(
    kernels: Kernels, decided: list[Decision], reading: Reading
) -> list[Decision]:
    """Keeps kernels that were injected and not trained, but that precede trained ones.

    They were frozen as part of another model; the layers that follow have adapted to them.
    """
    again = [s == DRAWN and item.initializer.context is not None for item, _, s in decided]
    if not any(again):
        return decided
    trained = {id(item.variable) for item, _, status in decided if status == _CHANGED}
    trained |= set(kernels.changed_of_keras())
    return [
        (item, context, _AROUND if is_again and reading.behind(item.variable) & trained else status)
        for is_again, (item, context, status) in zip(again, decided, strict=True)
    ]


def _leaving_what_is_beside_trained_kernels(
    kernels: Kernels, decided: list[Decision]
) -> list[Decision]:
    """Keeps biases and γ whose kernels have changed, or are kept because of what follows them.

    Their zeros and ones may be their draw, or what they were trained to or loaded with.
    """
    around = {id(item.variable) for item, _, status in decided if status == _AROUND}

    def status_of(item: _Owned, context: LayerContext | None, status: str) -> str:
        if status != DRAWN or context is None or context.kind == "kernel":
            return status
        beside = kernels.beside(item.layer, context)
        if around.intersection(beside):
            return _AROUND
        return _BESIDE if any(kernels.is_changed(key) for key in beside) else status

    return [(item, context, status_of(item, context, status)) for item, context, status in decided]


def _with_one_seed_per_group(decisions: list[Decision]) -> list[Decision]:
    """Seeds kernels that are drawn together alike; layers clone initializers by their configs.

    The seed is that of a kernel of the group that has been drawn already, or of the first one.
    """

    def is_shared(item: _Owned, context: LayerContext | None) -> bool:
        return context is not None and item.initializer.with_context(context).shares_group

    seeds: dict[str | None, int] = {}
    for drawn_before in (True, False):
        for item, context, _ in decisions:
            is_turn = drawn_before == (item.initializer.context is not None)
            if is_turn and context is not None and is_shared(item, context):
                seeds.setdefault(context.group, item.initializer.entropy)
    return [
        (item.seeded(seeds[context.group]), context, status)
        if context is not None and status == DRAWN and is_shared(item, context)
        else (item, context, status)
        for item, context, status in decisions
    ]


def _plan(
    item: _Owned, context: LayerContext | None, status: str, force: bool
) -> tuple[ReportRow, Change | None]:
    """The row of a variable, and its change if it is to be redrawn; draws nothing yet."""
    if context is None:
        return _row(item, None, None, status), None
    initializer = item.initializer.with_context(context)
    is_for = _is_for(item, context)
    shape = context.kernel_shape if context.kind == "kernel" else tuple(item.variable.shape)
    row = _row(item, context, initializer.stddev(shape) if is_for else None, status)
    if status != DRAWN:
        return row, None
    variable = item.variable
    draws, drew = (as_called(i, item.layer, item.attribute) for i in (initializer, item.drew))
    value = functools.partial(drawn_value, draws, variable, context.path)
    # What is not forced still is its own initializer's draw, which can be drawn again.
    before = None if force else functools.partial(drawn_value, drew, variable, context.path)
    change = Change(variable, value, item.layer, item.attribute, initializer, before)
    return row, change


_DONE = "skipped: already drawn for this context"

_CHANGED = "skipped: trained, loaded or set since it was drawn"


def _status(
    item: _Owned, context: LayerContext | None, force: bool, reason: str | None = None
) -> str:
    if context is None:
        return f"skipped: {reason or 'its layer is not known to the analysis'}"
    if not _is_for(item, context):
        name, purpose = type(item.initializer).__name__, item.initializer.purpose()
        return f"skipped: {name} {purpose}, and this is a {context.kind}"
    if force:
        return DRAWN
    known = item.initializer.context
    if known is not None and known.draws_like(context):
        return _DONE
    if item.frozen:
        return "skipped: frozen (trainable=False)"
    if not holds_own_draw(as_called(item.initializer, item.layer, item.attribute), item.variable):
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
