"""Roles: what each weight of a model is for.

Rules, in this order; the first that applies decides:

* kernels of `Embedding`: `"position"` if what it looks up is a constant, such as a range of
  numbers, else `"embedding"`, also where the table is tied to the head;
* kernels that read their layer's state: `"recurrent"`;
* query, key, value and output kernels of attention (see `attending`);
* `"head"`: the model's output is made of the kernel's by nothing but reshaping, dropout, averages
  over positions and functions that heads end with (softmax, sigmoid, tanh, softplus). A kernel
  followed by a rectifier, a normalization or an addition is not a head: such a model is the
  backbone of another;
* all others: `"kernel"`.

A model predicts densely if one of its outputs has a head, and positions left.

A bias has the fields of its layer's kernel: of separable layers the pointwise one, of recurrent
layers the one that reads the input. The scale γ of a normalization has those of the kernel that it
follows through activations and pooling alone, otherwise those of the next kernel, outside of any
branch: it scales the stream, not a branch.

The kernels of an attention are a group, which the query kernel names, unless the attention changes
the number of channels.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import keras

from keras_varinit.analysis.attending import Part, attention_parts
from keras_varinit.analysis.labelling import Labelled
from keras_varinit.analysis.residual import Branch, BranchEnds, residual
from keras_varinit.analysis.result import Reading
from keras_varinit.context import LayerContext
from keras_varinit.families.attention.multi_head import parts_of
from keras_varinit.keras_private import layers_of, own_variable, own_variables
from keras_varinit.signals.roles import Elementwise, Pooling, Transparent, Weights
from keras_varinit.tracing.reader import Graph, Node
from keras_varinit.typing import Layer, Model, Variable

Names = Mapping[int, tuple[str, str, str]]

_ENDS_A_HEAD = {"softmax", "log_softmax", "sigmoid", "log_sigmoid", "hard_sigmoid"} | {
    "tanh",
    "linear",
    "softplus",
}


def with_roles(reading: Reading, model: Model, names: Names) -> Reading:
    """Fills in the roles of all kernels, and the contexts of biases and normalization scales."""
    return _Roles(reading, model, names).reading()


def carrying(graph: Graph, roles: Sequence[Any]) -> list[bool]:
    """For each tensor, whether it carries a signal: it comes from a kernel or a float input."""
    flags = [False] * len(graph.shapes)
    for tensor in graph.inputs:
        flags[tensor] = _is_float(graph, tensor)
    for node, role in zip(graph.nodes, roles, strict=True):
        inputs = any(flags[t] for t in node.inputs)
        looks_up = isinstance(node.operation, keras.layers.Embedding)
        is_constant = looks_up and node.inputs[0] in graph.constants
        for tensor in node.outputs:
            flags[tensor] = inputs or (isinstance(role, Weights) and not is_constant)
    return flags


def _is_float(graph: Graph, tensor: int) -> bool:
    """Whether a model's input holds numbers, not tokens or a mask; unused ones count as such."""
    for index in graph.consumers[tensor]:
        node = graph.nodes[index]
        symbols = getattr(node.arguments, "keras_tensors", None)
        if symbols is None or len(symbols) != len(node.inputs):
            continue
        dtype = symbols[node.inputs.index(tensor)].dtype
        return bool(keras.backend.is_float_dtype(dtype))
    return True


class _Roles:
    def __init__(self, reading: Reading, model: Model, names: Names) -> None:
        self.read, self.model, self.names = reading, model, names
        self.graph = reading.graph
        labelled = Labelled(reading.graph, reading.roles, (), ())
        flags = carrying(reading.graph, reading.roles)
        self.parts: dict[int, Part] = attention_parts(labelled, flags)
        self.streams = streams = residual(labelled, flags)
        self.most = streams.most
        self.branches: dict[int, Branch] = streams.by_node()
        self.normalizations = dict(self._normalizations())
        self.heads: set[int] = set()
        self.predicts_densely = False
        for tensor in self.graph.outputs:
            heads = self._heads_of(tensor)
            self.heads |= heads
            self.predicts_densely |= bool(heads) and len(self.graph.shapes[tensor]) > 2

    def reading(self) -> Reading:
        """The reading with roles and with the contexts of vectors."""
        fields: dict[int, dict[str, Any]] = {}
        for node, role in zip(self.graph.nodes, self.read.roles, strict=True):
            if isinstance(role, Weights):
                for key, values in self._fields(node, role).items():
                    fields.setdefault(key, values)
        for layer in [self.model, *layers_of(self.model)]:  # of layers that could not be opened
            for key, (name, heads, kv_heads, size) in parts_of(layer).items():
                part = {"role": name, "heads": heads, "kv_heads": kv_heads, "head_size": size}
                fields.setdefault(key, part)
        of_model = {"branches": self.most, "dense_prediction": self.predicts_densely}
        of_model["plain_dense"] = self._is_plain_dense(fields.values())
        by_variable = {
            key: context.with_role(**{**of_model, **fields.get(key, {})})
            for key, context in self.read.by_variable.items()
        }
        by_variable = _without_groups_of_several_widths(by_variable)
        read = dataclasses.replace(self.read, by_variable=by_variable)
        vectors = dict(self._vectors(by_variable))
        ends = self._branch_ends(by_variable)
        return dataclasses.replace(read, vectors=vectors, branch_ends=tuple(ends))

    def _is_plain_dense(self, fields: Iterable[Mapping[str, Any]]) -> bool:
        """Whether the model consists of dense layers alone."""
        contexts = self.read.by_variable.values()
        return (
            not self.normalizations
            and self.most == 0
            and not any(context.spatial_axes for context in contexts)
            and all(f["role"] in ("kernel", "head") and "gates" not in f for f in fields)
        )

    def _branch_ends(self, kernels: Mapping[int, LayerContext]) -> Iterator[BranchEnds]:
        """What ends the branches of each addition, with the scales of normalizations."""
        scales: dict[int, list[int]] = {}
        for index, layer in self._scaling_layers():
            scale = _scale_of(layer)
            kernel = self._scaled_kernel(index)
            if scale is not None and kernel is not None:
                scales.setdefault(id(kernel), []).append(id(scale))
        for ends in self.streams.branch_ends(self.read.roles):
            own = [key for kernel in ends.kernels for key in scales.get(kernel, ())]
            yield dataclasses.replace(ends, scales=tuple(own))

    # Kernels

    def _fields(self, node: Node, role: Weights) -> dict[int, dict[str, Any]]:
        """The fields of each kernel of a node."""
        last = max(kernel.level for kernel in role.kernels)
        branch = self.branches.get(node.index, Branch(self.most, 0, False))
        recurrent = next((k.variable for k in role.kernels if k.reads_own_output), None)
        by_variable = {}
        for kernel in role.kernels:
            is_last = kernel.level == last
            values: dict[str, Any] = {
                "role": "kernel",
                "branches": branch.additions,
                "branch_size": branch.size,
                "branch_end": branch.end and is_last,
                "layer_scale": branch.scaled and is_last,
                "normalized": self._normalized(node) if is_last and not role.activation else None,
            }
            if isinstance(node.operation, keras.layers.Embedding):
                is_constant = node.inputs[0] in self.graph.constants
                values["role"] = "position" if is_constant else "embedding"
            elif kernel.reads_own_output:
                values["role"] = "recurrent"
            elif id(kernel.variable) in self.parts:
                values |= self._of_part(self.parts[id(kernel.variable)])
            elif is_last and node.index in self.heads:
                values["role"] = "head"
            if recurrent is not None:
                shape = tuple(recurrent.shape)
                values["gates"] = max(1, shape[-1] // shape[-2])
                values["steps"] = self.graph.shapes[node.inputs[0]][1]
            by_variable[id(kernel.variable)] = values
        return by_variable

    def _of_part(self, part: Part) -> dict[str, Any]:
        values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        query = values.pop("query")
        values["group"] = None if query is None else self.names[id(query)][2]
        return values

    def _normalized(self, node: Node) -> str | None:
        """The class of the normalization that directly follows a node, dropout apart."""
        tensor = node.outputs[0]
        while len(self.graph.consumers[tensor]) >= 1:
            readers = set(self.graph.consumers[tensor])
            named = {self.normalizations.get(index) for index in readers}
            if len(named) == 1 and None not in named:
                return named.pop()
            reader = self.graph.nodes[min(readers)]
            if len(readers) > 1 or not isinstance(self.read.roles[reader.index], Transparent):
                return None
            tensor = reader.outputs[0]
        return None

    def _normalizations(self) -> Iterator[tuple[int, str]]:
        """Index of each node of a normalization, and the class name of the latter."""
        for node, role in zip(self.graph.nodes, self.read.roles, strict=True):
            if isinstance(role, Transparent) and role.normalizes:
                yield node.index, type(node.operation).__name__
        for layer in layers_of(self.model):
            if id(layer) in self.graph.opened and _is_normalization(layer):
                first, last = (each[id(layer)] for each in (self.graph.opened, self.graph.finished))
                yield from ((index, type(layer).__name__) for index in range(first, last))

    def _heads_of(self, output: int) -> set[int]:
        """The indices of the nodes whose kernels make an output of the model."""
        heads, seen, stack = set(), set(), [output]
        while stack:
            tensor = stack.pop()
            index = self.graph.producers[tensor]
            if tensor in seen or index is None:
                continue
            seen.add(tensor)
            node, role = self.graph.nodes[index], self.read.roles[index]
            activation = getattr(role, "activation", None)
            if activation is not None and activation.name not in _ENDS_A_HEAD:
                continue
            if isinstance(role, Weights):
                if not any(kernel.reads_own_output for kernel in role.kernels):
                    heads.add(index)
            elif self._keeps_a_head(node):
                stack += node.inputs[:1]
        return heads

    def _keeps_a_head(self, node: Node) -> bool:
        role = self.read.roles[node.index]
        if node.index in self.normalizations:
            return False
        if isinstance(role, Pooling):
            return role.kind == "average"
        is_plain = isinstance(role, Transparent) and not role.normalizes
        return len(node.inputs) == 1 and (is_plain or isinstance(role, Elementwise))

    # Biases and scales

    def _vectors(self, kernels: Mapping[int, LayerContext]) -> Iterator[tuple[int, LayerContext]]:
        """The context of each bias and normalization scale, by the `id` of its variable."""
        for layer in [self.model, *layers_of(self.model)]:
            own = [kernels[id(v)] for v in own_variables(layer) if id(v) in kernels]
            own = [context for context in own if context.role != "recurrent"]
            bias = own_variable(layer, "bias")
            if own and bias is not None:
                yield self._vector(bias, own[-1], "bias")
        for index, layer in self._scaling_layers():
            scale = _scale_of(layer)
            context = None if scale is None else self._scaled(index, kernels)
            if scale is not None and context is not None:
                yield self._vector(scale, context, "scale")

    def _vector(
        self, variable: Variable, kernel: LayerContext, role: str
    ) -> tuple[int, LayerContext]:
        path, layer, stream = self.names[id(variable)]
        return id(variable), kernel.with_role(path=path, layer=layer, stream=stream, role=role)

    def _scaling_layers(self) -> Iterator[tuple[int, Layer]]:
        """Each normalization layer with the index of its first node."""
        for node, role in zip(self.graph.nodes, self.read.roles, strict=True):
            if isinstance(role, Transparent) and role.normalizes:
                yield node.index, cast(Layer, node.operation)
        for layer in layers_of(self.model):
            if id(layer) in self.graph.opened and _is_normalization(layer):
                yield self.graph.opened[id(layer)], layer

    def _scaled(self, index: int, kernels: Mapping[int, LayerContext]) -> LayerContext | None:
        """The context of the kernel that a normalization follows, or else of the next one."""
        behind = self._scaled_kernel(index)
        if behind is not None:
            return kernels.get(id(behind))
        ahead = self._next_kernel(index, kernels)
        if ahead is None:
            return None
        return ahead.with_role(branch_end=False, branch_size=0, layer_scale=False)

    def _scaled_kernel(self, index: int) -> Variable | None:
        """The kernel that a normalization follows through activations and pooling alone."""
        node = self.graph.nodes[index]
        while node.inputs:
            source = self.graph.producers[node.inputs[0]]
            if source is None:
                return None
            node, role = self.graph.nodes[source], self.read.roles[source]
            if isinstance(role, Weights):
                return max(role.kernels, key=lambda kernel: kernel.level).variable
            if not isinstance(role, Elementwise | Pooling | Transparent) or len(node.inputs) != 1:
                return None
        return None

    def _next_kernel(self, index: int, kernels: Mapping[int, LayerContext]) -> LayerContext | None:
        """The context of the first kernel behind a node, in the order of the graph."""
        reached = set(self.graph.nodes[index].outputs)
        for node in self.graph.nodes[index + 1 :]:
            if reached.intersection(node.inputs):
                role = self.read.roles[node.index]
                if isinstance(role, Weights):
                    return kernels.get(id(role.kernels[0].variable))
                reached.update(node.outputs)
        return None


def _scale_of(layer: Layer) -> Variable | None:
    """The variable γ of a normalization, or None."""
    gamma = own_variable(layer, "gamma")
    return own_variable(layer, "scale") if gamma is None else gamma


def _without_groups_of_several_widths(
    contexts: Mapping[int, LayerContext],
) -> dict[int, LayerContext]:
    """Leaves in no group the kernels of attentions that change the number of channels."""
    widths: dict[str, set[int]] = {}
    for context in contexts.values():
        if context.group is not None:
            is_output = context.role == "attention_output"
            axes = [n for n in range(len(context.kernel_shape)) if n not in context.filter_axes]
            axes = list(context.filter_axes) if is_output else axes
            width = math.prod(context.kernel_shape[axis] for axis in axes)
            widths.setdefault(context.group, set()).add(width)
    several = {group for group, sizes in widths.items() if len(sizes) > 1}
    return {
        key: context.with_role(group=None) if context.group in several else context
        for key, context in contexts.items()
    }


def _is_normalization(layer: Layer) -> bool:
    """Whether a layer without a rule is a normalization, by the name of its class."""
    return bool(re.search(r"norm", type(layer).__name__, re.IGNORECASE)) and not layers_of(layer)
