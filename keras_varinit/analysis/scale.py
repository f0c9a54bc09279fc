"""The scale of the signal under the weights that a model has now, to first order.

Positions and channels count as independent, inputs as unit white noise, and a normalization layer
puts the scale back to one. So it is a check for networks that die or explode, by orders of
magnitude; it does not see what correlation between positions does.
"""

import math
from typing import Any

import keras
import numpy as np

from keras_varinit.analysis.reader import Graph, Node
from keras_varinit.analysis.rules import (
    Concatenation,
    Elementwise,
    Padding,
    Pooling,
    Role,
    Transparent,
    Weights,
)
from keras_varinit.context import LayerContext
from keras_varinit.moments import Activation, stage_gains

_Carried = tuple[float, tuple[Any, ...]]


def output_scales(
    graph: Graph, roles: list[Role], contexts: dict[int, LayerContext]
) -> dict[int, float]:
    """E u² of what each kernel puts out, by the `id` of its variable."""
    carried: list[_Carried] = [(1.0, ())] * len(graph.shapes)
    scales: dict[int, float] = {}
    for node, role in zip(graph.nodes, roles, strict=True):
        inputs = [carried[t] for t in node.inputs]
        if isinstance(role, Weights):
            result = _after_weights(role, inputs, contexts, scales)
        else:
            result = _after(graph, node, role, inputs)
        for tensor in node.outputs:
            carried[tensor] = result
    return scales


def _after_weights(
    role: Weights,
    inputs: list[_Carried],
    contexts: dict[int, LayerContext],
    scales: dict[int, float],
) -> _Carried:
    scale = _second_moment(inputs[0]) if inputs else 1.0
    for level in range(1 + max(kernel.level for kernel in role.kernels)):
        after = scale
        for kernel in role.kernels:
            context = contexts.get(id(kernel.variable))
            if kernel.level != level or kernel.reads_own_output or context is None:
                continue
            values = np.asarray(keras.ops.convert_to_numpy(kernel.variable), np.float32)
            after = scale * float(np.mean(np.square(values))) * context.mean_fan_in
            scales.setdefault(id(kernel.variable), after)
        scale = after
    return scale, (() if role.activation is None else (role.activation,))


def _after(graph: Graph, node: Node, role: Role, inputs: list[_Carried]) -> _Carried:
    if not inputs:
        return 1.0, ()
    scale, steps = inputs[0]
    if isinstance(role, Elementwise):
        return scale, (*steps, role.activation)
    if isinstance(role, Pooling):
        step = role.step()
        return scale, steps if step is None else (*steps, step)
    if isinstance(role, Transparent) and role.normalizes:
        return 1.0, ()
    if isinstance(role, Transparent | Padding) or len(inputs) == 1:
        return scale, steps
    moments = [_second_moment(each) for each in inputs]
    if isinstance(role, Concatenation):
        sizes = [graph.shapes[t][role.axis] or 1 for t in node.inputs]
        weighted = sum(m * n for m, n in zip(moments, sizes, strict=True))
        return weighted / sum(sizes), ()
    if type(node.operation).__name__ == "Multiply":
        return math.prod(moments), ()
    return sum(moments), ()


def _second_moment(carried: _Carried) -> float:
    """Second moment behind the steps of a stage whose pre-activations have that scale."""
    scale, steps = carried
    if not steps or scale == 0.0 or not math.isfinite(scale):
        return scale
    spread = math.sqrt(scale)
    widened = Activation("scale", lambda s: spread * s, (spread,))
    return stage_gains((widened, *steps))[0]
