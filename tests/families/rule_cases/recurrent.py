"""Recurrent layers: every kind of cell, all steps or the last, both directions, long sequences.

`tests/families/test_recurrent.py` measures the kernels inside.
"""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import (
    LINE,
    TOKENS,
    VECTOR,
    Allowance,
    Case,
    dense,
    line,
    tokens,
    vector,
)

L = keras.layers

# The paths of an LSTM or GRU are those of 4,096 units, and widths count as large.
PATHS = Allowance(0.03, 0.04, "widths count as large, and the law is that of 4,096 paths")
LONG = Allowance(0.04, 0.06, "steps in the middle of a long sequence count as settled")


def recurrent(layer, note, front=tokens, shape=TOKENS, **options):
    """`layer()` makes the layer, or a function that calls one."""
    options = {"allowance": PATHS, "precision": 0.015, "draws": 256, **options}
    kinds = options.pop("kinds", L.RNN)
    allowance = options.pop("allowance")

    def back(u):
        return dense(256)(layer()(ops.relu(u)))

    return Case(kinds, front, back, shape, allowance, note, **options)


def both(merge_mode, layer=None, **options):
    def make():
        return L.Bidirectional(layer or L.SimpleRNN(64, return_sequences=True), merge_mode)

    return recurrent(make, str(merge_mode), kinds=L.Bidirectional, **options)


def joined(u):
    return L.Concatenate()(L.Bidirectional(L.GRU(64), None)(u))


def from_states(u):
    states = L.RNN([L.LSTMCell(64), L.GRUCell(64)], return_state=True)(u)[1:]
    return L.Concatenate()(keras.tree.flatten(states))


def pooled(*layers):
    def apply(u):
        for layer in layers:
            u = layer(u)
        return L.GlobalAveragePooling1D()(u)

    return apply


def encoder_and_decoder(u):
    *_, h, c = L.LSTM(96, return_state=True)(u)
    return L.LSTM(96, return_sequences=True)(u, initial_state=[h, c])


def between(u):
    """The gradient that fades is that of single steps, also through what stands between."""
    inner = L.Bidirectional(L.GRU(64, return_sequences=True))(u)
    return L.SimpleRNN(96)(L.LayerNormalization()(L.Dropout(0.2)(inner)))


def from_given_state(u):
    return L.GRU(96)(u, initial_state=dense(96)(L.GlobalAveragePooling1D()(u)))


def from_numbers(u):
    return L.SimpleRNN(64)(u, initial_state=[np.ones((8, 64))])


CASES = (
    recurrent(lambda: L.SimpleRNN(128, return_sequences=True), "steps"),
    recurrent(lambda: L.SimpleRNN(128, "relu"), "last-relu", draws=512),
    recurrent(lambda: L.SimpleRNN(128, go_backwards=True), "backwards", line, LINE),
    recurrent(lambda: L.LSTM(128, return_sequences=True), "lstm-steps", line, LINE),
    recurrent(lambda: L.LSTM(128, use_bias=False), "lstm-last"),
    recurrent(lambda: L.LSTM(128, dropout=0.3, recurrent_dropout=0.2), "lstm-dropout"),
    recurrent(lambda: L.GRU(128, return_sequences=True), "gru-steps", line, LINE),
    recurrent(lambda: L.GRU(128, reset_after=False, dropout=0.3), "gru-before"),
    recurrent(lambda: L.RNN(L.LSTMCell(128), return_sequences=True), "cell"),
    recurrent(lambda: L.RNN([L.LSTMCell(96), L.SimpleRNNCell(96)]), "cells"),
    recurrent(lambda: from_states, "states"),
    recurrent(lambda: pooled(L.LSTM(96, return_sequences=True)), "pooled"),
    recurrent(
        lambda: pooled(L.GRU(96, return_sequences=True), L.SimpleRNN(96, return_sequences=True)),
        "two-pooled",
    ),
    recurrent(
        lambda: lambda u: L.LSTM(96, return_sequences=True)(L.RepeatVector(8)(u)),
        "repeated",
        vector,
        VECTOR,
    ),
    recurrent(lambda: L.LSTM(96), "long-last", shape=(150, 16), allowance=LONG, examples=4),
    recurrent(
        lambda: pooled(L.GRU(96, return_sequences=True)),
        "long-pooled",
        shape=(150, 16),
        allowance=LONG,
        examples=4,
    ),
    recurrent(lambda: L.LSTM(96), "any-length", shape=(None, 16), known=False),
    recurrent(lambda: encoder_and_decoder, "encoder-decoder"),
    recurrent(lambda: from_given_state, "given-state"),
    recurrent(lambda: from_numbers, "given-numbers", known=False),
    recurrent(lambda: between, "dropout-between"),
    both("concat", L.LSTM(64)),
    both("sum"),
    both("ave"),
    both("mul"),
    recurrent(lambda: joined, "none", kinds=L.Bidirectional),
)
