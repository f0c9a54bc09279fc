"""Activations: layers, and operations of `keras.ops` on each entry alone."""

import keras
from keras import ops

from tests.rule_cases.case import FINITE, MAPS, VECTOR, Case, conv, dense, maps, vector

L = keras.layers

CASES = (
    Case("Relu", vector, lambda u: dense()(ops.relu(u)), VECTOR),
    Case(L.ReLU, maps, lambda u: conv(64)(L.ReLU()(u)), MAPS, FINITE),
)
