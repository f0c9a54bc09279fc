"""A training whose initializers never got their contexts is warned of, in any `fit`."""

import warnings

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests.models import L, OwnCall, cnn, data, fit


def compiled(model):
    model.compile("sgd", "mse")
    return model


def warnings_of(train):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train()
    return [str(each.message) for each in caught if "inject" in str(each.message)]


def test_fit_without_callbacks():
    (message,) = warnings_of(lambda: fit(compiled(cnn("asv_backward")), epochs=2))
    assert "training starts with contexts never injected: 3 weights are drawn" in message
    assert "keras_varinit.inject(model)" in message


@pytest.mark.parametrize(
    "build", [lambda: cnn("asv_backward", sized=False), lambda: OwnCall("asv_backward")]
)
def test_model_that_fit_builds(build):
    model = compiled(build())
    (message,) = warnings_of(lambda: fit(model))
    assert repr(model.name) in message
    assert warnings_of(lambda: fit(model)) == []
    assert warnings_of(lambda: fit(compiled(build()), [kv.ContextInjector()])) == []


def test_each_model_is_warned_of_once():
    model, other = compiled(cnn("asv_backward")), compiled(cnn("asv_backward"))
    assert len(warnings_of(lambda: [fit(model), fit(other), fit(compiled(model))])) == 2


def test_weights_created_inline():
    class Inline(L.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(8, 8), name="w", initializer="asv_backward")

        def call(self, x):
            return keras.ops.matmul(x, self.w)

    model = keras.Sequential([keras.Input((8,)), Inline()])
    x = np.ones((4, 8), np.float32)
    (message,) = warnings_of(lambda: compiled(model).fit(x, x, verbose=0))
    assert "1 weight is drawn without one ('" in message


def inject_before(model):
    kv.inject(model)
    return []


def initialize_before(model):
    kv.initialize(model, "he_normal")
    return []


def load_before(model):
    model.set_weights([w + 0.01 for w in model.get_weights()])
    return []


class Own(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        kv.inject(self.model)


@pytest.mark.parametrize(
    "prepare",
    [
        inject_before,
        initialize_before,
        load_before,
        lambda model: [kv.ContextInjector()],
        lambda model: [kv.SignalMonitor(data()[0]), kv.ContextInjector()],
        lambda model: [Own()],
    ],
)
def test_no_warning_where_nothing_is_missing(prepare):
    model = compiled(cnn("asv_backward"))
    assert warnings_of(lambda: fit(model, prepare(model))) == []


def test_keras_own_initializers():
    fit(compiled(cnn("asv_backward")))  # something of this library has drawn
    assert warnings_of(lambda: fit(compiled(cnn("he_normal")))) == []


def test_head_over_a_trained_backbone_is_found():
    model = cnn("asv_backward")
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    for kernel in kernels[:-1]:
        kernel.assign(kernel + 0.01)
    (message,) = warnings_of(lambda: fit(compiled(model)))
    assert "1 weight is" in message
    assert kernels[-1].path in message


def test_a_list_of_callbacks_without_a_model():
    keras.callbacks.CallbackList([keras.callbacks.History()]).on_train_begin()


def test_callbacks_of_a_training_loop_of_ones_own():
    model = compiled(cnn("asv_backward", sized=False))
    keras.callbacks.CallbackList([], model=model).on_train_begin()
    assert model.train_function is None
