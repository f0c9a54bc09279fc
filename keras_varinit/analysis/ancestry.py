"""Which tensors depend on each other, and which are twins.

The output of a kernel is uncorrelated with its input. A tensor therefore depends on the kernels
that produced it and on everything computed from them since, so two uses of one kernel depend on
each other. Twins were computed from different model inputs by the same operations with the same
weights; they are related like two examples.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.keras_private import Shape, is_raw_operation, is_symbolic
from keras_varinit.maths.covariance import Moments
from keras_varinit.signals.layouts import channel_axes, position_axes
from keras_varinit.signals.outcome import Lineage, Signal
from keras_varinit.signals.roles import Role, Weights
from keras_varinit.tracing.reader import Node

_WHITE = 1e-3

_FEW = 16


class Ancestry:
    """The lineage of each tensor of a graph, and its `reach`: what it depends on, as a bit set."""

    def __init__(self) -> None:
        self.lineages: dict[int, Lineage] = {}
        self.reach: dict[int, int] = {}
        self.origins: dict[int, int] = {}
        # Outputs of a softmax over few channels, which depend on each other because their sum is
        # 1, and the bits of their parts.
        self.tied: set[int] = set()
        self.ties = 0
        self._keys: dict[Any, int] = {}
        self._bits: dict[Any, int] = {}

    def born(self, tensor: int, kind: Any, signal: Signal, *, of_inputs: bool) -> None:
        """Registers a tensor without a producer: an input of the model, or a constant."""
        bit = self._bit(tensor)
        self.lineages[tensor] = Lineage(self._key(kind), bit if of_inputs else 0)
        self.reach[tensor] = bit if of_inputs else 0
        self._remember(signal, self.reach[tensor])

    def follow(
        self, node: Node, role: Role, signals: dict[int, Signal], shapes: Sequence[Shape]
    ) -> None:
        """Registers the outputs of a call."""
        inputs = [self.lineages[t] for t in node.inputs]
        kind = (*_identity(node), *(each.key for each in inputs))
        sources = 0
        for each in inputs:
            sources |= each.sources
        for number, tensor in enumerate(node.outputs):
            self.lineages[tensor] = Lineage(self._key((*kind, number)), sources)
            reach = self._bit(tensor)
            if isinstance(role, Weights):
                for kernel in role.kernels:
                    reach |= self._bit(("kernel", id(kernel.variable)))
            elif not _takes_apart(node, signals, shapes, tensor):
                for source in node.inputs:
                    reach |= self.reach[source]
            elif node.inputs[0] in self.tied:
                tie = self._bit(("tie", node.inputs[0]))
                self.ties |= tie
                reach |= tie
            if _is_softmax(node, role) and signals[tensor].channels < _FEW:
                self.tied.add(tensor)
            self.reach[tensor] = reach
            self._remember(signals[tensor], reach)

    def reach_of(self, moments: Moments) -> int | None:
        """What a signal depends on; None if it does not belong to a tensor."""
        while "origin" in moments.elsewhere:
            moments = moments.elsewhere["origin"]
        return self.origins.get(id(moments))

    def _remember(self, signal: Signal, reach: int) -> None:
        for _, moments in signal.parts:
            self.origins.setdefault(id(moments), reach)
            if moments.pre is not None:
                self.origins.setdefault(id(moments.pre), reach)

    def _bit(self, what: Any) -> int:
        return 1 << self._bits.setdefault(what, len(self._bits))

    def _key(self, kind: Any) -> int:
        return self._keys.setdefault(kind, len(self._keys))


def _identity(node: Node) -> tuple[Any, ...]:
    """A key that is equal for calls that compute the same function."""
    operation = node.operation
    if is_raw_operation(operation):
        fields = sorted((k, v) for k, v in vars(operation).items() if not k.startswith("_"))
        name: tuple[Any, ...] = (
            type(operation).__name__,
            *((k, _plain(v)) for k, v in fields if k != "name"),
        )
    else:
        name = (id(operation), node.part)
    if node.arguments is None:
        return name
    if not node.arguments.kwargs and all(map(is_symbolic, node.arguments.args)):
        return name
    values = keras.tree.flatten((tuple(node.arguments.args), dict(node.arguments.kwargs)))
    return (*name, *(_plain(v) for v in values if not is_symbolic(v)))


def _plain(value: Any) -> Any:
    """A hashable key of a value: itself for numbers and names, the `id` for other objects."""
    if value is None or isinstance(value, bool | int | float | str | np.number):
        return value
    if isinstance(value, Iterable) and isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return id(value)


def _is_softmax(node: Node, role: Role) -> bool:
    activation = getattr(role, "activation", None)
    return type(node.operation).__name__ == "Softmax" or (
        activation is not None and activation.name == "softmax"
    )


def _takes_apart(
    node: Node, signals: dict[int, Signal], shapes: Sequence[Shape], output: int
) -> bool:
    """Whether an operation selects a part that is independent of all other parts.

    That holds for some of the channels at every position, and for some of uncorrelated positions.
    """
    name = type(node.operation).__name__
    if len(node.inputs) != 1 or name not in ("GetItem", "Slice", "Split", "Unstack"):
        return False
    (source,) = node.inputs
    before, after = shapes[source], shapes[output]
    if name in ("Split", "Unstack") and _is_white(signals[source]):
        return True
    if len(before) != len(after):
        return False
    channels = channel_axes(signals[source], len(before))
    same = all(before[a] == after[a] for a in position_axes(signals[source], len(before)))
    return same and any(before[a] != after[a] for a in channels)


def _is_white(signal: Signal) -> bool:
    """Whether positions are uncorrelated."""
    return all(
        abs(m.correlation) < _WHITE and abs(m.adjacent_correlation) < _WHITE
        for _, m in signal.parts
    )
