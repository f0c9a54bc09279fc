"""Activations: layers, and operations of `keras.ops` on each entry alone.

Units are Gaussian given their input, so that E f² and E f'² are exact but for the input's length,
which 256 entries make almost certain.
"""

import keras
from keras import ops

from tests.rule_cases.case import MAPS, VECTOR, Allowance, Case, conv, dense, maps, vector

L = keras.layers

# Of correlated positions: what has no effect here, but for the next kernel's window.
POSITIONS = Allowance(0.05, 0.05, "a pair of positions counts as typical, and widths as large")


def small(x):
    """Units of variance 1/5, for functions that grow like exp."""
    return dense(kernel_initializer=keras.initializers.VarianceScaling(0.2))(x)


def of_each_entry(kind, function, note="", front=vector):
    return Case(kind, front, lambda u: dense()(function(u)), VECTOR, note=note)


OPERATIONS = (
    of_each_entry("Absolute", ops.absolute),
    of_each_entry("Abs", abs),
    of_each_entry("Fabs", ops.fabs),
    of_each_entry("Arctan", ops.arctan),
    of_each_entry("Arcsinh", ops.arcsinh),
    of_each_entry("Celu", lambda u: ops.celu(u, 0.7)),
    of_each_entry("Clip", lambda u: ops.clip(u, -1.0, 0.5)),
    of_each_entry("Cos", ops.cos),
    of_each_entry("Elu", lambda u: ops.elu(u, 1.5)),
    of_each_entry("Erf", ops.erf),
    of_each_entry("Exp", ops.exp, front=small),
    of_each_entry("Expm1", ops.expm1, front=small),
    of_each_entry("Gelu", ops.gelu),
    of_each_entry("Gelu", lambda u: ops.gelu(u, approximate=False), "exact"),
    of_each_entry("HardShrink", ops.hard_shrink),
    of_each_entry("HardSigmoid", ops.hard_sigmoid),
    of_each_entry("HardSilu", ops.hard_silu),
    of_each_entry("HardTanh", ops.hard_tanh),
    of_each_entry("LeakyRelu", lambda u: ops.leaky_relu(u, 0.3)),
    of_each_entry("Log1p", lambda u: ops.log1p(ops.relu(u))),
    of_each_entry("LogSigmoid", ops.log_sigmoid),
    of_each_entry("Negative", ops.negative),
    of_each_entry("Relu", ops.relu),
    of_each_entry("Relu6", lambda u: ops.relu6(4 * u)),
    of_each_entry("Selu", ops.selu),
    of_each_entry("Sigmoid", ops.sigmoid),
    of_each_entry("Sign", ops.sign),
    of_each_entry("Silu", ops.silu),
    of_each_entry("Sin", ops.sin),
    of_each_entry("Sinh", ops.sinh, front=small),
    of_each_entry("SoftShrink", ops.soft_shrink),
    of_each_entry("Softplus", ops.softplus),
    of_each_entry("Softsign", ops.softsign),
    of_each_entry("SparsePlus", ops.sparse_plus),
    of_each_entry("SparseSigmoid", ops.sparse_sigmoid),
    of_each_entry("Square", ops.square),
    of_each_entry("Squareplus", lambda u: ops.squareplus(u, 3)),
    of_each_entry("Tanh", ops.tanh),
    of_each_entry("TanhShrink", ops.tanh_shrink),
    of_each_entry("Threshold", lambda u: ops.threshold(u, 0.3, -1.0)),
)

LAYERS = (
    of_each_entry(L.Activation, lambda u: L.Activation("tanh")(u)),
    of_each_entry(L.Activation, lambda u: L.Activation("mish")(u), "by a function"),
    of_each_entry(L.ReLU, lambda u: L.ReLU()(u)),
    of_each_entry(L.ReLU, lambda u: L.ReLU(1.0, 0.3, 0.5)(u), "with parameters"),
    of_each_entry(L.LeakyReLU, lambda u: L.LeakyReLU(negative_slope=0.4)(u)),
    of_each_entry(
        L.PReLU, lambda u: L.PReLU(alpha_initializer=keras.initializers.Constant(0.3))(u)
    ),
    of_each_entry(L.ELU, lambda u: L.ELU(0.6)(u)),
)


def between_convolutions(kind, function):
    return Case(kind, maps, lambda u: conv(64)(function(u)), MAPS, POSITIONS, "maps", examples=4)


BETWEEN_CONVOLUTIONS = (
    between_convolutions("Relu", ops.relu),
    between_convolutions("Tanh", ops.tanh),
    between_convolutions("Gelu", ops.gelu),
    between_convolutions("Sigmoid", ops.sigmoid),
    between_convolutions(L.LeakyReLU, lambda u: L.LeakyReLU(negative_slope=0.4)(u)),
)

CASES = (*OPERATIONS, *LAYERS, *BETWEEN_CONVOLUTIONS)
