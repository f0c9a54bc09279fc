"""A model as a plain graph: calls and tensors, whatever the model is made of.

Nested models are opened, and so are layers without a rule that define their own `call`: they are
called on symbolic tensors to see what they do. `x + y` and `ops.relu(x)` are nodes like layers.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.graph import (
    Recorded,
    Shape,
    build_shapes,
    check_built,
    functional_of,
    is_raw_operation,
    is_symbolic,
    keeping_names,
    recorded_call,
    recorded_model,
    shape_of,
    symbolic,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One call of one operation. `inputs` and `outputs` are tensor numbers of the graph.

    `part` tells the nodes apart that stand for one wrapper: "enter" and "leave".
    """

    index: int
    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arguments: Any = None
    part: str = ""


@dataclasses.dataclass
class Graph:
    """Nodes in topological order; `shapes`, `producers` and `consumers` are indexed by tensor.

    `constants` holds the numbers that some tensors are, by tensor.
    """

    nodes: list[Node] = dataclasses.field(default_factory=list)
    shapes: list[Shape] = dataclasses.field(default_factory=list)
    producers: list[int | None] = dataclasses.field(default_factory=list)
    consumers: list[list[int]] = dataclasses.field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    constants: dict[int, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def new_tensor(self, shape: Shape) -> int:
        """Adds a tensor without a producer."""
        self.shapes.append(shape)
        self.producers.append(None)
        self.consumers.append([])
        return len(self.shapes) - 1

    def new_node(
        self,
        operation: Any,
        inputs: Sequence[int],
        shapes: Sequence[Shape],
        arguments: Any = None,
        part: str = "",
    ) -> tuple[int, ...]:
        """Adds a call; returns its outputs."""
        outputs = tuple(self.new_tensor(shape) for shape in shapes)
        node = Node(len(self.nodes), operation, tuple(inputs), outputs, arguments, part)
        self.nodes.append(node)
        for tensor in outputs:
            self.producers[tensor] = node.index
        for tensor in inputs:
            self.consumers[tensor].append(node.index)
        return outputs


def build_graph(model: Any, is_known: Callable[[Any], bool], *, training: bool = False) -> Graph:
    """Reads the graph of a built model.

    Args:
        model: A built `keras.Model`.
        is_known: Says of a layer whether it is one node; any other layer is opened.
        training: Whether models and layers with their own `call` are called as in training.

    Raises:
        TypeError: not a Keras model.
        ValueError: the model is not built, or its `call` cannot be followed.
    """
    reader = _Reader(Graph(), is_known, training)
    functional = functional_of(check_built(model))
    with keeping_names():
        if functional is not None:
            recorded = recorded_model(functional)
        else:
            recorded = _recorded_root(model, training)
        reader.graph.inputs = tuple(reader.graph.new_tensor(shape_of(t)) for t in recorded.inputs)
        reader.graph.outputs = reader.inline(recorded, reader.graph.inputs)
    return reader.graph


def _recorded_root(model: Any, training: bool) -> Recorded:
    try:
        args, kwargs = _arguments_of_build(model, training=training)
        return recorded_call(model, args, kwargs)
    except Exception as error:
        raise ValueError(
            f"Model {model.name!r} of class {type(model).__name__} defines its own `call`, which "
            f"cannot be followed on symbolic tensors ({type(error).__name__}: {error}). Pass a "
            "Functional model of the same layers instead, keras.Model(inputs, outputs). If only "
            "the shapes of its arguments are not known, keras.Model(inputs, model(inputs)) is one, "
            "with a keras.Input for each argument."
        ) from error


def _arguments_of_build(model: Any, *, training: bool) -> tuple[list[Any], dict[str, Any]]:
    """Symbolic arguments for `call`, of the shapes that a model was built with."""
    shapes = build_shapes(model)
    if not shapes:
        raise ValueError("the shapes that it was built with are not recorded")
    kwargs = {"training": True} if training else {}
    tensors = [_symbolic_structure(shape) for shape in shapes.values()]
    if len(shapes) == 1:
        return tensors, kwargs
    names = [name.removesuffix("_shape") for name in shapes]
    return [], {**dict(zip(names, tensors, strict=True)), **kwargs}


def _symbolic_structure(shape: Any) -> Any:
    """Symbolic tensors in the structure of nested shapes."""
    if isinstance(shape, dict):
        return {key: _symbolic_structure(value) for key, value in shape.items()}
    if all(n is None or isinstance(n, int) for n in shape):
        return symbolic(tuple(shape))
    return type(shape)(_symbolic_structure(value) for value in shape)


def takes_training(layer: Any) -> bool:
    """Whether a layer's `call` has an argument `training`."""
    return "training" in inspect.signature(layer.call).parameters


class _Reader:
    """Adds what Keras recorded to a graph."""

    def __init__(self, graph: Graph, is_known: Callable[[Any], bool], training: bool) -> None:
        self.graph = graph
        self.is_known = is_known
        self.training = training

    def inline(self, recorded: Recorded, outer: Sequence[int]) -> tuple[int, ...]:
        """Adds nodes, the inputs bound to tensors of the graph; returns the outputs."""
        numbers = {id(t): n for t, n in zip(recorded.inputs, outer, strict=True)}
        for tensor, value in zip(recorded.constants, recorded.values, strict=True):
            numbers[id(tensor)] = self.graph.new_tensor(shape_of(tensor))
            self.graph.constants[numbers[id(tensor)]] = value
        for node in recorded.nodes:
            inputs = [numbers[id(t)] for t in node.input_tensors]
            shapes = [shape_of(t) for t in node.output_tensors]
            outputs = self._call(node.operation, inputs, shapes, node.arguments)
            for tensor, number in zip(node.output_tensors, outputs, strict=True):
                numbers[id(tensor)] = number
        return tuple(numbers[id(t)] for t in recorded.outputs)

    def _call(
        self, operation: Any, inputs: list[int], shapes: list[Shape], arguments: Any
    ) -> tuple[int, ...]:
        if isinstance(operation, keras.layers.TimeDistributed):
            return self._time_distributed(operation, inputs, shapes)
        if isinstance(operation, keras.layers.Bidirectional):
            return self._bidirectional(operation, inputs, shapes, arguments)
        recorded = self._inside(operation, inputs, arguments)
        if recorded is not None and len(recorded.outputs) == len(shapes):
            return self.inline(recorded, inputs)
        return self.graph.new_node(operation, inputs, shapes, arguments)

    def _inside(self, operation: Any, inputs: list[int], arguments: Any) -> Recorded | None:
        """What an operation is made of, or None where it is a node by itself."""
        if is_raw_operation(operation):
            return None
        functional = functional_of(operation)
        if functional is None and self.is_known(operation):
            return None
        given = [self.graph.shapes[n] for n in inputs]
        if functional is not None and given == [shape_of(t) for t in functional.inputs]:
            return recorded_model(functional)
        args, kwargs = _fresh_arguments(arguments, given)
        if self.training and takes_training(operation):
            kwargs.setdefault("training", True)
        try:
            return recorded_call(operation, args, kwargs)
        except Exception as error:  # whatever a user's `call` raises
            self.graph.notes.append(
                f"{operation.name} ({type(operation).__name__}) could not be opened: "
                f"{type(error).__name__}: {error}"
            )
            return None if functional is None else recorded_model(functional)

    def _time_distributed(
        self, wrapper: Any, inputs: list[int], shapes: list[Shape]
    ) -> tuple[int, ...]:
        """The wrapped layer on the input without its time axis, which is put back after it."""
        outer, outputs = self.graph.shapes[inputs[0]], shapes[0]
        inner = [(outer[0], *outer[2:])]
        entered = self.graph.new_node(wrapper, inputs[:1], inner, part="enter")
        arguments = _Arguments([symbolic(inner[0])])
        left = self._call(wrapper.layer, list(entered), [(outputs[0], *outputs[2:])], arguments)
        return self.graph.new_node(wrapper, left, shapes, part="leave")

    def _bidirectional(
        self, wrapper: Any, inputs: list[int], shapes: list[Shape], arguments: Any
    ) -> tuple[int, ...]:
        """Both directions on the same input, then what merges them."""
        ends = []
        for layer in (wrapper.forward_layer, wrapper.backward_layer):
            shape = layer.compute_output_shape(self.graph.shapes[inputs[0]])
            own = tuple(shape[0] if wrapper.return_state else shape)
            ends.append(self._call(layer, inputs, [own], arguments)[0])
        return self.graph.new_node(wrapper, ends, shapes, part="leave")


@dataclasses.dataclass(frozen=True)
class _Arguments:
    """Arguments of a call that Keras did not record, in the form of its records."""

    args: list[Any]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


def _fresh_arguments(arguments: Any, shapes: Sequence[Shape]) -> tuple[Any, Any]:
    """A call's arguments with new symbolic tensors, of the shapes known by now."""
    remaining = iter(shapes)

    def renew(value: Any) -> Any:
        return symbolic(next(remaining), value.dtype) if is_symbolic(value) else value

    args, kwargs = keras.tree.map_structure(renew, (tuple(arguments.args), dict(arguments.kwargs)))
    return args, kwargs


def call_argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of the call that made a node, by position or by name."""
    if node.arguments is None:
        return default
    if len(node.arguments.args) > position:
        return node.arguments.args[position]
    return node.arguments.kwargs.get(name, default)


def evaluate(node: Node, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Runs an element-wise operation on numbers in place of its symbolic input."""
    tensor = keras.ops.convert_to_tensor(values.astype(np.float32))
    filled = {id(t): tensor for t in node.arguments.keras_tensors}
    args, kwargs = node.arguments.fill_in(filled)
    result = keras.ops.convert_to_numpy(node.operation.call(*args, **kwargs))
    return np.asarray(result, np.float64)


def computed(node: Node, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]] | None:
    """What an operation of `keras.ops` makes of numbers; None where it cannot run on them."""
    tensors = [
        keras.ops.cast(keras.ops.convert_to_tensor(value), given.dtype)
        for value, given in zip(values, node.arguments.keras_tensors, strict=True)
    ]
    filled = {id(t): value for t, value in zip(node.arguments.keras_tensors, tensors, strict=True)}
    args, kwargs = node.arguments.fill_in(filled)
    try:
        results = keras.tree.flatten(node.operation.call(*args, **kwargs))
    except Exception:  # whatever a backend raises on shapes that only hold in the model
        return None
    if len(results) != len(node.outputs):
        return None
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in results]
