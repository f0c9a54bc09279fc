"""Masks: tensors made of integers, booleans and constants alone, which no weight has touched.

What such a tensor holds is known as far as it does not depend on data. Data count as what a batch
without padding holds: booleans and integers that serve as masks are 1, and no token is the one that
it is compared with. So a padding mask lets everything through, and a causal mask that it is
combined with keeps its values.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.analysis.reader import Graph, Node
from keras_varinit.graph import Shape, is_raw_operation, is_symbolic, operation_name

# Of all the operations on masks, those that compare tokens with one of them.
_COMPARED = {"NotEqual": True, "Equal": False}
_LARGEST = 1 << 24


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The values of a tensor for one example; `from_data` where data were assumed."""

    values: npt.NDArray[Any]
    from_data: bool
    tokens: bool = False


class Masks:
    """The masks of a graph, found while its nodes are visited in order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._found: dict[int, Mask | None] = {
            tensor: Mask(_as_array(value), from_data=False)
            for tensor, value in graph.constants.items()
        }

    def visit(self, node: Node) -> None:
        """Evaluates an operation all of whose inputs are masks."""
        if not node.inputs or node.arguments is None or not is_raw_operation(node.operation):
            return
        read = [self.of(node, number) for number in range(len(node.inputs))]
        if any(mask is None for mask in read):
            return
        found = [mask for mask in read if mask is not None]
        compared = _COMPARED.get(operation_name(node.operation))
        if compared is not None and any(mask.tokens for mask in found):
            shapes = [_of_one_example(self._graph.shapes[t]) for t in node.outputs]
            results = [None if s is None else np.full(s, compared) for s in shapes]
        else:
            results = self._evaluated(node, [mask.values for mask in found])
        from_data = any(mask.from_data for mask in found)
        for tensor, values in zip(node.outputs, results, strict=False):
            if values is not None:
                is_tokens = values.dtype.kind in "iu" and any(mask.tokens for mask in found)
                self._found[tensor] = Mask(values, from_data, is_tokens)

    def _evaluated(
        self, node: Node, values: list[npt.NDArray[Any]]
    ) -> list[npt.NDArray[Any] | None]:
        """What an operation makes of masks, of as many examples as it was recorded with."""
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

    def found(self, tensor: int) -> Mask | None:
        """The mask that an operation made."""
        return self._found.get(tensor)

    def of(self, node: Node, number: int) -> Mask | None:
        """The mask that an input of a node is, or None."""
        tensor = node.inputs[number]
        if tensor in self._found or self._graph.producers[tensor] is not None:
            return self._found.get(tensor)
        symbols = [] if node.arguments is None else node.arguments.keras_tensors
        if number >= len(symbols):
            return None
        dtype = keras.backend.standardize_dtype(symbols[number].dtype)
        shape = _of_one_example(self._graph.shapes[tensor])
        if shape is None or not (dtype == "bool" or "int" in dtype):
            return None
        self._found[tensor] = Mask(np.ones(shape, dtype), True, dtype != "bool")
        return self._found[tensor]


def _of_one_example(shape: Shape) -> tuple[int, ...] | None:
    """A shape with a batch of one, or None where it is not known or too large to be written out."""
    inner = shape[1:]
    if None in inner:
        return None
    sizes = tuple(int(n) for n in inner if n is not None)
    size = int(np.prod(sizes, dtype=np.int64))
    batch = 1 if not shape or shape[0] is None else shape[0]
    return None if size * batch > _LARGEST else (batch, *sizes) if shape else ()


def _first(values: npt.NDArray[Any] | None, shape: Shape, batch: int) -> Any:
    """One of several equal examples; None where they differ."""
    if values is None or batch == 1 or shape[:1] != (None,):
        return values
    if values.shape[:1] != (batch,) or not np.all(values == values[:1]):
        return None
    return values[:1]


def _evaluated(node: Node, values: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any] | None]:
    """What an operation makes of numbers in place of its symbolic inputs; None if it cannot."""
    remaining = iter(values)

    def number(value: Any) -> Any:
        return keras.ops.convert_to_tensor(next(remaining)) if is_symbolic(value) else value

    try:
        args, kwargs = keras.tree.map_structure(
            number, (tuple(node.arguments.args), dict(node.arguments.kwargs))
        )
        results = keras.tree.flatten(node.operation.call(*args, **kwargs))
    except Exception:  # an operation that a batch of one does not suit: its result is not known
        return [None] * len(node.outputs)
    return [_as_array(result) for result in results]


def _as_array(value: Any) -> npt.NDArray[Any]:
    return np.asarray(keras.ops.convert_to_numpy(value))
