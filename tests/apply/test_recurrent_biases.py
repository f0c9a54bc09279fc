"""Biases of recurrent layers that initializers of this library own."""

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit import keras_private
from tests.apply.test_vectors import DONE

L = keras.layers


def recurrent(bias, layer=L.LSTM, **options):
    inputs = keras.Input((30, 4))
    x = layer(6, name="recurrent", bias_initializer=bias, **options)(inputs)
    return keras.Model(inputs, L.Dense(2)(x))


@pytest.mark.parametrize("flag", [True, False])
def test_lstm_gets_times_and_says_in_its_configuration_that_keras_must_not_set_a_gate(flag):
    model = recurrent(kv.ChronoBias(seed=2), unit_forget_bias=flag)
    cell = model.get_layer("recurrent").cell
    built = keras.ops.convert_to_numpy(cell.bias)
    np.testing.assert_array_equal(built.reshape(4, 6)[1], np.full(6, float(flag)))
    report = kv.inject(model)
    (row,) = report.drawn
    assert row.stddev is None
    first, forget, *others = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
    assert np.all(forget > 0)
    assert np.all(forget < np.log(29))
    np.testing.assert_array_equal(first, -forget)
    assert not np.any(others)
    assert cell.unit_forget_bias is False
    assert {row.status for row in kv.inject(model)} == {DONE}
    twin = keras.models.clone_model(model)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(twin.get_layer("recurrent").cell.bias),
        keras.ops.convert_to_numpy(cell.bias),
    )


def test_failed_injection_restores_the_flag_of_the_forget_gate(monkeypatch):
    model = recurrent(kv.ChronoBias(seed=2))
    cell = model.get_layer("recurrent").cell
    replace = keras_private.replace_attribute

    def failing(layer, attribute, value):
        replace(layer, attribute, value)
        if attribute == "unit_forget_bias" and value is False:
            raise RuntimeError("interrupted")

    monkeypatch.setattr(keras_private, "replace_attribute", failing)
    with pytest.raises(RuntimeError, match="interrupted"):
        kv.inject(model)
    assert cell.unit_forget_bias is True
    assert cell.bias_initializer.context is None
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)[1], np.ones(6)
    )


@pytest.mark.parametrize("layer", [L.LSTM, L.GRU, L.SimpleRNN])
def test_recurrent_biases_within_the_bound_of_the_kernel(layer):
    model = recurrent(kv.FanInBias(seed=2), layer)
    cell = model.get_layer("recurrent").cell
    (row,) = kv.inject(model).drawn
    bias = np.array(keras.ops.convert_to_numpy(cell.bias))
    if layer is L.LSTM:
        np.testing.assert_array_equal(bias.reshape(4, 6)[1], np.ones(6))
        assert cell.unit_forget_bias is True
        bias = np.delete(bias.reshape(4, 6), 1, axis=0)
    assert np.all(bias)
    assert np.unique(bias).size == bias.size
    assert np.abs(bias).max() <= 1 / np.sqrt(row.context.fan_in)
    assert {row.status for row in kv.inject(model)} == {DONE}
    twin = keras.models.clone_model(model).get_layer("recurrent").cell
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(twin.bias), keras.ops.convert_to_numpy(cell.bias)
    )


def cells(model):
    return [each for each in keras_private.layers_of(model) if hasattr(each, "recurrent_kernel")]


def bidirectional(bias):
    inputs = keras.Input((30, 4))
    return keras.Model(inputs, L.Bidirectional(L.LSTM(6, bias_initializer=bias))(inputs))


def stacked(bias):
    inputs = keras.Input((30, 4))
    two = [L.LSTMCell(6, bias_initializer=bias), L.LSTMCell(6, bias_initializer=bias)]
    return keras.Model(inputs, L.RNN(two)(inputs))


def convolutional(bias):
    inputs = keras.Input((30, 8, 8, 2))
    return keras.Model(inputs, L.ConvLSTM2D(6, 3, bias_initializer=bias)(inputs))


@pytest.mark.parametrize("make", [bidirectional, stacked, convolutional])
def test_every_lstm_inside_gets_times_of_its_own(make):
    model = make("chrono_bias")
    assert len(kv.inject(model).drawn) == len(cells(model))
    forgets = set()
    for cell in cells(model):
        first, forget, *others = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
        assert np.all(forget > 0)
        np.testing.assert_array_equal(first, -forget)
        assert not np.any(others)
        assert cell.unit_forget_bias is False
        forgets.add(tuple(forget))
    assert len(forgets) == len(cells(model))


def test_lstm_of_unknown_length_has_the_default_of_keras_and_stays_as_it_is():
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, L.LSTM(6, bias_initializer="chrono_bias")(inputs))
    (cell,) = cells(model)
    (row,) = kv.inject(model)
    assert (row.status, row.stddev) == ("drawn", 0.0)
    bias = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
    np.testing.assert_array_equal(bias, np.eye(4)[1][:, None] * np.ones(6))
    assert cell.unit_forget_bias is True


def test_gru_gets_times_in_its_first_row():
    model = recurrent(kv.ChronoBias(seed=2), L.GRU)
    kv.inject(model)
    bias = keras.ops.convert_to_numpy(model.get_layer("recurrent").cell.bias)
    assert np.all(bias[0, :6] > 0)
    assert not np.any(bias[0, 6:])
    assert not np.any(bias[1])


def test_initialize_draws_the_gates_of_an_lstm():
    model = recurrent(kv.ChronoBias())
    kv.initialize(model, "glorot_uniform", seed=5)
    cell = model.get_layer("recurrent").cell
    first, forget, *_ = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
    assert np.all(forget > 0)
    np.testing.assert_array_equal(first, -forget)
    assert cell.unit_forget_bias is False
