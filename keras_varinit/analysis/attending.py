"""The parts that kernels play in attention, read off a graph.

Keras's attention layers name their parts. In attention written by hand, query and key are the
factors of the product before a softmax, the key being the one whose positions the softmax runs
over; the value is the factor that the softmax multiplies; the output projection reads that product.
Rules, also for what is ambiguous:

* From a factor, the graph is followed back to the nearest kernels, through reshaping,
  normalization, rotary embeddings and the like. If there are several, or none, the part is not
  assigned; nor is it if one kernel makes two of query, key and value (a fused projection).
* The output projection is the only kernel that reads the product of weights and values before any
  addition.
* A softmax without a preceding product of two signals is not attention.
* Self-attention: query, key and value kernels read one tensor, reshaping apart.
* Causal: a mask hides every later position from every query, and none from itself. With a mask of
  unknown values this is None.
* A kernel used in several attentions plays the part of the first.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import keras
import numpy as np

from keras_varinit.analysis.causality import Causality, is_causal
from keras_varinit.analysis.labelling import Labelled
from keras_varinit.families.attention.multi_head import parts_of
from keras_varinit.families.attention.softmax import softmax_axes
from keras_varinit.maths.fans import subscripts
from keras_varinit.signals.roles import (
    Concatenation,
    Elementwise,
    Kernel,
    Merge,
    Transparent,
    Weights,
)
from keras_varinit.tracing.arguments import Input, named_arguments
from keras_varinit.tracing.reader import Node
from keras_varinit.typing import Layer, Variable

Parts = dict[int, "Part"]

_NAMES = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Part:
    """What a kernel does in an attention; `query` is the variable of its query kernel."""

    role: str
    heads: int | None
    kv_heads: int | None
    head_size: int | None
    causal: bool | None
    self_attention: bool | None
    query: Variable | None


def attention_parts(model: Labelled, carrying: Sequence[bool]) -> Parts:
    """The part of each kernel that plays one, by the `id` of its variable."""
    return _Attentions(model, carrying).parts()


@dataclasses.dataclass
class _Attention:
    """An attention by hand: tensors of query, key and value, its output, and its masks."""

    query: int
    key: int
    value: int
    output: int
    size: int | None
    causal: bool | None


class _Attentions:
    def __init__(self, model: Labelled, carrying: Sequence[bool]) -> None:
        self.graph, self.roles, self.carrying = model.graph, model.roles, carrying
        self.causality = Causality(model.graph, carrying)

    def parts(self) -> Parts:
        """The parts of all kernels."""
        parts: Parts = {}
        for node in self.graph.nodes:
            for key, part in self._of_node(node).items():
                parts.setdefault(key, part)
        return parts

    def _of_node(self, node: Node) -> Parts:
        layer = cast(Layer, node.operation)
        named = parts_of(layer) if isinstance(self.roles[node.index], Weights) else {}
        if named:
            return self._of_layer(node, named)
        attention = self._by_hand(node)
        return {} if attention is None else self._of_kernels(attention)

    # Keras's layers

    def _of_layer(self, node: Node, named: Mapping[int, tuple[str, int, int, int]]) -> Parts:
        arguments = named_arguments(node)
        sources = [arguments.get(name) for name in _NAMES]
        sources[1] = sources[2] if sources[1] is None else sources[1]
        numbers = {
            node.inputs[s.number] if isinstance(s, Input) else -n for n, s in enumerate(sources)
        }
        causal = bool(arguments.get("use_causal_mask", False))
        seen: bool | None = True if causal else self._hides_later(node, arguments, "attention_mask")
        role = self.roles[node.index]
        variables = {} if not isinstance(role, Weights) else _variables(role)
        query = next((variables.get(k) for k, (name, *_) in named.items() if name == "query"), None)
        return {
            key: Part(*part, seen, len(numbers) == 1, query)
            for key, part in named.items()
            if key in variables
        }

    def _hides_later(self, node: Node, arguments: Mapping[str, Any], name: str) -> bool | None:
        """Whether a mask argument is causal; None if its values are not known."""
        mask = arguments.get(name)
        if mask is None:
            return False
        if not isinstance(mask, Input):
            return is_causal(np.asarray(keras.ops.convert_to_numpy(mask)))
        return self.causality.of_input(node, mask.number)

    # By hand

    def _by_hand(self, node: Node) -> _Attention | None:
        """The attention whose softmax, or whose whole computation, a node is."""
        name = type(node.operation).__name__
        if name in ("DotProductAttention", "Attention", "AdditiveAttention"):
            return self._in_one(node, name)
        role = self.roles[node.index]
        is_softmax = isinstance(role, Elementwise) and role.activation.name == "softmax"
        if not is_softmax or not self.carrying[node.inputs[0]]:
            return None
        product, causal = self._logits(node)
        if product is None:
            return None
        rank = len(self.graph.shapes[node.inputs[0]])
        axis = softmax_axes(node.operation, rank)[-1]
        order, size = self._key_last(product, axis)
        after = self._use(node.outputs[0])
        if after is None:
            return None
        output, value = after
        query, key = (product.inputs[n] for n in order)
        return _Attention(query, key, value, output, size, causal)

    def _in_one(self, node: Node, name: str) -> _Attention | None:
        arguments = named_arguments(node)
        if name == "DotProductAttention":
            tensors = [arguments.get(n) for n in _NAMES]
            causal = bool(node.operation.is_causal) or self._hides_later(node, arguments, "mask")
        else:
            listed = list(arguments.get("inputs", ()))
            tensors = [*listed[:1], *listed[2:3], *listed[1:2]]
            tensors = [listed[0], listed[1], listed[1]] if len(listed) == 2 else tensors
            causal = bool(arguments.get("use_causal_mask", False))
        inputs = [node.inputs[t.number] for t in tensors if isinstance(t, Input)]
        if len(inputs) != 3:
            return None
        query, key, value = inputs
        size = self.graph.shapes[query][-1]
        return _Attention(query, key, value, node.outputs[0], size, causal)

    def _logits(self, node: Node) -> tuple[Node | None, bool | None]:
        """The product of two signals in front of a softmax, and whether a mask is causal."""
        product: Node | None = None
        seen: set[int] = set()
        causal: bool | None = False
        stack = [(node, node.inputs)]
        while stack:
            reader, tensors = stack.pop()
            for hides_later in self.causality.of_operation(reader):
                # What another mask hides besides cannot be seen again.
                causal = causal or (None if causal is None else hides_later)
                causal = True if hides_later else causal
            for tensor in tensors:
                index = self.graph.producers[tensor]
                if index is None or tensor in seen or not self.carrying[tensor]:
                    continue
                seen.add(tensor)
                source = self.graph.nodes[index]
                role = self.roles[index]
                if self._is_product(source):
                    product = product or source
                elif isinstance(role, Concatenation | Elementwise | Merge | Transparent):
                    stack.append((source, source.inputs))
        return product, causal

    def _is_product(self, node: Node) -> bool:
        """Whether an operation sums products of two signals."""
        is_matrix = type(node.operation).__name__ in ("Matmul", "Einsum", "Dot")
        signals = [t for t in node.inputs if self.carrying[t]]
        return is_matrix and len(node.inputs) == len(signals) == 2

    def _key_last(self, product: Node, axis: int) -> tuple[tuple[int, int], int | None]:
        """Which factors are query and key, and the size of a head.

        `axis` is the dimension of the product that the softmax runs over.
        """
        shapes = [self.graph.shapes[t] for t in product.inputs]
        rank = len(self.graph.shapes[product.outputs[0]])
        if type(product.operation).__name__ != "Einsum":
            return ((0, 1) if axis == rank - 1 else (1, 0)), shapes[0][-1]
        labels, output = subscripts(product.operation.subscripts, (shapes[0], shapes[1]))
        first, second = labels
        summed = [label for label in first if label in second and label not in output]
        sizes = [shapes[0][first.index(label)] for label in summed]
        known = [n for n in sizes if n is not None]
        size = math.prod(known) if len(known) == len(sizes) else None
        label = output[axis] if axis < len(output) else None
        return ((0, 1) if label in second else (1, 0)), size

    def _use(self, weights: int) -> tuple[int, int] | None:
        """The product of attention weights and values, and the tensor of the values."""
        reached, stack = {weights}, [weights]
        while stack:
            tensor = stack.pop()
            for index in self.graph.consumers[tensor]:
                node = self.graph.nodes[index]
                if self._is_product(node):
                    others = [t for t in node.inputs if t not in reached]
                    if len(others) == 1:
                        return node.outputs[0], others[0]
                elif not isinstance(self.roles[index], Weights):
                    new = [t for t in node.outputs if t not in reached]
                    reached.update(new)
                    stack += new
        return None

    def _of_kernels(self, attention: _Attention) -> Parts:
        tensors = (attention.query, attention.key, attention.value)
        nodes = [self._made_by(tensor) for tensor in tensors]
        if any(node is not None and nodes.count(node) > 1 for node in nodes):
            return {}
        sources = {self._root(n.inputs[0]) if n is not None else -1 for n in nodes}
        is_self = None not in nodes and len(sources) == 1
        kernels = [None if node is None else self._kernel(node) for node in nodes]
        heads, kv_heads = (_heads(kernel, attention.size) for kernel in kernels[:2])
        value_size = _heads(kernels[2], kv_heads)
        query = None if kernels[0] is None else kernels[0].variable
        last = self._read_by(attention.output)
        named = [*zip(_NAMES, kernels, strict=True), ("attention_output", last)]
        return {
            id(kernel.variable): Part(
                name,
                heads,
                kv_heads,
                attention.size if name in ("query", "key") else value_size,
                attention.causal,
                is_self,
                query,
            )
            for name, kernel in named
            if kernel is not None
        }

    def _kernel(self, node: Node) -> Kernel:
        role = self.roles[node.index]
        if not isinstance(role, Weights):
            raise TypeError("the node has no kernel")
        return max(role.kernels, key=lambda kernel: kernel.level)

    def _made_by(self, tensor: int) -> Node | None:
        """The only nearest node with a kernel behind a tensor, or None."""
        nodes, seen, stack = {}, set(), [tensor]
        while stack:
            current = stack.pop()
            index = self.graph.producers[current]
            if current in seen or index is None:
                continue
            seen.add(current)
            node, role = self.graph.nodes[index], self.roles[index]
            if isinstance(role, Weights):
                nodes[index] = node
            else:
                stack += [t for t in node.inputs if self.carrying[t]]
        only = next(iter(nodes.values()), None)
        return only if len(nodes) == 1 and self._is_plain(only) else None

    def _is_plain(self, node: Node | None) -> bool:
        """Whether a node applies kernels that do not read their own output, to signals."""
        role = None if node is None else self.roles[node.index]
        is_recurrent = isinstance(role, Weights) and any(k.reads_own_output for k in role.kernels)
        is_table = node is not None and isinstance(node.operation, keras.layers.Embedding)
        return isinstance(role, Weights) and not is_recurrent and not is_table

    def _read_by(self, tensor: int) -> Kernel | None:
        """The only kernel that reads a tensor before any addition of signals, or None."""
        nodes, seen, stack = {}, {tensor}, [tensor]
        while stack:
            for index in self.graph.consumers[stack.pop()]:
                node = self.graph.nodes[index]
                is_sum = type(node.operation).__name__ in ("Add", "Subtract")
                if isinstance(self.roles[index], Weights):
                    nodes[index] = node
                elif not is_sum or sum(self.carrying[t] for t in node.inputs) == 1:
                    stack += [t for t in node.outputs if t not in seen]
                    seen.update(node.outputs)
        only = next(iter(nodes.values()), None)
        return self._kernel(only) if only and len(nodes) == 1 and self._is_plain(only) else None

    def _root(self, tensor: int) -> int:
        """The tensor that another one is a reshaping or cast of."""
        index = self.graph.producers[tensor]
        while index is not None and type(self.roles[index]) is Transparent:
            node = self.graph.nodes[index]
            if len(node.inputs) != 1 or type(node.operation).__name__ not in _SAME:
                break
            tensor = node.inputs[0]
            index = self.graph.producers[tensor]
        return tensor


_SAME = ("Cast", "Copy", "ExpandDims", "Identity", "Permute", "Reshape", "Squeeze", "Transpose")


def _variables(role: Weights) -> dict[int, Variable]:
    return {id(kernel.variable): kernel.variable for kernel in role.kernels}


def _heads(kernel: Kernel | None, size: int | None) -> int | None:
    """Number of heads of that size in a projection, or the size of that many heads."""
    if kernel is None or size is None or kernel.fans.fan_out % size:
        return None
    return round(kernel.fans.fan_out) // size
