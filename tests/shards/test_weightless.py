"""Models without weights in memory: planned as if they had them, and drawn when they get them."""

import tracemalloc

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit import keras_private
from tests.models import L, OwnCall, assert_equal, cnn, weights
from tests.shards.models import network

BUILDS = {
    "network": network,
    "cnn": lambda: cnn(kv.ASVBackward(seed=1)),
    "names": lambda: cnn("asv_backward"),
    "own call": lambda: own_call(),
    "inline": lambda: keras.Sequential([keras.Input((6,)), Inline(), Inline()]),
}


class Inline(L.Layer):
    """Stores no initializer."""

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(shape[-1], 6), initializer=kv.ASVForward(seed=3), name="kernel"
        )

    def call(self, x):
        return keras.ops.relu(keras.ops.matmul(x, self.kernel))


def own_call():
    model = OwnCall(kv.ASVForward(seed=2))
    model(keras.Input((8, 8, 3)))
    return model


def built(name, *, with_weights=True):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    if with_weights:
        return BUILDS[name]()
    with kv.without_weights():
        return BUILDS[name]()


def is_weightless(model):
    return not any(keras_private.has_value(variable) for variable in model.weights)


@pytest.mark.parametrize("name", BUILDS)
def test_it_is_read_as_a_model_with_weights_is(name):
    whole, planned = built(name), built(name, with_weights=False)
    assert is_weightless(planned)
    assert [(v.path, v.shape, v.dtype) for v in planned.weights] == [
        (v.path, v.shape, v.dtype) for v in whole.weights
    ]
    expected, found = kv.analyze(whole), kv.analyze(planned)
    assert found.contexts == expected.contexts
    assert found.vectors == expected.vectors
    for path, prediction in expected.predicted.items():
        if name == "inline":  # no layer stores what drew the weights, so these count where they are
            assert found.predicted[path].forward == pytest.approx(
                2.0
            )  # 6 · 2/6, then 6 · ½·2 · 2/6
        else:
            assert found.predicted[path] == prediction
    reasons = [(row.path, row.reason) for row in kv.recommend(whole)]
    assert [(row.path, row.reason) for row in kv.recommend(planned)] == reasons
    values = {"vanishing-scale", "exploding-scale", "equal-weights"}
    rules = [finding.rule for finding in kv.lint(whole) if finding.rule not in values]
    assert [finding.rule for finding in kv.lint(planned)] == rules
    assert is_weightless(planned)


ACTIONS = {
    "inject": kv.inject,
    "recommended": lambda model: kv.initialize(model, seed=3),
    "asv": lambda model: kv.initialize(model, "asv_backward", seed=3),
    "he_normal": lambda model: kv.initialize(model, "he_normal", seed=3),
}


@pytest.mark.parametrize("name", ["network", "names", "own call", "inline"])
@pytest.mark.parametrize("action", ACTIONS)
def test_created_weights_are_those_that_were_planned(name, action):
    whole, planned = built(name), built(name, with_weights=False)
    expected, report = ACTIONS[action](whole), ACTIONS[action](planned)
    assert is_weightless(planned)
    assert len(report.planned) == len(expected.drawn) > 0
    assert [row.path for row in report.planned] == [row.path for row in expected.drawn]
    assert [row.stddev for row in report] == [row.stddev for row in expected]
    assert f"{len(report.planned)} planned, 0 drawn" in str(report)
    kv.create_weights(planned)
    assert_equal(weights(planned), weights(whole))
    if action != "he_normal":  # then some models have no initializer of ours left
        assert list(kv.inject(planned)) == list(kv.inject(whole))


def test_without_a_plan_the_layers_draw_as_ever():
    whole, planned = built("cnn"), built("cnn", with_weights=False)
    kv.create_weights(planned)
    assert_equal(weights(planned), weights(whole))
    assert [row.status for row in kv.inject(planned)] == ["drawn"] * 3


def test_other_models_do_not_fill_it():
    planned = built("cnn", with_weights=False)
    other = cnn("he_normal")
    own_call()
    kv.analyze(other)
    assert is_weightless(planned)
    assert not is_weightless(other)


def test_a_failed_plan_changes_nothing(monkeypatch):
    planned = built("cnn", with_weights=False)
    waiting = [keras_private.pending(v) for v in planned.weights]
    monkeypatch.setattr(keras_private, "replace_attribute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kv.inject(planned)
    assert [keras_private.pending(v) for v in planned.weights] == waiting


def test_planning_takes_no_memory_for_weights():
    """A tenth of one of four kernels, of 64 MiB each."""
    tracemalloc.start()
    try:
        with kv.without_weights():
            layers = [L.Dense(4096, "relu", kernel_initializer="asv_forward") for _ in range(4)]
            model = keras.Sequential([keras.Input((4096,)), *layers])
        kv.analyze(model)
        kv.recommend(model)
        kv.inject(model)
        kv.initialize(model, seed=0)
        kv.lint(model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model.count_params() == 4 * (4096**2 + 4096)
    assert peak < 4096**2 * 4 / 10


def test_a_weight_without_a_value_says_so():
    with kv.without_weights():
        model = keras.Sequential([keras.Input((512,)), L.Dense(512)])
    data = np.zeros((2, 512), "float32")
    with pytest.raises(ValueError, match=r"measure_signal: .*create_weights\(model\)"):
        kv.measure_signal(model, data)
