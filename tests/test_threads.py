"""The limit on NumPy's threads is lifted, whichever context ends last."""

import threading

import keras
import numpy as np
import pytest
import threadpoolctl

import keras_varinit as kv
from keras_varinit.sharding import empty, to_tensor
from keras_varinit.threads import one_thread


@pytest.fixture
def two():
    """NumPy's linear algebra in two threads, as on any machine of several cores."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if set(counts()) != {2}:
            pytest.skip("this NumPy's linear algebra has no threads to limit")
        yield


def counts():
    return [
        each["num_threads"]
        for each in threadpoolctl.threadpool_info()
        if each["user_api"] == "blas" and "numpy" in each["filepath"]
    ]


@pytest.mark.usefixtures("two")
def test_contexts_of_two_threads_may_overlap():
    entered, leave, after = threading.Event(), threading.Event(), []

    def other():
        with one_thread():
            entered.set()
            leave.wait(60)
        after.extend(counts())

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        assert entered.wait(60)
        assert set(counts()) == {1}
    leave.set()  # the other one ends last
    thread.join()
    assert set(after) == set(counts()) == {2}


@pytest.mark.usefixtures("two")
def test_contexts_may_be_nested():
    with one_thread(), one_thread():
        assert set(counts()) == {1}
    assert set(counts()) == {2}


@pytest.mark.usefixtures("two")
def test_an_error_lifts_the_limit():
    with pytest.raises(ValueError, match="inside"), one_thread():
        raise ValueError("inside")
    assert set(counts()) == {2}


@pytest.mark.usefixtures("two")
def test_the_engine_walks_in_one_thread():
    seen = []

    def watched(x):
        seen.extend(counts())
        return keras.ops.tanh(x)

    layer = keras.layers.Dense(4, activation=watched)
    model = keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(2)])
    seen.clear()
    kv.analyze(model)
    assert 1 in seen
    assert set(counts()) == {2}


def test_a_variable_that_is_trained_leaves_the_tensor_that_it_was_set_to():
    """The tensor may share the memory that was drawn into, and the variable the tensor's."""
    values = empty((3, 64), "float32")
    values[...] = 1.0
    tensor = to_tensor(values)
    layer = keras.layers.Dense(64, use_bias=False)
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.kernel.assign(tensor)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.ones((4, 3), np.float32)
    model.fit(x, np.zeros((4, 64)), verbose=0)
    trained = keras.ops.convert_to_numpy(layer.kernel)
    assert np.all(trained < 1)
    if keras.backend.backend() != "jax":  # whose training steps delete what they are given
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), 1.0)
