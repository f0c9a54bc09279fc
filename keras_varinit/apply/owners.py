"""Which of this library's initializers owns a variable."""

from collections.abc import Iterator

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.apply.transaction import holds_own_draw
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.memory import drawer_of, remembered
from keras_varinit.sharding import everywhere, parts_of
from keras_varinit.tensors import digests, key_of, tensor_of
from keras_varinit.typing import Layer, Variable

Owner = tuple[str, Variable, ContextualInitializer]


def owners(layer: Layer) -> Iterator[Owner]:
    """Attribute, variable and initializer of each variable that one of our initializers owns.

    An attribute that no variable is named after is matched to the variable that it drew. A variable
    without an attribute was created inline, `add_weight(initializer="asv_backward")`; the attribute
    yielded for it is one that the layer does not have yet.
    """
    claimed: set[int] = set()
    stored: list[ContextualInitializer] = []
    unnamed = []
    for attribute, initializer in keras_private.initializer_attributes(
        layer, ContextualInitializer
    ):
        stored.append(initializer)
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
    yield from _inline(layer, claimed, stored)


def _inline(
    layer: Layer, claimed: set[int], stored: list[ContextualInitializer]
) -> Iterator[Owner]:
    """Variables whose initializer no attribute stores, identified by the remembered draws."""
    free = [v for v in keras_private.own_variables(layer) if id(v) not in claimed and _is_float(v)]
    for variable in free:
        pending = keras_private.pending(variable)  # knows its initializer if it has no value yet
        if isinstance(pending, ContextualInitializer) and not any(pending is i for i in stored):
            yield _attribute(layer, variable), variable, pending
    free = [v for v in free if keras_private.has_value(v)]
    drawn = [
        (shape, initializer)
        for shape, initializer in remembered(layer)
        if isinstance(initializer, ContextualInitializer)
        and not any(initializer is each for each in stored)
    ]
    for shape, initializer in drawn:
        fitting = [v for v in free if tuple(v.shape) == shape]
        exact = [v for v in fitting if holds_own_draw(initializer, v)] if fitting[1:] else fitting
        if exact[1:] and _is_of_zeros_and_ones(exact[0]):
            continue  # any of them may have drawn it
        if fitting:
            variable = (exact or fitting)[0]
            free = [v for v in free if v is not variable]
            yield _attribute(layer, variable), variable, initializer
    for variable in free:
        drawer = drawer_of(key_of(digests(variable)))
        if isinstance(drawer, ContextualInitializer) and not any(drawer is i for i in stored):
            yield _attribute(layer, variable), variable, drawer


def _attribute(layer: Layer, variable: Variable) -> str:
    """Attribute in which to store the initializer of an inline variable, named as Keras would."""
    name = f"{variable.name}_initializer"
    return name if not hasattr(layer, name) else f"keras_varinit_{name}"


def _is_float(variable: Variable) -> bool:
    return bool(keras.backend.is_float_dtype(variable.dtype))


def _is_of_zeros_and_ones(variable: Variable) -> bool:
    tensor = tensor_of(variable)
    holds = all(np.all((part == 0) | (part == 1)) for part in parts_of(tensor).values())
    return everywhere(bool(holds), [tensor])


def _may_have_drawn(initializer: ContextualInitializer, variable: Variable) -> bool:
    """Whether an initializer may have drawn a variable that is not named after it."""
    if not _is_float(variable):
        return False
    context = initializer.context
    if context is not None and context.kind == "kernel":
        return tuple(variable.shape) == context.kernel_shape
    if context is not None:
        return variable.path == context.path
    return holds_own_draw(initializer, variable)
