"""Assigns a role to each operation of a model's graph."""

import dataclasses

from keras_varinit.keras_private import is_raw_operation, layers_of, own_variables
from keras_varinit.signals.registry import has_role_rule, has_signal_rule, role_of
from keras_varinit.signals.roles import Call, LeftAlone, Padding, Role, Transparent, Unknown
from keras_varinit.tracing.reader import Graph, Node

Pads = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A graph with the role of each node.

    `unknown` lists (name, reason) of layers with weights that have no role.
    """

    graph: Graph
    roles: tuple[Role, ...]
    notes: tuple[str, ...]
    unknown: tuple[tuple[str, str], ...]

    def left_alone(self) -> dict[int, str]:
        """Why variables must not be drawn, by their `id`."""
        return {
            id(variable): role.reason
            for node, role in zip(self.graph.nodes, self.roles, strict=True)
            if isinstance(role, LeftAlone)
            for layer in [node.operation, *layers_of(node.operation)]
            for variable in own_variables(layer)
        }


def labelled(graph: Graph) -> Labelled:
    """Labels every node of a graph, in its order."""
    return _Labeller(graph).run()


class _Labeller:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.notes = list(graph.notes)
        self.unknown: list[tuple[str, str]] = []
        self.pads: dict[int, Pads] = {}

    def run(self) -> Labelled:
        roles = tuple(self._role(node) for node in self.graph.nodes)
        return Labelled(self.graph, roles, tuple(self.notes), tuple(self.unknown))

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
            return Transparent()  # it has a signal rule of the user
        if isinstance(role, Unknown) and is_raw_operation(node.operation):
            return role  # it ends a stage; its effect on signals is up to the engine
        if isinstance(role, Unknown):
            kind = type(node.operation).__name__
            self.notes.append(f"{node.operation.name} ({kind}): {role.reason}")
            if getattr(node.operation, "weights", ()):
                self.unknown.append((node.operation.name, role.reason))
        self._track_pads(node, role, call.pads)
        return role

    def _track_pads(self, node: Node, role: Role, before: Pads | None) -> None:
        """Passes zero padding on to the convolution that reads the padded map."""
        if isinstance(role, Padding):
            pads = role.pads
            if before is not None:
                pads = tuple(
                    (low + more_low, high + more_high)
                    for (low, high), (more_low, more_high) in zip(before, pads, strict=True)
                )
            self.pads[node.outputs[0]] = pads
        elif isinstance(role, Transparent) and before is not None and self._keeps_zeros(node):
            self.pads[node.outputs[0]] = before

    def _keeps_zeros(self, node: Node) -> bool:
        kept = ("Identity", "Dropout", "SpatialDropout", "Cast", "ActivityRegularization")
        same = self.graph.shapes[node.inputs[0]] == self.graph.shapes[node.outputs[0]]
        return same and type(node.operation).__name__.rstrip("123D").startswith(kept)
