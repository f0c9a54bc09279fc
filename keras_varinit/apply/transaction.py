"""Changes to a model's variables and initializers, applied all or none."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.context import LayerContext
from keras_varinit.initializers import draws, of_keras
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.same_law import constant_draw, drawn_by_law
from keras_varinit.sharding import (
    Index,
    Layout,
    assembled,
    check_same_on_all_hosts,
    checked_layout,
    cut,
    everywhere,
    layout_of,
    parts_of,
)
from keras_varinit.tensors import (
    CHUNK,
    is_known_to_be,
    is_same,
    layout_of_variable,
    local_parts,
    snapshot,
    tensor_of,
    view,
    zeros_like,
)
from keras_varinit.threads import in_threads
from keras_varinit.typing import AnyArray, ArrayLike, Initializer, Layer, Model, Variable


@dataclasses.dataclass(frozen=True)
class Change:
    """A variable's new value, and the initializer to be stored in an attribute of its layer.

    `value` and `before` are drawn when they are needed, so that no more than one is in memory.
    `before` is the present value, None where that cannot be drawn again and so has to be kept. Both
    take a `layout` for variables that have no value yet, and so none of their own.
    `attribute` is None where the layer stores none; `layer` and `initializer` may then be None too.
    An LSTM whose forget gate the initializer draws is told so (`unit_forget_bias=False`).
    """

    variable: Variable
    value: Callable[..., ArrayLike]
    layer: Layer | None
    attribute: str | None
    initializer: Initializer | None
    before: Callable[[], ArrayLike] | None = None

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

    def __call__(
        self, shape: Sequence[int], dtype: Any = None, layout: Layout | None = None
    ) -> ArrayLike:
        """Returns the whole bias."""
        units = shape[0] // 4
        first, rest = (self.initializer((n,), dtype=dtype) for n in (units, 2 * units))
        bias = keras.ops.concatenate([first, keras.ops.ones((units,), dtype=dtype), rest])
        return bias if layout is None else assembled(layout, shape, cut(view(bias), layout))

    def is_own_draw(
        self, parts: Mapping[Index, AnyArray], shape: Sequence[int], dtype: str, layout: Layout
    ) -> bool:
        """Whether parts of a bias equal, bit for bit, what the layer draws for them."""
        again = local_parts(self(shape, dtype, layout))
        return all(np.array_equal(again[index], values) for index, values in parts.items())


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
    """Whether a variable equals, bit for bit, what its initializer (one of ours) draws.

    One that has no value yet does: nothing is lost if it is drawn otherwise.
    """
    if not keras_private.has_value(variable):
        return True
    tensor = tensor_of(variable)
    with _drawing(initializer, variable):
        own = initializer.is_own_draw(
            parts_of(tensor), variable.shape, variable.dtype, layout_of(tensor)
        )
    return everywhere(own, [tensor])


def drawn_value(
    initializer: Drawer, variable: Variable, path: str, layout: Layout | None = None
) -> ArrayLike:
    """Draws a value for a variable, in its layout: each host draws the shards that it holds.

    Laws of Keras's are drawn from this library's streams: one seed, one value on every backend.

    Raises:
        ValueError: the value has another shape, or is not finite.
    """
    is_finite = None
    if keras_private.has_value(variable):
        layout = layout_of_variable(variable)
    asked = tuple(int(n) for n in variable.shape)
    with _drawing(initializer, variable):
        if isinstance(initializer, ContextualInitializer):
            drawn = initializer.drawn(asked, variable.dtype, layout, finite=True)
            value, is_finite = drawn.value, drawn.is_finite
        elif isinstance(initializer, InPieces):
            value = initializer(asked, variable.dtype, layout)
        elif (fixed := constant_draw(initializer, asked, variable.dtype)) is not None:
            value, is_finite = draws.make(fixed, variable.dtype, layout).value, True
        elif (by_law := drawn_by_law(initializer, asked, variable.dtype)) is not None:
            check_same_on_all_hosts(_name(initializer), layout, initializer.seed)
            drawn = draws.make(by_law, variable.dtype, layout, finite=True)
            value, is_finite = drawn.value, drawn.is_finite
        else:
            value = of_keras.drawn(initializer, asked, layout, variable.dtype)
    value = keras.ops.convert_to_tensor(value)
    shape = tuple(value.shape)
    if shape != asked:
        raise ValueError(
            f"{_name(initializer)} returned shape {shape} for {path!r}, which has shape "
            f"{asked}. No weight was changed."
        )
    if is_finite is None:
        is_finite = all(map(_is_finite, local_parts(value).values()))
    if not everywhere(is_finite, [value]):
        raise ValueError(
            f"{_name(initializer)} drew values for {path!r} that are not finite in dtype "
            f"{variable.dtype}. No weight was changed; use a wider dtype or a smaller variance."
        )
    return value


def _is_finite(part: AnyArray) -> bool:
    """Whether all entries are finite: minimum and maximum propagate infinities and NaN."""
    entries, infinite = np.ascontiguousarray(part).reshape(-1), []

    def check(number: int) -> None:
        chunk = np.asarray(entries[number * CHUNK : (number + 1) * CHUNK], np.float32)
        if not (np.isfinite(chunk.min()) and np.isfinite(chunk.max())):
            infinite.append(number)

    in_threads(check, math.ceil(entries.size / CHUNK))
    return not infinite


def commit(model: Model, changes: Sequence[Change], *, reset_optimizer: bool = False) -> None:
    """Applies all changes, or none: on any error every variable and initializer is restored.

    Values are drawn one after another, each when the one before it has been assigned. The
    optimizer's moving average of a variable is set along with it. A variable that has no value yet
    will be drawn when it gets one.
    """
    averages = keras_private.moving_averages(model)
    undo: list[tuple[Variable, Callable[[], ArrayLike]]] = []
    replaced: list[tuple[Layer | None, str, Any]] = []
    pending: list[tuple[Variable, Any]] = []

    def assign(
        target: Variable, value: ArrayLike, before: Callable[[], ArrayLike] | None = None
    ) -> None:
        if is_known_to_be(target, value):
            return  # such as the zeros of a bias; reading takes less time than assigning
        undo.append((target, before or known(snapshot(target))))
        keras_private.assign(target, value)

    try:
        for change in changes:
            if keras_private.has_value(change.variable):
                value = change.value()
                assign(change.variable, value, change.before)
                if id(change.variable) in averages:
                    # A copy: on JAX a training step donates the buffers of both.
                    assign(averages[id(change.variable)], keras.ops.copy(value))
                del value
            else:
                pending.append((change.variable, keras_private.pending(change.variable)))
                keras_private.set_pending(change.variable, _Pending(change))
            for attribute, new in change.attributes().items():
                replaced.append((change.layer, attribute, getattr(change.layer, attribute, None)))
                keras_private.replace_attribute(change.layer, attribute, new)
        if reset_optimizer:
            for variable in keras_private.optimizer_state(model):
                if id(variable) not in {id(average) for average in averages.values()}:
                    assign(variable, zeros_like(variable))
    except BaseException as error:
        # Whatever cannot be restored must not keep the rest from being restored.
        for layer, attribute, previous in reversed(replaced):
            if getattr(layer, attribute, None) is not previous:
                with _noting(error, f"{getattr(layer, 'name', None)}.{attribute}"):
                    keras_private.replace_attribute(layer, attribute, previous)
        for variable, initializer in reversed(pending):
            keras_private.set_pending(variable, initializer)
        for target, before in reversed(undo):
            with _noting(error, target.path):
                previous = before()
                if not is_same(target, previous):
                    keras_private.assign(target, previous)
        raise


class _Pending:
    """What Keras calls in place of an initializer when a variable gets its first value."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def __call__(
        self, shape: Sequence[int], dtype: Any = None, layout: Layout | None = None
    ) -> ArrayLike:
        """Returns the value; zeros while Keras infers shapes."""
        if keras_private.is_shape_inference():
            return keras.ops.zeros(shape, dtype)
        return self.change.value(
            layout=checked_layout(type(self.change.initializer).__name__, layout)
        )


def known(value: ArrayLike) -> Callable[..., ArrayLike]:
    """A value that is in memory, for `Change`."""
    return lambda layout=None: value


@contextlib.contextmanager
def _noting(error: BaseException, place: str) -> Iterator[None]:
    """Notes on an error what could not be restored after it."""
    try:
        yield
    except Exception as second:
        error.add_note(f"{place} could not be restored: {second}")
