"""A kernel that others were trained around is not redrawn as part of another model."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv

L = keras.layers


def statuses(report):
    return {row.layer: row.status for row in report}


AROUND = "skipped: injected before, and a kernel after it was trained, loaded or set since"


def network(behind):
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(8, activation="relu", kernel_initializer="asv_backward", name="frozen"),
            L.Dense(8, activation="relu", kernel_initializer=behind, name="trained"),
        ]
    )


def extended(model):
    """The model thawed, with a head: a new context for every kernel."""
    for layer in model.layers:
        layer.trainable = True
    head = L.Dense(2, kernel_initializer="asv_backward", name="head")
    return keras.Sequential([keras.Input((6,)), *model.layers, head])


def train(model):
    model.get_layer("frozen").trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 6)).astype("float32"), rng.normal(size=(16, 8)).astype("float32")
    model.fit(x, y, epochs=1, verbose=0)


@pytest.mark.parametrize("behind", ["asv_backward", "he_normal"])
def test_left_alone_and_listed(behind):
    model = network(behind)
    kv.inject(model)
    train(model)
    frozen = model.get_layer("frozen").kernel
    before = ops.convert_to_numpy(frozen)
    report = kv.inject(extended(model))
    assert statuses(report)["frozen"] == AROUND
    assert statuses(report)["head"] == "drawn"
    np.testing.assert_array_equal(ops.convert_to_numpy(frozen), before)


@pytest.mark.parametrize("behind", ["asv_backward", "he_normal"])
def test_redrawn_while_nothing_was_trained(behind):
    model = network(behind)
    kv.inject(model)
    report = kv.inject(extended(model))
    assert statuses(report)["frozen"] == "drawn"


def test_force_redraws():
    model = network("asv_backward")
    kv.inject(model)
    train(model)
    assert statuses(kv.inject(extended(model), force=True))["frozen"] == "drawn"


def test_what_was_trained_in_front_or_beside_does_not_count():
    """Only what reads a kernel's output was trained around it."""
    inputs = keras.Input((6,))
    left, right = (
        L.Dense(4, kernel_initializer="asv_backward", name=name) for name in ("left", "right")
    )
    model = keras.Model(inputs, [left(inputs), right(inputs)])
    kv.inject(model)
    right.kernel.assign(right.kernel + 1.0)
    last = L.Dense(2, kernel_initializer="asv_backward", name="last")
    inputs = keras.Input((6,))
    report = kv.inject(keras.Model(inputs, [last(left(inputs)), right(inputs)]))
    assert statuses(report) == {
        "left": "drawn",
        "right": "skipped: trained, loaded or set since it was drawn",
        "last": "drawn",
    }
