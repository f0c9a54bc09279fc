"""Other threads predict with a model while one reads, measures or initializes it."""

import threading

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests.tracing.opening_layers import OPENED

L = keras.layers


class Gated(L.Layer):
    """A layer without a rule, which has to be opened, and which is called eagerly here."""

    def __init__(self, **options):
        super().__init__(**options)
        self.value, self.gate = L.Dense(8, activation="relu"), L.Dense(8, activation="sigmoid")

    def build(self, shape):
        self.value.build(shape)
        self.gate.build(shape)

    def call(self, x):
        return self.value(x) * self.gate(x)


def network():
    inputs = keras.Input((8,))
    x = Gated()(L.Dense(8, activation="tanh")(inputs))
    return keras.Model(inputs, L.Dense(4, activation="softmax")(x))


def during(action, times, others):
    """Runs `others` in threads of their own, over and over, while `action` runs `times` times."""
    stop, failures, rounds = threading.Event(), [], [0] * len(others)

    def loop(number, function):
        try:
            while not stop.is_set():
                function()
                rounds[number] += 1
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=loop, args=pair) for pair in enumerate(others)]
    for thread in threads:
        thread.start()
    try:
        done = 0
        while done < times or (min(rounds) < 3 and not failures):
            action()
            done += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    if failures:
        raise failures[0]


ACTIONS = {
    "analyze": lambda model, x: kv.analyze(model),
    "measure_signal": lambda model, x: kv.measure_signal(model, x, training=False),
    "lint": lambda model, x: kv.lint(model),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("action", ACTIONS)
def test_predictions_stay_the_same(action):
    """Called eagerly, so that every layer's own `call` and activation run while they are read."""
    model, x = network(), np.random.default_rng(0).normal(size=(6, 8)).astype("float32")
    expected = ops.convert_to_numpy(model(x))

    def predict():
        found = ops.convert_to_numpy(model(x))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    during(lambda: ACTIONS[action](model, x), 6, [predict, predict])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_models_made_of_the_same_layers_meanwhile_are_whole():
    """The nodes of another thread's symbolic calls stay, and lead where they should."""
    model = network()
    layers, made = model.layers[1:], []

    def extend():
        x = inputs = keras.Input((8,))
        for layer in layers:
            x = layer(x)
        made.append(keras.Model(inputs, x))

    during(lambda: kv.analyze(model), 6, [extend])
    x = np.ones((2, 8), "float32")
    expected = ops.convert_to_numpy(model(x))
    for other in made[:: max(1, len(made) // 5)]:
        np.testing.assert_allclose(ops.convert_to_numpy(other(x)), expected, rtol=1e-5)


def test_layers_built_meanwhile_get_their_weights():
    model = network()

    def build():
        layer = L.Dense(3, kernel_initializer="asv_forward")
        layer(np.ones((1, 5), "float32"))
        assert layer.kernel.shape == (5, 3)

    during(lambda: kv.analyze(model), 6, [build])


def test_two_threads_read_at_once():
    """They take turns, and each finds what it finds alone."""
    model = network()
    expected = kv.analyze(model).contexts

    def read():
        assert kv.analyze(model).contexts == expected

    during(read, 4, [read])


@pytest.mark.parametrize("case", OPENED)
def test_entry_points_are_put_back(case):
    """What reading replaces in Keras is what it was, also after an error."""
    points = [
        (keras.Operation, "__call__"), (keras.Operation, "symbolic_call"),
        (keras.Layer, "add_weight"), (keras.Layer, "add_loss"),
        (keras.Variable, "__mul__"), (keras.KerasTensor, "__array_ufunc__"),
    ]  # fmt: skip
    before = [getattr(owner, name, None) for owner, name in points]
    tokens = keras.Input((None,), dtype="int32")
    kv.analyze(keras.Model(tokens, OPENED[case]()(L.Embedding(9, 8)(tokens))))
    assert [getattr(owner, name, None) for owner, name in points] == before
