"""Cells of SimpleRNN, LSTM, GRU and ConvLSTM: kernels with fans, parameters, and recurrences."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.families.activations import activation_of
from keras_varinit.families.kernels import kernel_of, weight_rule
from keras_varinit.keras_private import own_variable
from keras_varinit.maths import fans
from keras_varinit.maths.activated import IDENTITY
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.recurrence import (
    Cell,
    Moment,
    States,
    Steps,
    gru_recurrence,
    lstm_recurrence,
    simple_recurrence,
)
from keras_varinit.maths.windows import Array
from keras_varinit.signals.registry import layer_classes
from keras_varinit.signals.roles import (
    Call,
    Kernel,
    Role,
    Unknown,
    Weights,
    per_dimension,
    spatial_shape,
)
from keras_varinit.tensors import view
from keras_varinit.typing import Layer

_GATES = {keras.layers.SimpleRNNCell: 1, keras.layers.GRUCell: 3, keras.layers.LSTMCell: 4}


@weight_rule(keras.layers.RNN)
def _recurrent_role(call: Call) -> Role:
    """The kernel and recurrent kernel of each cell; stacked cells have rising levels.

    The activation of the last cell begins the stage that follows.
    """
    cell = call.operation.cell
    cells = list(getattr(cell, "cells", [cell]))
    kernels = []
    for level, each in enumerate(cells):
        gates = next((n for cls, n in _GATES.items() if isinstance(each, cls)), None)
        if gates is None:
            return Unknown(f"the cell {type(each).__name__} has no rule")
        variable, shape = kernel_of(each)
        recurrent, recurrent_shape = kernel_of(each, "recurrent_kernel")
        kernels += [
            Kernel(variable, fans.recurrent(shape, gates), level),
            Kernel(recurrent, fans.recurrent(recurrent_shape, gates), level, True),
        ]
    return Weights(tuple(kernels), activation_of(cells[-1].activation))


@weight_rule(*layer_classes("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"))
def _conv_lstm_role(call: Call) -> Role:
    """Two convolutions with four gates on the last axis; the fan-out counts one gate."""
    layer, cell = call.operation, call.operation.cell
    shapes = call.input_shapes[0]
    inputs = spatial_shape((shapes[0], *shapes[2:]), layer.data_format)
    strides, dilation = (per_dimension(v, cell.rank) for v in (cell.strides, cell.dilation_rate))
    variable, shape = kernel_of(cell)
    recurrent, recurrent_shape = kernel_of(cell, "recurrent_kernel")
    counts = fans.conv(
        (*shape[:-1], shape[-1] // 4),
        inputs,
        strides=strides,
        padding=cell.padding,
        dilation=dilation,
    )
    ones = (1,) * cell.rank
    outputs = call.output_shapes[0]
    if layer.return_sequences:
        outputs = (outputs[0], *outputs[2:])
    own = fans.conv(
        (*recurrent_shape[:-1], recurrent_shape[-1] // 4),
        spatial_shape(outputs, layer.data_format),
        strides=ones,
        padding="same",
        dilation=ones,
    )
    kernels = (Kernel(variable, counts), Kernel(recurrent, own, 0, True))
    return Weights(kernels, activation_of(cell.activation))


# The function that computes the states of a cell over all steps.
Law = Callable[[Steps, Cell, Sequence[Moment]], States]

KINDS: tuple[tuple[type, int, Law], ...] = (
    (keras.layers.SimpleRNNCell, 1, simple_recurrence),
    (keras.layers.LSTMCell, 4, lstm_recurrence),
    (keras.layers.GRUCell, 3, gru_recurrence),
)

_OF_ROWS = ("softmax", "log_softmax", "sparsemax")


class NotModelledError(Exception):
    """A recurrent layer is not modelled; the message says why."""


def kind_of(cell: Layer) -> tuple[type, int, Law]:
    """The class of a cell, its number of gates and its recurrence."""
    return next(kind for kind in KINDS if isinstance(cell, kind[0]))


def numbers_of(cell: Layer, gates: int, scale: float) -> Cell:
    """A cell's activations, biases and dropout.

    `scale` is the variance of the recurrent kernel times its number of units.
    """
    biases = _biases(cell, gates)
    return Cell(
        scale,
        _activation(cell.activation),
        _activation(getattr(cell, "recurrent_activation", None)),
        biases[0],
        biases[1],
        1 - float(cell.recurrent_dropout),
        bool(getattr(cell, "reset_after", True)),
    )


def _activation(function: Any) -> Activation:
    try:
        activation = activation_of(function)
    except ValueError as error:
        raise NotModelledError(str(error)) from error
    if activation is not None and activation.name in _OF_ROWS:
        raise NotModelledError(f"its activation {activation.name} acts on rows")
    if activation is None and isinstance(function, keras.Layer):
        raise NotModelledError(f"its activation {type(function).__name__} is not modelled")
    return IDENTITY if activation is None else activation


def _biases(cell: Layer, gates: int) -> Array:
    """(2, gates, units): the biases of W x, and those of U h if it has its own."""
    variable, units = own_variable(cell, "bias"), int(cell.units)
    biases = np.zeros((2, gates, units))
    if variable is None:
        return biases
    if isinstance(cell.bias_initializer, keras.initializers.Zeros):
        if getattr(cell, "unit_forget_bias", False):
            biases[0, 1] = 1.0
        return biases
    values = np.asarray(view(variable), np.float64).reshape(-1, gates, units)
    biases[: len(values)] = values
    return biases
