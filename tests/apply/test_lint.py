"""`lint` finds a planted example of each rule, and is silent on healthy models."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv

pytestmark = pytest.mark.once

L = keras.layers


def rules(model):
    return [(finding.rule, finding.path) for finding in kv.lint(model)]


def perceptron(depth, initializer, activation="relu", width=64):
    layers = [
        L.Dense(width, activation=activation, kernel_initializer=initializer, name=f"layer_{n}")
        for n in range(depth)
    ]
    return keras.Sequential([keras.Input((width,)), *layers])


def test_one_object_shared_by_layers_that_got_equal_weights():
    model = perceptron(3, keras.initializers.HeNormal(seed=1))
    assert [rule for rule, _ in rules(model)] == ["equal-weights"] * 2
    finding = kv.lint(model)[0]
    assert finding.path.endswith("layer_1/kernel")
    assert "has the same values as" in str(finding)
    kv.initialize(model, keras.initializers.HeNormal(seed=1))
    assert rules(model) == []


def test_equal_constants_are_no_finding():
    layers = [L.Dense(8, kernel_initializer="zeros"), L.Dense(8, kernel_initializer="zeros")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    assert {rule for rule, _ in rules(model)} == {"vanishing-scale"}


class Frequencies(L.Layer):
    """Turns its inputs by angles from a table, which is a weight or, if `trains`, is learned."""

    def __init__(self, trains, **more):
        super().__init__(**more)
        self.trains = trains

    def build(self, shape):
        table = np.linspace(1, 2, shape[-1] * 8).reshape(-1, 8)
        constant = keras.initializers.Constant(table)
        self.table = self.add_weight(table.shape, constant, trainable=self.trains, name="table")

    def call(self, x):
        return ops.sin(ops.matmul(x, self.table))


@pytest.mark.parametrize(("trains", "findings"), [(False, 0), (True, 1)])
def test_equal_tables_that_are_not_trained_are_no_finding(trains, findings):
    model = keras.Sequential([keras.Input((8,)), Frequencies(trains), Frequencies(trains)])
    assert [rule for rule, _ in rules(model)].count("equal-weights") == findings


@pytest.mark.parametrize(
    ("layer", "argument"),
    [
        (lambda **k: L.DepthwiseConv2D(3, name="odd", **k), "depthwise_initializer"),
        (lambda **k: L.Conv2DTranspose(8, 3, name="odd", **k), "kernel_initializer"),
    ],
)
def test_wrong_fans(layer, argument):
    def network(initializer):
        built = layer(**{argument: initializer})
        return keras.Sequential([keras.Input((8, 8, 64)), built])

    (finding,) = kv.lint(network("he_normal"))
    assert finding.rule == "wrong-fans"
    assert "odd" in finding.path
    assert "initialize(model, scheme)" in finding.message
    corrected = network("he_normal")
    kv.initialize(corrected, "he_normal", seed=1)
    assert rules(corrected) == []
    assert rules(network(keras.initializers.RandomNormal(stddev=0.05))) == []


def test_glorot_miscounts_the_outputs_of_a_grouped_convolution():
    layer = L.Conv2D(64, 3, groups=8, kernel_initializer="glorot_uniform", name="grouped")
    model = keras.Sequential([keras.Input((8, 8, 64)), layer])
    assert rules(model) == [("wrong-fans", layer.kernel.path)]


def test_a_contextual_initializer_that_was_never_injected():
    model = perceptron(2, "asv_backward")
    found = [rule for rule, _ in rules(model)]
    assert found == ["not-injected"] * 2
    kv.inject(model)
    assert rules(model) == []


def test_unknown_layers():
    class Mystery(L.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 4), name="w")

        def call(self, x):
            return ops.matmul(x, ops.tanh(self.w))

    inputs = keras.Input((8,))
    model = keras.Model(inputs, L.Dense(2)(Mystery(name="mystery")(inputs)))
    assert rules(model) == [("unknown-layer", "mystery/w")]


@pytest.mark.parametrize(("stddev", "rule"), [(0.01, "vanishing-scale"), (1.0, "exploding-scale")])
def test_scale(stddev, rule):
    """64 inputs, ReLU: each layer multiplies by 32·std², so 1e∓6 is crossed on the way."""
    model = perceptron(6, None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.kernel.assign(stddev * rng.standard_normal(layer.kernel.shape))
    (finding,) = kv.lint(model)
    growth, moment, crossed = 32 * stddev**2, 64 * stddev**2, 0
    while 1e-6 <= moment <= 1e6:
        moment, crossed = moment * growth, crossed + 1
    assert (finding.rule, finding.path) == (rule, model.layers[crossed].kernel.path)


def test_normalization_puts_the_scale_back():
    layers = []
    for _ in range(6):
        small = keras.initializers.RandomNormal(stddev=0.01)
        layers += [L.Dense(64, kernel_initializer=small), L.BatchNormalization(), L.ReLU()]
    assert rules(keras.Sequential([keras.Input((64,)), *layers])) == []


def residual(normalized):
    inputs = keras.Input((32, 32, 3))
    x = L.Conv2D(16, 3, padding="same", kernel_initializer="he_normal")(inputs)
    for _ in range(8):
        y = L.BatchNormalization()(x) if normalized else x
        x = x + L.Conv2D(16, 3, padding="same", kernel_initializer="he_normal")(ops.relu(y))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


HEALTHY = {
    "relu, 30 layers": lambda: perceptron(30, "he_normal"),
    "tanh, 30 layers": lambda: perceptron(30, "glorot_normal", "tanh"),
    "selu": lambda: perceptron(30, "lecun_normal", "selu"),
    "residual": lambda: residual(False),
    "residual, normalized": lambda: residual(True),
    "vgg16": lambda: keras.applications.VGG16(
        weights=None, input_shape=(32, 32, 3), classes=10, include_top=False
    ),
    "resnet50": lambda: keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_silence_on_healthy_models(name):
    assert [str(finding) for finding in kv.lint(HEALTHY[name]())] == []


def test_lint_changes_nothing():
    model = perceptron(3, "asv_backward")
    before = model.get_weights()
    kv.lint(model)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
