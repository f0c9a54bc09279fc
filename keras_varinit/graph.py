"""Keras models as plain graphs. The one file that touches Keras's private fields.

A `Graph` is the model's computation flattened: nested Functional and Sequential models are opened,
raw operations (`x + y`, `ops.relu(x)`) are nodes like layers, tensors are numbers. Nothing here
changes a model except `replace_initializer` and `assign`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One call of one operation. `inputs` and `outputs` are tensor numbers of the graph."""

    index: int
    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arguments: Any = None


@dataclasses.dataclass
class Graph:
    """Nodes in topological order; `shapes`, `producers` and `consumers` are indexed by tensor."""

    nodes: list[Node] = dataclasses.field(default_factory=list)
    shapes: list[Shape] = dataclasses.field(default_factory=list)
    producers: list[int | None] = dataclasses.field(default_factory=list)
    consumers: list[list[int]] = dataclasses.field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    notes: list[str] = dataclasses.field(default_factory=list)

    def _new_tensor(self, shape: Shape) -> int:
        self.shapes.append(shape)
        self.producers.append(None)
        self.consumers.append([])
        return len(self.shapes) - 1

    def _new_node(
        self, operation: Any, inputs: Sequence[int], shapes: Sequence[Shape], arguments: Any
    ) -> tuple[int, ...]:
        outputs = tuple(self._new_tensor(shape) for shape in shapes)
        node = Node(len(self.nodes), operation, tuple(inputs), outputs, arguments)
        self.nodes.append(node)
        for tensor in outputs:
            self.producers[tensor] = node.index
        for tensor in inputs:
            self.consumers[tensor].append(node.index)
        return outputs


def build_graph(model: Any) -> Graph:
    """Reads the graph off a Functional or a built Sequential model.

    Raises:
        TypeError: not a Keras model.
        ValueError: the model is not built, or its graph is not recorded (a subclassed model).
    """
    functional = _functional(check_built(model))
    if functional is None:
        raise ValueError(
            f"Model {model.name!r} of class {type(model).__name__} defines its own `call`, so "
            "Keras records no graph for it. Pass a Functional or Sequential model, for example "
            "keras.Model(inputs, outputs) around the same layers."
        )
    graph = Graph()
    graph.inputs = tuple(graph._new_tensor(_shape(t)) for t in functional.inputs)
    graph.outputs = _inline(graph, functional, graph.inputs)
    return graph


def check_built(model: Any) -> Any:
    """Returns the model if it is a built Keras model; otherwise raises, naming the fix."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a built keras.Model. "
            f"Received: model={model!r} of type {type(model).__name__}."
        )
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is not built, so its kernels do not exist yet. Call "
            "model.build(input_shape), start a Sequential with keras.Input(shape), or use "
            "keras_varinit.ContextInjector() in fit, which runs once the model is built."
        )
    return model


def layers_of(model: Any) -> list[Any]:
    """All layers inside a model, nested ones included, in order of construction, each once."""
    found, seen = [], {id(model)}
    stack = list(reversed(model._layers))
    while stack:
        layer = stack.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        found.append(layer)
        stack.extend(reversed(layer._layers))
    return found


def own_variables(layer: Any) -> list[Any]:
    """The variables that a layer created itself, sublayers left out."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_variable(layer: Any, name: str) -> Any | None:
    """The layer's own variable of that name, or None."""
    return next((v for v in own_variables(layer) if v.name == name), None)


def initializer_attributes(layer: Any, cls: type) -> Iterator[tuple[str, Any]]:
    """Attributes of a layer that hold an initializer of class `cls`."""
    for name, value in list(vars(layer).items()):
        if isinstance(value, cls):
            yield name, value


def variable_of_initializer(layer: Any, attribute: str) -> Any | None:
    """The variable that Keras's naming ties to an attribute such as `recurrent_initializer`."""
    stem = attribute.removesuffix("_initializer")
    names = [stem, f"{stem}_kernel"]
    if stem == "depthwise":
        names.append("kernel")
    for name in names:
        variable = own_variable(layer, name)
        if variable is not None:
            return variable
    return None


def is_raw_operation(operation: Any) -> bool:
    """Whether an operation is one of `keras.ops` and no layer."""
    return not isinstance(operation, keras.Layer)


def operation_name(operation: Any) -> str:
    """Class name of an operation of `keras.ops`, such as "Relu" or "Add"."""
    return type(operation).__name__


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


def to_numpy(variable: Any) -> npt.NDArray[Any]:
    """A copy of a variable's value; half-precision values in a NumPy type that holds them."""
    return np.array(keras.ops.convert_to_numpy(variable))


def assign(variable: Any, value: Any) -> None:
    """Sets a variable's value."""
    variable.assign(value)


def replace_initializer(layer: Any, attribute: str, initializer: Any) -> None:
    """Puts an initializer where the layer keeps it, so that it is saved with the layer."""
    setattr(layer, attribute, initializer)


def moving_averages(model: Any) -> dict[int, Any]:
    """The optimizer's moving averages by the `id` of the variable that they average."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not optimizer.built or not getattr(optimizer, "use_ema", False):
        return {}
    averaged = zip(
        optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
    )
    return {id(variable): average for variable, average in averaged if average is not None}


def training_steps(model: Any) -> int:
    """Optimizer steps taken so far."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(optimizer.iterations)


def _functional(model: Any) -> Any | None:
    """The Functional model behind a model, or None where Keras records no graph."""
    functional = getattr(model, "_functional", None)
    if functional is not None:
        return functional
    is_functional = isinstance(model, keras.Model) and hasattr(model, "_nodes")
    return model if is_functional else None


def _inline(graph: Graph, functional: Any, outer: Sequence[int]) -> tuple[int, ...]:
    """Adds a Functional model's nodes, its inputs bound to outer tensors; returns its outputs."""
    numbers = {id(t): n for t, n in zip(functional.inputs, outer, strict=True)}
    refined = _refined_shapes(graph, functional, outer)
    for keras_node in _topological(functional):
        tensors = keras_node.input_tensors
        inputs = [numbers[id(t)] for t in tensors]
        nested = _functional(keras_node.operation)
        if nested is not None and len(nested.inputs) == len(inputs):
            outputs = _inline(graph, nested, inputs)
        else:
            shapes = [refined.get(id(t), _shape(t)) for t in keras_node.output_tensors]
            outputs = graph._new_node(keras_node.operation, inputs, shapes, keras_node.arguments)
        for tensor, number in zip(keras_node.output_tensors, outputs, strict=True):
            numbers[id(tensor)] = number
    return tuple(numbers[id(t)] for t in functional.outputs)


def _topological(functional: Any) -> list[Any]:
    """The nodes between a Functional model's inputs and outputs, producers before consumers."""
    known = {id(t) for t in functional.inputs}
    done: set[int] = set()
    order = []
    stack = [(t, False) for t in reversed(functional.outputs)]
    while stack:
        tensor, expanded = stack.pop()
        if id(tensor) in known:
            continue
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if id(node) in done:
            continue
        if expanded:
            done.add(id(node))
            order.append(node)
            known.update(id(t) for t in node.output_tensors)
        else:
            stack.append((tensor, True))
            stack.extend((t, False) for t in reversed(node.input_tensors))
    return order


def _refined_shapes(graph: Graph, functional: Any, outer: Sequence[int]) -> dict[int, Shape]:
    """Shapes inside a nested model that is called with other sizes than it was built with."""
    given = [graph.shapes[n] for n in outer]
    if given == [_shape(t) for t in functional.inputs]:
        return {}
    specs = {
        id(t): keras.KerasTensor(shape, dtype=t.dtype)
        for t, shape in zip(functional.inputs, given, strict=True)
    }
    for node in _topological(functional):
        args, kwargs = node.arguments.fill_in(specs)
        try:
            results = node.operation.compute_output_spec(*args, **kwargs)
        except (ValueError, TypeError) as error:
            graph.notes.append(
                f"{functional.name}: sizes inside are those it was built with, since "
                f"{node.operation.name} takes no {given}: {error}"
            )
            return {}
        for tensor, result in zip(node.output_tensors, keras.tree.flatten(results), strict=True):
            specs[id(tensor)] = result
    return {key: _shape(spec) for key, spec in specs.items()}


def _shape(tensor: Any) -> Shape:
    return tuple(tensor.shape)
