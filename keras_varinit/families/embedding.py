"""Embedding, whose table counts as the kernel."""

import dataclasses

import keras
import numpy as np

from keras_varinit.families.kernels import Weighing, kernel_of, weight_rule
from keras_varinit.maths import fans
from keras_varinit.maths.windows import Array
from keras_varinit.signals.outcome import Gradients, Outcome, Visit, alike
from keras_varinit.signals.registry import signal_rule
from keras_varinit.signals.roles import Call, Kernel, Role, Weights


@weight_rule(keras.layers.Embedding)
def _embedding_role(call: Call) -> Role:
    variable, shape = kernel_of(call.operation, "embeddings")
    return Weights((Kernel(variable, fans.embedding(shape)),))


@signal_rule(keras.layers.Embedding)
def _embedding(visit: Visit) -> Outcome:
    """Looks up a row per token; tokens that are not known count as uniform over the vocabulary."""
    role = visit.role
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    tokens = visit.values[0] if visit.values else None
    rows = role.kernels[0].variable.shape[0]
    same = 1.0 / rows if tokens is None else _equal(tokens)
    unit = alike(visit.output_shape, -1, 0.0, 1.0, same)
    weighing = Weighing(visit, role.kernels[0], unit.parts)
    output = weighing.output((0.0, 0.0), -1)
    if tokens is not None and tokens.ndim == 1:
        output = dataclasses.replace(output, lead=same)

    def pullback(gradients: Gradients) -> Gradients:
        weighing.came_back(gradients[0], output)
        return [None] * len(visit.inputs)

    return Outcome((output,), pullback)


def _equal(tokens: Array) -> float:
    """The share of pairs of places with the same token."""
    counts = np.unique(tokens, return_counts=True)[1].astype(np.float64)
    pairs = tokens.size * (tokens.size - 1)
    return float(np.sum(counts * (counts - 1)) / pairs) if pairs else 0.0
