"""From a model's graph to one `LayerContext` per kernel.

The rules, for graphs that are more than a chain:

* Depth is the number of kernels on the longest path from an input up to and with this one. The two
  kernels of a separable convolution count one after the other.
* Looking forward for a layer's own activation and pooling: normalization, dropout, reshaping and
  merges (add, concatenate, …) are passed through. Where a tensor is used more than once, the branch
  that reaches a weight layer through the fewest operations is followed, the earlier one on a tie.
  The stage ends at the next weight layer, a model output, or an operation without a rule.
* Looking back for what a layer reads: a stage begins at a weight layer or at a merge, whose result
  counts as a unit-variance pre-activation; a concatenation read as it is has the mean second moment
  of its parts, weighted by their channels. Up to the first weight layer everything is the model's
  input, whose second moment counts as 1.
* A layer that is called more than once has the context of its first call.
* Softmax, and a sigmoid that leads straight to a model output, belong to the loss: its gradient
  enters in front of them, so they count as the identity.
"""

import contextlib
import dataclasses
import math
from typing import Any

from keras_varinit.analysis.closed import FAN_FIELDS, Completion, may_be_kernel
from keras_varinit.analysis.result import Analysis, Reading
from keras_varinit.analysis.stages import Gains, StageAhead, StageBehind
from keras_varinit.context import LayerContext
from keras_varinit.families.attention.multi_head import is_customized
from keras_varinit.keras_private import (
    check_built,
    functional_of,
    is_keras_class,
    is_raw_operation,
    layers_of,
    own_variables,
)
from keras_varinit.signals.registry import (
    has_own_rule,
    has_role_rule,
    has_signal_rule,
    role_of,
)
from keras_varinit.signals.roles import (
    Call,
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
from keras_varinit.tracing.names import variable_names
from keras_varinit.tracing.opening import NotFollowedError, build_graph
from keras_varinit.tracing.reader import Graph, Node, takes_training

_INFINITE = math.inf


def read(model: Any) -> tuple[Analysis, Reading]:
    """Reads the context of every kernel off a built model; nothing is changed.

    Returns:
        The contexts, and the graph that they were read from, for predictions.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: it is not built.
    """
    names = variable_names(check_built(model))
    notes: tuple[str, ...] = ()
    try:
        graph = build_graph(model, is_known)
    except NotFollowedError as error:
        graph, notes = Graph(), (f"{error} {_BY_CLASS_ALONE}",)
    analyzer = _Analyzer(graph, names)
    found = analyzer.run()
    readings = [Reading(graph, tuple(analyzer.roles))]
    if notes:
        reason = "its `call` cannot be followed; " + _BY_CLASS_ALONE
        found = dataclasses.replace(found, notes=notes, unknown=((model.name, reason),))
    elif functional_of(model) is None and takes_training(model) and _lacks_kernels(found, model):
        # What only training uses may never have been built; the rest is known without it.
        with contextlib.suppress(ValueError):
            in_training = _Analyzer(build_graph(model, is_known, training=True), names)
            found = found.extended(in_training.run())
            readings.append(Reading(in_training.graph, tuple(in_training.roles)))
            analyzer = in_training
    completion = Completion(model, names, analyzer.graph, analyzer.roles, analyzer.depths)
    return completion.of(found), readings[-1]


_BY_CLASS_ALONE = (
    "Contexts are from the kernels' shapes and their layers' classes, depths in the order in which "
    "the layers were made."
)


def is_known(operation: Any) -> bool:
    """Whether an operation is one node of the graph: any rule says what it does.

    A user's class with a `call` of its own is not what the rule of its base says.
    """
    if is_customized(operation) or not (has_role_rule(operation) or has_signal_rule(operation)):
        return False
    if is_raw_operation(operation):
        return True
    for cls in type(operation).__mro__:
        if has_own_rule(cls):
            return True
        if "call" in vars(cls) and not is_keras_class(cls):
            return False
    return True


def _lacks_kernels(found: Analysis, model: Any) -> bool:
    """Whether a layer with weights of the rank of kernels has none with a context."""
    return any(
        any(may_be_kernel(v) for v in variables)
        and not any(found.context_of(v) or found.reason_to_leave(v) for v in variables)
        for layer in [model, *layers_of(model)]
        for variables in [own_variables(layer)]
    )


class _Analyzer:
    def __init__(self, graph: Graph, names: dict[int, tuple[str, str, str]]) -> None:
        self.graph = graph
        self.names = names
        self.notes = list(graph.notes)
        self.unknown: list[tuple[str, str]] = []
        self.pads: dict[int, tuple[tuple[int, int], ...]] = {}
        self.roles = [self._role(node) for node in graph.nodes]
        self.distances = self._distances_to_weights()
        self.gains = Gains()
        self.depths: list[int] = []

    def run(self) -> Analysis:
        signals, depths = self._forward()
        self.depths = depths
        total_depth = max(
            (
                depths[node.outputs[0]]
                for node, role in zip(self.graph.nodes, self.roles, strict=True)
                if isinstance(role, Weights)
            ),
            default=0,
        )
        if total_depth == 0:
            self.notes.append("no weight layer was found")
        contexts: dict[str, LayerContext] = {}
        by_variable: dict[int, LayerContext] = {}
        for node, role in zip(self.graph.nodes, self.roles, strict=True):
            if not isinstance(role, Weights):
                continue
            for context, variable in self._contexts_of(node, role, signals, depths, total_depth):
                if id(variable) not in by_variable:
                    contexts[context.path] = by_variable[id(variable)] = context
        return Analysis(
            contexts,
            tuple(dict.fromkeys(self.notes)),
            by_variable,
            tuple(self.unknown),
            self._left_alone(),
        )

    def _left_alone(self) -> dict[int, str]:
        return {
            id(variable): role.reason
            for node, role in zip(self.graph.nodes, self.roles, strict=True)
            if isinstance(role, LeftAlone)
            for layer in [node.operation, *layers_of(node.operation)]
            for variable in own_variables(layer)
        }

    def _role(self, node: Node) -> Role:
        if node.index in self.graph.closed:
            reason = f"could not be opened: {self.graph.closed[node.index]}"
            if node.operation.weights:
                self.unknown.append((node.operation.name, reason))
            return Unknown(reason)
        shapes = self.graph.shapes
        call = Call(
            node,
            tuple(shapes[t] for t in node.inputs),
            tuple(shapes[t] for t in node.outputs),
            self.pads.get(node.inputs[0]) if node.inputs else None,
        )
        try:
            role = role_of(call)
        except ValueError as error:
            self.notes.append(f"{node.operation.name}: {error}; what follows is not modelled")
            return Unknown()
        if (
            type(role) is Unknown
            and has_signal_rule(node.operation)
            and not has_role_rule(node.operation)
        ):
            return Transparent()  # a rule of the user's says what it does
        if isinstance(role, Unknown) and is_raw_operation(node.operation):
            return role  # it ends a stage; what becomes of the signal, the engine says
        if isinstance(role, Unknown):
            kind = type(node.operation).__name__
            self.notes.append(f"{node.operation.name} ({kind}): {role.reason}")
            if getattr(node.operation, "weights", ()):
                self.unknown.append((node.operation.name, role.reason))
        self._track_pads(node, role, call.pads)
        return role

    def _track_pads(
        self, node: Node, role: Role, before: tuple[tuple[int, int], ...] | None
    ) -> None:
        """Zeros around a map belong to the convolution that reads it."""
        if isinstance(role, Padding):
            if before is not None:
                pads = tuple(
                    (low + more_low, high + more_high)
                    for (low, high), (more_low, more_high) in zip(before, role.pads, strict=True)
                )
            else:
                pads = role.pads
            self.pads[node.outputs[0]] = pads
        elif isinstance(role, Transparent) and before is not None and self._keeps_zeros(node):
            self.pads[node.outputs[0]] = before

    def _keeps_zeros(self, node: Node) -> bool:
        kept = ("Identity", "Dropout", "SpatialDropout", "Cast", "ActivityRegularization")
        same = self.graph.shapes[node.inputs[0]] == self.graph.shapes[node.outputs[0]]
        return same and type(node.operation).__name__.rstrip("123D").startswith(kept)

    def _distances_to_weights(self) -> list[float]:
        """For each tensor, operations up to and with the nearest weight layer ahead."""
        distances = [_INFINITE] * len(self.graph.shapes)
        for node, role in zip(reversed(self.graph.nodes), reversed(self.roles), strict=True):
            ahead = min((distances[t] for t in node.outputs), default=_INFINITE)
            distance = 1.0 if isinstance(role, Weights) else 1.0 + ahead
            for tensor in node.inputs:
                distances[tensor] = min(distances[tensor], distance)
        return distances

    def _forward(self) -> tuple[list[StageBehind], list[int]]:
        """What every tensor carries, and the depth of the deepest kernel behind it."""
        signals = [StageBehind(raw=True)] * len(self.graph.shapes)
        depths = [0] * len(self.graph.shapes)
        for node, role in zip(self.graph.nodes, self.roles, strict=True):
            depth = max((depths[t] for t in node.inputs), default=0)
            if isinstance(role, Weights):
                depth += 1 + max(kernel.level for kernel in role.kernels)
            elif isinstance(role, LeftAlone) or (
                node.index in self.graph.closed and node.operation.weights
            ):
                depth += 1
            signal = self._signal_after(node, role, signals)
            for tensor in node.outputs:
                signals[tensor], depths[tensor] = signal, depth
        return signals, depths

    def _signal_after(self, node: Node, role: Role, signals: list[StageBehind]) -> StageBehind:
        inputs = [signals[t] for t in node.inputs]
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
        if all(signal.raw for signal in inputs):
            return StageBehind(raw=True)
        if isinstance(role, Concatenation):
            return StageBehind(value=self._concatenated(node, role, inputs))
        return StageBehind()

    def _concatenated(self, node: Node, role: Concatenation, inputs: list[StageBehind]) -> float:
        shapes = [self.graph.shapes[t] for t in node.inputs]
        sizes = [shape[role.axis] for shape in shapes]
        weights = [1 if None in sizes or size is None else size for size in sizes]
        total = sum(
            weight * self.gains.second_moment(signal)
            for weight, signal in zip(weights, inputs, strict=True)
        )
        return total / sum(weights)

    def _contexts_of(
        self,
        node: Node,
        role: Weights,
        signals: list[StageBehind],
        depths: list[int],
        total_depth: int,
    ) -> list[tuple[LayerContext, Any]]:
        found = []
        levels = 1 + max(kernel.level for kernel in role.kernels)
        for kernel in role.kernels:
            path, layer, stream = self.names[id(kernel.variable)]
            last = kernel.level == levels - 1
            ahead = self._stage_ahead(node, role, path) if last else StageAhead()
            if kernel.reads_own_output and role.activation is not None:
                tau = self.gains.of((role.activation,))[0]
            elif kernel.level == 0:
                tau = self.gains.second_moment(signals[node.inputs[0]])
            else:
                tau = 1.0
            gamma = self.gains.of(ahead.steps)[1]
            if not (0 < tau < math.inf and 0 < gamma < math.inf):
                # Such as those of x**-0.5 and of sign, which has no slope.
                self.notes.append(f"{path}: a stage beside it has no gains, so they count as 1")
                tau, gamma = (gain if 0 < gain < math.inf else 1.0 for gain in (tau, gamma))
            if kernel.fans.connections is None:
                self.notes.append(
                    f"{path}: a spatial size is unknown, so the interior limit is used"
                )
            context = LayerContext(
                path=path,
                layer=layer,
                stream=stream,
                kernel_shape=tuple(int(n) for n in kernel.variable.shape),
                depth=depths[node.outputs[0]] - levels + 1 + kernel.level,
                total_depth=total_depth,
                activation=ahead.activation,
                pooling=ahead.pooling,
                pool_size=ahead.pool_size,
                forward_gain=tau,
                backward_gain=gamma,
                **{name: getattr(kernel.fans, name) for name in FAN_FIELDS},
            )
            found.append((context, kernel.variable))
        return found

    def _stage_ahead(self, node: Node, role: Weights, path: str) -> "StageAhead":
        """Follows a layer's output to the end of its stage."""
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
                if role_ahead.size is None:
                    self.notes.append(
                        f"{path}: the map that is pooled has an unknown size; pooling is left out"
                    )
            tensor = self.graph.nodes[ahead].outputs[0]
        return stage.at_output()

    def _distance_through(self, index: int) -> float:
        if isinstance(self.roles[index], Weights):
            return 1.0
        return 1.0 + min((self.distances[t] for t in self.graph.nodes[index].outputs), default=0.0)
