"""The arguments of a layer's call by name, whether passed by position or by keyword."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from keras_varinit.keras_private import is_symbolic
from keras_varinit.tracing.reader import Node


@dataclasses.dataclass(frozen=True)
class Input:
    """A tensor of the graph among a call's arguments: `node.inputs[number]`."""

    number: int


def named_arguments(node: Node) -> Mapping[str, Any]:
    """The arguments of a node's call, by their names in the signature of `call`.

    Symbolic tensors are represented by `Input`; arguments that were not passed are absent. Their
    order is irrelevant, since Keras records keyword arguments sorted by name.
    """
    signature = inspect.signature(node.operation.call)
    numbers = iter(range(len(node.inputs)))
    if node.arguments is None:
        args: tuple[Any, ...] = tuple(Input(n) for n in numbers)
        return signature.bind_partial(*args).arguments

    def number(value: Any) -> Any:
        return Input(next(numbers)) if is_symbolic(value) else value

    args, kwargs = keras.tree.map_structure(
        number, (tuple(node.arguments.args), dict(node.arguments.kwargs))
    )
    return signature.bind_partial(*args, **kwargs).arguments
