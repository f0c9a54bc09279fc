"""What a layer's `call` does, seen by calling it on symbolic tensors as Keras itself would."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_varinit.graph import (
    Shape,
    call_arguments,
    is_keras_class,
    is_raw_operation,
    is_symbolic,
    own_variables,
    recorded_nodes,
    shape_of,
    symbolic,
    topological,
)
from keras_varinit.reading import is_trusting_calls, reporting_to


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedCall:
    """One call of an operation, with what is used of Keras's nodes."""

    operation: Any
    arguments: Any
    output_tensors: list[Any]

    @property
    def input_tensors(self) -> list[Any]:
        """The symbolic tensors among the arguments."""
        return list(self.arguments.keras_tensors)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A symbolic computation: input tensors, output tensors, and the calls between them.

    `constants` stand for numbers that a layer was called on or that it returns, such as positions
    and what is read off a table for them; `values` are those numbers. `shapes` holds, by the `id`
    of a tensor, shapes that are to be used instead of its own.
    """

    inputs: list[Any]
    outputs: list[Any]
    nodes: list[Any]
    constants: list[Any] = dataclasses.field(default_factory=list)
    values: list[Any] = dataclasses.field(default_factory=list)
    shapes: dict[int, Shape] = dataclasses.field(default_factory=dict)

    def shape_of(self, tensor: Any) -> Shape:
        """The shape of one of the tensors."""
        return self.shapes.get(id(tensor), shape_of(tensor))


def recorded_model(functional: Any) -> Recorded:
    """What a Functional model computes."""
    return Recorded(*recorded_nodes(functional))


def recorded_call(layer: Any, args: Any, kwargs: Any) -> Recorded:
    """What a layer's own `call` does, seen by calling it on symbolic tensors.

    Nothing of it stays behind on the layer and on those inside it. Where only the batch size is
    unknown, and `call` needs one (random numbers do) or without it loses other sizes (as reshaping
    to (batch, -1, channels) does), it is called with two sizes, and what differs between them
    stays unknown.

    Raises:
        Exception: whatever `call` raises on symbolic tensors.
    """
    shapes = [shape_of(t) for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    is_batch_alone = any(shape[:1] == (None,) for shape in shapes) and not any(
        None in shape[1:] for shape in shapes
    )
    found = None
    try:
        found = _recorded(layer, args, kwargs)
    except Exception:
        if not is_batch_alone:
            raise
    if found is not None and (not is_batch_alone or not loses_sizes(found)):
        return found
    try:
        first, second = (_recorded(layer, *with_sizes((args, kwargs), n, None)) for n in (2, 3))
        return _without_sizes(first, second)
    except Exception:
        if found is None:
            raise
        return found


def loses_sizes(recorded: Recorded) -> bool:
    """Whether a size beside the batch is unknown somewhere."""
    return any(
        None in shape_of(tensor)[1:] for node in recorded.nodes for tensor in node.output_tensors
    )


def with_sizes(structure: Any, batch: int | None, length: int | None) -> Any:
    """New symbolic tensors with sizes in place of the axes that are unknown."""

    def sized(value: Any) -> Any:
        if not is_symbolic(value):
            return value
        shape = [length if n is None else n for n in value.shape]
        if shape and value.shape[0] is None:
            shape[0] = batch
        return symbolic(tuple(shape), value.dtype)

    return keras.tree.map_structure(sized, structure)


def common_shape(first: Shape, second: Shape) -> Shape:
    """What two shapes have in common; an axis where they differ is unknown.

    Raises:
        ValueError: they have different ranks.
    """
    if len(first) != len(second):
        raise ValueError("the rank of a tensor depends on a size that is not known")
    return tuple(a if a == b else None for a, b in zip(first, second, strict=True))


def _without_sizes(first: Recorded, second: Recorded) -> Recorded:
    """The first of two records, without the sizes that only it has."""
    kinds = [[type(node.operation) for node in each.nodes] for each in (first, second)]
    if kinds[0] != kinds[1] or len(first.constants) != len(second.constants):
        raise ValueError("what it does depends on the batch size")
    pairs = list(zip(first.inputs + first.constants, second.inputs + second.constants, strict=True))
    for one, two in zip(first.nodes, second.nodes, strict=True):
        pairs += zip(one.output_tensors, two.output_tensors, strict=True)
    shapes = {id(a): common_shape(shape_of(a), shape_of(b)) for a, b in pairs}
    return dataclasses.replace(first, shapes=shapes)


def _recorded(layer: Any, args: Any, kwargs: Any) -> Recorded:
    inputs = [t for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    recorder = _Recorder(layer, inputs)
    with reporting_to(recorder):
        results = layer(*args, **kwargs)
        outputs = []
        for leaf in keras.tree.flatten(results):
            if is_symbolic(leaf):
                outputs.append(leaf)
            elif keras.ops.is_tensor(leaf):
                outputs.append(recorder.constant(leaf))
    known = [*inputs, *recorder.constants]
    nodes = topological(known, outputs, recorder.producer)
    return Recorded(inputs, outputs, nodes, recorder.constants, recorder.values)


class _Recorder:
    """Takes note of the calls that a layer makes inside its own `call`."""

    def __init__(self, layer: Any, inputs: list[Any]) -> None:
        self.layer = layer
        self.trusts_calls = is_trusting_calls()
        self.is_entered = False
        self.inputs = {id(tensor) for tensor in inputs}
        self.producers: dict[int, RecordedCall] = {}
        self.constants: list[Any] = []
        self.values: list[Any] = []

    def call(self, operation: Any, args: Any, kwargs: Any, original: Callable[..., Any]) -> Any:
        """In place of `Operation.__call__`."""
        if operation is self.layer and not self.is_entered:
            self.is_entered = True
            return operation.call(*args, **kwargs)
        leaves = keras.tree.flatten((args, kwargs))
        if any(is_symbolic(leaf) for leaf in leaves):
            return self._inferred(operation, args, kwargs)
        if is_raw_operation(operation) or not own_variables(operation):
            return original(operation, *args, **kwargs)
        if not any(keras.ops.is_tensor(leaf) for leaf in leaves):
            return original(operation, *args, **kwargs)
        args, kwargs = keras.tree.map_structure(self._symbolic_number, (args, kwargs))
        outputs = self._inferred(operation, args, kwargs)
        self.note(operation, args, kwargs, outputs)
        return outputs

    def _inferred(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """The outputs' specification.

        A subclass may take arguments that the `compute_output_spec` it inherits does not know,
        others forget sizes that they are given, or (where `trusts_calls`) say what they do not
        return: then `call` says. If shapes cannot be inferred from that either, `call` is seen from
        inside.
        """
        if is_raw_operation(operation):
            return operation.symbolic_call(*args, **kwargs)
        outputs = None
        if not self.trusts_calls or is_keras_class(type(operation)):
            with contextlib.suppress(Exception):
                outputs = operation.symbolic_call(*args, **kwargs)
            if outputs is not None and (_are_sized(outputs) or not _are_sized((args, kwargs))):
                return outputs
        with contextlib.suppress(Exception):
            return keras.Operation.compute_output_spec(operation, *args, **kwargs)
        return operation.call(*args, **kwargs) if outputs is None else outputs

    def note(self, operation: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        """Records a call, unless its outputs were made by calls inside it."""
        made = [leaf for leaf in keras.tree.flatten(outputs) if is_symbolic(leaf)]
        new = [id(t) for t in made if id(t) not in self.producers and id(t) not in self.inputs]
        if new:
            call = RecordedCall(operation, call_arguments(args, kwargs), made)
            self.producers.update(dict.fromkeys(new, call))

    def producer(self, tensor: Any) -> RecordedCall:
        """The call that made a tensor."""
        try:
            return self.producers[id(tensor)]
        except KeyError:
            raise ValueError("it uses a symbolic tensor that was made outside its call") from None

    def constant(self, value: Any) -> Any:
        """A symbolic tensor that stands for numbers."""
        self.values.append(value)
        dtype = keras.backend.standardize_dtype(value.dtype)
        self.constants.append(symbolic(tuple(value.shape), dtype))
        return self.constants[-1]

    def _symbolic_number(self, value: Any) -> Any:
        return self.constant(value) if keras.ops.is_tensor(value) else value


def _are_sized(structure: Any) -> bool:
    """Whether all symbolic tensors in it have known shapes."""
    leaves = keras.tree.flatten(structure)
    return all(None not in leaf.shape for leaf in leaves if is_symbolic(leaf))
