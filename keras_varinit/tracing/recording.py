"""Traces a layer's `call` by calling it on symbolic tensors, as Keras itself does."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_varinit.keras_private import (
    Shape,
    call_arguments,
    is_keras_class,
    is_raw_operation,
    is_symbolic,
    own_variables,
    recorded_producer,
    running_nodes,
    shape_of,
    symbolic,
)
from keras_varinit.tracing.isolation import is_trusting_calls, reporting_to
from keras_varinit.typing import (
    Args,
    CallArguments,
    Function,
    Kwargs,
    Model,
    Nested,
    Operation,
    RecordedNode,
    SymbolicTensor,
    Tensor,
)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedCall:
    """One call of an operation, with the attributes of Keras's nodes that are used here."""

    operation: Operation
    arguments: CallArguments
    output_tensors: list[SymbolicTensor]

    @property
    def input_tensors(self) -> list[SymbolicTensor]:
        """The symbolic tensors among the arguments."""
        return list(self.arguments.keras_tensors)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A symbolic computation: input tensors, output tensors, and the calls between them.

    `constants` are symbolic tensors that represent concrete ones, `values`, which a layer was
    called on or returns, such as positions and their embeddings. `shapes` maps the `id` of a tensor
    to a shape that overrides its own.
    """

    inputs: list[SymbolicTensor]
    outputs: list[SymbolicTensor]
    nodes: list[RecordedNode]
    constants: list[SymbolicTensor] = dataclasses.field(default_factory=list)
    values: list[Tensor] = dataclasses.field(default_factory=list)
    shapes: dict[int, Shape] = dataclasses.field(default_factory=dict)

    def shape_of(self, tensor: SymbolicTensor) -> Shape:
        """The shape of a tensor of the computation."""
        return self.shapes.get(id(tensor), shape_of(tensor))


def recorded_model(functional: Model) -> Recorded:
    """The recorded graph of a Functional model."""
    inputs, outputs = list(functional.inputs), list(functional.outputs)
    nodes = topological(inputs, outputs, recorded_producer, running_nodes(functional))
    return Recorded(inputs, outputs, nodes)


def recorded_call(layer: Operation, args: Args, kwargs: Kwargs) -> Recorded:
    """Traces a layer's own `call` on symbolic tensors.

    The layer and those inside it do not change. If only the batch size is unknown, and `call` needs
    it (as random numbers do) or loses other sizes without it (as reshaping to (batch, -1, channels)
    does), it is called with two sizes; whatever differs stays unknown.

    Raises:
        Exception: whatever `call` raises on symbolic tensors.
    """
    shapes = [shape_of(t) for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    is_batch_alone = any(shape[:1] == (None,) for shape in shapes) and not any(
        None in shape[1:] for shape in shapes
    )
    recorded = None
    try:
        recorded = _recorded(layer, args, kwargs)
    except Exception:
        if not is_batch_alone:
            raise
    if recorded is not None and (not is_batch_alone or not loses_sizes(recorded)):
        return recorded
    try:
        first, second = (_recorded(layer, *with_sizes((args, kwargs), n, None)) for n in (2, 3))
        return _without_sizes(first, second)
    except Exception:
        if recorded is None:
            raise
        return recorded


def topological(
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
    producer: Callable[[SymbolicTensor], RecordedNode],
    running: Iterable[RecordedNode],
) -> list[RecordedNode]:
    """The nodes on the way from inputs to outputs, producers before consumers.

    `running` are the nodes in the order in which Keras runs them. It is kept if otherwise calls of
    one operation would change places.
    """
    known = {id(t) for t in inputs}
    done: set[int] = set()
    order = []
    stack = [(t, False) for t in reversed(outputs)]
    while stack:
        tensor, expanded = stack.pop()
        if id(tensor) in known:
            continue
        node = producer(tensor)
        if id(node) in done:
            continue
        if expanded:
            done.add(id(node))
            order.append(node)
            known.update(id(t) for t in node.output_tensors)
        else:
            stack.append((tensor, True))
            stack.extend((t, False) for t in reversed(node.input_tensors))
    places = {id(node): place for place, node in enumerate(running)}
    last: dict[int, int] = {}
    for node in order:
        place = places[id(node)]
        if place < last.get(id(node.operation), 0):
            return sorted(order, key=lambda n: places[id(n)])
        last[id(node.operation)] = place
    return order


def loses_sizes(recorded: Recorded) -> bool:
    """Whether a size beside the batch is unknown somewhere."""
    return any(
        None in shape_of(tensor)[1:] for node in recorded.nodes for tensor in node.output_tensors
    )


def with_sizes(structure: Nested, batch: int | None, length: int | None) -> Nested:
    """New symbolic tensors with sizes in place of unknown ones."""

    def sized(value: Any) -> Any:
        if not is_symbolic(value):
            return value
        shape = [length if n is None else n for n in value.shape]
        if shape and value.shape[0] is None:
            shape[0] = batch
        return symbolic(tuple(shape), value.dtype)

    return keras.tree.map_structure(sized, structure)


def common_shape(first: Shape, second: Shape) -> Shape:
    """The sizes that two shapes share; None where they differ.

    Raises:
        ValueError: they have different ranks.
    """
    if len(first) != len(second):
        raise ValueError("the rank of a tensor depends on an unknown size")
    return tuple(a if a == b else None for a, b in zip(first, second, strict=True))


def _without_sizes(first: Recorded, second: Recorded) -> Recorded:
    """The first of two records, with the sizes that they do not share made unknown."""
    kinds = [[type(node.operation) for node in each.nodes] for each in (first, second)]
    if kinds[0] != kinds[1] or len(first.constants) != len(second.constants):
        raise ValueError("its operations depend on the batch size")
    pairs = list(zip(first.inputs + first.constants, second.inputs + second.constants, strict=True))
    for one, two in zip(first.nodes, second.nodes, strict=True):
        pairs += zip(one.output_tensors, two.output_tensors, strict=True)
    shapes = {id(a): common_shape(shape_of(a), shape_of(b)) for a, b in pairs}
    return dataclasses.replace(first, shapes=shapes)


def _recorded(layer: Operation, args: Args, kwargs: Kwargs) -> Recorded:
    inputs = [t for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    recorder = _CallRecorder(layer, inputs)
    with reporting_to(recorder):
        results = layer(*args, **kwargs)
        outputs = []
        for leaf in keras.tree.flatten(results):
            if is_symbolic(leaf):
                outputs.append(leaf)
            elif keras.ops.is_tensor(leaf):
                outputs.append(recorder.constant(leaf))
    known = [*inputs, *recorder.constants]
    nodes = topological(known, outputs, recorder.producer, recorder.producers.values())
    return Recorded(inputs, outputs, nodes, recorder.constants, recorder.values)


class _CallRecorder:
    """Records the calls that a layer makes inside its own `call`."""

    def __init__(self, layer: Operation, inputs: list[SymbolicTensor]) -> None:
        self.layer = layer
        self.trusts_calls = is_trusting_calls()
        self.is_entered = False
        self.inputs = {id(tensor) for tensor in inputs}
        self.producers: dict[int, RecordedCall] = {}
        self.constants: list[SymbolicTensor] = []
        self.values: list[Tensor] = []

    def call(self, operation: Operation, args: Args, kwargs: Kwargs, original: Function) -> Nested:
        """Replaces `Operation.__call__`."""
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

    def _inferred(self, operation: Operation, args: Args, kwargs: Kwargs) -> Nested:
        """Symbolic outputs, by `compute_output_spec` if possible, otherwise by `call`.

        The `compute_output_spec` that a subclass inherits may lack its arguments, others lose known
        sizes, and with `trusts_calls` a user's one is not believed at all. If Keras cannot infer
        shapes from `call` either, `call` is traced from inside.
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

    def note(self, operation: Operation, args: Args, kwargs: Kwargs, outputs: Nested) -> None:
        """Records a call, unless calls inside it already produced its outputs."""
        leaves = [leaf for leaf in keras.tree.flatten(outputs) if is_symbolic(leaf)]
        new = [id(t) for t in leaves if id(t) not in self.producers and id(t) not in self.inputs]
        if new:
            call = RecordedCall(operation, call_arguments(args, kwargs), leaves)
            self.producers.update(dict.fromkeys(new, call))

    def producer(self, tensor: SymbolicTensor) -> RecordedCall:
        """The call that produced a tensor."""
        try:
            return self.producers[id(tensor)]
        except KeyError:
            raise ValueError("it uses a symbolic tensor created outside its call") from None

    def constant(self, value: Tensor) -> SymbolicTensor:
        """A new symbolic tensor that represents a concrete one."""
        self.values.append(value)
        dtype = keras.backend.standardize_dtype(value.dtype)
        self.constants.append(symbolic(tuple(value.shape), dtype))
        return self.constants[-1]

    def _symbolic_number(self, value: Any) -> Any:
        return self.constant(value) if keras.ops.is_tensor(value) else value


def _are_sized(structure: Nested) -> bool:
    """Whether all symbolic tensors in a structure have known sizes."""
    leaves = keras.tree.flatten(structure)
    return all(None not in leaf.shape for leaf in leaves if is_symbolic(leaf))
