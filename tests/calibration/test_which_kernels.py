"""Kernels that `calibrate` scales, with own calls and shared layers, and those it leaves alone."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests.analysis import test_any_model
from tests.calibration.networks import biases, draw, images
from tests.models import assert_equal, cnn, weights

L = keras.layers


class Twice(keras.Model):
    """A shared layer, its own kernel in a raw product, a convolution as an operation."""

    def __init__(self):
        super().__init__(name="twice")
        self.shared = L.Dense(8, activation="relu", name="shared", bias_initializer=biases())
        self.mix = self.add_weight(shape=(8, 5), initializer="random_normal", name="mix")
        self.filters = self.add_weight(shape=(3, 1, 4), initializer="he_normal", name="filters")

    def call(self, x):
        x = self.shared(self.shared(x))
        x = ops.tanh(x @ self.mix + 1.0)
        return ops.conv(ops.expand_dims(x, -1), self.filters, padding="same")

    def by_hand(self, x):
        """Second moments of the kernels' outputs, by NumPy."""
        kernel, bias, mix, filters = (
            ops.convert_to_numpy(v).astype("float64")
            for v in (self.shared.kernel, self.shared.bias, self.mix, self.filters)
        )
        first = x @ kernel + bias
        second = np.maximum(first, 0) @ kernel + bias
        mixed = np.maximum(second, 0) @ mix
        padded = np.pad(np.tanh(mixed + 1), ((0, 0), (1, 1)))
        windows = np.stack([padded[:, n : n + 5] for n in range(3)], axis=-1)
        moments = [np.mean(u**2) for u in (first, second, mixed, windows @ filters[:, 0])]
        return dict(zip(("shared", "shared#2", "mix", "filters"), moments, strict=True))


def test_own_call_shared_layers_and_raw_operations():
    model, x = Twice(), draw(40, 8, scale=2.0)
    model(x)
    report = kv.calibrate(model, x)
    by_hand = model.by_hand(x)
    rows = {row.layer if "shared" in row.layer else row.path.split("/")[-1]: row for row in report}
    assert list(rows) == ["shared", "shared#2", "mix", "filters"]
    for name, row in rows.items():
        assert row.after == pytest.approx(by_hand[name], rel=1e-4)
        if name != "shared#2":
            assert (row.status, by_hand[name]) == ("calibrated", pytest.approx(1, abs=0.0101))
    assert rows["shared#2"].status == "skipped: shared, calibrated where 'shared' is called"
    assert rows["shared#2"].scale == 1


class Blind(keras.Model):
    """Its `call` needs numbers, so that Keras records no graph."""

    def __init__(self):
        super().__init__(name="blind")
        self.first, self.last = L.Dense(8, activation="relu"), L.Dense(3)

    def call(self, x):
        x = self.first(x)
        return self.last(x) if float(ops.convert_to_numpy(ops.sum(x))) >= 0 else x


def test_a_call_that_cannot_be_followed():
    model, x = Blind(), draw(32, 8, scale=3.0)
    model(x)
    report = kv.calibrate(model, x)
    assert [row.status for row in report] == ["calibrated"] * 2
    assert report.notes
    first = x @ ops.convert_to_numpy(model.first.kernel)
    last = np.maximum(first, 0) @ ops.convert_to_numpy(model.last.kernel)
    assert [np.mean(first**2), np.mean(last**2)] == pytest.approx([1, 1], abs=0.0101)


class Tied(keras.Model):
    """Decodes with the transposed kernel of the encoder."""

    def __init__(self):
        super().__init__(name="tied")
        self.encode, self.scale = L.Dense(6, name="encode"), L.Dense(6, name="scale")

    def call(self, x):
        x = self.encode(x) @ ops.transpose(self.encode.kernel)
        return self.scale(x)


def test_what_is_made_of_a_kernel_follows_it():
    model, x = Tied(), draw(64, 8, scale=5.0)
    model(x)
    report = kv.calibrate(model, x)
    kernel = ops.convert_to_numpy(model.encode.kernel)
    encoded = x @ kernel
    last = encoded @ kernel.T @ ops.convert_to_numpy(model.scale.kernel)
    assert [np.mean(encoded**2), np.mean(last**2)] == pytest.approx([1, 1], abs=0.0101)
    assert [row.status for row in report] == ["calibrated"] * 2


def test_blocks_with_their_own_call():
    model, x = test_any_model.built(test_any_model.Own()), images()
    report = kv.calibrate(model, x)
    status = {row.path.split("/", 1)[1]: row.status for row in report}
    skipped = "skipped: the normalization after it cancels its scale"
    assert status["one/first/kernel"] == status["two/first/kernel"] == skipped
    assert [s for s in status.values() if s == "calibrated"] == ["calibrated"] * 5
    stem = ops.convert_to_numpy(model.stem(x))
    assert np.mean(stem**2) == pytest.approx(1, abs=0.0101)


@pytest.mark.slow
def test_attention_and_recurrent_layers():
    inputs = keras.Input((5, 6))
    x = L.MultiHeadAttention(2, 4, name="attention", bias_initializer=biases())(inputs, inputs)
    x = L.LSTM(7, name="lstm")(x)
    model, x = keras.Model(inputs, L.Dense(3, name="head")(x)), draw(16, 5, 6)
    report = kv.calibrate(model, x)
    statuses = {row.path: row.status for row in report}
    inside = "skipped: it acts inside the layer, whose output is calibrated"
    hidden = "skipped: its kernel's output stays inside the layer"
    assert statuses == {
        "attention/query/kernel": inside,
        "attention/key/kernel": inside,
        "attention/value/kernel": inside,
        "attention/attention_output/kernel": "calibrated",
        "lstm/lstm_cell/kernel": hidden,
        "lstm/lstm_cell/recurrent_kernel": hidden,
        "head/kernel": "calibrated",
    }
    attended = keras.Model(inputs, model.layers[1].output)(x)
    assert np.mean(ops.convert_to_numpy(attended) ** 2) == pytest.approx(1, abs=0.0101)


def test_what_is_left_alone_is_listed():
    inputs = keras.Input((4,), dtype="int32")
    x = L.Embedding(9, 8, name="embedding")(inputs)
    x = L.Dense(8, name="frozen", trainable=False)(x)
    x = L.Dense(8, name="lora")(x)
    x = L.LayerNormalization()(L.Dropout(0.1)(L.Dense(8, name="normalized")(x)))
    x = L.Dense(8, name="relu", activation="relu")(x)
    x = L.Dense(8, name="quantized")(L.LayerNormalization()(x))
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    model.get_layer("lora").enable_lora(2)
    model.get_layer("quantized").quantize("int8")
    x = np.random.default_rng(0).integers(0, 9, (16, 4)).astype("int32")
    report = kv.calibrate(model, x)
    statuses = {row.layer: row.status for row in report}
    assert statuses == {
        "embedding": "skipped: an embedding, which `layers` does not name",
        "frozen": "skipped: frozen (trainable=False)",
        "lora": "skipped: LoRA is enabled, so it is left alone",
        "normalized": "skipped: the normalization after it cancels its scale",
        "relu": "calibrated",
        "quantized": "skipped: quantized (int8), so it is left alone",
        "head": "calibrated",
    }
    names = ["embedding", "frozen", "normalized"]
    report = kv.calibrate(model, x, layers=names, include_frozen=True)
    assert {row.layer: row.status for row in report} == dict.fromkeys(names, "calibrated")
    assert all(row.after == pytest.approx(1, abs=0.01) for row in report)


def test_layers_and_frozen_models():
    model, x = cnn(), images()
    before = weights(model)
    chosen = kv.calibrate(model, x, layers=lambda layer: isinstance(layer, L.Dense))
    assert [row.layer for row in chosen] == ["dense"]
    assert_equal(weights(model)[:4], before[:4])
    model.trainable = False
    report = kv.calibrate(model, x)
    assert {row.status for row in report} == {"skipped: frozen (trainable=False)"}
    assert all(row.before == row.after for row in report)
    assert len(kv.calibrate(model, x, include_frozen=True).calibrated) == 3
