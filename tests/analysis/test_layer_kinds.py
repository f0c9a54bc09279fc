"""Layers and models of users' own inside models: weights, masks, attention."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests.analysis.test_model_kinds import dense, reading_leaves_no_trace, redrawn

L = keras.layers


class Fitted(keras.Model):
    """Two inputs by name, three layers, nothing built before the first batch."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = dense(4), dense(4), dense(2)

    def call(self, inputs, training=False):
        return self.head(ops.tanh(self.left(inputs["left"]) * self.right(inputs["right"])))


def test_model_of_a_dictionary_that_fit_builds():
    model, injector = Fitted(), kv.ContextInjector()
    model.compile("sgd", "mse")
    data = {name: np.ones((8, n), "float32") for name, n in (("left", 3), ("right", 5))}
    model.fit(data, np.ones((8, 2), "float32"), callbacks=[injector], verbose=0)
    assert len(injector.report.drawn) == 3
    analysis = reading_leaves_no_trace(model)
    assert [c.depth for c in analysis.contexts.values()] == [1, 1, 2]
    assert analysis.notes == ()


class OwnWeights(L.Layer):
    """A dense layer and one kernel per position, by hand."""

    def build(self, shape):
        initializer = kv.ASVForward(seed=3)
        self.w = self.add_weight(shape=(shape[-1], 6), name="w", initializer=initializer)
        self.v = self.add_weight(shape=(4, 6, 5), name="v", initializer=initializer)
        self.shift = self.add_weight(shape=(6,), name="shift", initializer="zeros")
        self.w_initializer, self.v_initializer = initializer, initializer

    def call(self, x):
        x = ops.relu(ops.matmul(x, self.w) + self.shift)
        return ops.einsum("bpi,pio->bpo", x, self.v)


class OwnLayers(L.Layer):
    """Layers in a list and in a dictionary, one called twice."""

    def __init__(self):
        super().__init__()
        self.steps = [dense(7, activation="relu"), OwnWeights()]
        self.named = {"last": dense(5, name="last")}

    def build(self, shape):
        self.steps[0].build(shape)
        self.steps[1].build((*shape[:-1], 7))
        self.named["last"].build((*shape[:-1], 5))

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return self.named["last"](self.named["last"](x))


def test_custom_layers_that_own_weights_and_layers():
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, OwnLayers()(inputs))
    analysis = reading_leaves_no_trace(model)
    assert analysis.notes == ()
    found = [(c.depth, c.fan_in, c.fan_out) for c in analysis.contexts.values()]
    assert found == [(1, 3, 7), (2, 7, 6), (3, 6, 5), (4, 5, 5)]
    assert len(redrawn(model)) == 4


@pytest.mark.filterwarnings("ignore:.*passed an input with a mask")  # Keras 3.16
def test_of_masked_sequences_only_what_is_assumed_is_noted():
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(20, 8, mask_zero=True)(inputs)
    x = L.Bidirectional(L.GRU(4, return_sequences=True))(x)
    analysis = reading_leaves_no_trace(keras.Model(inputs, dense(2)(L.LSTM(4)(x))))
    assert all(note.endswith("as without padding") for note in analysis.notes)
    assert len(analysis.contexts) == 1 + 4 + 2 + 1


def test_a_mask_made_of_the_signal_itself_is_followed():
    """z·[z > 0] is a rectifier: half of the second moment is left."""
    inputs = keras.Input((6,))
    layer = dense(3)
    model = keras.Model(inputs, layer(inputs * ops.cast(inputs > 0, "float32")))
    kv.initialize(model, "he_normal", seed=0)
    analysis = kv.analyze(model)
    assert analysis.notes == ()
    gain = analysis.predicted[layer.kernel.path].gain
    assert gain == pytest.approx(6 / 2, rel=1e-6)


class Transformer(keras.Model):
    """Pre-norm blocks on token and position embeddings, grouped or multi-head attention."""

    def __init__(self, attention, blocks=2, width=16):
        super().__init__()
        self.tokens, self.positions = L.Embedding(50, width), L.Embedding(10, width)
        self.attention = [attention() for _ in range(blocks)]
        self.norms = [L.LayerNormalization() for _ in range(2 * blocks)]
        self.mlps = [
            keras.Sequential([dense(4 * width, activation="gelu"), L.Dropout(0.1), dense(width)])
            for _ in range(blocks)
        ]
        self.head = dense(50, name="head")

    def call(self, tokens, training=False):
        x = self.tokens(tokens) + self.positions(ops.arange(10))
        for n, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            y = self.norms[2 * n](x)
            x = x + attention(y, y, training=training)
            x = x + mlp(self.norms[2 * n + 1](x), training=training)
        return self.head(x)


ATTENTION = {
    "multi-head": lambda: L.MultiHeadAttention(2, 8, kernel_initializer=kv.ASVForward(seed=3)),
    "grouped": lambda: L.GroupQueryAttention(8, 4, 2, kernel_initializer=kv.ASVForward(seed=3)),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
def test_transformer(attention, wrapped):
    model = Transformer(ATTENTION[attention])
    model(np.ones((2, 10), "int32"))
    if wrapped:
        tokens = keras.Input((10,), dtype="int32")
        model = keras.Model(tokens, model(tokens))
    analysis = reading_leaves_no_trace(model)
    assert analysis.unknown == ()
    assert len(analysis.contexts) == 2 + 2 * 6 + 1
    head = next(c for c in analysis.contexts.values() if c.layer == "head")
    assert head.depth == 2 + 2 * 4
    assert len(redrawn(model)) == 2 * 6 + 1
