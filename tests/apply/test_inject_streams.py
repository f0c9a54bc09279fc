"""Random streams: kernels differ, seeds repeat, whatever was built before."""

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests import fresh_process
from tests.apply.test_inject import statuses
from tests.models import FAMILIES, L, assert_equal, cnn, every_family, kernels, perceptron, weights


def assert_all_differ(model):
    """No two kernels of one shape are equal, or one a multiple of the other."""
    values = [value.reshape(-1) for value in kernels(model)]
    for n, left in enumerate(values):
        for right in values[:n]:
            if left.size == right.size:
                assert abs(np.corrcoef(left, right)[0, 1]) < 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_share_an_initializer_get_copies_and_kernels_of_their_own(family):
    shared = FAMILIES[family](7)
    model = perceptron(shared)
    kv.inject(model)
    held = [layer.kernel_initializer for layer in model.layers]
    assert len({id(initializer) for initializer in [shared, *held]}) == 4
    assert shared.context is None
    paths = [initializer.context.path for initializer in held]
    assert paths == [layer.kernel.path for layer in model.layers]
    assert_all_differ(model)


def test_layers_of_one_name_in_nested_models_get_different_kernels():
    shared = kv.ASVForward(seed=7)

    def block(name):
        layer = L.Dense(8, kernel_initializer=shared, name="dense")
        return keras.Sequential([keras.Input((8,)), layer], name=name)

    inner = keras.Sequential([keras.Input((8,)), block("block"), block("block_1")], name="inner")
    outer = keras.Sequential([keras.Input((8,)), block("block"), inner, block("dense")])
    report = kv.inject(outer)
    assert statuses(report) == ["drawn"] * 4
    assert len({row.path for row in report}) == 4
    assert_all_differ(outer)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_frozen_models_that_were_injected_share_no_stream_with_layers_around_them(times):
    """As each layer around was made first, it has the place in the whole that those had alone."""
    shared = kv.ASVForward(seed=7)
    around = [L.Dense(8, kernel_initializer=shared) for _ in range(times)]
    model = perceptron(shared, widths=(8,))
    kv.inject(model)
    for layer in reversed(around):
        model.trainable = False
        model = keras.Sequential([keras.Input((8,)), layer, L.ReLU(), model])
        assert statuses(kv.inject(model))[0] == "drawn"
        assert kv.inject(model).drawn == ()
    assert_all_differ(model)


def test_same_seed_gives_the_same_weights_whatever_was_built_before():
    first = every_family(3)
    second = every_family(3)
    assert first.layers[1].name != second.layers[1].name
    kv.inject(first)
    kv.inject(second)
    assert_equal(weights(first), weights(second))


def test_different_seeds_give_different_weights():
    models = [cnn(kv.ASVForward(seed=seed)) for seed in (1, 2, None, None)]
    for model in models:
        kv.inject(model)
    firsts = [kernels(model)[0] for model in models]
    assert len({value.tobytes() for value in firsts}) == 4


def test_random_seed_of_keras_reproduces_unseeded_initializers():
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(11)
        model = cnn("asv_forward")
        kv.inject(model)
        found.append(weights(model))
    assert_equal(*found)


DRAW = """
import json
import keras_varinit as kv
from tests.models import cnn, every_family, kernels
cnn()
model = every_family(3)
kv.inject(model)
print(json.dumps([kernel.ravel().tolist() for kernel in kernels(model)]))
"""


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_in_another_process():
    other = fresh_process.start(DRAW)
    model = every_family(3)
    kv.inject(model)
    here = [kernel.ravel().tolist() for kernel in kernels(model)]
    assert fresh_process.result(other) == here
