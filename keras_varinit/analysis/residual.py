"""Residual branches, read off a graph.

Rules, also for what is ambiguous:

* A residual addition is an addition or a subtraction of signals with one common ancestor from which
  one of them, the *shortcut*, is reached through fewer kernels than the others, the *branches*.
  If one signal is the source of the others, it is the ancestor itself. Otherwise the ancestor is
  the tensor from which the shortcut is reached through the fewest kernels; of several, the one from
  which all signals are reached through the fewest, and among those the latest.
* Kernels are counted along the path with the fewest. On a tie, all kernels of a signal since the
  ancestor are counted; if these tie too, or several signals have none, there is no residual branch:
  two towers, an Inception block, positions added to tokens, a highway layer (whose signals share
  the gate).
* A branch has a kernel that the ancestor's signal passes through. So the terms of a sum of products
  of queries with keys and with relative positions are not branches.
* Where both are reached through equally many kernels, a part cut out of the ancestor is not a
  shortcut, but a shift from the modulation that also scales the stream (diffusion transformers).
* Concatenations (dense blocks, U-Net) do not form a branch. A sum over a whole network (an additive
  U) is a residual addition like any other.
* A branch ends with each kernel whose output reaches the addition through no other kernel. Of a
  product, one factor counts: not a gate (a factor after a sigmoid or softmax), nor one that does
  not depend on the ancestor; of the others, the one with the most kernels, or the first on a tie.
  Kernels of recurrent layers do not end a branch, since their output is not proportional to them.
* A branch consists of the kernels between ancestor and addition, including those that read an
  outside signal for it (keys and values of cross-attention). In nested branches, a kernel belongs
  to the innermost; it ends each branch that it ends.
* The stream of an addition goes on from its output and back from its shortcut, through anything but
  a branch. L is the number of additions on the longest path of the stream through the addition, so
  an encoder's additions do not count for its decoder.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras

from keras_varinit.analysis.labelling import Labelled
from keras_varinit.signals.roles import Elementwise, Merge, Role, Weights
from keras_varinit.tracing.reader import Node

_ADDITIONS = ("Add", "Subtract")

_CUTS = ("ArraySplit", "GetItem", "Slice", "Split", "Take", "Unstack")

_PRODUCTS = ("Multiply", "Matmul", "Einsum", "Dot")

_GATES = {"sigmoid", "hard_sigmoid", "softmax", "log_sigmoid", "sparsemax"}


@dataclasses.dataclass(frozen=True)
class Branch:
    """The residual branch of a kernel.

    Args:
        additions: L, the number of residual additions on the longest path of the stream.
        size: m, the number of kernels in the branch.
        end: Whether the kernel ends a branch.
        scaled: Whether a tensor scales what a branch with this end adds.
    """

    additions: int
    size: int
    end: bool
    scaled: bool = False


@dataclasses.dataclass(frozen=True)
class Addition:
    """A residual addition.

    Args:
        node: The addition.
        ancestor: The tensor from which shortcut and branches start.
        shortcut: The tensor that the branches are added to.
        branches: The tensors that are added to it.
        inside: Indices of the nodes with kernels in the branches.
        ends: Indices of those that end the branches.
        scaled: Those of the ends behind which the branch is multiplied by a tensor.
        size: m, the number of kernels in the branches.
    """

    node: Node
    ancestor: int
    shortcut: int
    branches: tuple[int, ...]
    inside: frozenset[int]
    ends: frozenset[int]
    scaled: frozenset[int]
    size: int


@dataclasses.dataclass(frozen=True)
class BranchEnds:
    """What decides how much the branches of one residual addition add to its stream.

    Args:
        shortcut: The tensor that the branches are added to.
        branches: The tensors that are added.
        sum: The sum of all of them.
        kernels: The `id` of each kernel that ends these branches and no branch within them.
        scales: The `id` of the γ of each normalization that follows such a kernel.
    """

    shortcut: int
    branches: tuple[int, ...]
    sum: int
    kernels: tuple[int, ...]
    scales: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Residual:
    """The residual additions of a graph, in its order, and L of each."""

    additions: tuple[Addition, ...]
    lengths: tuple[int, ...]

    @property
    def most(self) -> int:
        """The greatest L; 0 without residual additions."""
        return max(self.lengths, default=0)

    def branch_ends(self, roles: Sequence[Role]) -> list[BranchEnds]:
        """The ends of the branches of each addition, without normalization scales."""
        ends, taken = [], set[int]()
        for addition in self.additions:
            kernels = []
            for index in sorted(addition.ends - taken):
                role = roles[index]
                if isinstance(role, Weights):
                    last = max(role.kernels, key=lambda kernel: kernel.level)
                    kernels.append(id(last.variable))
            taken |= addition.inside
            shortcut, branches = addition.shortcut, addition.branches
            total = addition.node.outputs[0]
            ends.append(BranchEnds(shortcut, branches, total, tuple(kernels)))
        return ends

    def by_node(self) -> dict[int, Branch]:
        """The branch of each node whose kernels are in one."""
        branches: dict[int, Branch] = {}
        ends = set().union(*(addition.ends for addition in self.additions))
        scaled = set().union(*(addition.scaled for addition in self.additions))
        for addition, length in zip(self.additions, self.lengths, strict=True):
            for index in addition.inside:
                branch = Branch(length, addition.size, index in ends, index in scaled)
                branches.setdefault(index, branch)
        return branches


def residual(model: Labelled, carrying: Sequence[bool]) -> Residual:
    """Finds the residual additions of a graph.

    Args:
        model: The labelled graph.
        carrying: For each tensor, whether it carries a signal, not only a mask or a constant.
    """
    walk = _Walk(model, carrying)
    additions = [each for node in model.graph.nodes for each in walk.addition(node)]
    return Residual(tuple(additions), _lengths(model, walk, additions))


class _Walk:
    def __init__(self, model: Labelled, carrying: Sequence[bool]) -> None:
        self.graph, self.roles, self.carrying = model.graph, model.roles, carrying

    def producer(self, tensor: int) -> Node | None:
        index = self.graph.producers[tensor]
        return None if index is None else self.graph.nodes[index]

    def signals(self, node: Node) -> list[int]:
        """The inputs of a node that carry a signal, each once."""
        return [t for t in dict.fromkeys(node.inputs) if self.carrying[t]]

    def kernels(self, node: Node) -> int:
        """The number of kernels on a path through a node."""
        role = self.roles[node.index]
        if isinstance(role, Weights):
            return 1 + max(kernel.level for kernel in role.kernels)
        return int(node.index in self.graph.closed and bool(node.operation.weights))

    def addition(self, node: Node) -> Iterator[Addition]:
        """The residual addition that a node is, if it is one."""
        is_sum = type(node.operation).__name__ in _ADDITIONS
        signals = self.signals(node)
        if not is_sum or len(signals) < 2 or not isinstance(self.roles[node.index], Merge):
            return
        ancestor, distances = self._common_ancestor(signals)
        if ancestor is None:
            return
        inside = [self._inside(t, ancestor) for t in signals]
        keys = list(zip(distances, map(self._count, inside), strict=True))
        shortest = min(keys)
        if keys.count(shortest) > 1:
            return
        number = keys.index(shortest)
        is_tie = distances.count(shortest[0]) > 1
        if is_tie and self._is_cut(signals[number], ancestor):
            return
        reach = self._descendants(ancestor, node)
        from_ancestor = [
            any(self.graph.nodes[i].outputs[0] in reach for i in each) for each in inside
        ]
        branches = [n for n in range(len(signals)) if n != number and from_ancestor[n]]
        if not branches:
            return
        within = frozenset().union(*(inside[n] for n in branches)) - inside[number]
        ends = {n: self._ends(signals[n], ancestor, reach) & within for n in branches}
        scaled = [ends[n] for n in branches if self._is_scaled(signals[n])]
        yield Addition(
            node,
            ancestor,
            signals[number],
            tuple(signals[n] for n in branches),
            within,
            frozenset().union(*ends.values()),
            frozenset().union(*scaled),
            self._count(within),
        )

    def _count(self, nodes: Iterable[int]) -> int:
        """The number of kernels of nodes; a layer that could not be opened counts as one."""
        roles = [self.roles[index] for index in nodes]
        return sum(len(role.kernels) if isinstance(role, Weights) else 1 for role in roles)

    def _common_ancestor(self, signals: Sequence[int]) -> tuple[int | None, tuple[float, ...]]:
        """The nearest common ancestor, and the fewest kernels from it to each signal."""
        unreached = (math.inf,) * len(signals)
        distances = {t: tuple(0.0 if t == s else math.inf for s in signals) for t in signals}
        queue = [-t for t in distances]
        heapq.heapify(queue)
        best: tuple[int | None, tuple[float, ...]] = (None, unreached)
        while queue:
            tensor = -heapq.heappop(queue)
            here = distances[tensor]
            reaches_all = math.isfinite(sum(here))
            if tensor in signals and reaches_all:
                return tensor, here
            if (min(here), sum(here)) < (min(best[1]), sum(best[1])) and reaches_all:
                best = (tensor, here)
            if not queue and math.isfinite(sum(here)):
                break  # every path leads through this tensor
            node = self.producer(tensor)
            if node is None:
                continue
            passed = tuple(d + self.kernels(node) for d in here)
            for source in self.signals(node):
                if source not in distances:
                    heapq.heappush(queue, -source)
                    distances[source] = unreached
                distances[source] = tuple(map(min, distances[source], passed))
        return best

    def _back(
        self, signal: int, ancestor: int | None, onward: Callable[[Node], Iterable[int]]
    ) -> Iterator[Node]:
        """The nodes behind a signal, each once, as far as an ancestor.

        `onward(node)` are the inputs of a node to follow.
        """
        seen, stack = {ancestor}, [signal]
        while stack:
            tensor = stack.pop()
            node = self.producer(tensor)
            if tensor not in seen and node is not None:
                seen.add(tensor)
                yield node
                stack += onward(node)

    def _inside(self, signal: int, ancestor: int) -> frozenset[int]:
        """The nodes with kernels between an ancestor and a signal.

        Signals that do not come from the ancestor are followed to the first kernel.
        """
        reach = self._descendants(ancestor, self.producer(signal))

        def onward(node: Node) -> list[int]:
            signals = self.signals(node)
            return [t for t in signals if t in reach] if self.kernels(node) else signals

        nodes = self._back(signal, ancestor, onward)
        return frozenset(node.index for node in nodes if self.kernels(node))

    def _is_cut(self, signal: int, ancestor: int) -> bool:
        """Whether a signal is made of a part of an ancestor's channels or positions."""
        nodes = self._back(signal, ancestor, self.signals)
        return any(type(node.operation).__name__ in _CUTS for node in nodes)

    def _descendants(self, ancestor: int, last: Node | None) -> set[int]:
        """The tensors computed from an ancestor, itself included, up to a node."""
        reach, limit = {ancestor}, -1 if last is None else last.index
        first = self.graph.producers[ancestor]
        for node in self.graph.nodes[0 if first is None else first + 1 : limit + 1]:
            if reach.intersection(self.signals(node)):
                reach.update(node.outputs)
        return reach

    def _ends(self, signal: int, ancestor: int, reach: set[int]) -> set[int]:
        """The nodes with kernels that reach a signal through no other kernel."""

        def onward(node: Node) -> list[int]:
            role = self.roles[node.index]
            if isinstance(role, Weights):
                return []
            if isinstance(role, Merge) and type(node.operation).__name__ in _PRODUCTS:
                return [self._factor(node, ancestor, reach)]
            return self.signals(node)

        ends = set()
        for node in self._back(signal, ancestor, onward):
            role = self.roles[node.index]
            if isinstance(role, Weights) and not any(k.reads_own_output for k in role.kernels):
                ends.add(node.index)
        return ends

    def _is_scaled(self, signal: int) -> bool:
        """Whether a tensor that is no signal scales what ends a branch, as LayerScale does."""
        nodes = self._back(signal, None, lambda n: [] if self.kernels(n) else self.signals(n))
        return any(
            type(node.operation).__name__ == "Multiply"
            and len(self.signals(node)) == 1
            and any(_is_tensor(each) for each in getattr(node.arguments, "args", ()))
            for node in nodes
        )

    def _factor(self, node: Node, ancestor: int, reach: set[int]) -> int:
        """The factor of a product through which a branch goes on."""
        factors = self.signals(node)
        inner = [t for t in factors if t in reach and not self._is_gate(t)] or factors
        return max(inner, key=lambda t: self._count(self._inside(t, ancestor)))

    def _is_gate(self, tensor: int) -> bool:
        """Whether a factor comes from sigmoids or softmaxes, without a kernel in between."""

        def opens(node: Node) -> bool:
            role = self.roles[node.index]
            activation = role.activation if isinstance(role, Weights | Elementwise) else None
            return activation is not None and activation.name in _GATES

        def onward(node: Node) -> list[int]:
            return [] if opens(node) or self.kernels(node) else self.signals(node)

        nodes = list(self._back(tensor, None, onward))
        gates = [node for node in nodes if opens(node)]
        return bool(gates) and not any(self.kernels(n) for n in nodes if n not in gates)


def _is_tensor(argument: object) -> bool:
    """Whether an argument of an operation is a variable, a tensor or an array, and no number."""
    return hasattr(argument, "shape") and not isinstance(argument, keras.KerasTensor)


def _lengths(model: Labelled, walk: _Walk, additions: Sequence[Addition]) -> tuple[int, ...]:
    """L of each addition."""
    graph = model.graph
    by_node = {addition.node.index: addition for addition in additions}
    before, after = [0] * len(graph.shapes), [0] * len(graph.shapes)
    for node in graph.nodes:
        addition = by_node.get(node.index)
        sources = walk.signals(node) if addition is None else [addition.shortcut]
        length = max((before[t] for t in sources), default=0) + (addition is not None)
        for tensor in node.outputs:
            before[tensor] = length
    for node in reversed(graph.nodes):
        addition = by_node.get(node.index)
        sources = walk.signals(node) if addition is None else [addition.shortcut]
        length = max((after[t] for t in node.outputs), default=0) + (addition is not None)
        for tensor in sources:
            after[tensor] = max(after[tensor], length)
    outputs = [addition.node.outputs[0] for addition in additions]
    return tuple(before[t] + after[t] for t in outputs)
