"""Which kernels have changed since they were drawn, and which are beside a bias or γ."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_varinit import keras_private
from keras_varinit.analysis.result import Reading
from keras_varinit.apply.transaction import holds_own_draw
from keras_varinit.context import LayerContext
from keras_varinit.initializers import draws, of_keras
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.laws import as_drawn
from keras_varinit.initializers.same_law import drawn_by_law
from keras_varinit.sharding import everywhere, layout_of, parts_of
from keras_varinit.tensors import is_same, tensor_of
from keras_varinit.typing import Initializer, Layer, Model, Variable


class Kernels:
    """The kernels of a model, and whether they still are what their initializers draw."""

    def __init__(
        self, model: Model, reading: Reading, ours: Mapping[int, ContextualInitializer]
    ) -> None:
        self._reading = reading
        self._ours = ours
        self._places: dict[int, tuple[Layer, Variable]] = {
            id(variable): (layer, variable)
            for layer in [model, *keras_private.layers_of(model)]
            for variable in keras_private.own_variables(layer)
        }
        self._changed: dict[int, bool] = {}

    def changed_of_keras(self) -> Iterator[int]:
        """The `id` of each variable that differs from the draw of its initializer of Keras's."""
        for key, (_, variable) in self._places.items():
            if key not in self._ours and len(variable.shape) >= 2 and self.is_changed(key):
                yield key

    def is_changed(self, key: int) -> bool:
        """Whether a variable differs from its initializer's draw.

        True if the initializer draws something else at every call, False if it is not known.
        """
        if key not in self._changed:
            self._changed[key] = self._differs(key)
        return self._changed[key]

    def _differs(self, key: int) -> bool:
        layer, variable = self._places[key]
        if not keras_private.has_value(variable):
            return False
        if key in self._ours:
            return not holds_own_draw(self._ours[key], variable)
        attribute = dict(keras_private.initializers_of(layer)).get(key, "")
        initializer = getattr(layer, attribute, None)
        if initializer is None or isinstance(initializer, ContextualInitializer):
            return False
        if isinstance(getattr(initializer, "seed", None), keras.random.SeedGenerator):
            return True
        return not _repeats(as_drawn(layer, initializer), variable)

    def beside(self, layer: Layer, context: LayerContext) -> list[int]:
        """The `id` of each kernel that a bias or γ of a layer may be beside.

        Those of its own layer, or else those whose context agrees with its own; all kernels if
        there is none.
        """
        by_variable = self._reading.by_variable
        own = [id(v) for v in keras_private.own_variables(layer) if id(v) in by_variable]
        alike = [key for key, each in by_variable.items() if _place(each) == _place(context)]
        return own or alike or list(by_variable)


def _place(context: LayerContext) -> dict[str, Any]:
    """What the contexts of a kernel and of its bias and γ have in common."""
    apart = {"path", "layer", "stream", "role", "signal_gain", "branch_end", "branch_size"}
    fields = dataclasses.fields(context)
    return {f.name: getattr(context, f.name) for f in fields if f.name not in apart}


def _repeats(initializer: Initializer, variable: Variable) -> bool:
    """Whether an initializer, called again, draws a variable's present value."""
    tensor, shape = tensor_of(variable), tuple(int(n) for n in variable.shape)
    layout, by_law = layout_of(tensor), drawn_by_law(initializer, shape, variable.dtype)
    if by_law is not None:  # what `initialize` draws
        is_own = draws.equals(by_law, parts_of(tensor), variable.dtype, layout)
        if everywhere(is_own, [tensor]):
            return True
    again = of_keras.drawn(initializer, shape, layout, variable.dtype)
    return everywhere(is_same(variable, again), [tensor])
