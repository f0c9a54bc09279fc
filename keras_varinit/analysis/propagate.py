"""The signal engine: a forward walk over the graph for moments, a backward one for gradients.

Averages are over random weights and over inputs with independent entries, in the limit of wide
layers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.analysis.ancestry import Ancestry
from keras_varinit.families.attention.masks import FROM_DATA
from keras_varinit.families.attention.rows import outcome_of_rows
from keras_varinit.families.catalogue import FILLED, reason_of
from keras_varinit.keras_private import is_raw_operation, operation_name
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.windows import Array
from keras_varinit.signals import narrowness
from keras_varinit.signals.constants import constant_signal
from keras_varinit.signals.layouts import fitting, flat_channels
from keras_varinit.signals.outcome import (
    Gradient,
    Outcome,
    Signal,
    Visit,
    added,
    alike,
    lost_gradient,
    unknown,
)
from keras_varinit.signals.registry import SignalRule, signal_rule_of, takes_channel_axes
from keras_varinit.signals.roles import Call, Elementwise, Role, Unknown, Weights
from keras_varinit.tracing.masks import Masks
from keras_varinit.tracing.reader import Graph, Node, computed
from keras_varinit.typing import Variable

# Set by tests. Otherwise a rule that fails makes its outputs unknown, with a note.
RAISES = False

Variances = Callable[[Any, float], float]

Deltas = Callable[[Any], bool]


def no_delta(variable: Any) -> bool:
    """`is_delta` for kernels with independent taps."""
    return False


Scales = Callable[[Any], float | None]


def no_scale(variable: Any) -> float | None:
    """`scale_of` for normalizations with their present scales."""
    return None


class Engine:
    """One walk over a graph.

    Args:
        graph: The model's graph.
        roles: The role of each node.
        variance_of: The variance of a kernel's entries, as for `propagate`.
        alike: The correlation of positions and examples to assume where normalization makes only
            the scale known; `has_renewed` tells whether it was used.
        is_delta: Whether a kernel is zero at every tap but the central one.
        scale_of: E γ² of a normalization's scale; None for its present value.
        watched: Tensors whose second moments are set as soon as they are computed.
    """

    def __init__(
        self,
        graph: Graph,
        roles: Sequence[Role],
        variance_of: Variances,
        alike: float = 0.0,
        is_delta: Deltas = no_delta,
        scale_of: Scales = no_scale,
        watched: dict[int, float] | None = None,
    ) -> None:
        self.graph = graph
        self.roles = roles
        self.variance_of = variance_of
        self.is_delta, self.scale_of = is_delta, scale_of
        self.watched = {} if watched is None else watched
        self.signals: dict[int, Signal] = {}
        self.outcomes: list[Outcome] = []
        self.variances: dict[int, float] = {}
        self.forwards: dict[int, float] = {}
        self.backwards: dict[int, float] = {}
        self.gains: dict[int, float] = {}
        self.notes: list[str] = []
        self.values: dict[int, Array] = {}  # of tensors that are known numbers
        self.known_masks = Masks(graph)
        self.family = Ancestry()
        self.narrowness: dict[int, float] = {}
        self.sources: dict[int, narrowness.Source | None] = {}
        self.alike, self.has_renewed = alike, False

    def forward(self, mean: float, variance: float) -> None:
        """Computes the signals of all tensors, for inputs of the given mean and variance."""
        for tensor in self.graph.inputs:
            shape = self.graph.shapes[tensor]
            channels_first = keras.config.image_data_format() == "channels_first"
            axis = 1 if channels_first and len(shape) > 3 else -1
            self.signals[tensor] = alike(shape, axis, mean, variance + mean**2, mean**2)
            self.family.born(tensor, ("input", shape), self.signals[tensor], of_inputs=True)
            self.narrowness[tensor] = narrowness.of_input(self.signals[tensor])
            if tensor in self.watched:
                self.watched[tensor] = self.signals[tensor].second_moment
        for tensor, value in self.graph.constants.items():
            self._is_constant(tensor, keras.ops.convert_to_numpy(value))
        outputs = set(self.graph.outputs)
        for node, role in zip(self.graph.nodes, self.roles, strict=True):
            at_output = all(t in outputs for t in node.outputs)
            self.known_masks.visit(node)
            folded = self._folded(node)
            if folded is not None:
                for tensor, values in zip(node.outputs, folded, strict=True):
                    self._is_constant(tensor, values)
                self.outcomes.append(_no_gradient(node, self.signals))
                continue
            outcome = self._visit(node, _without_loss(role) if at_output else role, at_output)
            self.outcomes.append(outcome)
            for tensor, signal in zip(node.outputs, outcome.outputs, strict=True):
                self.signals[tensor] = signal
                if tensor in self.watched:
                    self.watched[tensor] = signal.second_moment
            self.family.follow(node, role, self.signals, self.graph.shapes)
            inputs = [self.signals[t] for t in node.inputs]
            before = [self.narrowness.get(t, 0.0) for t in node.inputs]
            for tensor, signal in zip(node.outputs, outcome.outputs, strict=True):
                width = narrowness.of_outputs(node, role, inputs, before, signal)
                self.narrowness[tensor] = width
                self.sources[tensor] = narrowness.source_of(
                    node,
                    role,
                    before[0] if before else 0.0,
                    [self.sources.get(t) for t in node.inputs],
                )

    def _is_constant(self, tensor: int, values: Any) -> None:
        self.values[tensor] = np.asarray(values, np.float64)
        shape = self.graph.shapes[tensor]
        if len(shape) < 2 or not self.values[tensor].size:
            self.signals[tensor] = alike(shape, -1, *_spread(self.values[tensor]))
        else:
            like = alike(shape, -1, 0.0, 0.0, 0.0)
            self.signals[tensor] = constant_signal(self.values[tensor], shape, like)
        self.family.born(tensor, ("constant", tensor), self.signals[tensor], of_inputs=False)
        self.narrowness[tensor] = narrowness.of_input(self.signals[tensor])

    def _folded(self, node: Node) -> list[Any] | None:
        """The values of outputs that depend only on known numbers, on a shape, or on masks."""
        if not node.inputs or not is_raw_operation(node.operation):
            return None
        if all(t in self.values for t in node.inputs):
            return computed(node, [self.values[t] for t in node.inputs])
        filled = FILLED.get(operation_name(node.operation))
        shapes = [self.graph.shapes[t][1:] for t in node.outputs]
        if filled is not None and not any(None in shape for shape in shapes):
            return [np.full((1, *shape), filled) for shape in shapes]
        masks = [self.known_masks.made(t) for t in node.outputs]
        booleans = [m for m in masks if m is not None and m.values.dtype == np.bool_]
        if len(booleans) < len(masks):
            return None
        if any(mask.from_data for mask in booleans):
            self.notes.append(FROM_DATA)
        return [mask.values for mask in booleans]

    def backward(self) -> None:
        """Computes the gradients of all tensors, for white noise at the outputs."""
        gradients: dict[int, Gradient] = {}
        for tensor in set(self.graph.outputs):
            signal = self.signals[tensor]
            parts = tuple(np.ones_like(m.mean) for _, m in signal.parts)
            gradients[tensor] = Gradient(parts)
        for node, outcome in zip(reversed(self.graph.nodes), reversed(self.outcomes), strict=True):
            outgoing = [gradients.get(t) for t in node.outputs]
            if all(g is None for g in outgoing):
                continue
            for tensor, gradient in zip(
                node.inputs, self._back(node, outcome, outgoing), strict=False
            ):
                if gradient is not None:
                    fitted = _fitted(gradient, self.signals[tensor])
                    gradients[tensor] = added(gradients.get(tensor), fitted)

    def _visit(self, node: Node, role: Role, at_output: bool) -> Outcome:
        shapes = self.graph.shapes
        call = Call(
            node,
            tuple(shapes[t] for t in node.inputs),
            tuple(shapes[t] for t in node.outputs),
        )
        visit = Visit(
            call,
            role,
            tuple(self.signals[t] for t in node.inputs),
            self._variance,
            self._forward,
            self._backward,
            self.notes.append,
            tuple(self.values.get(t) for t in node.inputs),
            at_output,
            self.known_masks,
            tuple(self.family.lineages[t] for t in node.inputs),
            tuple(self.family.reach[t] for t in node.inputs),
            self.family.reach_of,
            tuple(self.narrowness.get(t, 0.0) for t in node.inputs),
            self._renewed,
            tuple(self.sources.get(t) for t in node.inputs),
            self.family.ties,
            self.is_delta,
            self.scale_of,
        )
        return self._outcome(visit)

    def _back(
        self, node: Node, outcome: Outcome, outgoing: Sequence[Gradient | None]
    ) -> Sequence[Gradient | None]:
        try:
            return outcome.pullback(outgoing)
        except Exception as error:
            if RAISES:
                raise
            self.notes.append(
                f"{node.operation.name}: its gradient rule failed, {type(error).__name__}: {error}"
            )
            return [lost_gradient(self.signals[t]) for t in node.inputs]

    def _outcome(self, visit: Visit) -> Outcome:
        """The outcome of a call; unknown, with a note, if its rule raises an error."""
        said = len(self.notes)
        try:
            outcome = self._by_rule(visit)
        except Exception as error:
            if RAISES:
                raise
            return unknown(visit, f"its rule failed, {type(error).__name__}: {error}")
        came_known = bool(visit.inputs) and all(s.is_known() for s in visit.inputs)
        if came_known and len(self.notes) == said and not outcome.outputs[0].is_known():
            kind = type(visit.operation).__name__
            self.notes.append(
                f"{visit.operation.name} ({kind}): the moments of its output are not known: "
                "they are too large or too small, or the variance of its kernel is not known, or "
                "its kernel has a mean other than 0"
            )
        return outcome

    def _by_rule(self, visit: Visit) -> Outcome:
        """The outcome by the operation's rule for rows or signals, else unknown."""
        known = outcome_of_rows(visit)
        if known is not None:
            return known
        role, function = visit.role, signal_rule_of(visit.operation)
        if isinstance(role, Unknown) and not is_raw_operation(visit.operation):
            function = None  # the rule does not cover this case
        if not visit.inputs and not isinstance(role, Weights):
            return unknown(visit, "it has no input")
        if function is None:
            return unknown(visit, _reason_against(visit))
        if not takes_channel_axes(function) and any(s.other_axes for s in visit.inputs):
            return _flattened(visit, function)
        result = function(visit)
        return result if isinstance(result, Outcome) else _with_scaling(visit, result)

    def _renewed(self) -> float:
        self.has_renewed = True
        return self.alike

    def _variance(self, variable: Variable, gain: float) -> float:
        key = id(variable)
        if key not in self.variances:
            self.variances[key] = self.variance_of(variable, gain)
            self.gains[key] = gain
        return self.variances[key]

    def _forward(self, variable: Variable, second: float) -> None:
        self.forwards.setdefault(id(variable), second)

    def _backward(self, variable: Variable, second: float) -> None:
        # The walk is backward, so the first call of a layer comes last.
        self.backwards[id(variable)] = second


def _reason_against(visit: Visit) -> str:
    """Why an operation without a rule is not known."""
    if is_raw_operation(visit.operation):
        return reason_of(operation_name(visit.operation))
    return visit.role.reason if isinstance(visit.role, Unknown) else "it is not modelled"


def _flattened(visit: Visit, function: SignalRule) -> Outcome:
    """Applies a rule for a single channel dimension to signals with several."""
    originals = visit.inputs
    flat = tuple(map(flat_channels, originals, visit.call.input_shapes))
    visit = dataclasses.replace(visit, inputs=flat)
    result = function(visit)
    outcome = result if isinstance(result, Outcome) else _with_scaling(visit, result)

    def pullback(gradients: Sequence[Gradient | None]) -> Sequence[Gradient | None]:
        return [
            gradient and fitting(_fitted(gradient, one), one, other)
            for gradient, one, other in zip(
                outcome.pullback(gradients), flat, originals, strict=False
            )
        ]

    return dataclasses.replace(outcome, pullback=pullback)


def _fitted(gradient: Gradient, signal: Signal) -> Gradient:
    """The gradient by the classes of a signal, averaged if a rule returned other classes."""
    shapes = [m.mean.shape for _, m in signal.parts]
    if [g.shape for g in gradient.parts] == shapes:
        return gradient
    mean = float(np.mean([np.mean(g) for g in gradient.parts]))
    return gradient.with_parts(tuple(np.full(shape, mean) for shape in shapes))


def _no_gradient(node: Node, signals: dict[int, Signal]) -> Outcome:
    return Outcome(tuple(signals[t] for t in node.outputs), lambda _: [None] * len(node.inputs))


def _spread(values: Array) -> tuple[float, float, float]:
    if not values.size:
        return 0.0, 0.0, 0.0
    mean = float(np.mean(values))
    return mean, float(np.mean(values**2)), mean**2


def _without_loss(role: Role) -> Role:
    """Replaces a sigmoid at the model's output, which belongs to the loss, by the identity."""
    identity = Activation("softmax", lambda s: s, ("softmax",))
    if isinstance(role, Weights) and role.activation and role.activation.name == "sigmoid":
        return dataclasses.replace(role, activation=identity)
    if isinstance(role, Elementwise) and role.activation.name == "sigmoid":
        return Elementwise(identity)
    return role


def _with_scaling(visit: Visit, output: Signal) -> Outcome:
    """The outcome of a rule without a pullback: gradients scale like the signal."""
    first = visit.inputs[0]
    factor = output.second_moment / first.second_moment if first.second_moment else 1.0

    def pullback(gradients: Sequence[Gradient | None]) -> Sequence[Gradient | None]:
        gradient = gradients[0]
        back = None if gradient is None else fitting(gradient.scaled(factor), output, first)
        return [back, *[None] * (len(visit.inputs) - 1)]

    return Outcome((output,) * len(visit.call.output_shapes), pullback)
