"""A model as a flat graph of calls and tensors.

Nested models are inlined, and so are layers without a rule: their `call` is traced on symbolic
tensors. `x + y` and `ops.relu(x)` are nodes just as layers are.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.keras_private import (
    Shape,
    functional_of,
    is_keras_class,
    is_raw_operation,
    is_symbolic,
    shape_of,
    symbolic,
)
from keras_varinit.tracing.recording import Recorded, recorded_call, recorded_model
from keras_varinit.typing import AnyArray, Args, CallArguments, Kwargs, Layer, Operation, Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One call of an operation; `inputs` and `outputs` are numbers of tensors of the graph.

    `part` is "enter" or "leave" for the nodes that together represent a wrapper.
    """

    index: int
    operation: Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arguments: Any = None
    part: str = ""


@dataclasses.dataclass
class Graph:
    """Nodes in topological order; `shapes`, `producers` and `consumers` are indexed by tensor.

    Attributes:
        constants: Values of the tensors that are constant, by tensor.
        closed: Why a layer could not be opened, by the index of its node.
        opened: For each opened layer, by `id`, the index of its first node.
        finished: For each opened layer, by `id`, the index behind its last node.

    A model whose layers need to know a length may be traced with an example of it. That axis is
    still unknown (None) in `shapes`; only the nodes' `arguments` and the `constants` are those of
    the example.
    """

    nodes: list[Node] = dataclasses.field(default_factory=list)
    shapes: list[Shape] = dataclasses.field(default_factory=list)
    producers: list[int | None] = dataclasses.field(default_factory=list)
    consumers: list[list[int]] = dataclasses.field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    constants: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    closed: dict[int, str] = dataclasses.field(default_factory=dict)
    opened: dict[int, int] = dataclasses.field(default_factory=dict)
    finished: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Sentences on the layers that could not be opened."""
        names = {index: self.nodes[index].operation for index in self.closed}
        return [
            f"{names[index].name} ({type(names[index]).__name__}) could not be opened: {reason}"
            for index, reason in self.closed.items()
        ]

    @property
    def hidden(self) -> tuple[int, int]:
        """Number of weights in layers that could not be opened, and number of these layers."""
        layers = {id(self.nodes[index].operation): self.nodes[index] for index in self.closed}
        return sum(len(node.operation.weights) for node in layers.values()), len(layers)

    def new_tensor(self, shape: Shape) -> int:
        """Adds a tensor without a producer."""
        self.shapes.append(shape)
        self.producers.append(None)
        self.consumers.append([])
        return len(self.shapes) - 1

    def new_node(
        self,
        operation: Operation,
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


def takes_training(layer: Operation) -> bool:
    """Whether a layer's `call` has an argument `training`."""
    return "training" in inspect.signature(layer.call).parameters


class Reader:
    """Adds recorded calls to a graph, opening layers on the way."""

    def __init__(self, graph: Graph, is_known: Callable[[Operation], bool], training: bool) -> None:
        self.graph = graph
        self.is_known = is_known
        self.training = training

    def inline(self, recorded: Recorded, outer: Sequence[int]) -> tuple[int, ...]:
        """Adds a computation whose inputs are the graph's tensors `outer`; returns its outputs."""
        numbers = {id(t): n for t, n in zip(recorded.inputs, outer, strict=True)}
        for tensor, value in zip(recorded.constants, recorded.values, strict=True):
            numbers[id(tensor)] = self.graph.new_tensor(recorded.shape_of(tensor))
            self.graph.constants[numbers[id(tensor)]] = value
        for node in recorded.nodes:
            inputs = [numbers[id(t)] for t in node.input_tensors]
            shapes = [recorded.shape_of(t) for t in node.output_tensors]
            outputs = self._call(node.operation, inputs, shapes, node.arguments)
            for tensor, number in zip(node.output_tensors, outputs, strict=True):
                numbers[id(tensor)] = number
        return tuple(numbers[id(t)] for t in recorded.outputs)

    def _call(
        self,
        operation: Operation,
        inputs: list[int],
        shapes: list[Shape],
        arguments: "CallArguments | _Arguments",
    ) -> tuple[int, ...]:
        if isinstance(operation, keras.layers.TimeDistributed):
            return self._time_distributed(operation, inputs, shapes)
        if isinstance(operation, keras.layers.Bidirectional):
            return self._bidirectional(operation, inputs, shapes, arguments)
        if is_raw_operation(operation):
            return self.graph.new_node(operation, inputs, shapes, arguments)
        if functional_of(operation) is None and self.is_known(operation):
            return self.graph.new_node(operation, inputs, shapes, arguments)
        try:
            recorded = self._inside(operation, inputs, arguments)
            if len(recorded.outputs) != len(shapes):
                raise ValueError(
                    f"its `call` returns {len(recorded.outputs)} tensors, but Keras expects "
                    f"{len(shapes)}"
                )
        except Exception as error:  # whatever a user's `call` raises
            if operation.weights or not is_keras_class(type(operation)):
                self.graph.closed[len(self.graph.nodes)] = _in_words(error)
            return self.graph.new_node(operation, inputs, shapes, arguments)
        self.graph.opened.setdefault(id(operation), len(self.graph.nodes))
        outputs = self.inline(recorded, inputs)
        self.graph.finished.setdefault(id(operation), len(self.graph.nodes))
        return outputs

    def _inside(
        self, operation: Operation, inputs: list[int], arguments: "CallArguments | _Arguments"
    ) -> Recorded:
        """The computation inside a layer or model."""
        functional = functional_of(operation)
        shapes = [self.graph.shapes[n] for n in inputs]
        if functional is not None and shapes == [shape_of(t) for t in functional.inputs]:
            return recorded_model(functional)
        args, kwargs = _fresh_arguments(arguments, shapes)
        if self.training and takes_training(operation):
            kwargs.setdefault("training", True)
        try:
            return recorded_call(operation, args, kwargs)
        except Exception:
            if functional is None:
                raise
            return recorded_model(functional)

    def _time_distributed(
        self, wrapper: Layer, inputs: list[int], shapes: list[Shape]
    ) -> tuple[int, ...]:
        """The wrapped layer, between nodes that merge the time axis into the batch and split it."""
        outer, outputs = self.graph.shapes[inputs[0]], shapes[0]
        inner = [(outer[0], *outer[2:])]
        entered = self.graph.new_node(wrapper, inputs[:1], inner, part="enter")
        arguments = _Arguments([symbolic(inner[0])])
        left = self._call(wrapper.layer, list(entered), [(outputs[0], *outputs[2:])], arguments)
        return self.graph.new_node(wrapper, left, shapes, part="leave")

    def _bidirectional(
        self,
        wrapper: Layer,
        inputs: list[int],
        shapes: list[Shape],
        arguments: "CallArguments | _Arguments",
    ) -> tuple[int, ...]:
        """Both directions on the same input, then a node that merges them."""
        ends = []
        for layer in (wrapper.forward_layer, wrapper.backward_layer):
            shape = layer.compute_output_shape(self.graph.shapes[inputs[0]])
            own = tuple(shape[0] if wrapper.return_state else shape)
            ends.append(self._call(layer, inputs, [own], arguments)[0])
        return self.graph.new_node(wrapper, ends, shapes, part="leave")


def _in_words(error: Exception) -> str:
    """An error in one line, without the call arguments that Keras appends."""
    lines = [line.strip() for line in str(error).split("\n\n")[0].splitlines()]
    text = " ".join(line for line in lines if line)
    if text.startswith("Exception encountered when calling"):
        rest = str(error).split("\n\n")
        text = " ".join((rest[1] if len(rest) > 1 else text).split())
    return f"{type(error).__name__}: {text[:300]}"


@dataclasses.dataclass(frozen=True)
class _Arguments:
    """Arguments of a call that Keras did not record, with the attributes of its own records."""

    args: Args
    kwargs: Kwargs = dataclasses.field(default_factory=dict)


def _fresh_arguments(
    arguments: CallArguments | _Arguments, shapes: Sequence[Shape]
) -> tuple[list[Any], dict[str, Any]]:
    """A call's arguments with new symbolic tensors of the given shapes."""
    remaining = iter(shapes)

    def renew(value: Any) -> Any:
        return symbolic(next(remaining), value.dtype) if is_symbolic(value) else value

    args, kwargs = keras.tree.map_structure(renew, (tuple(arguments.args), dict(arguments.kwargs)))
    return args, kwargs


def call_argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a node's call, whether passed by position or by name."""
    if node.arguments is None:
        return default
    if len(node.arguments.args) > position:
        return node.arguments.args[position]
    return node.arguments.kwargs.get(name, default)


def evaluate(node: Node, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluates an element-wise operation on an array in place of its symbolic input."""
    tensor = keras.ops.convert_to_tensor(values.astype(np.float32))
    filled = {id(t): tensor for t in node.arguments.keras_tensors}
    args, kwargs = node.arguments.fill_in(filled)
    result = keras.ops.convert_to_numpy(node.operation.call(*args, **kwargs))
    return np.asarray(result, np.float64)


def computed(node: Node, values: Sequence[AnyArray]) -> list[AnyArray] | None:
    """Evaluates an operation of `keras.ops` on arrays; None if it cannot run on them."""
    tensors = [
        keras.ops.cast(keras.ops.convert_to_tensor(value), symbol.dtype)
        for value, symbol in zip(values, node.arguments.keras_tensors, strict=True)
    ]
    filled = {id(t): value for t, value in zip(node.arguments.keras_tensors, tensors, strict=True)}
    args, kwargs = node.arguments.fill_in(filled)
    try:
        results = keras.tree.flatten(node.operation.call(*args, **kwargs))
    except Exception:  # whatever a backend raises on shapes other than the model's
        return None
    if len(results) != len(node.outputs):
        return None
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in results]
