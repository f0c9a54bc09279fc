"""`calibrate` changes kernels and nothing else, and after an error nothing at all."""

import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit import keras_private
from keras_varinit.apply import transaction
from tests.calibration.networks import conv, draw, images
from tests.models import assert_equal, assert_same_state, cnn, state, weights

L = keras.layers
ERRORS = [RuntimeError("broken"), KeyboardInterrupt()]


def test_nothing_but_kernels_changes():
    inputs = keras.Input((8, 8, 3))
    x = L.BatchNormalization()(L.Dropout(0.3, seed=1)(conv()(inputs)))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True), "mse")
    model.fit(images(), draw(8, 2), verbose=0)
    kernels = {layer.kernel.path for layer in model.layers if hasattr(layer, "kernel")}
    variables = {v.path: np.array(ops.convert_to_numpy(v)) for v in model.variables}
    optimizer = [np.array(ops.convert_to_numpy(v)) for v in model.optimizer.variables]
    kv.calibrate(model, images())
    for variable in model.variables:
        same = np.array_equal(ops.convert_to_numpy(variable), variables[variable.path])
        assert same == (variable.path not in kernels)
    averages = keras_private.moving_averages(model)
    renewed = {id(a): v for v in model.variables if (a := averages.get(id(v))) is not None}
    for variable, was in zip(model.optimizer.variables, optimizer, strict=True):
        now = ops.convert_to_numpy(variable)
        if id(variable) in renewed and renewed[id(variable)].path in kernels:
            np.testing.assert_array_equal(now, ops.convert_to_numpy(renewed[id(variable)]))
        else:
            np.testing.assert_array_equal(now, was)


def test_a_calibrated_kernel_is_no_own_draw():
    model, x = cnn("asv_forward"), images()
    kv.inject(model)
    report = kv.calibrate(model, x)
    assert all(row.scale != 1 for row in report)
    calibrated = weights(model)
    again = kv.inject(model)
    assert not again.drawn
    assert_equal(weights(model), calibrated)
    fresh = cnn("asv_forward")
    kv.calibrate(fresh, x)
    calibrated = weights(fresh)
    assert {row.status for row in kv.inject(fresh)} == {
        "skipped: trained, loaded or set since it was drawn"
    }
    assert_equal(weights(fresh), calibrated)


class Failing:
    """Batches of which one raises, in one of the passes."""

    def __init__(self, x, at, error):
        self.x, self.at, self.error, self.count = x, at, error, 0

    def __len__(self):
        return 2

    def __iter__(self):
        for part in np.array_split(self.x, 2):
            self.count += 1
            if self.count == self.at:
                raise self.error
            yield part


def test_an_error_while_reading_changes_nothing():
    model = cnn()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    before = state(model)
    for at in (1, 3, 4, 5, 7):
        error = ERRORS[at % 2]
        with pytest.raises(type(error)):
            kv.calibrate(model, Failing(images(), at, error), verbose=0)
        assert_same_state(state(model), before)
    assert kv.calibrate(model, images()).calibrated


def test_an_error_while_setting_changes_nothing(monkeypatch):
    """Three kernels are set when corrected, in the scopes of two runs, and in the model."""
    model = cnn()
    before, assign, seen = state(model), keras_private.assign, []

    def failing(variable, value):
        seen.append(variable)
        if len(seen) == at:
            raise error
        assign(variable, value)

    monkeypatch.setattr(transaction.keras_private, "assign", failing)
    for at in range(1, 13):
        error = ERRORS[at % 2]
        seen.clear()
        with pytest.raises(type(error)):
            kv.calibrate(model, images())
        assert_same_state(state(model), before)
    at = 0
    seen.clear()
    assert len(kv.calibrate(model, images()).calibrated) == 3
    assert len(seen) == 12


@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_error_of_a_layer_changes_nothing(at):
    count = 0

    def activation(x):
        nonlocal count
        count += tuple(x.shape) == (20, 8)
        if count == at + 2:  # twice it runs before the first walk
            raise RuntimeError("broken")
        return x

    layers = [L.Dense(8), L.Dense(8, activation=activation), L.Dense(8)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    before = state(model)
    with pytest.raises(RuntimeError, match="broken"):
        kv.calibrate(model, draw(40, 8), batch_size=20)
    assert_same_state(state(model), before)
    assert [layer.activation for layer in layers[::2]] == [keras.activations.linear] * 2
    assert layers[1].activation is activation


def test_values_that_are_not_finite():
    model, x = cnn(), images()
    model.layers[1].kernel.assign(np.full(model.layers[1].kernel.shape, np.inf, "float32"))
    before = weights(model)
    text = "the output of layer 'conv2d_1' (sequential/conv2d_1/kernel) is not finite"
    with pytest.raises(ValueError, match=re.escape(text)):
        kv.calibrate(model, x)
    assert_equal(weights(model), before)
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"`x` must be finite\. Received: a batch of shape .* 1 entr"
    ):
        kv.calibrate(cnn(), x)


BAD = [
    ({"target": 0}, ValueError, "`target` must be finite and greater than 0. Received: target=0"),
    ({"target": "1"}, TypeError, "`target` must be a number. Received: target='1'"),
    ({"tolerance": float("nan")}, ValueError, "`tolerance` must be finite and greater than 0."),
    ({"tolerance": 1.0}, ValueError, "`tolerance` is relative and must be less than 1. Received: "),
    ({"max_iterations": 0}, ValueError, "`max_iterations` must be a positive integer. Received: "),
    ({"max_iterations": True}, ValueError, "`max_iterations` must be a positive integer."),
    ({"batch_size": 0}, ValueError, "`batch_size` must be a positive integer. Received: "),
    (
        {"max_batches": -1},
        ValueError,
        "`max_batches` must be a positive integer or None. Received: ",
    ),
    ({"include_frozen": 1}, TypeError, "`include_frozen` must be a bool. Received: "),
    ({"training": None}, TypeError, "`training` must be a bool. Received: training=None"),
    ({"verbose": 3}, ValueError, '`verbose` must be "auto", 0 or 1. Received: verbose=3'),
    ({"layers": "dense"}, TypeError, "`layers` must be a predicate or a list of names. Received"),
    ({"layers": ["dens"]}, ValueError, "names 'dens', which model 'sequential' lacks. Did you"),
    ({"layers": []}, ValueError, "no kernel of model 'sequential' is selected. Received: layers"),
    ({"x": (images() for _ in range(2))}, TypeError, "`x` is read more than once, and an iterator"),
    ({"x": np.zeros((0, 8, 8, 3))}, ValueError, "must have the same number of examples, at least"),
    ({"x": np.zeros((2, 4, 4, 3))}, ValueError, "`x` does not fit input"),
    ({"model": 3}, TypeError, "`model` must be a built keras.Model. Received: model=3"),
    ({"model": keras.Sequential([L.Dense(2)])}, ValueError, "is not built"),
]


def test_bad_arguments_are_named():
    model = cnn()
    before = weights(model)
    for arguments, error, text in BAD:
        with pytest.raises(error, match=re.escape(text)) as caught:
            kv.calibrate(**{"model": model, "x": images(), **arguments})
        if "model" not in arguments:
            assert str(caught.value).startswith("calibrate: ")
    assert_equal(weights(model), before)
