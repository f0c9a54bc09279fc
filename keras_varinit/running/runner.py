"""Runs a model on data and passes every signal inside it to an observer."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras

from keras_varinit.keras_private import (
    Shape,
    is_raw_operation,
    is_symbolic,
    is_variable,
    layers_of,
    with_mask_of,
)
from keras_varinit.running.calls import call_model, flat_inputs, linear, replaced_call, takes
from keras_varinit.running.points import Namer, Point, point_of
from keras_varinit.signals.registry import has_role_rule
from keras_varinit.tracing.opening import build_graph
from keras_varinit.tracing.reader import Graph, Node
from keras_varinit.typing import ArrayLike, Layer, Model, Nested, Tensor


class Observer(Protocol):
    """Receives the signals of a run, and may replace them."""

    def signal(self, point: Point, tensor: Tensor) -> Tensor:
        """Observes a signal; returns the tensor to continue with."""

    def activation(self, point: Point, before: Tensor, after: Tensor) -> None:
        """Observes the input and the output of an activation function."""


class Runner(Protocol):
    """A way to run a model."""

    def run(self, x: Nested, observer: Observer) -> list[Tensor]:
        """The model's outputs on a batch, flat."""


class GraphRunner:
    """Runs the traced graph node by node, raw operations included.

    Args:
        model: A built model.
        training: As in the model's call.
        keep_recorded: Whether layers are called with the `training` that Keras recorded, if any. It
            may be what a user's `call` passes, or just a layer's default.

    Raises:
        ValueError: the model's own `call` cannot be traced on symbolic tensors.
    """

    def __init__(self, model: Model, training: bool, *, keep_recorded: bool = False) -> None:
        self.model = model
        self.keep_recorded = keep_recorded
        self.training = training if takes(model, "training") else None
        self.graph: Graph = build_graph(
            model, has_role_rule, training=bool(self.training), examples=False
        )
        name = Namer()
        self.points = [
            None
            if node.part and not isinstance(node.operation, keras.layers.Bidirectional)
            else self._point(node, name)
            for node in self.graph.nodes
        ]

    def _point(self, node: Node, name: Namer) -> Point:
        shapes = self.graph.shapes
        return point_of(
            node.operation,
            name(node.operation.name),
            [shapes[t] for t in node.inputs],
            [shapes[t] for t in node.outputs],
            node,
        )

    def run(self, x: Nested, observer: Observer) -> list[Tensor]:
        """The model's outputs on a batch, flat."""
        values: dict[int, Tensor] = dict(self.graph.constants)
        values.update(zip(self.graph.inputs, flat_inputs(self.model, x), strict=True))
        states: dict[int, list[Tensor]] = {}
        for node, point in zip(self.graph.nodes, self.points, strict=True):
            inputs = [values[t] for t in node.inputs]
            if node.part:
                outputs = self._part(node, inputs, values, states)
                if point is not None:
                    outputs[0] = _observed(observer, point, outputs[0])
            else:
                outputs = self._call(node, point, inputs, observer)
                states.update({t: outputs[1:] for t in node.outputs[:1]})
            values.update(zip(node.outputs, outputs, strict=len(node.outputs) > 1))
        return [values[t] for t in self.graph.outputs]

    def _call(
        self, node: Node, point: Point | None, inputs: list[Tensor], observer: Observer
    ) -> list[Tensor]:
        operation = node.operation
        args, kwargs = _filled(node, inputs)
        if is_raw_operation(operation):
            outputs = _flat(operation.call(*args, **kwargs))
        else:
            is_open = not self.keep_recorded or kwargs.get("training") is None
            if is_open and self.training is not None and takes(operation, "training"):
                kwargs["training"] = self.training
            if point is not None and point.splits:
                with linear(operation):
                    before = operation(*args, **kwargs)
                return [_activated(observer, point, before)]
            outputs = _flat(operation(*args, **kwargs))
        if point is not None and outputs:
            outputs[0] = _observed(observer, point, outputs[0], inputs[0] if inputs else None)
        return outputs

    def _part(
        self,
        node: Node,
        inputs: list[Tensor],
        values: dict[int, Tensor],
        states: dict[int, list[Tensor]],
    ) -> list[Tensor]:
        """Runs a node that represents one part of a wrapper."""
        if isinstance(node.operation, keras.layers.Bidirectional):
            return _merged(node, inputs, states)
        tensor = inputs[0]
        shape = tuple(tensor.shape)
        if node.part == "enter":
            return [keras.ops.reshape(tensor, (-1, *shape[2:]))]
        steps = self.graph.shapes[node.outputs[0]][1]
        if steps is None:
            entered = self._entered(node)
            steps = tuple(values[entered].shape)[1]
        return [keras.ops.reshape(tensor, (-1, int(steps), *shape[1:]))]

    def _entered(self, leaving: Node) -> int:
        """The input, with a time axis, of the wrapper that a node leaves."""
        before = self.graph.nodes[: leaving.index]
        return next(
            node.inputs[0]
            for node in reversed(before)
            if node.operation is leaving.operation and node.part == "enter"
        )


class LayerRunner:
    """Calls the model itself and observes the outputs of its layers while it runs.

    For models whose graph cannot be traced; it does not observe raw operations.
    """

    def __init__(self, model: Model, training: bool) -> None:
        self.model = model
        self.training = training
        self.points: dict[tuple[int, int], Point] = {}

    def run(self, x: Nested, observer: Observer) -> list[Tensor]:
        """The model's outputs on a batch, flat."""
        calls: dict[int, int] = {}
        name = Namer()

        def observed(layer: Layer) -> Callable[..., Nested]:
            original = layer.call

            def call(*args: Any, **kwargs: Any) -> Nested:
                count = calls[id(layer)] = calls.get(id(layer), 0) + 1
                call_name = name(layer.name)
                key = (id(layer), count)
                inputs = [t for t in keras.tree.flatten((args, kwargs)) if keras.ops.is_tensor(t)]
                if key not in self.points:
                    with _own_call(layer):
                        self.points[key] = _point_of_running(layer, call_name, inputs)
                point = self.points[key]
                if point.splits:
                    with linear(layer):
                        before = original(*args, **kwargs)
                    return _activated(observer, point, before)
                outputs = original(*args, **kwargs)
                flat = keras.tree.flatten(outputs)
                if flat and keras.ops.is_tensor(flat[0]) and not is_variable(flat[0]):
                    flat[0] = _observed(observer, point, flat[0], inputs[0] if inputs else None)
                return keras.tree.pack_sequence_as(outputs, flat)

            return call

        with contextlib.ExitStack() as stack:
            for layer in _leaves(self.model):
                stack.enter_context(replaced_call(layer, observed(layer)))
            return _flat(call_model(self.model, x, self.training))


@contextlib.contextmanager
def _own_call(layer: Layer) -> Iterator[None]:
    """Restores the layer's own `call` within the scope, so that rules recognize it."""
    shadow = vars(layer).pop("call", None)
    try:
        yield
    finally:
        if shadow is not None:
            vars(layer)["call"] = shadow


def _point_of_running(layer: Layer, name: str, inputs: Sequence[Tensor]) -> Point:
    shapes: list[Shape] = [(None, *tuple(t.shape)[1:]) for t in inputs]
    try:
        outputs = [tuple(layer.compute_output_shape(shapes[0]))] if shapes else []
    except Exception:  # whatever a user's method raises; only the rank matters
        outputs = shapes[:1]
    return point_of(layer, name, shapes, outputs, None)


def _leaves(model: Model) -> list[Layer]:
    """Layers that are observed as a whole: those with a rule, and those without layers inside."""
    leaves: list[Layer] = []
    inside: set[int] = set()
    for layer in layers_of(model):
        if id(layer) in inside or isinstance(layer, keras.layers.InputLayer):
            continue
        within = layers_of(layer)
        if not isinstance(layer, keras.Model) and (has_role_rule(layer) or not within):
            leaves.append(layer)
            inside.update(id(each) for each in within)
    return [layer for layer in leaves if id(layer) not in inside]


def _activated(observer: Observer, point: Point, before: Tensor) -> Tensor:
    """Observes a pre-activation; applies the layer's activation, which `linear` took out."""
    before = with_mask_of(observer.signal(point, before), before)
    after = with_mask_of(point.operation.activation(before), before)
    observer.activation(point, before, after)
    return after


def _observed(
    observer: Observer, point: Point, tensor: Tensor, before: Tensor | None = None
) -> Tensor:
    """Observes an operation's output, and `before`, its input, if it is an activation."""
    after = with_mask_of(observer.signal(point, tensor), tensor)
    if point.function is not None and before is not None:
        observer.activation(point, before, after)
    return after


def _filled(node: Node, inputs: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a recorded call, with tensors in place of symbolic ones."""
    if node.arguments is None:
        return list(inputs), {}
    remaining = iter(inputs)
    args, kwargs = keras.tree.map_structure(
        lambda value: next(remaining) if is_symbolic(value) else value,
        (list(node.arguments.args), dict(node.arguments.kwargs)),
    )
    return args, kwargs


def _flat(outputs: Nested) -> list[Tensor]:
    return [output for output in keras.tree.flatten(outputs) if output is not None]


def _merged(node: Node, inputs: list[ArrayLike], states: dict[int, list[Tensor]]) -> list[Tensor]:
    """Merges both directions of a `Bidirectional` as its `call` does."""
    wrapper, (forward, backward) = node.operation, inputs
    if wrapper.return_sequences:
        backward = with_mask_of(keras.ops.flip(backward, axis=1), backward)
    if wrapper.merge_mode == "concat":
        merged = [keras.ops.concatenate([forward, backward], axis=-1)]
    elif wrapper.merge_mode == "sum":
        merged = [forward + backward]
    elif wrapper.merge_mode == "ave":
        merged = [(forward + backward) / 2]
    elif wrapper.merge_mode == "mul":
        merged = [forward * backward]
    else:
        merged = [forward, backward]
    if wrapper.supports_masking:  # up to Keras 3.15
        merged = [with_mask_of(tensor, forward) for tensor in merged]
    if wrapper.return_state:
        merged += [state for tensor in node.inputs for state in states[tensor]]
    return merged
