"""Whether a mask is causal: it hides every later position and none from itself."""

from collections.abc import Iterator, Sequence

import keras
import numpy as np

from keras_varinit.keras_private import is_symbolic
from keras_varinit.tracing.masks import Masks
from keras_varinit.tracing.reader import Graph, Node
from keras_varinit.typing import AnyArray


class Causality:
    """The masks of a graph, evaluated when they are first needed.

    Args:
        graph: The graph.
        carrying: For each tensor, whether it carries a signal; all others may be masks.
    """

    def __init__(self, graph: Graph, carrying: Sequence[bool]) -> None:
        self.graph, self.carrying = graph, carrying
        self._masks: Masks | None = None

    @property
    def masks(self) -> Masks:
        """The masks of the graph."""
        if self._masks is None:
            self._masks = Masks(self.graph)
            for node in self.graph.nodes:
                self._masks.visit(node)
        return self._masks

    def of_input(self, node: Node, number: int) -> bool | None:
        """Whether an input of a node is a causal mask.

        A mask of unknown values may be combined from a causal one and from others, such as those of
        padding, which only hide more. Without a causal one, inputs with one value per position, as
        for padding, make no causal mask.
        """
        known = self.masks.of(node, number)
        if known is not None:
            return is_causal(known.values)
        seen: set[int] = set()
        stack = [node.inputs[number]]
        causal: bool | None = False
        while stack:
            tensor = stack.pop()
            made, index = self.masks.made(tensor), self.graph.producers[tensor]
            if made is not None and is_causal(made.values):
                return True
            if index is not None and tensor not in seen and not self.carrying[tensor]:
                if any(map(is_causal, _constants(self.graph.nodes[index]))):
                    return True
                stack += self.graph.nodes[index].inputs
            elif index is None and len(self.graph.shapes[tensor]) > 2:
                causal = None
            seen.add(tensor)
        return causal

    def of_operation(self, node: Node) -> Iterator[bool | None]:
        """Whether each mask or constant that an operation applies is causal; None if unknown."""
        for number, tensor in enumerate(node.inputs):
            if not self.carrying[tensor]:
                yield self.of_input(node, number)
        yield from map(is_causal, _constants(node))


def _constants(node: Node) -> list[AnyArray]:
    """The arrays of at least two dimensions among the arguments of an operation."""
    if node.arguments is None:
        return []
    values = keras.tree.flatten((list(node.arguments.args), dict(node.arguments.kwargs)))
    arrays = [v for v in values if not is_symbolic(v) and len(getattr(v, "shape", ())) >= 2]
    return [np.asarray(keras.ops.convert_to_numpy(array)) for array in arrays]


def is_causal(values: AnyArray) -> bool:
    """Whether a mask (..., queries, keys) hides all later keys and no query's own.

    It may be boolean, of either sense, or a number that is added or multiplied.
    """
    if values.ndim < 2 or values.shape[-1] != values.shape[-2] or values.shape[-1] < 2:
        return False
    matrix = values.reshape(-1, *values.shape[-2:])
    later = matrix[:, *np.triu_indices(values.shape[-1], 1)]
    own = np.diagonal(matrix, axis1=1, axis2=2)
    hidden, seen = later.reshape(-1)[0], own.reshape(-1)[0]
    return bool(np.all(later == hidden) and np.all(own == seen) and hidden != seen)
