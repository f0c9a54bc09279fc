"""Models of every kind are read, and nothing of the reading stays behind.

First those that Hypothesis draws, whose failures shrink to the smallest model; then some by name.
"""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from hypothesis import given, note
from keras import ops

import keras_varinit as kv
from tests.ledger import assert_same, bits, layers, whole
from tests.random_models import architectures, build, data

L = keras.layers


def drawn(description):
    """The model of a description, made as in a fresh process."""
    note(json.dumps(description))
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    return build(description)


def kernels_of(model):
    """Variables that a product or convolution uses, found without the library."""
    names = {"kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings"}
    found = [v for layer in layers(model) for v in layer._trainable_variables]
    found += [v for layer in layers(model) for v in layer._non_trainable_variables]
    return [v for v in found if v.name in names]


@given(architectures(rich=True))
def test_every_kernel_of_a_drawn_model_has_a_context(description):
    model = drawn(description)
    before = whole(model)
    analysis = kv.analyze(model)
    assert_same(whole(model), before)
    assert analysis.unknown == ()
    found = [analysis.context_of(kernel) for kernel in kernels_of(model)]
    assert None not in found
    assert {c.path for c in found} == set(analysis.contexts) == set(analysis.predicted)
    for context in found:
        assert 1 <= context.depth <= context.total_depth
        # A mean over all positions, of which those at a border have fewer connections.
        assert 0 < context.mean_fan_in <= context.fan_in
        assert context.connections <= context.input_size * context.output_size
        assert kv.LayerContext.from_dict(json.loads(json.dumps(context.to_dict()))) == context
    for prediction in analysis.predicted.values():
        for value in (prediction.forward, prediction.backward):
            assert value is None or (np.isfinite(value) and value >= 0)
    again = kv.analyze(model)
    assert (again.contexts, again.notes) == (analysis.contexts, analysis.notes)
    # Sums of floats depend on where their terms lie in memory, by rounding.
    for path, prediction in analysis.predicted.items():
        for name, value in dataclasses.asdict(prediction).items():
            close = value if value is None else pytest.approx(value, rel=1e-9, abs=0)
            assert getattr(again.predicted[path], name) == close


@given(architectures(rich=True))
def test_a_drawn_model_is_initialized_and_measured(description):
    model = drawn(description)
    kernels = kernels_of(model)
    runs = []
    for seed in (0, 0, 1):
        report = kv.initialize(model, "asv_forward", seed=seed, include_frozen=True)
        runs.append([bits(kernel) for kernel in kernels if kernel.name != "embeddings"])
    assert runs[0] == runs[1]
    assert not {*runs[0]} & {*runs[2]}
    assert len({*runs[0]}) == len(runs[0])
    assert all(path in report for path in kv.analyze(model).contexts)
    assert {row.status for row in report} == {"drawn"}
    before = whole(model)
    signal = kv.measure_signal(model, data(description))
    assert_same(whole(model), before)
    assert all(row.nonfinite_count == 0 for row in signal)
    outputs = ops.convert_to_numpy(model(data(description), training=True))
    assert [row for row in signal if row.shape == outputs.shape[1:]]


@given(architectures(rich=True, chain=True))
def test_a_drawn_call_is_read_like_the_functional_model_of_the_same_layers(description):
    model = drawn(description)
    inputs = keras.Input(data(description).shape[1:])
    twin = keras.Model(inputs, model.call(inputs))
    own, functional = kv.analyze(model), kv.analyze(twin)
    for kernel in kernels_of(model):
        contexts = [dataclasses.asdict(each.context_of(kernel)) for each in (own, functional)]
        for context in contexts:
            context.pop("path"), context.pop("stream")
        assert contexts[0] == contexts[1]


class Block(L.Layer):
    """A residual block that defines its own `call`."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.first = L.Conv2D(filters, 3, padding="same", name="first")
        self.norm = L.BatchNormalization()
        self.second = L.Conv2D(filters, 3, padding="same", name="second")

    def build(self, shape):
        for layer in (self.first, self.norm, self.second):
            layer.build(shape)

    def call(self, x, training=None):
        y = ops.relu(self.norm(self.first(x), training=training))
        return ops.relu(x + self.second(y))

    def compute_output_shape(self, shape):
        return shape


class Own(keras.Model):
    """Own `call`, blocks in a list, a head that is used in training alone."""

    def __init__(self, initializer="glorot_uniform"):
        super().__init__(name="own")
        self.stem = L.Conv2D(8, 3, padding="same", kernel_initializer=initializer, name="stem")
        self.blocks = [Block(8, name="one"), Block(8, name="two")]
        self.head = L.Dense(3, kernel_initializer=initializer, name="head")
        self.auxiliary = L.Dense(2, kernel_initializer=initializer, name="auxiliary")

    def call(self, x, training=False):
        x = ops.relu(self.stem(x))
        for block in self.blocks:
            x = block(x, training=training)
        x = ops.mean(x, axis=(1, 2))
        return (self.head(x), self.auxiliary(x)) if training else self.head(x)


def functional_twin():
    inputs = keras.Input((8, 8, 3))
    x = ops.relu(L.Conv2D(8, 3, padding="same", name="stem")(inputs))
    for _ in range(2):
        y = ops.relu(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(x)))
        x = ops.relu(x + L.Conv2D(8, 3, padding="same")(y))
    return keras.Model(inputs, L.Dense(3, name="head")(ops.mean(x, axis=(1, 2))))


def built(model, shape=(2, 8, 8, 3)):
    x = np.ones(shape, "float32")
    model(x, training=True)  # the call that builds all layers
    return model


def numbers(context):
    names = ("depth", "total_depth", "fan_in", "connections", "activation", "pooling", "pool_size")
    gains = (context.forward_gain, context.backward_gain)
    return *(getattr(context, name) for name in names), *gains


def trace_of(model):
    layers = model._flatten_layers()
    return [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]


def test_own_call_is_read_like_the_functional_model_of_the_same_layers():
    own = {c.layer: c for c in kv.analyze(built(Own())).contexts.values()}
    twin = [numbers(c) for c in kv.analyze(functional_twin()).contexts.values()]
    contexts = list(kv.analyze(built(Own())).contexts.values())
    assert [numbers(c) for c in contexts if c.layer != "auxiliary"] == twin
    assert own["auxiliary"].depth == own["head"].depth


def test_reading_leaves_no_trace():
    model = built(Own())
    before, weights = trace_of(model), [np.array(w) for w in model.get_weights()]
    name = L.Dense(1).name
    kv.analyze(model)
    assert trace_of(model) == before
    following = L.Dense(1).name
    counter = int(name.rpartition("_")[2]) if "_" in name else 0
    assert following == f"dense_{counter + 1}"
    for value, was in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, was)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")  # Keras, of the unused head
def test_own_call_trains_with_the_callback():
    x, y = np.ones((8, 8, 8, 3), "float32"), np.ones((8, 3), "float32")

    class InferenceOnly(Own):
        def call(self, x, training=False):
            return super().call(x, training=False)

    model = InferenceOnly(kv.ASVForward(seed=1))
    model.compile("sgd", "mse")
    injector = kv.ContextInjector()
    model.fit(x, y, callbacks=[injector], verbose=0)
    assert [row.layer for row in injector.report.drawn] == ["stem", "head"]


def test_custom_layer_inside_a_functional_model_is_opened():
    inputs = keras.Input((8, 8, 8))
    model = keras.Model(inputs, L.Dense(2, name="head")(Block(8, name="block")(inputs)))
    contexts = {c.layer: c for c in kv.analyze(model).contexts.values()}
    assert {n: c.depth for n, c in contexts.items()} == {"first": 1, "second": 2, "head": 3}
    assert contexts["first"].activation == contexts["second"].activation == "relu"


def test_custom_layer_that_multiplies_with_its_own_weights_is_a_kernel():
    class Matrix(L.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 6), name="w", initializer="he_normal")

        def call(self, x):
            return ops.relu(ops.matmul(x, self.w))

    inputs = keras.Input((8,))
    analysis = kv.analyze(keras.Model(inputs, L.Dense(2)(Matrix()(inputs))))
    first, second = analysis.contexts.values()
    assert analysis.notes == ()
    assert (first.fan_in, first.fan_out, first.activation, first.depth) == (8, 6, "relu", 1)
    assert second.forward_gain == pytest.approx(0.5)


def test_recurrent_layers_have_input_and_recurrent_kernels():
    inputs = keras.Input((5, 8))
    x = L.Bidirectional(L.LSTM(4, return_sequences=True, name="lstm"))(inputs)
    x = L.GRU(6, return_sequences=True)(x)
    x = L.RNN([L.SimpleRNNCell(3), L.SimpleRNNCell(2)])(x)
    analysis = kv.analyze(keras.Model(inputs, L.Dense(2, name="head")(x)))
    found = {path: (c.depth, c.fan_in, c.fan_out) for path, c in analysis.contexts.items()}
    assert analysis.unknown == ()
    assert all("combination of its kernels" in note for note in analysis.notes)
    kernels = [v for path, v in found.items() if "recurrent" not in path]
    assert kernels == [
        (1, 8, 4),
        (1, 8, 4),
        (2, 8, 6),
        (3, 6, 3),
        (4, 3, 2),
        (5, 2, 2),
    ]
    recurrent = [v for path, v in found.items() if "recurrent" in path]
    assert recurrent == [(1, 4, 4), (1, 4, 4), (2, 6, 6), (3, 3, 3), (4, 2, 2)]


def test_time_distributed_is_its_layer():
    inputs = keras.Input((5, 8, 8, 3))
    x = L.TimeDistributed(L.Conv2D(4, 3, padding="same", activation="relu", name="conv"))(inputs)
    block = keras.Sequential([L.Flatten(), L.Dense(6), L.ReLU()])
    x = L.TimeDistributed(block)(x)
    analysis = kv.analyze(keras.Model(inputs, L.Dense(2, name="head")(x)))
    conv, dense, head = analysis.contexts.values()
    assert analysis.notes == ()
    assert conv.connections == 3 * 4 * 22 * 22
    assert (conv.activation, dense.activation, head.depth) == ("relu", "relu", 3)
    assert dense.fan_in == 8 * 8 * 4


def transformer(blocks=2, width=16):
    inputs = keras.Input((10,), dtype="int32")
    x = L.Embedding(50, width, name="embedding")(inputs)
    for _ in range(blocks):
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(2, width // 2)(y, y)
        y = L.LayerNormalization()(x)
        x = x + L.Dense(width)(L.Dense(4 * width, activation="gelu")(y))
    return keras.Model(inputs, L.Dense(50, name="head")(x))


def test_a_transformer_has_no_unknown_layer():
    analysis = kv.analyze(transformer())
    assert analysis.notes == ()
    assert len(analysis.contexts) == 1 + 2 * 6 + 1
    attention = [c for c in analysis.contexts.values() if c.layer == "attention_output"]
    assert [(c.fan_in, c.fan_out) for c in attention] == [(16, 16)] * 2


def test_a_call_that_cannot_be_followed_says_what_to_pass():
    class Branching(keras.Model):
        def __init__(self):
            super().__init__(name="branching")
            self.dense = L.Dense(2)

        def call(self, x):
            return self.dense(x) if float(ops.convert_to_numpy(x)[0, 0]) > 0 else self.dense(-x)

    model = Branching()
    if keras.backend.backend() == "jax":
        model.dense.build((None, 4))
        model.build((None, 4))
    else:
        model(np.ones((1, 4), "float32"))
    analysis = kv.analyze(model)
    assert re.search(r"cannot be followed on symbolic tensors .* Functional", analysis.notes[0])
    assert [(c.layer, c.fan_in, c.fan_out) for c in analysis.contexts.values()] == [
        (model.dense.name, 4, 2)
    ]
    assert [prediction.forward for prediction in analysis.predicted.values()] == [None]
    assert ("unknown-layer", "branching") in [(f.rule, f.path) for f in kv.lint(model)]
    assert len(kv.initialize(model, "asv_backward", seed=0).drawn) == 2
