"""The signal engine: one walk forward over the graph for moments, one back for gradients.

Averages are over random weights and over inputs of independent entries; widths count as large.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.analysis import (
    attention_signals,
    pointwise_signals,
    pooling_signals,
    shape_signals,
    weight_signals,
)
from keras_varinit.analysis.masks import Masks
from keras_varinit.analysis.reader import Graph, Node
from keras_varinit.analysis.rules import (
    Call,
    Concatenation,
    Elementwise,
    Merge,
    Pooling,
    Role,
    Source,
    Transparent,
    Unknown,
    Weights,
)
from keras_varinit.analysis.signals import (
    Gradient,
    Outcome,
    Signal,
    Visit,
    alike,
    signal_rule_of,
)
from keras_varinit.moments import Activation

# Importing these registers the rules of Keras's own layers.
_RULES = (attention_signals, pointwise_signals, pooling_signals, shape_signals, weight_signals)

Variances = Callable[[Any, float], float]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the engine says of one kernel's output u, at the first call of its layer.

    `forward` is E u²; `backward` is E (dL/du)² where the gradient at the model's outputs, in front
    of a last softmax or sigmoid, is white noise of unit variance; `gain` is E u² for a kernel of
    variance 1. None is what is not known.
    """

    forward: float | None = None
    backward: float | None = None
    gain: float | None = None


def propagate(
    graph: Graph,
    roles: Sequence[Role],
    variance_of: Variances,
    *,
    input_mean: float = 0.0,
    input_variance: float = 1.0,
    backward: bool = True,
) -> tuple[dict[int, Prediction], list[str]]:
    """Predictions by the `id` of the kernel's variable, and notes on what is not known.

    `variance_of(variable, gain)` is the variance of a kernel's entries, NaN where it is not known.
    """
    engine = _Engine(graph, roles, variance_of)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        engine.forward(input_mean, input_variance)
        if backward:
            engine.backward()
    keys = list(engine.forwards)
    return {
        key: Prediction(
            _known(engine.forwards[key]),
            _known(engine.backwards.get(key, math.nan)),
            _known(engine.gains.get(key, math.nan)),
        )
        for key in keys
    }, list(dict.fromkeys(engine.notes))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Engine:
    def __init__(self, graph: Graph, roles: Sequence[Role], variance_of: Variances) -> None:
        self.graph = graph
        self.roles = roles
        self.variance_of = variance_of
        self.signals: dict[int, Signal] = {}
        self.outcomes: list[Outcome] = []
        self.variances: dict[int, float] = {}
        self.forwards: dict[int, float] = {}
        self.backwards: dict[int, float] = {}
        self.gains: dict[int, float] = {}
        self.notes: list[str] = []
        self.known_masks = Masks(graph)
        self.masks: set[int] = set()  # what comparisons make, which only matters in arithmetic

    def forward(self, mean: float, variance: float) -> None:
        for tensor in self.graph.inputs:
            shape = self.graph.shapes[tensor]
            channels_first = keras.config.image_data_format() == "channels_first"
            axis = 1 if channels_first and len(shape) > 3 else -1
            self.signals[tensor] = alike(shape, axis, mean, variance + mean**2, mean**2)
        for tensor, value in self.graph.constants.items():
            values = np.asarray(keras.ops.convert_to_numpy(value), np.float64)
            mean, second = float(np.mean(values)), float(np.mean(values**2))
            self.signals[tensor] = alike(self.graph.shapes[tensor], -1, mean, second, mean**2)
        outputs = set(self.graph.outputs)
        for node, role in zip(self.graph.nodes, self.roles, strict=True):
            at_output = all(t in outputs for t in node.outputs)
            outcome = self._visit(node, _without_loss(role) if at_output else role)
            self.outcomes.append(outcome)
            for tensor, signal in zip(node.outputs, outcome.outputs, strict=False):
                self.signals[tensor] = signal
            for tensor in node.outputs:
                if tensor not in self.signals:
                    self.signals[tensor] = outcome.outputs[0]

    def backward(self) -> None:
        gradients: dict[int, Gradient] = {}
        for tensor in set(self.graph.outputs):
            signal = self.signals[tensor]
            parts = tuple(np.ones_like(m.mean) for _, m in signal.parts)
            gradients[tensor] = Gradient(parts)
        for node, outcome in zip(reversed(self.graph.nodes), reversed(self.outcomes), strict=True):
            given = [gradients.get(t) for t in node.outputs]
            if all(g is None for g in given):
                continue
            for tensor, gradient in zip(node.inputs, outcome.pullback(given), strict=False):
                if gradient is not None:
                    gradients[tensor] = _total(
                        gradients.get(tensor), _fitting(gradient, self.signals[tensor])
                    )

    def _visit(self, node: Node, role: Role) -> Outcome:
        shapes = self.graph.shapes
        call = Call(
            node,
            tuple(shapes[t] for t in node.inputs),
            tuple(shapes[t] for t in node.outputs),
        )
        inputs = tuple(self.signals[t] for t in node.inputs)
        self.known_masks.visit(node)
        self._follow_masks(node, role)
        visit = Visit(
            call,
            role,
            inputs,
            self._variance,
            self._forward,
            self._backward,
            self.notes.append,
            self.known_masks,
        )
        return self._outcome(visit)

    def _outcome(self, visit: Visit) -> Outcome:
        role, function = visit.role, signal_rule_of(visit.operation)
        # What a rule of Keras's own layers does not cover, its role says; nor do rules make signals
        # out of nothing but their kernels.
        if isinstance(role, Unknown) or not (visit.inputs or isinstance(role, Weights)):
            function = None
        if function is not None:
            result = function(visit)
            return result if isinstance(result, Outcome) else _with_scaling(visit, result)
        if isinstance(role, Source) and visit.inputs:
            return shape_signals.unknown(visit)
        if isinstance(role, Source | Unknown) or not visit.inputs:
            self.notes.append(f"{visit.operation.name}: the scale of its output is not known")
            return shape_signals.unknown(visit)
        if isinstance(role, Weights):
            return weight_signals.general_kernels(visit)
        if isinstance(role, Elementwise):
            return pointwise_signals.after_activation(visit.inputs[0], role.activation)
        if isinstance(role, Merge):
            return shape_signals.merged(visit)
        if isinstance(role, Concatenation):
            return shape_signals.concatenated(visit)
        if isinstance(role, Transparent) and role.normalizes:
            return pointwise_signals.position_normalization(visit)
        if isinstance(role, Pooling):
            self.notes.append(f"{visit.operation.name}: this pooling is not modelled")
            return shape_signals.unknown(visit)
        return shape_signals.reshaped(visit)

    def _follow_masks(self, node: Node, role: Role) -> None:
        read = [t in self.masks for t in node.inputs]
        if isinstance(role, Source):
            self.masks.update(node.outputs)
        elif not any(read):
            return
        elif len(read) == 1 and not isinstance(role, Weights):
            self.masks.update(node.outputs)
        elif read[0] or isinstance(role, Merge | Concatenation):
            self.notes.append(f"{node.operation.name}: the scale of its mask is not known")

    def _variance(self, variable: Any, gain: float) -> float:
        key = id(variable)
        if key not in self.variances:
            self.variances[key] = self.variance_of(variable, gain)
            self.gains[key] = gain
        return self.variances[key]

    def _forward(self, variable: Any, second: float) -> None:
        self.forwards.setdefault(id(variable), second)

    def _backward(self, variable: Any, second: float) -> None:
        # The walk is backwards: the first call of a layer comes last.
        self.backwards[id(variable)] = second


def _without_loss(role: Role) -> Role:
    """A sigmoid at the model's output belongs to the loss."""
    identity = Activation("softmax", lambda s: s, ("softmax",))
    if isinstance(role, Weights) and role.activation and role.activation.name == "sigmoid":
        return dataclasses.replace(role, activation=identity)
    if isinstance(role, Elementwise) and role.activation.name == "sigmoid":
        return Elementwise(identity)
    return role


def _with_scaling(visit: Visit, output: Signal) -> Outcome:
    """A rule without a pullback: gradients come back with the signal's change of scale."""
    first = visit.inputs[0]
    factor = output.second_moment / first.second_moment if first.second_moment else 1.0

    def pullback(gradients: Sequence[Gradient | None]) -> Sequence[Gradient | None]:
        gradient = gradients[0]
        back = None if gradient is None else _fitting(gradient.scaled(factor), first)
        return [back, *[None] * (len(visit.inputs) - 1)]

    return Outcome((output,) * len(visit.call.output_shapes), pullback)


def _fitting(gradient: Gradient, signal: Signal) -> Gradient:
    """The gradient on the classes of a signal, averaged where a rule left others."""
    shapes = [m.mean.shape for _, m in signal.parts]
    if [g.shape for g in gradient.parts] == shapes:
        return gradient
    mean = float(np.mean([np.mean(g) for g in gradient.parts]))
    return gradient.with_parts(tuple(np.full(shape, mean) for shape in shapes))


def _total(first: Gradient | None, second: Gradient) -> Gradient:
    """Gradients of two uses of a tensor: independent, since different weights made them."""
    if first is None:
        return second
    parts = tuple(a + b for a, b in zip(first.parts, second.parts, strict=True))
    one, two = (float(np.mean([np.mean(g) for g in each.parts])) for each in (first, second))
    weight = one + two
    coherence = (one * first.coherence + two * second.coherence) / weight if weight else 0.0
    local = (one * first.local + two * second.local) / weight if weight else 0.0
    return Gradient(parts, coherence, local)
