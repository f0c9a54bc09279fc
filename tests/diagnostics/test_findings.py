"""`SignalReport.findings`: what a signal is compared with."""

import keras
import numpy as np
import pytest

import keras_varinit as kv

L = keras.layers
NOTHING = ("No layer's signal vanishes, explodes or saturates.",)


def tokens():
    return np.random.default_rng(0).integers(0, 50, (16, 12)).astype("int32")


def transformer(*, normalized=True, last=0.2):
    """Keras's default embedding has a second moment of 1/1200, behind which most is larger."""
    inputs = keras.Input((12,), dtype="int32")
    x = L.Embedding(50, 32, name="tokens")(inputs)
    x = x + L.Embedding(50, 32, name="segments")(inputs)
    for number in range(2):
        y = L.LayerNormalization()(x) if normalized else x
        x = x + L.MultiHeadAttention(2, 16, name=f"attention_{number}")(y, y)
        y = L.LayerNormalization()(x) if normalized else x
        x = x + L.Dense(32)(L.Dense(128, "relu", name=f"wide_{number}")(y))
    head = L.Dense(8, kernel_initializer=keras.initializers.RandomNormal(stddev=last), name="head")
    return keras.Model(inputs, head(L.LayerNormalization()(x)))


class Opaque(keras.Model):
    """A `call` that cannot be followed, so that its layers are watched while it runs."""

    def __init__(self):
        super().__init__()
        self.tokens = L.Embedding(50, 32, name="tokens")
        self.norm, self.wide = L.LayerNormalization(), L.Dense(128, name="wide")

    def call(self, x):
        if int(keras.ops.convert_to_numpy(x)[0, 0]) >= 0:
            x = self.tokens(x)
        return self.wide(self.norm(x))


def test_an_embedding_in_front_of_a_normalization_is_no_reference():
    report = kv.measure_signal(transformer(), tokens())
    assert report["tokens"].second_moment < 1e-2 * report["wide_0"].second_moment
    assert [row.name for row in report if row.normalized] == ["tokens", "segments"]
    assert not any("times tokens's" in finding for finding in report.findings())
    if not keras.__version__.startswith("3.10."):  # which starts attention's kernels small
        assert report.findings() == NOTHING
    assert all(row["normalized"] == (row["name"] in "tokens segments") for row in rows_of(report))


def rows_of(report):
    return report.to_dict()["rows"]


def test_behind_it_the_first_kernel_is_the_reference():
    report = kv.measure_signal(transformer(last=30.0), tokens())
    text = "head is the first layer whose signal explodes: second moment"
    assert any(f.startswith(text) and "times attention_0's" in f for f in report.findings())


def test_an_embedding_that_nothing_normalizes_stays_the_reference():
    report = kv.measure_signal(transformer(normalized=False, last=1.0), tokens())
    assert [row.name for row in report if row.normalized] == []
    assert any(f.startswith("head is") and "times tokens's" in f for f in report.findings())


def test_a_normalization_of_another_branch_comes_too_late():
    inputs = keras.Input((12,), dtype="int32")
    x = L.Dense(8, name="first")(L.Embedding(50, 32, name="tokens")(inputs))
    report = kv.measure_signal(keras.Model(inputs, L.LayerNormalization()(x)), tokens())
    assert not report["tokens"].normalized


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces every call")
def test_it_is_seen_where_layers_are_watched_too():
    model = Opaque()
    model(tokens())
    report = kv.measure_signal(model, tokens())
    assert report["tokens"].normalized
    assert report.findings() == NOTHING


def test_a_report_with_nothing_but_such_an_embedding_still_says_what_it_can():
    layers = [L.Embedding(50, 32, embeddings_initializer="zeros"), L.LayerNormalization()]
    model = keras.Sequential([keras.Input((12,), dtype="int32"), *layers])
    assert "its signal vanishes" in kv.measure_signal(model, tokens()).findings()[0]


def test_a_report_says_which_rows_it_has():
    report = kv.measure_signal(transformer(), tokens())
    row = report["head"]
    assert "head" in report
    assert row.path in report
    assert row in report
    assert "nothing" not in report
    assert None not in report
