"""Layers whose weights are not to be drawn: quantized ones, and those with LoRA."""

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit import keras_private
from tests.models import assert_equal, weights

L = keras.layers


def dense(**options):
    return L.Dense(8, kernel_initializer=kv.ASVForward(seed=3), **options)


def attention():
    inputs = keras.Input((8,))
    x = L.Reshape((4, 2))(inputs)
    layer = L.MultiHeadAttention(2, 3, kernel_initializer=kv.ASVForward(seed=3), name="odd")
    x = L.Flatten()(layer(x, x))
    return keras.Model(inputs, x), layer


def in_the_middle(layer):
    return keras.Sequential([keras.Input((8,)), layer]), layer


# A function that makes a layer's model and the layer, and one that changes the layer.
MAKERS = {
    "dense": lambda: in_the_middle(dense(name="odd")),
    "einsum": lambda: in_the_middle(
        L.EinsumDense("ab,bc->ac", 8, kernel_initializer=kv.ASVForward(seed=3), name="odd")
    ),
    "attention": attention,
}


def with_lora(layer):
    if isinstance(layer, L.MultiHeadAttention):
        layer = next(each for each in keras_private.layers_of(layer) if each.name == "value")
    layer.enable_lora(2)


def quantized(mode):
    def change(layer):
        parts = (
            keras_private.layers_of(layer) if isinstance(layer, L.MultiHeadAttention) else [layer]
        )
        for part in parts:
            if isinstance(part, L.EinsumDense | L.Dense):
                part.quantize(mode)

    return change


CHANGES = {
    "LoRA is enabled": with_lora,
    "quantized (int8)": quantized("int8"),
    "quantized (float8)": quantized("float8"),
}


def network(make, change):
    """The layer between two that are drawn."""
    inner, layer = make()
    model = keras.Sequential([keras.Input((8,)), dense(name="first"), inner, dense(name="last")])
    change(layer)
    return model, layer


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.parametrize("make", MAKERS)
def test_left_alone_and_listed(make, reason):
    model, layer = network(MAKERS[make], CHANGES[reason])
    before = weights(layer)
    full = f"{reason}, so it is left alone"
    assert full in " ".join(kv.analyze(model).notes)
    assert [f.rule for f in kv.lint(model) if f.path == "odd"] == ["unknown-layer"]

    for report in (
        kv.inject(model, force=True),
        kv.initialize(model, "asv_forward", include_frozen=True),
    ):
        odd = [row for row in report if "odd" in row.path]
        assert odd
        assert {row.status for row in odd} == {f"skipped: {full}"}
        drawn = [row.layer for row in report.drawn if row.context is not None]
        assert drawn == ["first", "last"]
        assert_equal(weights(layer), before)


def test_the_layer_counts_for_depth_and_ends_the_stage_before_it():
    model, _ = network(MAKERS["dense"], with_lora)
    first, last = kv.analyze(model).contexts.values()
    assert (first.depth, last.depth, last.total_depth) == (1, 3, 3)


def test_embedding_and_convolution_with_lora():
    inputs = keras.Input((6,))
    table, conv = L.Embedding(20, 8), L.Conv1D(4, 3)
    x = conv(table(inputs))
    model = keras.Model(inputs, dense(name="head")(L.Flatten()(x)))
    table.enable_lora(2)
    conv.enable_lora(2)
    before = weights(table) + weights(conv)
    report = kv.initialize(model, "he_normal", seed=1)
    assert {row.layer for row in report.drawn} == {"head"}
    assert_equal(weights(table) + weights(conv), before)


def test_layer_that_its_policy_quantizes_from_the_start():
    policy = "int8_from_float32"
    model = keras.Sequential([keras.Input((8,)), dense(), L.Dense(8, dtype=policy, name="odd")])
    before = weights(model.layers[1])
    assert len(kv.initialize(model, "he_normal", seed=1).skipped) == len(before)
    assert_equal(weights(model.layers[1]), before)
    assert np.isfinite(model.predict(np.ones((2, 8)), verbose=0)).all()


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.parametrize("make", ["dense", "attention"])
def test_their_signals_are_measured(make, reason):
    model, _ = network(MAKERS[make], CHANGES[reason])
    before = weights(model)
    x = np.random.default_rng(0).standard_normal((16, 8)).astype("float32")
    report = kv.measure_signal(model, x, np.zeros((16, 8)), loss="mse")
    assert_equal(weights(model), before)
    outputs = keras.ops.convert_to_numpy(model(x))
    last = report["last"]
    assert last.second_moment == pytest.approx(np.mean(outputs**2), rel=1e-4)
    assert last.gradient_second_moment == pytest.approx(np.mean((outputs / 4) ** 2), rel=1e-4)
    assert all(row.gradient_second_moment > 0 for row in report)
    assert all(row.nonfinite_count == row.gradient_nonfinite_count == 0 for row in report)
    assert "odd" in report


@pytest.mark.parametrize("reason", ["quantized (int8)", "quantized (float8)"])
@pytest.mark.parametrize("make", ["dense", "einsum"])
def test_a_quantized_model_has_a_builtin_copy(make, reason):
    model, _ = network(MAKERS[make], CHANGES[reason])
    copy = kv.to_builtin(model)
    x = np.random.default_rng(0).standard_normal((16, 8)).astype("float32")
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(each(x)) for each in (model, copy)))


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
def test_a_model_quantized_as_a_whole_is_measured_in_training_and_inference():
    layers = [L.Dense(6, activation="relu", name="first"), L.Dense(4, name="last")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    x = np.random.default_rng(0).standard_normal((16, 8)).astype("float32")
    exact = kv.measure_signal(model, x)
    model.quantize("float8")
    for training in (True, False):
        before = weights(model)
        report = kv.measure_signal(model, x, training=training)
        assert_equal(weights(model), before)
        for row in report:
            # Three bits of mantissa round by up to 1/16, all to one side at worst.
            plain = exact[row.name]
            assert row.second_moment == pytest.approx(plain.second_moment, rel=0.25)
            assert row.gradient_second_moment == pytest.approx(
                plain.gradient_second_moment, rel=0.25
            )
