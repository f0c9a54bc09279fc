"""Computes one `LayerContext` per kernel from a model's graph.

Conventions for graphs that are not a chain:

* Depth is the number of kernels on the longest path from an input, including this one. The two
  kernels of a separable convolution count one after the other.
* The activation and pooling of a layer are those that follow it. Normalization, dropout, reshaping
  and merges (add, concatenate, …) are passed through. Where a tensor is used more than once, the
  branch that reaches a weight layer through the fewest operations is followed, the earlier one on
  a tie. The stage ends at the next weight layer, a model output, or an operation without a rule.
* The stage that a layer reads begins at a weight layer or at a merge, whose result counts as a
  unit-variance pre-activation. A concatenation read directly has the mean second moment of its
  parts, weighted by their channels. Everything before the first weight layer counts as the model's
  input, with second moment 1.
* A layer that is called more than once has the context of its first call.
* Softmax, and a sigmoid that leads directly to a model output, belong to the loss. They count as
  the identity, because the gradient of the loss is taken with respect to their inputs.
"""

import contextlib
import math

from keras_varinit.analysis.closed import FAN_FIELDS, completed, may_be_kernel
from keras_varinit.analysis.labelling import Labelled, labelled
from keras_varinit.analysis.result import Reading
from keras_varinit.analysis.roles import with_roles
from keras_varinit.analysis.stages import Gains, LookingAhead, StageAhead, looking_back
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
)
from keras_varinit.signals.roles import (
    Kernel,
    Weights,
)
from keras_varinit.tracing.names import variable_names
from keras_varinit.tracing.opening import NotFollowedError, build_graph
from keras_varinit.tracing.reader import Graph, Node, takes_training
from keras_varinit.typing import Model, Operation

Names = dict[int, tuple[str, str, str]]


def read(model: Model) -> Reading:
    """Reads the context of every kernel from a built model, which is not changed.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if it is not built.
    """
    names = variable_names(check_built(model))
    try:
        graph = build_graph(model, is_known)
    except NotFollowedError as error:
        notes = (f"{error} {_BY_CLASS_ALONE}",)
        unknown = ((model.name, "its `call` cannot be followed; " + _BY_CLASS_ALONE),)
        reading = completed(Reading(Graph(), notes=notes, unknown=unknown), model, names)
        return with_roles(reading, model, names)
    reading = with_contexts(labelled(graph), names)
    if functional_of(model) is None and takes_training(model) and _lacks_kernels(reading, model):
        # Layers used only in training may not be built; the rest is known without them.
        with contextlib.suppress(ValueError):
            graph = build_graph(model, is_known, training=True)
            reading = with_contexts(labelled(graph), names).preferring(reading)
    return with_roles(completed(reading, model, names), model, names)


_BY_CLASS_ALONE = (
    "Contexts are derived from the kernels' shapes and their layers' classes, depths from the "
    "order in which the layers were created."
)


def is_known(operation: Operation) -> bool:
    """Whether an operation has a rule, so that it stays a single node of the graph.

    A user's class that overrides `call` does not inherit the rules of its base class.
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


def _lacks_kernels(reading: Reading, model: Model) -> bool:
    """Whether a layer with kernel-like weights has a context for none of them."""
    return any(
        any(may_be_kernel(v) for v in variables)
        and not any(reading.context_of(v) or reading.reason_to_leave(v) for v in variables)
        for layer in [model, *layers_of(model)]
        for variables in [own_variables(layer)]
    )


def with_contexts(model: Labelled, names: Names) -> Reading:
    """The context of every kernel that the graph explains."""
    return _Contexts(model, names).reading()


class _Contexts:
    def __init__(self, model: Labelled, names: Names) -> None:
        self.model, self.names = model, names
        self.notes = list(model.notes)
        self.gains = Gains()
        self.behind = looking_back(model, self.gains)
        self.ahead = LookingAhead(model)

    def reading(self) -> Reading:
        layers = [
            (node, role)
            for node, role in zip(self.model.graph.nodes, self.model.roles, strict=True)
            if isinstance(role, Weights)
        ]
        total_depth = max((self.behind.depths[node.outputs[0]] for node, _ in layers), default=0)
        if total_depth == 0:
            self.notes.append("no weight layer was found")
        by_variable: dict[int, LayerContext] = {}
        for node, role in layers:
            for kernel in role.kernels:
                context = self._context(node, role, kernel, total_depth)
                by_variable.setdefault(id(kernel.variable), context)
        return Reading(
            self.model.graph,
            self.model.roles,
            self.behind.depths,
            by_variable,
            tuple(dict.fromkeys(self.notes)),
            self.model.unknown,
            self.model.left_alone(),
        )

    def _context(self, node: Node, role: Weights, kernel: Kernel, total_depth: int) -> LayerContext:
        path, layer, stream = self.names[id(kernel.variable)]
        levels = 1 + max(each.level for each in role.kernels)
        is_last = kernel.level == levels - 1
        ahead = self.ahead.from_layer(node, role) if is_last else StageAhead()
        self.notes += ahead.pools_unknown_size * [
            f"{path}: the pooled map has an unknown size, so pooling is left out"
        ]
        if kernel.reads_own_output and role.activation is not None:
            tau = self.gains.of((role.activation,))[0]
        elif kernel.level == 0:
            tau = self.gains.second_moment(self.behind.stages[node.inputs[0]])
        else:
            tau = 1.0
        gamma = self.gains.of(ahead.steps)[1]
        if not (0 < tau < math.inf and 0 < gamma < math.inf):
            # For example x**-0.5, or sign, whose slope is 0.
            self.notes.append(f"{path}: an adjacent stage has no gains, so they count as 1")
            tau, gamma = (gain if 0 < gain < math.inf else 1.0 for gain in (tau, gamma))
        if kernel.fans.connections is None:
            self.notes.append(f"{path}: a spatial size is unknown, so the interior limit is used")
        return LayerContext(
            path=path,
            layer=layer,
            stream=stream,
            kernel_shape=tuple(int(n) for n in kernel.variable.shape),
            depth=self.behind.depths[node.outputs[0]] - levels + 1 + kernel.level,
            total_depth=total_depth,
            activation=ahead.activation,
            pooling=ahead.pooling,
            pool_size=ahead.pool_size,
            forward_gain=tau,
            backward_gain=gamma,
            **{name: getattr(kernel.fans, name) for name in FAN_FIELDS},
        )
