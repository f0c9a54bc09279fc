"""Contexts of weights that the graph does not cover.

If the `call` of a layer cannot be followed, the neighbours of its kernels are unknown. Its class
and the kernels' shapes still give the fans, far from any boundary, and the layer's own activation.
"""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import keras

from keras_varinit.analysis.result import Reading
from keras_varinit.analysis.stages import Gains
from keras_varinit.context import LayerContext
from keras_varinit.keras_private import (
    Shape,
    build_shapes,
    initializers_of,
    is_variable,
    layers_of,
    own_variables,
)
from keras_varinit.maths import fans
from keras_varinit.signals.registry import has_role_rule, role_of
from keras_varinit.signals.roles import Call, Kernel, Role, Unknown, Weights
from keras_varinit.tracing.reader import Graph, Node
from keras_varinit.typing import Layer, Model, Variable

FAN_FIELDS = tuple(field.name for field in dataclasses.fields(fans.Fans))

NO_KERNEL = "no kernel but a weight that signals are added to, scaled by or looked up in"

# Common names of weights that are added to signals, multiplied with them or looked up.
_NOT_A_KERNEL = re.compile(
    r"token|cls|class_emb|pos|register|relative|rel_|table|bias|gamma|beta|scale|mask|segment"
    r"|embed|encod|lambda|level|time_|query_feat",
    re.IGNORECASE,
)


def role_by_class(layer: Layer) -> Weights | None:
    """The kernels of a layer, by its class or else by their names; None if it has none.

    All sizes except those of the kernels count as unknown.
    """
    role: Role = Unknown()
    if has_role_rule(layer):
        shape = _shape_without_sizes(layer)
        with contextlib.suppress(ValueError):  # its activation is not element-wise
            role = role_of(Call(Node(0, layer, (0,), (1,)), (shape,), (shape,)))
            if not isinstance(role, Weights):
                return None
    if isinstance(role, Weights):
        return role
    named = [v for v in own_variables(layer) if re.fullmatch(r"(.*_)?kernel", v.name)]
    kernels = tuple(Kernel(v, _fans(tuple(v.shape))) for v in named if may_be_kernel(v))
    return Weights(kernels) if kernels else None


def may_be_kernel(variable: Variable) -> bool:
    """Whether a variable has the rank and dtype of a kernel."""
    return len(variable.shape) >= 2 and bool(keras.backend.is_float_dtype(variable.dtype))


def uses_outside_kernels(graph: Graph, roles: Sequence[Role]) -> set[int]:
    """The `id` of each variable passed as an argument to an operation that is no weight layer."""
    return {
        id(value)
        for node, role in zip(graph.nodes, roles, strict=True)
        if node.arguments is not None and not isinstance(role, Unknown | Weights)
        for value in keras.tree.flatten((list(node.arguments.args), dict(node.arguments.kwargs)))
        if is_variable(value)
    }


def is_table_by_name(variable: Variable) -> bool:
    """Whether a variable is named like a token, a scale, a position or a table of them."""
    return bool(_NOT_A_KERNEL.search(variable.name))


def _shape_without_sizes(layer: Layer) -> Shape:
    """An input shape of the layer's rank, with unknown sizes."""
    rank = getattr(layer, "rank", None)
    if isinstance(rank, int):
        return (None,) * (rank + 2)
    for shape in build_shapes(layer).values():
        if isinstance(shape, list | tuple) and all(n is None or isinstance(n, int) for n in shape):
            return (None,) * len(shape)
    return (None,) * 3


def _fans(shape: tuple[int, ...]) -> fans.Fans:
    """Fans of a kernel from its shape alone, in Keras's layouts."""
    if len(shape) == 2:
        return fans.dense(shape, None)
    window = len(shape) - 2
    ones = (1,) * window
    return fans.conv(shape, (None,) * window, strides=ones, padding="valid", dilation=ones)


def completed(reading: Reading, model: Model, names: dict[int, tuple[str, str, str]]) -> Reading:
    """Adds the kernels that the graph does not cover, and the weights that are not kernels.

    Args:
        reading: The reading; its graph is empty if the model's `call` could not be followed.
        model: The model.
        names: Path, layer and stream of each variable, by its `id`.
    """
    return _Completion(reading, model, names).reading()


class _Completion:
    def __init__(self, read: Reading, model: Model, names: dict[int, tuple[str, str, str]]) -> None:
        self.read = read
        self.model = model
        self.names = names
        self.graph = read.graph
        self.gains = Gains()
        self.tables = uses_outside_kernels(read.graph, read.roles)
        self.explained = {
            id(node.operation)
            for node, role in zip(read.graph.nodes, read.roles, strict=True)
            if not isinstance(role, Unknown)
        }
        self.depths = self._depths_of_layers(read.depths)
        self.hidden = {
            id(layer)
            for index in read.graph.closed
            for operation in [read.graph.nodes[index].operation]
            for layer in [operation, *layers_of(operation)]
        }
        self.counted = 0

    def _depths_of_layers(self, depths: Sequence[int]) -> dict[int, int]:
        """The depth before each layer that was or could not be opened, by the layer's `id`."""
        nodes = self.graph.nodes
        in_front: dict[int, int] = {}
        for index in self.graph.closed:
            operation = nodes[index].operation
            before = max((depths[t] for t in nodes[index].inputs), default=0)
            for layer in [operation, *layers_of(operation)]:
                in_front.setdefault(id(layer), before)
        for key, index in self.graph.opened.items():
            if index < len(nodes):
                in_front.setdefault(key, max((depths[t] for t in nodes[index].inputs), default=0))
        return in_front

    def reading(self) -> Reading:
        read = self.read
        by_variable = dict(read.by_variable)
        tables, unknown, notes = dict(read.tables), list(read.unknown), list(read.notes)
        for layer in [self.model, *layers_of(self.model)]:
            if id(layer) in self.explained:
                continue
            for context, variable in self._contexts(layer):
                by_variable[id(variable)] = context
                if id(layer) not in self.hidden and self.graph.nodes:
                    unknown.append((context.path, _UNSEEN))
                    notes.append(f"{context.path}: {_UNSEEN}")
            for variable in self._others(layer, by_variable):
                path = self.names[id(variable)][0]
                if id(variable) in self.tables or is_table_by_name(variable):
                    tables[id(variable)] = NO_KERNEL
                    notes.append(f"{path}: {NO_KERNEL}")
                else:
                    unknown.append((path, "how it is used is not known"))
                    notes.append(f"{path}: how it is used is not known")
        total = max((c.total_depth for c in by_variable.values()), default=1)
        by_variable = {
            key: dataclasses.replace(c, total_depth=total) if c.total_depth != total else c
            for key, c in by_variable.items()
        }
        return dataclasses.replace(
            read,
            by_variable=by_variable,
            tables=tables,
            unknown=tuple(dict.fromkeys(unknown)),
            notes=tuple(dict.fromkeys(notes)),
        )

    def _contexts(self, layer: Layer) -> list[tuple[LayerContext, Any]]:
        """A context for each kernel of a layer that does not have one yet."""
        role = role_by_class(layer)
        kernels = [] if role is None else [k for k in role.kernels if not self._is_known(k)]
        if role is None or not kernels:
            return []
        activation = () if role.activation is None else (role.activation,)
        before = self.depths.get(id(layer), 0) if self.graph.nodes else self.counted
        self.counted += 1 + max(kernel.level for kernel in kernels)
        contexts = []
        for kernel in kernels:
            path, name, stream = self.names[id(kernel.variable)]
            depth = before + 1 + kernel.level
            context = LayerContext(
                path=path,
                layer=name,
                stream=stream,
                kernel_shape=tuple(int(n) for n in kernel.variable.shape),
                depth=depth,
                total_depth=max(depth, self._total()),
                activation=role.activation.name if role.activation else None,
                backward_gain=self.gains.of(activation)[1],
                **{name: getattr(kernel.fans, name) for name in FAN_FIELDS},
            )
            contexts.append((context, kernel.variable))
        return contexts

    def _total(self) -> int:
        return max((c.total_depth for c in self.read.by_variable.values()), default=1)

    def _is_known(self, kernel: Kernel) -> bool:
        variable, read = kernel.variable, self.read
        return (read.context_of(variable) or read.reason_to_leave(variable)) is not None

    def _others(self, layer: Layer, known: dict[int, LayerContext]) -> list[Any]:
        """Weights with the rank of a kernel that have no context.

        Where the layer has a kernel, weights with an initializer of their own are left out.
        """
        drawn = dict(initializers_of(layer))
        with_kernel = any(id(v) in known for v in own_variables(layer))
        return [
            v
            for v in own_variables(layer)
            if may_be_kernel(v)
            and id(v) not in known
            and self.read.reason_to_leave(v) is None
            and not (with_kernel and id(v) in drawn)
        ]


_UNSEEN = "how it is used is not known, so its context is from its shape and its layer's class"
