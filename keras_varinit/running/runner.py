"""Runs a model on data, and hands every signal inside it to a recorder."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import keras

from keras_varinit.keras_private import is_raw_operation, is_symbolic, layers_of, with_mask_of
from keras_varinit.running.calls import call_model, flat_inputs, linear, replaced_call, takes
from keras_varinit.running.points import Namer, Point, point_of
from keras_varinit.signals.registry import has_role_rule
from keras_varinit.tracing.opening import build_graph
from keras_varinit.tracing.reader import Graph, Node


class Recorder(Protocol):
    """What a runner tells."""

    def signal(self, point: Point, tensor: Any) -> Any:
        """Takes note of a signal; returns the tensor to go on with."""

    def activation(self, point: Point, before: Any, after: Any) -> None:
        """Takes note of what an activation function did."""


class Runner(Protocol):
    """A way to run a model."""

    def run(self, x: Any, recorder: Recorder) -> list[Any]:
        """The outputs, flat, of the model on a batch."""


class GraphRunner:
    """Runs the recorded graph node by node, raw operations included.

    Args:
        model: A built model.
        training: As in the model's call.
        keep_recorded: Whether layers are called with the `training` that Keras recorded, where it
            recorded one. It is as often a layer's default as what a user's `call` passes.

    Raises:
        ValueError: the model's own `call` cannot be followed on symbolic tensors.
    """

    def __init__(self, model: Any, training: bool, *, keep_recorded: bool = False) -> None:
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

    def run(self, x: Any, recorder: Recorder) -> list[Any]:
        """The outputs, flat, of the model on a batch."""
        values: dict[int, Any] = dict(self.graph.constants)
        values.update(zip(self.graph.inputs, flat_inputs(self.model, x), strict=True))
        states: dict[int, list[Any]] = {}
        for node, point in zip(self.graph.nodes, self.points, strict=True):
            given = [values[t] for t in node.inputs]
            if node.part:
                results = self._part(node, given, values, states)
                if point is not None:
                    results[0] = _recorded(recorder, point, results[0])
            else:
                results = self._call(node, point, given, recorder)
                states.update({t: results[1:] for t in node.outputs[:1]})
            values.update(zip(node.outputs, results, strict=len(node.outputs) > 1))
        return [values[t] for t in self.graph.outputs]

    def _call(
        self, node: Node, point: Point | None, given: list[Any], recorder: Recorder
    ) -> list[Any]:
        operation = node.operation
        args, kwargs = _filled(node, given)
        if is_raw_operation(operation):
            results = _flat(operation.call(*args, **kwargs))
        else:
            is_open = not self.keep_recorded or kwargs.get("training") is None
            if is_open and self.training is not None and takes(operation, "training"):
                kwargs["training"] = self.training
            if point is not None and point.splits:
                with linear(operation):
                    before = operation(*args, **kwargs)
                return [_activated(recorder, point, before)]
            results = _flat(operation(*args, **kwargs))
        if point is not None and results:
            results[0] = _recorded(recorder, point, results[0], given[0] if given else None)
        return results

    def _part(
        self,
        node: Node,
        given: list[Any],
        values: dict[int, Any],
        states: dict[int, list[Any]],
    ) -> list[Any]:
        if isinstance(node.operation, keras.layers.Bidirectional):
            return _merged(node, given, states)
        tensor = given[0]
        shape = tuple(tensor.shape)
        if node.part == "enter":
            return [keras.ops.reshape(tensor, (-1, *shape[2:]))]
        steps = self.graph.shapes[node.outputs[0]][1]
        if steps is None:
            entered = self._entered(node)
            steps = tuple(values[entered].shape)[1]
        return [keras.ops.reshape(tensor, (-1, int(steps), *shape[1:]))]

    def _entered(self, leaving: Node) -> int:
        """The tensor with a time axis that a wrapper was called on."""
        before = self.graph.nodes[: leaving.index]
        return next(
            node.inputs[0]
            for node in reversed(before)
            if node.operation is leaving.operation and node.part == "enter"
        )


class LayerRunner:
    """Calls the model itself, and looks at what its layers put out while it runs.

    For models whose graph cannot be recorded; it does not see raw operations.
    """

    def __init__(self, model: Any, training: bool) -> None:
        self.model = model
        self.training = training
        self.points: dict[tuple[int, int], Point] = {}

    def run(self, x: Any, recorder: Recorder) -> list[Any]:
        """The outputs, flat, of the model on a batch."""
        calls: dict[int, int] = {}
        name = Namer()

        def watched(layer: Any) -> Any:
            original = layer.call

            def call(*args: Any, **kwargs: Any) -> Any:
                count = calls[id(layer)] = calls.get(id(layer), 0) + 1
                called = name(layer.name)
                key = (id(layer), count)
                given = keras.tree.flatten((args, kwargs))
                first = next((t for t in given if keras.ops.is_tensor(t)), None)
                if key not in self.points:
                    with _own_call(layer):
                        self.points[key] = _point_of_running(layer, called, given)
                point = self.points[key]
                if point.splits:
                    with linear(layer):
                        before = original(*args, **kwargs)
                    return _activated(recorder, point, before)
                results = original(*args, **kwargs)
                flat = keras.tree.flatten(results)
                if flat and keras.ops.is_tensor(flat[0]):
                    flat[0] = _recorded(recorder, point, flat[0], first)
                return keras.tree.pack_sequence_as(results, flat)

            return call

        with contextlib.ExitStack() as stack:
            for layer in _leaves(self.model):
                stack.enter_context(replaced_call(layer, watched(layer)))
            return _flat(call_model(self.model, x, self.training))


@contextlib.contextmanager
def _own_call(layer: Any) -> Iterator[None]:
    """The layer with its own `call` for a moment, so that it is seen for what it is."""
    shadow = vars(layer).pop("call", None)
    try:
        yield
    finally:
        if shadow is not None:
            vars(layer)["call"] = shadow


def _point_of_running(layer: Any, name: str, given: Sequence[Any]) -> Point:
    inputs = [(None, *tuple(t.shape)[1:]) for t in given if keras.ops.is_tensor(t)]
    try:
        outputs = [tuple(layer.compute_output_shape(inputs[0]))] if inputs else []
    except Exception:  # a user's method, of which only the rank is wanted
        outputs = inputs[:1]
    return point_of(layer, name, inputs, outputs, None)


def _leaves(model: Any) -> list[Any]:
    """Layers that are looked at as a whole: those with a rule, and those without layers inside."""
    leaves: list[Any] = []
    inside: set[int] = set()
    for layer in layers_of(model):
        if id(layer) in inside or isinstance(layer, keras.layers.InputLayer):
            continue
        within = layers_of(layer)
        if not isinstance(layer, keras.Model) and (has_role_rule(layer) or not within):
            leaves.append(layer)
            inside.update(id(each) for each in within)
    return [layer for layer in leaves if id(layer) not in inside]


def _activated(recorder: Recorder, point: Point, before: Any) -> Any:
    """The output of a layer whose activation was left out, and is applied here."""
    before = with_mask_of(recorder.signal(point, before), before)
    after = with_mask_of(point.operation.activation(before), before)
    recorder.activation(point, before, after)
    return after


def _recorded(recorder: Recorder, point: Point, tensor: Any, given: Any = None) -> Any:
    after = with_mask_of(recorder.signal(point, tensor), tensor)
    if point.function is not None and given is not None:
        recorder.activation(point, given, after)
    return after


def _filled(node: Node, given: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a recorded call, with values in place of symbolic tensors."""
    if node.arguments is None:
        return list(given), {}
    remaining = iter(given)
    args, kwargs = keras.tree.map_structure(
        lambda value: next(remaining) if is_symbolic(value) else value,
        (list(node.arguments.args), dict(node.arguments.kwargs)),
    )
    return args, kwargs


def _flat(results: Any) -> list[Any]:
    return [result for result in keras.tree.flatten(results) if result is not None]


def _merged(node: Node, given: list[Any], states: dict[int, list[Any]]) -> list[Any]:
    """Both directions of a `Bidirectional` together, as its `call` puts them."""
    wrapper, (forward, backward) = node.operation, given
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
    if wrapper.supports_masking:  # not from Keras 3.16 on
        merged = [with_mask_of(tensor, forward) for tensor in merged]
    if wrapper.return_state:
        merged += [state for tensor in node.inputs for state in states[tensor]]
    return merged
