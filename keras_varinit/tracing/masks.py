"""Masks: tensors computed only from integer and boolean inputs and constants, without weights.

Their values are evaluated as for a batch without padding: integer and boolean inputs that serve as
masks are 1, and no token equals the one that it is compared with. So a padding mask lets everything
through, and a causal mask that it is combined with keeps its values.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_varinit.keras_private import Shape, is_raw_operation, is_symbolic, operation_name
from keras_varinit.tracing.reader import Graph, Node
from keras_varinit.typing import AnyArray, ArrayLike

# The operations that compare tokens with a particular token, and their result for all others.
_COMPARED = {"NotEqual": True, "Equal": False}

_LARGEST = 1 << 24


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The values of a tensor for one example, (1, ...).

    `from_data` says that inputs were assumed, `tokens` that integer inputs were, as yet uncompared.
    """

    values: AnyArray
    from_data: bool
    tokens: bool = False


class Masks:
    """The masks of a graph, evaluated while its nodes are visited in order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._masks: dict[int, Mask] = {
            tensor: Mask(_as_array(value), from_data=False)
            for tensor, value in graph.constants.items()
        }

    def visit(self, node: Node) -> None:
        """Evaluates an operation whose inputs are all masks."""
        if not node.inputs or node.arguments is None or not is_raw_operation(node.operation):
            return
        inputs = [self.of(node, number) for number in range(len(node.inputs))]
        masks = [mask for mask in inputs if mask is not None]
        if len(masks) < len(inputs):
            return
        compared = _COMPARED.get(operation_name(node.operation))
        if compared is not None and any(mask.tokens for mask in masks):
            shapes = [_of_one_example(self._graph.shapes[t]) for t in node.outputs]
            results = [None if s is None else np.full(s, compared) for s in shapes]
        else:
            results = self._evaluated(node, [mask.values for mask in masks])
        from_data = any(mask.from_data for mask in masks)
        for tensor, values in zip(node.outputs, results, strict=False):
            if values is not None:
                is_tokens = values.dtype.kind in "iu" and any(mask.tokens for mask in masks)
                self._masks[tensor] = Mask(values, from_data, is_tokens)

    def _evaluated(self, node: Node, values: list[AnyArray]) -> list[AnyArray | None]:
        """Results of an operation on masks, for as many examples as it was recorded with."""
        symbols = node.arguments.keras_tensors
        shapes = [self._graph.shapes[t] for t in node.inputs]
        batches = {
            symbol.shape[0]
            for symbol, shape in zip(symbols, shapes, strict=False)
            if shape[:1] == (None,) and symbol.shape[0] is not None
        }
        batch = batches.pop() if len(batches) == 1 else 1
        repeated = [
            np.repeat(v, batch, axis=0) if s[:1] == (None,) and v.shape[0] == 1 else v
            for v, s in zip(values, shapes, strict=True)
        ]
        results = _evaluated(node, repeated)
        after = [self._graph.shapes[t] for t in node.outputs]
        return [_first(r, s, batch) for r, s in zip(results, after, strict=False)]

    def made(self, tensor: int) -> Mask | None:
        """The mask that an operation made, or None."""
        return self._masks.get(tensor)

    def of(self, node: Node, number: int) -> Mask | None:
        """Input `number` of a node as a mask, or None if it is not one."""
        tensor = node.inputs[number]
        if tensor in self._masks or self._graph.producers[tensor] is not None:
            return self._masks.get(tensor)
        symbols = [] if node.arguments is None else node.arguments.keras_tensors
        if number >= len(symbols):
            return None
        dtype = keras.backend.standardize_dtype(symbols[number].dtype)
        shape = _of_one_example(self._graph.shapes[tensor])
        if shape is None or not (dtype == "bool" or "int" in dtype):
            return None
        self._masks[tensor] = Mask(np.ones(shape, dtype), True, dtype != "bool")
        return self._masks[tensor]


def _of_one_example(shape: Shape) -> tuple[int, ...] | None:
    """A shape with batch size 1; None if a size is unknown or the tensor too large to evaluate."""
    inner = shape[1:]
    if None in inner:
        return None
    sizes = tuple(int(n) for n in inner if n is not None)
    size = int(np.prod(sizes, dtype=np.int64))
    batch = 1 if not shape or shape[0] is None else shape[0]
    return None if size * batch > _LARGEST else (batch, *sizes) if shape else ()


def _first(values: AnyArray | None, shape: Shape, batch: int) -> AnyArray | None:
    """One of several equal examples; None where they differ."""
    if values is None or batch == 1 or shape[:1] != (None,):
        return values
    if values.shape[:1] != (batch,) or not np.all(values == values[:1]):
        return None
    return values[:1]


def _evaluated(node: Node, values: list[AnyArray]) -> list[AnyArray | None]:
    """Results of an operation on arrays in place of its symbolic inputs; None if it fails."""
    remaining = iter(values)

    def number(value: Any) -> Any:
        return keras.ops.convert_to_tensor(next(remaining)) if is_symbolic(value) else value

    try:
        args, kwargs = keras.tree.map_structure(
            number, (tuple(node.arguments.args), dict(node.arguments.kwargs))
        )
        results = keras.tree.flatten(node.operation.call(*args, **kwargs))
    except Exception:  # the operation does not work for batch size 1
        return [None] * len(node.outputs)
    return [_as_array(result) for result in results]


def _as_array(value: ArrayLike) -> AnyArray:
    return np.asarray(keras.ops.convert_to_numpy(value))
