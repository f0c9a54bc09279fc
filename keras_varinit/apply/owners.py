"""Which initializer of this library a variable belongs to."""

from collections.abc import Iterator
from typing import Any

import keras

from keras_varinit import keras_private
from keras_varinit.apply.transaction import holds_own_draw
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.memory import drawer_of, remembered
from keras_varinit.tensors import digest, view

Owner = tuple[str, Any, ContextualInitializer]


def owners(layer: Any) -> Iterator[Owner]:
    """Attribute, variable and initializer of each variable that one of our initializers owns.

    An attribute that Keras's naming ties to no variable belongs to the one that it drew. A variable
    without any was made inline, `add_weight(initializer="asv_backward")`: the attribute is then one
    that the layer does not have yet.
    """
    claimed: set[int] = set()
    held: list[ContextualInitializer] = []
    unnamed = []
    for attribute, initializer in keras_private.initializer_attributes(
        layer, ContextualInitializer
    ):
        held.append(initializer)
        variable = keras_private.variable_of_initializer(layer, attribute)
        if variable is None:
            unnamed.append((attribute, initializer))
            continue
        claimed.add(id(variable))
        yield attribute, variable, initializer
    for attribute, initializer in unnamed:
        for variable in keras_private.own_variables(layer):
            if id(variable) not in claimed and _may_have_drawn(initializer, variable):
                claimed.add(id(variable))
                yield attribute, variable, initializer
                break
    claimed.update(key for key, _ in keras_private.initializers_of(layer))
    yield from _inline(layer, claimed, held)


def _inline(layer: Any, claimed: set[int], held: list[ContextualInitializer]) -> Iterator[Owner]:
    """Variables whose initializer the layer keeps nowhere, by what is remembered of the draws."""
    free = [v for v in keras_private.own_variables(layer) if id(v) not in claimed and _is_float(v)]
    drawn = [(s, i) for s, i in remembered(layer) if not any(i is each for each in held)]
    for shape, initializer in drawn:
        fitting = [v for v in free if tuple(v.shape) == shape]
        exact = [v for v in fitting if holds_own_draw(initializer, v)] if fitting[1:] else fitting
        if fitting:
            variable = (exact or fitting)[0]
            free = [v for v in free if v is not variable]
            yield _attribute(layer, variable), variable, initializer
    for variable in free:
        found = drawer_of(digest(view(variable))) if variable.dtype == "float32" else None
        if isinstance(found, ContextualInitializer) and not any(found is each for each in held):
            yield _attribute(layer, variable), variable, found


def _attribute(layer: Any, variable: Any) -> str:
    """Where the initializer of an inline variable is to be kept; Keras's naming then ties them."""
    name = f"{variable.name}_initializer"
    return name if not hasattr(layer, name) else f"keras_varinit_{name}"


def _is_float(variable: Any) -> bool:
    return bool(keras.backend.is_float_dtype(variable.dtype))


def _may_have_drawn(initializer: ContextualInitializer, variable: Any) -> bool:
    """Whether a variable that no name ties to an initializer comes from it."""
    if not _is_float(variable):
        return False
    if initializer.context is not None:
        return tuple(variable.shape) == initializer.context.kernel_shape
    return holds_own_draw(initializer, variable)
