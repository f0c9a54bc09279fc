"""Reading a tensor leaves nothing behind."""

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit import sharding, tensors

on_jax = pytest.mark.skipif(keras.config.backend() != "jax", reason="it keeps what NumPy reads")


@pytest.fixture
def read(monkeypatch):
    """The arrays that NumPy reads, where none is in host memory but what is put there."""
    there, found = [], []
    put = sharding.to_host

    def to_host(value):
        there.append(put(value))
        return there[-1]

    monkeypatch.setattr(sharding, "to_host", to_host)
    monkeypatch.setattr(sharding, "is_in_host_memory", lambda value: False)
    for name in ("asarray", "array"):
        function = getattr(np, name)

        def spy(value, *arguments, function=function, **more):
            if type(value).__name__ == "ArrayImpl" and not any(value is each for each in there):
                found.append(value)
            return function(value, *arguments, **more)

        monkeypatch.setattr(np, name, spy)
    return found


@on_jax
@pytest.mark.parametrize(
    "look",
    [
        kv.inject,
        lambda model: kv.initialize(model, seed=0),
        lambda model: kv.initialize(model, "he_normal", seed=0),
        kv.lint,
        kv.analyze,
        lambda model: [tensors.view(w) for w in model.weights],
        lambda model: [tensors.to_numpy(w) for w in model.weights],
        lambda model: [tensors.moments(w) for w in model.weights],
        lambda model: [tensors.digests(w) for w in model.weights],
    ],
    ids=[
        "inject",
        "initialize",
        "he_normal",
        "lint",
        "analyze",
        "view",
        "to_numpy",
        "moments",
        "digests",
    ],
)
def test_no_weight_of_an_accelerator_stays_on_the_host(look, read):
    """JAX keeps what NumPy reads off one as long as the weight has that value."""
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, kernel_initializer="asv_forward")]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(300, "relu")]
    model = keras.Sequential(layers)
    weights = [w.value for w in model.weights]
    look(model)
    weights += [w.value for w in model.weights]
    assert not [shape for shape in (w.shape for w in weights if any(w is r for r in read))]
    np.asarray(weights[0])
    assert read[-1] is weights[0]  # which would be seen


def test_what_was_read_is_a_copy():
    variable = keras.Variable(np.arange(6, dtype="float32").reshape(2, 3))
    before = tensors.to_numpy(variable)
    variable.assign(variable + 1)
    np.testing.assert_array_equal(before, np.arange(6).reshape(2, 3))
    before[:] = 0  # which is allowed, and reaches nothing
    np.testing.assert_array_equal(tensors.to_numpy(variable), np.arange(1, 7).reshape(2, 3))
