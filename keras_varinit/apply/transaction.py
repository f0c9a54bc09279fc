"""Changes to a model's variables and initializers, applied all or none."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.context import LayerContext
from keras_varinit.tensors import snapshot, to_numpy, view
from keras_varinit.typing import ArrayLike, Initializer, Layer, Model, Variable


@dataclasses.dataclass(frozen=True)
class Change:
    """A variable's new value, and the initializer to be stored in an attribute of its layer.

    `attribute` is None where the layer stores none; `layer` and `initializer` may then be None too.
    """

    variable: Variable
    value: ArrayLike
    layer: Layer | None
    attribute: str | None
    initializer: Initializer | None


def in_another_stream(context: LayerContext) -> LayerContext:
    """The context with a new random stream, for a kernel whose draw another kernel already has."""
    return dataclasses.replace(context, stream=context.stream + "'")


@contextlib.contextmanager
def _drawing(initializer: Initializer, variable: Variable) -> Iterator[None]:
    """Notes on errors for which variable was drawn, and that no weight was changed."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"No weight was changed. {type(initializer).__name__} was drawing for "
            f"{variable.path!r}, shape {tuple(variable.shape)}."
        )
        raise


def holds_own_draw(initializer: Initializer, variable: Variable) -> bool:
    """Whether a variable equals, bit for bit, what its initializer (one of ours) draws."""
    with _drawing(initializer, variable):
        return bool(initializer.is_own_draw(view(variable), variable.dtype))


def drawn_value(initializer: Initializer, variable: Variable, path: str) -> ArrayLike:
    """Draws a value for a variable.

    Raises:
        ValueError: the value has another shape, or is not finite.
    """
    with _drawing(initializer, variable):
        drawn = initializer(tuple(variable.shape), dtype=variable.dtype)
    value = keras.ops.convert_to_tensor(drawn)
    shape = tuple(value.shape)
    if shape != tuple(variable.shape):
        raise ValueError(
            f"{type(initializer).__name__} returned shape {shape} for {path!r}, which has shape "
            f"{tuple(variable.shape)}. No weight was changed."
        )
    if not _is_finite(value):
        raise ValueError(
            f"{type(initializer).__name__} drew values for {path!r} that are not finite in dtype "
            f"{variable.dtype}. No weight was changed; use a wider dtype or a smaller variance."
        )
    return value


def _is_finite(value: ArrayLike) -> bool:
    """Whether all entries are finite: minimum and maximum propagate infinities and NaN."""
    entries = np.asarray(view(value), np.float32)
    return entries.size == 0 or bool(np.isfinite(entries.min()) and np.isfinite(entries.max()))


def commit(model: Model, changes: Sequence[Change], *, reset_optimizer: bool = False) -> None:
    """Applies all changes, or none: on any error every variable and initializer is restored.

    The optimizer's moving average of a variable is set along with it.
    """
    averages = keras_private.moving_averages(model)
    undo: list[tuple[Variable, ArrayLike]] = []
    replaced: list[tuple[Layer, str, Initializer | None]] = []

    def assign(target: Variable, value: ArrayLike) -> None:
        undo.append((target, snapshot(target)))
        keras_private.assign(target, value)

    try:
        for change in changes:
            assign(change.variable, change.value)
            if id(change.variable) in averages:
                # A copy: on JAX a training step donates the buffers of both.
                assign(averages[id(change.variable)], keras.ops.copy(change.value))
            if change.layer is not None and change.attribute is not None:
                previous = getattr(change.layer, change.attribute, None)
                replaced.append((change.layer, change.attribute, previous))
                keras_private.replace_initializer(
                    change.layer, change.attribute, change.initializer
                )
        if reset_optimizer:
            for variable in keras_private.optimizer_state(model):
                if id(variable) not in {id(average) for average in averages.values()}:
                    assign(variable, np.zeros_like(to_numpy(variable)))
    except BaseException as error:
        # Whatever cannot be restored must not keep the rest from being restored.
        for layer, attribute, previous in reversed(replaced):
            if getattr(layer, attribute, None) is not previous:
                with _noting(error, f"{layer.name}.{attribute}"):
                    keras_private.replace_initializer(layer, attribute, previous)
        for target, value in reversed(undo):
            if not np.array_equal(view(target), view(value)):
                with _noting(error, target.path):
                    keras_private.assign(target, value)
        raise


@contextlib.contextmanager
def _noting(error: BaseException, place: str) -> Iterator[None]:
    """Notes on an error what could not be restored after it."""
    try:
        yield
    except Exception as second:
        error.add_note(f"{place} could not be restored: {second}")
