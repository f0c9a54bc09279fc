"""Measuring leaves no trace on the model."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit import keras_private
from tests.diagnostics.test_measure import draw, mlp
from tests.models import OwnCall, arrays, assert_equal, weights

L = keras.layers


class Counting(keras.Model):
    """Everything that a call may change: seeds, moving statistics, losses, a counter."""

    def __init__(self):
        super().__init__(name="counting")
        self.dense = L.Dense(8, activation="relu", activity_regularizer="l2")
        self.norm, self.drop = L.BatchNormalization(), L.Dropout(0.4, seed=1)
        self.head = L.Dense(2)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x, training=False):
        self.calls.assign_add(1.0)
        x = self.drop(self.norm(self.dense(x), training=training), training=training)
        self.add_loss(ops.mean(x))
        return self.head(x)


def everything_of(model):
    layers = [model, *keras_private.layers_of(model)]
    nodes = [(len(each._inbound_nodes), len(each._outbound_nodes)) for each in layers]
    attributes = [sorted(vars(each)) for each in layers]
    own = [(each.trainable, each.built, getattr(each, "activation", None)) for each in layers]
    generators = [v for each in layers for v in each.non_trainable_variables]
    seeds = [g.state for each in layers for g in getattr(each, "_seed_generators", [])]
    values = arrays([*model.variables, *generators, *seeds, *model.optimizer.variables])
    values += arrays(metric for m in model.metrics for metric in m.variables)
    names = dict(keras_private.global_state.get_global_attribute("object_name_uids"))
    return values, (nodes, attributes, own, len(model.losses), names)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(training):
    model = Counting()
    model.compile("adam", "mse", metrics=["mae"])
    x, y = draw(16, 4), draw(16, 2)
    model.fit(x, y, verbose=0)
    before = everything_of(model)
    for options in ({}, {"y": y}, {"y": y, "loss": "mae"}):
        kv.measure_signal(model, x, batch_size=5, training=training, **options)
        after = everything_of(model)
        assert_equal(after[0], before[0])
        assert after[1] == before[1]
    model.fit(x, y, verbose=0)


def test_an_error_inside_leaves_the_model_as_it_was():
    model = mlp("relu")
    before = everything_without_optimizer(model)

    def broken(targets, outputs):
        raise RuntimeError("broken loss")

    with pytest.raises(RuntimeError, match="broken loss"):
        kv.measure_signal(model, draw(8, 4), draw(8, 3), loss=broken)
    assert everything_without_optimizer(model) == before


def everything_without_optimizer(model):
    return [(sorted(vars(layer)), getattr(layer, "activation", None)) for layer in model.layers]


def test_own_call_and_weights_stay():
    model = OwnCall("he_normal")
    model(draw(2, 8, 8, 3))
    before = weights(model)
    report = kv.measure_signal(model, draw(4, 8, 8, 3))
    assert_equal(weights(model), before)
    assert [row.kind for row in report] == ["weights", "weights", "other", "weights"]
    assert report.notes == ()


class Part(L.Layer):
    """It builds itself when it is first called on numbers; shapes were inferred without it."""

    def __init__(self, units=0):
        super().__init__(name="part")
        self.units = units

    def build(self, first_shape, second_shape):
        self.gain = self.add_weight(shape=(self.units,)) if self.units else 2.0

    def call(self, first, second):
        return self.gain * first + second


class Whole(L.Layer):
    """Keras asks it for its output's shape, and its own `build` builds no part."""

    def __init__(self, part):
        super().__init__(name="whole")
        self.part = part

    def build(self, shape):
        pass

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        return self.part(x, 3 * x)


@pytest.mark.parametrize("units", [0, 4])
def test_a_part_that_is_not_built_stays_so(units):
    inputs = keras.Input((4,))
    part = Part(units)
    model = keras.Model(inputs, L.Dense(2, name="head")(Whole(part)(inputs)))
    x = draw(64, 4)
    if units:
        with pytest.raises(ValueError, match="layer 'part' is not built; call the model on data"):
            kv.measure_signal(model, x)
    else:
        assert kv.measure_signal(model, x)["head"].path == "head/kernel"
    assert not part.built
    assert not hasattr(part, "gain")
    np.testing.assert_allclose(part(x, x).shape, x.shape)


class Table(L.Layer):
    """Returns a variable."""

    def build(self, shape):
        self.rows = self.add_weight(shape=(4,), initializer="ones")

    def call(self, x):
        return self.rows


class Followed(keras.Model):
    """A model whose graph is not traced: it asks for values."""

    def __init__(self):
        super().__init__()
        self.head, self.table = L.Dense(2, name="head"), Table()

    def call(self, x):
        return self.head(x * self.table(x)) if float(ops.mean(x)) < 1e9 else x


def test_a_layer_that_returns_a_variable_is_not_measured():
    model, x = Followed(), draw(64, 4)
    model(x)
    assert [row.name for row in kv.measure_signal(model, x)] == ["head"]
