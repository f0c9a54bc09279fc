"""Behind a normalization of what is not known: numbers that need its scale alone, no others."""

import keras
import pytest
from keras import ops

import keras_varinit as kv

L = keras.layers
NOISE = "unknown after an unknown signal is normalized"


def network(back):
    """Tokens of unknown resemblance, normalized; `back` goes on."""
    inputs = keras.Input((10, 32))
    u = L.Dense(64, kernel_initializer="lecun_normal", name="first")(inputs)
    x = L.LayerNormalization()(ops.cumsum(u, axis=1))
    return keras.Model(inputs, back(x))


def dense(name, units=64):
    return L.Dense(units, kernel_initializer="lecun_normal", name=name)


def mixed(x):
    return L.MultiHeadAttention(4, 16, name="attention")(x, x)


def of(model):
    analysis = kv.analyze(model)
    return {path.split("/kernel")[0]: p for path, p in analysis.predicted.items()}, analysis.notes


def test_a_kernel_at_one_position_needs_the_scale_alone():
    found, notes = of(network(dense("last")))
    assert found["last"].forward == pytest.approx(1.0, rel=1e-2)
    assert found["last"].backward == pytest.approx(1.0)
    assert found["first"].backward is None
    assert not any(NOISE in note for note in notes)


@pytest.mark.parametrize(
    "reduce", [L.GlobalAveragePooling1D(), L.GlobalMaxPooling1D(), L.AveragePooling1D(2)]
)
def test_what_positions_have_in_common_is_not_known(reduce):
    found, notes = of(network(lambda x: dense("last")(reduce(dense("before")(x)))))
    assert found["before"].forward == pytest.approx(1.0, rel=1e-2)
    assert found["last"].forward is None
    assert any(NOISE in note for note in notes)


def test_attention_and_what_is_normalized_behind_it():
    found, notes = of(
        network(lambda x: dense("last")(L.LayerNormalization()(L.Add()([x, mixed(x)]))))
    )
    assert found["attention/query"].forward is not None
    assert found["attention/attention_output"].forward is None
    assert found["last"].forward == pytest.approx(1.0, rel=1e-2)
    assert any(NOISE in note for note in notes)


def test_signal_preserving_draws_as_if_positions_were_independent_there_and_says_so():
    model = network(lambda x: dense("last")(mixed(x)))
    report = kv.initialize(model, "signal_preserving", seed=0)
    assert any("attention_output" in n and "input signal is not known" in n for n in report.notes)
