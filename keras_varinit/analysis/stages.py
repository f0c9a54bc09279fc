"""Stages: the operations between two kernels, followed backward and forward from a kernel."""

import dataclasses
import math
from collections.abc import Sequence

from keras_varinit.analysis.labelling import Labelled
from keras_varinit.keras_private import Shape
from keras_varinit.maths.quadrature import Activation, Pool, stage_gains
from keras_varinit.signals.roles import (
    Concatenation,
    Elementwise,
    LeftAlone,
    Padding,
    Pooling,
    Role,
    Source,
    Transparent,
    Unknown,
    Weights,
)
from keras_varinit.tracing.reader import Node

Steps = tuple[Activation | Pool, ...]


@dataclasses.dataclass(frozen=True)
class StageBehind:
    """The stage that produced a tensor.

    Args:
        steps: Activations and poolings since the stage began.
        value: Second moment, where it is known directly, as for a concatenation.
        raw: Whether the tensor is the model's input.
    """

    steps: Steps = ()
    value: float | None = None
    raw: bool = False

    def then(self, step: Activation | Pool) -> "StageBehind":
        """The stage with one more step; the model's input stays `raw`."""
        if self.raw:
            return self
        return StageBehind((*self.steps, step))


@dataclasses.dataclass(frozen=True)
class StageAhead:
    """The stage that follows a layer.

    Args:
        steps: Activations and poolings, in order.
        activation: Name of the first activation.
        pooling: Kind of the first pooling.
        pool_size: T, the product of the sizes of all poolings of that kind; None if unknown.
        pools_unknown_size: Number of poolings of unknown size, which are not in `steps`.
    """

    steps: Steps = ()
    activation: str | None = None
    pooling: str | None = None
    pool_size: int | None = 1
    pools_unknown_size: int = 0

    def with_activation(self, activation: Activation) -> "StageAhead":
        """The stage with one more activation."""
        return dataclasses.replace(
            self,
            steps=(*self.steps, activation),
            activation=self.activation or activation.name,
        )

    def with_pooling(self, pooling: Pooling) -> "StageAhead":
        """The stage with one more pooling; one of unknown size does not affect the gains."""
        step = pooling.step()
        known = self.pool_size
        if self.pooling is None:
            size = pooling.size
        elif self.pooling == pooling.kind and known is not None and pooling.size is not None:
            size = known * pooling.size
        else:
            size = known
        return dataclasses.replace(
            self,
            steps=self.steps if step is None else (*self.steps, step),
            pooling=self.pooling or pooling.kind,
            pool_size=size,
            pools_unknown_size=self.pools_unknown_size + (pooling.size is None),
        )

    def at_output(self) -> "StageAhead":
        """The stage at a model output, without a final sigmoid, which is part of the loss."""
        last = self.steps[-1] if self.steps else None
        if isinstance(last, Activation) and last.name == "sigmoid":
            return dataclasses.replace(self, steps=self.steps[:-1])
        return self


class Gains:
    """Gains of stages, cached."""

    def __init__(self) -> None:
        self._known: dict[Steps, tuple[float, float]] = {}

    def of(self, steps: Steps) -> tuple[float, float]:
        """τ and γ of a stage."""
        if steps not in self._known:
            self._known[steps] = stage_gains(steps)
        return self._known[steps]

    def second_moment(self, signal: StageBehind) -> float:
        """τ, the second moment of a tensor, for unit-variance pre-activations."""
        if signal.raw:
            return 1.0
        return self.of(signal.steps)[0] if signal.value is None else signal.value


@dataclasses.dataclass(frozen=True)
class Behind:
    """For each tensor, the stage that produced it and the depth of the deepest kernel before it."""

    stages: tuple[StageBehind, ...]
    depths: tuple[int, ...]


def looking_back(model: Labelled, gains: Gains) -> Behind:
    """Follows the graph forward and returns stages and depths of all tensors."""
    graph = model.graph
    stages = [StageBehind(raw=True)] * len(graph.shapes)
    depths = [0] * len(graph.shapes)
    for node, role in zip(graph.nodes, model.roles, strict=True):
        depth = max((depths[t] for t in node.inputs), default=0)
        if isinstance(role, Weights):
            depth += 1 + max(kernel.level for kernel in role.kernels)
        elif isinstance(role, LeftAlone) or (node.index in graph.closed and node.operation.weights):
            depth += 1
        inputs = [stages[t] for t in node.inputs]
        sizes = [graph.shapes[t] for t in node.inputs]
        stage = _stage_after(role, inputs, sizes, gains)
        for tensor in node.outputs:
            stages[tensor], depths[tensor] = stage, depth
    return Behind(tuple(stages), tuple(depths))


def _stage_after(
    role: Role, inputs: Sequence[StageBehind], shapes: Sequence[Shape], gains: Gains
) -> StageBehind:
    if isinstance(role, Weights):
        return StageBehind(() if role.activation is None else (role.activation,))
    if not inputs or isinstance(role, Source):
        return StageBehind(raw=True)
    if isinstance(role, Elementwise):
        return inputs[0].then(role.activation)
    if isinstance(role, Pooling):
        step = role.step()
        return inputs[0] if step is None else inputs[0].then(step)
    if isinstance(role, Transparent | Padding):
        return inputs[0]
    if all(stage.raw for stage in inputs):
        return StageBehind(raw=True)
    if isinstance(role, Concatenation):
        return StageBehind(value=_mean_second_moment(role.axis, inputs, shapes, gains))
    return StageBehind()


def _mean_second_moment(
    axis: int, inputs: Sequence[StageBehind], shapes: Sequence[Shape], gains: Gains
) -> float:
    sizes = [shape[axis] for shape in shapes]
    weights = [1 if None in sizes or size is None else size for size in sizes]
    total = sum(w * gains.second_moment(stage) for w, stage in zip(weights, inputs, strict=True))
    return total / sum(weights)


class LookingAhead:
    """Follows the output of layers to the ends of their stages."""

    def __init__(self, model: Labelled) -> None:
        self.graph, self.roles = model.graph, model.roles
        # For each tensor, the number of operations to the next weight layer, which is included.
        self.distances = [math.inf] * len(self.graph.shapes)
        for node, role in zip(reversed(self.graph.nodes), reversed(self.roles), strict=True):
            ahead = min((self.distances[t] for t in node.outputs), default=math.inf)
            distance = 1.0 if isinstance(role, Weights) else 1.0 + ahead
            for tensor in node.inputs:
                self.distances[tensor] = min(self.distances[tensor], distance)

    def from_layer(self, node: Node, role: Weights) -> StageAhead:
        """The stage that follows the last kernel of a layer."""
        stage = StageAhead()
        if role.activation is not None:
            stage = stage.with_activation(role.activation)
        tensor = node.outputs[0]
        while self.graph.consumers[tensor]:
            ahead = min(
                self.graph.consumers[tensor],
                key=lambda index: (self._distance_through(index), index),
            )
            role_ahead = self.roles[ahead]
            if isinstance(role_ahead, Weights | Unknown | Source):
                return stage
            if isinstance(role_ahead, Elementwise):
                stage = stage.with_activation(role_ahead.activation)
            elif isinstance(role_ahead, Pooling):
                stage = stage.with_pooling(role_ahead)
            tensor = self.graph.nodes[ahead].outputs[0]
        return stage.at_output()

    def _distance_through(self, index: int) -> float:
        if isinstance(self.roles[index], Weights):
            return 1.0
        return 1.0 + min((self.distances[t] for t in self.graph.nodes[index].outputs), default=0.0)
