"""Activations: layers, and operations of `keras.ops` on each entry alone.

Units are Gaussian given their input, so that E f² and E f'² are exact but for the input's length,
which 256 entries make almost certain.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import MAPS, VECTOR, Allowance, Case, conv, dense, maps, vector

L = keras.layers

# Of correlated positions: what has no effect here, but for the next kernel's window.
POSITIONS = Allowance(0.05, 0.05, "a pair of positions counts as typical, and widths as large")


def small(x):
    """Units of variance 1/5, for functions that grow like exp."""
    return dense(kernel_initializer=keras.initializers.VarianceScaling(0.2))(x)


def of_each_entry(kind, function, note="", front=vector, known=True):
    return Case(kind, front, lambda u: dense()(function(u)), VECTOR, note=note, known=known)


OPERATIONS = (
    of_each_entry("Absolute", ops.absolute),
    of_each_entry("Absolute", abs, "operator"),
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
    of_each_entry("ReLU", keras.activations.relu),
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

MORE_OPERATIONS = (
    of_each_entry("Arccos", lambda u: ops.arccos(0.9 * ops.tanh(u))),
    of_each_entry("Arccosh", lambda u: ops.arccosh(1.5 + ops.square(u))),
    of_each_entry("Arcsin", lambda u: ops.arcsin(0.9 * ops.tanh(u))),
    of_each_entry("Arctanh", lambda u: ops.arctanh(0.9 * ops.tanh(u))),
    of_each_entry("Cbrt", lambda u: ops.cbrt(2.0 + ops.square(u))),
    of_each_entry("Cosh", ops.cosh, front=small),
    of_each_entry("Deg2rad", ops.deg2rad),
    of_each_entry("Erfc", ops.erfc),
    of_each_entry("Erfinv", lambda u: ops.erfinv(0.9 * ops.tanh(u))),
    of_each_entry("Exp2", ops.exp2, front=small),
    of_each_entry("I0", ops.i0, front=small),
    of_each_entry("Log", lambda u: ops.log(2.0 + ops.square(u))),
    of_each_entry("Log10", lambda u: ops.log10(2.0 + ops.square(u))),
    of_each_entry("Log2", lambda u: ops.log2(2.0 + ops.square(u))),
    of_each_entry("NanToNum", ops.nan_to_num),
    of_each_entry("Rad2deg", ops.rad2deg),
    of_each_entry("Reciprocal", lambda u: ops.reciprocal(2.0 + ops.square(u))),
    of_each_entry("Rsqrt", lambda u: ops.rsqrt(2.0 + ops.square(u))),
    of_each_entry("Sinc", ops.sinc),
    of_each_entry("Sqrt", lambda u: ops.sqrt(2.0 + ops.square(u))),
    of_each_entry("Tan", lambda u: ops.tan(0.9 * ops.tanh(u))),
    of_each_entry("Log", ops.log, "not integrable", known=False),
    of_each_entry("Reciprocal", ops.reciprocal, "not integrable", known=False),
)


def step(kind, function, note="", back=0.5, **options):
    """A function of steps beside the signal itself, since no gradient comes back through it."""
    case = of_each_entry(kind, lambda u: back * u + function(u), note)
    return dataclasses.replace(case, **options)


def compared(kind, function, note="as a mask"):
    """A mask of the signal that it is made of."""
    return of_each_entry(kind, lambda u: u * ops.cast(function(u), "float32"), note)


STEPS = (
    step("Ceil", ops.ceil),
    step("Floor", ops.floor),
    step("Round", ops.round),
    step("Trunc", ops.trunc),
    step("Sign", ops.sign, "beside the signal"),
    # PyTorch does not differentiate these.
    step("FloorDivide", lambda u: ops.floor_divide(u, 0.7), not_on=("torch",)),
    step("Heaviside", lambda u: ops.heaviside(u, np.float32(0.5)), not_on=("torch",)),
    of_each_entry("Mod", lambda u: ops.mod(u, 0.9)),
    of_each_entry("Fmod", lambda u: ops.fmod(u, 0.9)),
    compared("Equal", lambda u: ops.equal(u, 0.3)),
    compared("NotEqual", lambda u: ops.not_equal(u, 0.3)),
    compared("Greater", lambda u: u > 0.3),
    compared("GreaterEqual", lambda u: u >= 0.3),
    compared("Less", lambda u: u < 0.3),
    compared("LessEqual", lambda u: u <= 0.3),
    compared("LogicalNot", lambda u: ops.logical_not(u > 0.3)),
    compared("Isfinite", ops.isfinite),
    compared("Isinf", lambda u: ops.logical_not(ops.isinf(u))),
    compared("Isnan", lambda u: ops.logical_not(ops.isnan(u))),
    compared("Isneginf", lambda u: ops.logical_not(ops.isneginf(u))),
    compared("Isposinf", lambda u: ops.logical_not(ops.isposinf(u))),
    compared("Signbit", ops.signbit),
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

CASES = (*OPERATIONS, *MORE_OPERATIONS, *STEPS, *LAYERS, *BETWEEN_CONVOLUTIONS)
