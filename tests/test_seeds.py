"""Seeds of any integer type, and Python's own random numbers, which belong to the user."""

import random

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests.initializers.test_bad_arguments import ALL
from tests.models import weights

L = keras.layers

INTEGERS = [np.int64(3), np.int8(3), np.uint32(3)]


def network():
    """Initializers without a seed, bases within bases, and a layer that draws a seed itself."""
    layers = [
        keras.Input((8,)),
        L.Dense(6, kernel_initializer="signal_preserving", name="first"),
        L.Dropout(0.5, name="dropout"),
        L.Dense(4, kernel_initializer=kv.DepthScaled("enhanced_he_normal"), name="second"),
        L.Dense(3, kernel_initializer="glorot_uniform", name="third"),
    ]
    return keras.Sequential(layers)


@pytest.mark.parametrize("seed", INTEGERS, ids=lambda seed: type(seed).__name__)
@pytest.mark.parametrize("scheme", ["asv_backward", "he_normal", "depth_scaled"])
def test_initialize_takes_any_integer(scheme, seed):
    model = network()
    kv.initialize(model, scheme, seed=3)
    expected = weights(model)
    kv.initialize(model, scheme, seed=4)
    assert not np.array_equal(weights(model)[0], expected[0])
    kv.initialize(model, scheme, seed=seed)
    for weight, same in zip(weights(model), expected, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("cls", ALL)
def test_constructors_take_any_integer_and_keep_a_plain_one(cls):
    for seed in INTEGERS:
        config = cls(seed=seed).get_config()
        assert type(config["seed"]) is int
        assert config == cls(seed=3).get_config()


def test_a_base_keeps_the_seed_that_it_was_made_with():
    class Base(keras.initializers.RandomNormal):
        """Keeps its seed as it is given, where Keras's classes refuse what is no Python integer."""

        def __init__(self, seed=None):
            super().__init__(seed=None if seed is None else int(seed))
            self.given = seed

        def get_config(self):
            return {"seed": self.given}

    assert kv.DepthScaled(Base(seed=np.int64(3))).seed == 3


DATA = np.ones((4, 8), "float32")
LEAVES = {
    "analyze": kv.analyze,
    "inject": lambda model: kv.inject(model, force=True),
    "initialize": lambda model: kv.initialize(model, "asv_forward", seed=0),
    "initialize, wrapped": lambda model: kv.initialize(model, "depth_scaled", seed=0),
    "initialize, of Keras": lambda model: kv.initialize(model, "he_normal", seed=0),
    "initialize, function": lambda model: kv.initialize(
        model, lambda context: random.choice(["asv_forward", "asv_backward"]), seed=0
    ),
    "lint": kv.lint,
    "measure_signal": lambda model: kv.measure_signal(model, DATA),
    "calibrate": lambda model: kv.calibrate(model, DATA + np.eye(4, 8)),
    "to_builtin": kv.to_builtin,
}


@pytest.mark.parametrize("name", LEAVES)
def test_the_state_of_random_is_left_as_it_was(name):
    model = network()
    before = random.getstate()
    LEAVES[name](model)
    assert random.getstate() == before


def test_an_error_leaves_the_state_of_random_too():
    model = network()
    before = random.getstate()
    with pytest.raises(ValueError, match="drew values"):
        kv.initialize(model, keras.initializers.Constant(float("nan")), seed=0)
    assert random.getstate() == before


def test_a_scheme_that_chooses_at_random_follows_the_seed():
    model = network()
    scheme = lambda context: random.choice(["asv_forward", "asv_backward", "he_normal"])  # noqa: E731
    chosen = set()
    for seed in range(8):
        runs = []
        for outside in (1, 2):
            random.seed(outside)
            runs.append([row.initializer for row in kv.initialize(model, scheme, seed=seed)])
        assert runs[0] == runs[1]
        chosen.add(tuple(runs[0]))
    assert len(chosen) > 1


def test_without_a_seed_draws_still_follow_keras():
    found = []
    for seed in (5, 5, 6):
        model = network()
        keras.utils.set_random_seed(seed)
        kv.initialize(model, "asv_forward")
        found.append(weights(model)[0])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.any(found[0] == found[2])


def test_a_builtin_copy_shares_no_seed_with_the_next_layer():
    copy = kv.to_builtin(network())
    following = L.Dropout(0.5)
    states = [layer.seed_generator.state for layer in (copy.layers[1], following)]
    assert not np.array_equal(*map(keras.ops.convert_to_numpy, states))
