"""Embedding."""

import keras

from keras_varinit.families.kernels import Weighing, kernel_of, weight_rule
from keras_varinit.maths import fans
from keras_varinit.signals.outcome import Gradients, Outcome, Visit, alike
from keras_varinit.signals.registry import signal_rule
from keras_varinit.signals.roles import Call, Kernel, Role, Weights


@weight_rule(keras.layers.Embedding)
def _embedding_role(call: Call) -> Role:
    variable, shape = kernel_of(call.operation, "embeddings")
    return Weights((Kernel(variable, fans.embedding(shape)),))


@signal_rule(keras.layers.Embedding)
def _embedding(visit: Visit) -> Outcome:
    """Looks up a row per token; tokens count as uniform over the vocabulary."""
    role = visit.role
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    rows = role.kernels[0].variable.shape[0]
    unit = alike(visit.output_shape, -1, 0.0, 1.0, 1.0 / rows)
    weighing = Weighing(visit, role.kernels[0], unit.parts)
    output = weighing.output((0.0, 0.0), -1)

    def pullback(gradients: Gradients) -> Gradients:
        weighing.came_back(gradients[0], output)
        return [None] * len(visit.inputs)

    return Outcome((output,), pullback)
