"""Initializers that a layer keeps nowhere: `add_weight(..., initializer="asv_backward")`."""

import gc

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit.initializers import memory

L = keras.layers


@keras.saving.register_keras_serializable("tests_inline")
class Inline(L.Layer):
    """A dense layer with two kernels of one shape, made inline."""

    def build(self, shape):
        for name in ("first", "second"):
            weight = self.add_weight(
                shape=(8, 8), initializer="asv_backward", name=f"{name}_kernel"
            )
            setattr(self, name, weight)
        self.bias = self.add_weight(shape=(8,), initializer="zeros", name="bias")

    def call(self, x):
        return ops.matmul(ops.relu(ops.matmul(x, self.first)), self.second) + self.bias


def network():
    inputs = keras.Input((8,))
    return keras.Model(inputs, L.Dense(2, name="head")(Inline(name="inline")(inputs)))


PATHS = ["inline/first_kernel", "inline/second_kernel"]


def values(model):
    return {v.path: ops.convert_to_numpy(v) for v in model.weights}


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(one, two)


def findings(model):
    return [(f.rule, f.path) for f in kv.lint(model)]


def test_injected_once_and_no_more_reported():
    model = network()
    before = values(model)
    assert findings(model) == [("not-injected", path) for path in PATHS]
    report = kv.inject(model)
    assert [(row.path, row.status) for row in report] == [(path, "drawn") for path in PATHS]
    after = values(model)
    for path in PATHS:
        assert not np.array_equal(before[path], after[path])
        assert report[path].context == kv.analyze(model).contexts[path]
    assert not np.array_equal(after[PATHS[0]], after[PATHS[1]])
    assert findings(model) == []
    again = kv.inject(model)
    assert {row.status for row in again} == {"skipped: already drawn for this context"}
    assert_equal(after, values(model))


def test_trained_ones_are_left_alone():
    model = network()
    second = model.get_layer("inline").second
    second.assign(second + 1.0)
    report = kv.inject(model)
    assert [row.status for row in report] == [
        "drawn", "skipped: trained, loaded or set since it was drawn",
    ]  # fmt: skip


def test_an_error_takes_the_initializer_away_again(monkeypatch):
    model = network()
    before, attributes = values(model), set(vars(model.get_layer("inline")))

    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    second = model.get_layer("inline").second
    monkeypatch.setattr(type(second), "assign", _failing_at(second, type(second).assign, fail))
    with pytest.raises(RuntimeError, match="no memory"):
        kv.inject(model)
    monkeypatch.undo()
    assert_equal(before, values(model))
    assert set(vars(model.get_layer("inline"))) == attributes


def _failing_at(variable, original, fail):
    failed = []

    def assign(self, value, *args, **kwargs):
        if self is variable and not failed:
            failed.append(True)
            fail()
        return original(self, value, *args, **kwargs)

    return assign


def test_loaded_ones_are_listed_and_left_alone(tmp_path):
    """The file has no initializer for them; the rebuilt layer's own says that they were loaded."""
    model = network()
    kv.inject(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    before = values(loaded)
    assert findings(loaded) == [("not-injected", path) for path in PATHS]
    report = kv.inject(loaded)
    assert [row.path for row in report] == PATHS
    assert {r.status for r in report} == {"skipped: trained, loaded or set since it was drawn"}
    assert_equal(before, values(loaded))


def test_variables_made_before_their_values():
    """A subclassed model that Keras builds symbolically: no layer is known when they are drawn."""

    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.inline, self.head = Inline(name="inline"), L.Dense(1, name="head")

        def call(self, x):
            return self.head(self.inline(x))

    model = Late()
    x, y = np.ones((4, 8), "float32"), np.ones((4, 1), "float32")
    model.compile("sgd", "mse")
    injector = kv.ContextInjector()
    model.fit(x, y, callbacks=[injector], verbose=0)
    assert [row.status for row in injector.report] == ["drawn", "drawn"]


def test_nothing_is_remembered_of_layers_that_are_gone():
    count = len(memory._by_layer)
    for _ in range(3):
        layer = Inline()
        layer.build((None, 8))
    del layer
    gc.collect()
    assert len(memory._by_layer) <= count
