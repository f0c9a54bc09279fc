"""Layers written as others write them are opened as Keras would call them."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests.tracing.opening_layers import (
    BYPASSED,
    CLOSED,
    OPENED,
    Positions,
    Rotary,
    StrangeAttention,
)

L = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")


def language_model(block, length=None):
    """Tokens, a block of someone else's, and a head."""
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = L.Embedding(32, 8, name="embedding")(tokens)
    return keras.Model(tokens, L.Dense(3, name="head")(block(x)))


def notes_of(analysis, text):
    return [note for note in analysis.notes if text in note]


@pytest.mark.parametrize("length", [None, 6])
@pytest.mark.parametrize("case", OPENED)
def test_opened(case, length):
    """Each cause that kept a layer shut: nothing is closed, and every kernel has its context."""
    model = language_model(OPENED[case](), length)
    analysis = kv.analyze(model)
    assert not notes_of(analysis, "could not be opened")
    kernels = [v for v in model.variables if v.name in ("kernel", "embeddings")]
    assert {v.path for v in kernels} <= set(analysis.contexts)
    assert analysis.contexts["head/kernel"].depth == analysis.contexts["head/kernel"].total_depth
    report = kv.initialize(model, "he_normal", seed=0)
    assert {v.path for v in kernels} <= {row.path for row in report.drawn}


@pytest.mark.parametrize("case", OPENED)
def test_opening_leaves_nothing_behind(case):
    block = OPENED[case]()
    model = language_model(block)
    layers = [block, *block._flatten_layers(include_self=False)]
    before = [(len(each._inbound_nodes), len(each._outbound_nodes), each.built) for each in layers]
    attributes = [set(vars(each)) for each in layers]
    kv.analyze(model)
    after = [(len(each._inbound_nodes), len(each._outbound_nodes), each.built) for each in layers]
    assert after == before
    assert [set(vars(each)) for each in layers] == attributes


def test_an_unknown_length_stays_unknown():
    """The example that a decoder needs is in no context; at a known length sizes are counted."""
    contexts = {
        length: kv.analyze(language_model(OPENED["a length is needed"](), length)).contexts
        for length in (None, 6)
    }
    unknown, known = (contexts[n]["head/kernel"] for n in (None, 6))
    assert (unknown.input_size, unknown.output_size, unknown.connections) == (None, None, None)
    assert (known.input_size, known.output_size, known.connections) == (48, 18, 144)
    assert (unknown.fan_in, unknown.fan_out) == (known.fan_in, known.fan_out) == (8, 3)


class Joined(L.Layer):
    """Positions in a row, by the batch's size, which is not known."""

    def call(self, x):
        return ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))


def test_sizes_that_the_batch_hides_are_known():
    x = L.Conv2D(16, 3, padding="same")(keras.Input((4, 5, 3)))
    attention = L.MultiHeadAttention(2, 8, name="attention")
    joined = Joined()(x)
    model = keras.Model(x._keras_history.operation.input, attention(joined, joined))
    analysis = kv.analyze(model)
    assert analysis.predicted["attention/attention_output/kernel"].forward is not None
    assert not analysis.notes


def test_lengths_that_belong_together_are_the_same():
    """Two inputs of unknown length whose signals are added to a table made for one of them."""
    tokens, kinds = (keras.Input((None,), dtype="int32", name=n) for n in ("tokens", "kinds"))
    x = L.Embedding(32, 8, name="a")(tokens) + L.Embedding(4, 8, name="b")(kinds)
    model = keras.Model([tokens, kinds], L.Dense(3, name="head")(Rotary()(Positions()(x))))
    analysis = kv.analyze(model)
    assert not notes_of(analysis, "could not be opened")
    assert analysis.contexts["head/kernel"].input_size is None


def test_a_long_example_where_short_ones_do_not_pass():
    """Five strides shorten the wave 32-fold, and the last window is as long as eight of these."""
    wave = keras.Input((None, 1))
    x = wave
    for number in range(5):
        x = L.Conv1D(4, 3, strides=2, name=f"stride_{number}")(x)
    x = L.Conv1D(4, 8, name="window")(x)
    model = keras.Model(wave, OPENED["a length is needed"]()(L.Dense(8)(x)))
    analysis = kv.analyze(model)
    assert not notes_of(analysis, "could not be opened")
    assert analysis.contexts["window/kernel"].output_size is None


def test_a_table_of_positions_is_a_constant_and_no_kernel():
    model = language_model(Positions(name="positions"))
    analysis = kv.analyze(model)
    assert list(analysis.contexts) == ["embedding/embeddings", "head/kernel"]
    assert analysis.unknown == ()
    assert notes_of(analysis, "positions/position_embeddings: no kernel but a weight")
    table = next(v for v in model.variables if v.name == "position_embeddings")
    before = ops.convert_to_numpy(table)
    report = kv.initialize(model, "he_normal", seed=0)
    assert report["positions/position_embeddings"].status.startswith("skipped: no kernel")
    np.testing.assert_array_equal(ops.convert_to_numpy(table), before)
    assert kv.lint(model) == []


@pytest.mark.parametrize("case", CLOSED)
def test_closed(case):
    """A layer that computes outside Keras: kernels by shape and class, listed with the reason."""
    model = language_model(CLOSED[case](name="closed"))
    analysis = kv.analyze(model)
    assert notes_of(analysis, "closed (")
    assert all("could not be opened" in note for note in notes_of(analysis, "closed ("))
    context = analysis.contexts["closed/inner/kernel"]
    assert (context.fan_in, context.fan_out, context.depth) == (8, 8, 2)
    assert (context.connections, context.input_size) == (None, None)
    assert (context.activation, context.backward_gain) == ("relu", pytest.approx(0.5))
    assert analysis.predicted["closed/inner/kernel"].forward is None
    assert analysis.contexts["head/kernel"].depth == 3
    assert ("unknown-layer", "closed") in [(f.rule, f.path) for f in kv.lint(model)]
    report = kv.initialize(model, "he_normal", seed=0)
    assert report["closed/inner/kernel"].stddev == pytest.approx(0.5)  # √(2/8)
    assert report["closed/inner/kernel"].status == "drawn"


def test_the_reason_is_the_one_that_is_left():
    """Without a length one error comes first; with one, what really stops the reading."""
    layer = CLOSED["needs a length, then leaves Keras"](name="closed")
    note = notes_of(kv.analyze(language_model(layer)), "could not be opened")[0]
    assert "KerasTensor" in note or "__jax_array__" in note
    assert "NoneType" not in note


def test_a_subclass_with_a_call_of_its_own_is_opened():
    """What the rule of attention says does not hold for it: its kernels are seen from inside."""
    block = StrangeAttention()
    analysis = kv.analyze(language_model(block, 6))
    found = {c.layer: (c.fan_in, c.fan_out) for c in analysis.contexts.values()}
    assert {name: found[name] for name in ("query", "value", "attention_output")} == {
        "query": (8, 8), "value": (8, 8), "attention_output": (8, 8),
    }  # fmt: skip


@pytest.mark.parametrize("case", BYPASSED)
def test_a_model_that_cannot_be_followed_is_initialized(case):
    model = BYPASSED[case]()
    analysis = kv.analyze(model)
    assert "cannot be followed" in analysis.notes[0]
    assert [(c.layer, c.depth) for c in analysis.contexts.values()] == [("first", 1), ("last", 2)]
    assert len(kv.initialize(model, "he_normal", seed=0).drawn) == 4
    assert [f.rule for f in kv.lint(model)] == ["unknown-layer"]


def test_only_a_model_without_a_kernel_is_refused():
    model = keras.Sequential([keras.Input((4,)), L.BatchNormalization()])
    with pytest.raises(ValueError, match="no kernel of model"):
        kv.initialize(model, "he_normal")


def test_tokens_scales_and_relative_tables_are_left_alone_and_listed():
    class Tokens(L.Layer):
        def build(self, shape):
            self.cls = self.add_weight(shape=(1, 1, 8), name="cls_token")
            self.scale = self.add_weight(shape=(1, 8), name="layer_scale_gamma")
            self.table = self.add_weight(shape=(7, 2), name="relative_position_bias_table")

        def call(self, x):
            front = ops.broadcast_to(self.cls, (ops.shape(x)[0], 1, 8))
            return ops.concatenate([front, self.scale * x], axis=1) + ops.mean(self.table)

    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, L.Dense(2, name="head")(Tokens(name="tokens")(inputs)))
    before = {v.path: ops.convert_to_numpy(v) for v in model.layers[1].weights}
    analysis = kv.analyze(model)
    assert analysis.unknown == ()
    assert list(analysis.contexts) == ["head/kernel"]
    report = kv.initialize(model, "he_normal", seed=0)
    for path, values in before.items():
        assert notes_of(analysis, path)
        assert report[path].status.startswith("skipped: no kernel")
        now = next(v for v in model.weights if v.path == path)
        np.testing.assert_array_equal(ops.convert_to_numpy(now), values)


def test_a_table_is_drawn_by_the_initializer_that_its_layer_holds():
    class Table(L.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.initializer = keras.initializers.RandomNormal(stddev=0.02, seed=1)

        def build(self, shape):
            self.table = self.add_weight(
                shape=shape[1:], initializer=self.initializer, name="position_embeddings"
            )

        def call(self, x):
            return x + self.table

    inputs = keras.Input((50, 8))
    model = keras.Model(inputs, L.Dense(2)(Table(name="table")(inputs)))
    before = ops.convert_to_numpy(model.layers[1].table)
    row = kv.initialize(model, "he_normal", seed=0)["table/position_embeddings"]
    assert (row.status, row.initializer) == ("drawn", "RandomNormal")
    after = ops.convert_to_numpy(model.layers[1].table)
    assert not np.array_equal(before, after)
    # The spread of 400 normal entries has a standard error of 3.5 %; four of them are allowed.
    assert np.std(after) == pytest.approx(0.02, rel=0.14)
