"""Changes to a model's variables and initializers, applied all or none."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.tensors import snapshot, to_numpy, view
from keras_varinit.typing import AnyArray, ArrayLike, Initializer, Layer, Model, Variable


@dataclasses.dataclass(frozen=True)
class Change:
    """A variable's new value, and the initializer to be stored in an attribute of its layer.

    `attribute` is None where the layer stores none; `layer` and `initializer` may then be None too.
    An LSTM whose forget gate the initializer draws is told so (`unit_forget_bias=False`).
    """

    variable: Variable
    value: ArrayLike
    layer: Layer | None
    attribute: str | None
    initializer: Initializer | None

    def attributes(self) -> dict[str, Any]:
        """The layer's new attributes."""
        if self.layer is None or self.attribute is None:
            return {}
        forgets = getattr(self.initializer, "sets_forget_gate", False)
        flags = {UNIT_FORGET_BIAS: False} if forgets and forget_gate_is_one(self.layer) else {}
        return {self.attribute: self.initializer, **flags}


UNIT_FORGET_BIAS = "unit_forget_bias"


def forget_gate_is_one(layer: Layer | None) -> bool:
    """Whether Keras sets the forget gate of this layer's bias to 1, whatever its initializer."""
    return bool(getattr(layer, UNIT_FORGET_BIAS, False))


class InPieces:
    """An initializer called as an LSTM with `unit_forget_bias` calls it.

    It draws the bias of the input gate, then that of cell and output; the forget gate's is 1.
    """

    def __init__(self, initializer: Initializer) -> None:
        self.initializer = initializer

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> ArrayLike:
        """Returns the whole bias."""
        units = shape[0] // 4
        first, rest = (self.initializer((n,), dtype=dtype) for n in (units, 2 * units))
        return keras.ops.concatenate([first, keras.ops.ones((units,), dtype=dtype), rest])

    def is_own_draw(self, values: AnyArray, dtype: str) -> bool:
        """Whether values equal, bit for bit, what the layer draws."""
        return bool(np.array_equal(to_numpy(self(values.shape, dtype)), values))


Drawer: TypeAlias = Initializer | InPieces


def _name(drawer: Drawer) -> str:
    return type(drawer.initializer if isinstance(drawer, InPieces) else drawer).__name__


def as_called(initializer: ContextualInitializer, layer: Layer, attribute: str | None) -> Drawer:
    """An initializer of ours, called as its layer calls it."""
    is_bias = attribute == "bias_initializer" and forget_gate_is_one(layer)
    return InPieces(initializer) if is_bias and not initializer.sets_forget_gate else initializer


def moves_until_free(
    context: LayerContext, is_taken: Callable[[LayerContext], bool], most: int | None = None
) -> int:
    """How often a kernel moves to another random stream until no other kernel has its draw.

    Args:
        context: The context of the kernel.
        is_taken: Whether a kernel that is left alone has the draw for a context.
        most: The greatest number of moves; None for as many as it takes.
    """
    moves = (n for n in itertools.count() if n == most or not is_taken(moved(context, n)))
    return next(moves)


def moved(context: LayerContext, moves: int) -> LayerContext:
    """The context in a stream as many moves away."""
    if moves == 0:
        return context
    suffix = "'" * moves
    group = None if context.group is None else context.group + suffix
    return dataclasses.replace(context, stream=context.stream + suffix, group=group)


@contextlib.contextmanager
def _drawing(initializer: Drawer, variable: Variable) -> Iterator[None]:
    """Notes on errors for which variable was drawn, and that no weight was changed."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"No weight was changed. {_name(initializer)} was drawing for "
            f"{variable.path!r}, shape {tuple(variable.shape)}."
        )
        raise


def holds_own_draw(initializer: Drawer, variable: Variable) -> bool:
    """Whether a variable equals, bit for bit, what its initializer (one of ours) draws."""
    with _drawing(initializer, variable):
        return bool(initializer.is_own_draw(view(variable), variable.dtype))


def drawn_value(initializer: Drawer, variable: Variable, path: str) -> ArrayLike:
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
            f"{_name(initializer)} returned shape {shape} for {path!r}, which has shape "
            f"{tuple(variable.shape)}. No weight was changed."
        )
    if not _is_finite(value):
        raise ValueError(
            f"{_name(initializer)} drew values for {path!r} that are not finite in dtype "
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
    replaced: list[tuple[Layer | None, str, Any]] = []

    def assign(target: Variable, value: ArrayLike) -> None:
        undo.append((target, snapshot(target)))
        keras_private.assign(target, value)

    try:
        for change in changes:
            assign(change.variable, change.value)
            if id(change.variable) in averages:
                # A copy: on JAX a training step donates the buffers of both.
                assign(averages[id(change.variable)], keras.ops.copy(change.value))
            for attribute, new in change.attributes().items():
                replaced.append((change.layer, attribute, getattr(change.layer, attribute, None)))
                keras_private.replace_attribute(change.layer, attribute, new)
        if reset_optimizer:
            for variable in keras_private.optimizer_state(model):
                if id(variable) not in {id(average) for average in averages.values()}:
                    assign(variable, np.zeros_like(to_numpy(variable)))
    except BaseException as error:
        # Whatever cannot be restored must not keep the rest from being restored.
        for layer, attribute, previous in reversed(replaced):
            if getattr(layer, attribute, None) is not previous:
                with _noting(error, f"{getattr(layer, 'name', None)}.{attribute}"):
                    keras_private.replace_attribute(layer, attribute, previous)
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
