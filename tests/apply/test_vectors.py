"""Biases and normalization scales that initializers of this library own."""

import json

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit import keras_private
from tests.models import assert_same_state, state

L = keras.layers

DONE = "skipped: already drawn for this context"

SET = "skipped: trained, loaded or set since it was drawn"

BESIDE = "skipped: the kernel beside it was trained, loaded or set since it was drawn"


def network(kernel="glorot_uniform", bias=None, gamma="branch_end_zeros"):
    """A residual network of one block."""
    bias = bias or kv.FanInBias(seed=1)
    options = {"kernel_initializer": kernel, "bias_initializer": bias}
    inputs = keras.Input((16,))
    stream = L.Dense(8, name="first", **options)(inputs)
    x = L.Dense(8, name="inner", **options)(stream)
    x = L.BatchNormalization(name="norm", gamma_initializer=gamma)(x)
    x = L.Dense(8, name="last", **options)(L.ReLU()(x))
    x = L.LayerNormalization(name="norm_at_the_end", gamma_initializer=gamma)(x)
    return keras.Model(inputs, L.Dense(2, name="head", **options)(stream + x))


def recurrent(bias, layer=L.LSTM, **options):
    inputs = keras.Input((30, 4))
    x = layer(6, name="recurrent", bias_initializer=bias, **options)(inputs)
    return keras.Model(inputs, L.Dense(2)(x))


def values(model):
    return {v.path: np.array(keras.ops.convert_to_numpy(v)) for v in model.weights}


def statuses(report):
    return {row.path: row.status for row in report}


BIASES = [f"{name}/bias" for name in ("first", "inner", "last", "head")]

SCALES = ["norm/gamma", "norm_at_the_end/gamma"]


def test_model_whose_only_initializers_of_ours_are_on_vectors_is_injected():
    model = network()
    before = values(model)
    report = kv.inject(model)
    assert statuses(report) == dict.fromkeys([*BIASES, *SCALES], "drawn") | {
        row.path: "drawn" for row in report
    }
    after = values(model)
    for path in BIASES:
        fan_in = model.get_layer(path.split("/")[0]).kernel.shape[0]
        assert report[path].context.role == "bias"
        assert report[path].stddev == pytest.approx(1 / np.sqrt(3 * fan_in))
        assert not np.any(before[path])
        assert np.all(after[path])
        assert np.abs(after[path]).max() <= 1 / np.sqrt(fan_in)
    assert len({tuple(after[path][:2]) for path in BIASES}) == len(BIASES)
    assert report["norm/gamma"].context.role == "scale"
    np.testing.assert_array_equal(after["norm/gamma"], np.ones(8))
    np.testing.assert_array_equal(after["norm_at_the_end/gamma"], np.zeros(8))
    unchanged = set(after) - {*BIASES, *SCALES}
    assert all(np.array_equal(after[path], before[path]) for path in unchanged)


def test_second_injection_changes_nothing():
    model = network("asv_forward")
    kv.inject(model)
    before = state(model)
    assert {row.status for row in kv.inject(model)} == {DONE}
    assert_same_state(state(model), before)


def test_same_seed_same_biases():
    models = [network(), network()]
    for model in models:
        kv.inject(model)
    for one, two in zip(*(values(m).items() for m in models), strict=True):
        if one[0] in BIASES:
            np.testing.assert_array_equal(one[1], two[1])


def test_set_biases_and_scales_are_left_alone_unless_forced():
    model = network()
    model.get_layer("inner").bias.assign(np.full(8, 0.5))
    model.get_layer("norm_at_the_end").gamma.assign(np.full(8, 0.5))
    report = kv.inject(model)
    assert report["inner/bias"].status == report["norm_at_the_end/gamma"].status == SET
    assert report["last/bias"].status == "drawn"
    np.testing.assert_array_equal(values(model)["inner/bias"], np.full(8, 0.5))
    forced = kv.inject(model, force=True)
    assert {row.status for row in forced} == {"drawn"}
    assert not np.any(values(model)["norm_at_the_end/gamma"])


@pytest.mark.parametrize("kernel", ["glorot_uniform", "asv_forward"])
def test_zeros_and_ones_beside_a_loaded_kernel_are_left_alone(kernel, tmp_path):
    source = network("he_normal", bias="zeros", gamma="ones")
    source.save_weights(tmp_path / "source.weights.h5")
    model = network(kernel)
    model.load_weights(tmp_path / "source.weights.h5")
    before = values(model)
    report = kv.inject(model)
    assert report.drawn == ()
    assert {report[path].status for path in (*BIASES, *SCALES)} == {BESIDE}
    after = values(model)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_biases_of_new_layers_on_trained_ones_are_drawn():
    model = network()
    for name in ("first", "inner"):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel + 1)
    report = kv.inject(model)
    assert report["first/bias"].status == report["inner/bias"].status == BESIDE
    assert report["norm/gamma"].status == BESIDE
    assert report["last/bias"].status == report["head/bias"].status == "drawn"


def test_generators_of_seeds_are_not_advanced():
    """Nor can it be told whether a kernel is what was drawn from one."""
    generator = keras.random.SeedGenerator(3)
    model = network(keras.initializers.HeNormal(seed=generator))
    before = keras.ops.convert_to_numpy(generator.state).copy()
    report = kv.inject(model)
    assert {row.status for row in report} == {BESIDE}
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(generator.state), before)


def test_frozen_vectors_are_left_alone():
    model = network()
    model.get_layer("inner").trainable = False
    report = kv.inject(model)
    assert report["inner/bias"].status == "skipped: frozen (trainable=False)"
    assert not np.any(values(model)["inner/bias"])


def test_error_changes_nothing():
    model = network("asv_forward")
    before = state(model)

    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    model.get_layer("norm_at_the_end").gamma_initializer._sample = broken
    with pytest.raises(RuntimeError, match="broken"):
        kv.inject(model)
    del model.get_layer("norm_at_the_end").gamma_initializer._sample
    assert_same_state(state(model), before)


@pytest.mark.parametrize("flag", [True, False])
def test_lstm_gets_times_and_says_in_its_configuration_that_keras_must_not_set_a_gate(flag):
    model = recurrent(kv.ChronoBias(seed=2), unit_forget_bias=flag)
    cell = model.get_layer("recurrent").cell
    built = keras.ops.convert_to_numpy(cell.bias)
    np.testing.assert_array_equal(built.reshape(4, 6)[1], np.full(6, float(flag)))
    report = kv.inject(model)
    (row,) = report.drawn
    assert row.stddev is None
    first, forget, *others = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
    assert np.all(forget > 0)
    assert np.all(forget < np.log(29))
    np.testing.assert_array_equal(first, -forget)
    assert not np.any(others)
    assert cell.unit_forget_bias is False
    assert {row.status for row in kv.inject(model)} == {DONE}
    twin = keras.models.clone_model(model)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(twin.get_layer("recurrent").cell.bias),
        keras.ops.convert_to_numpy(cell.bias),
    )


def test_failed_injection_restores_the_flag_of_the_forget_gate(monkeypatch):
    model = recurrent(kv.ChronoBias(seed=2))
    cell = model.get_layer("recurrent").cell
    replace = keras_private.replace_attribute

    def failing(layer, attribute, value):
        replace(layer, attribute, value)
        if attribute == "unit_forget_bias" and value is False:
            raise RuntimeError("interrupted")

    monkeypatch.setattr(keras_private, "replace_attribute", failing)
    with pytest.raises(RuntimeError, match="interrupted"):
        kv.inject(model)
    assert cell.unit_forget_bias is True
    assert cell.bias_initializer.context is None
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)[1], np.ones(6)
    )


@pytest.mark.parametrize("layer", [L.LSTM, L.GRU, L.SimpleRNN])
def test_recurrent_biases_within_the_bound_of_the_kernel(layer):
    model = recurrent(kv.FanInBias(seed=2), layer)
    cell = model.get_layer("recurrent").cell
    (row,) = kv.inject(model).drawn
    bias = np.array(keras.ops.convert_to_numpy(cell.bias))
    if layer is L.LSTM:
        np.testing.assert_array_equal(bias.reshape(4, 6)[1], np.ones(6))
        assert cell.unit_forget_bias is True
        bias = np.delete(bias.reshape(4, 6), 1, axis=0)
    assert np.all(bias)
    assert np.unique(bias).size == bias.size
    assert np.abs(bias).max() <= 1 / np.sqrt(row.context.fan_in)
    assert {row.status for row in kv.inject(model)} == {DONE}
    twin = keras.models.clone_model(model).get_layer("recurrent").cell
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(twin.bias), keras.ops.convert_to_numpy(cell.bias)
    )


def cells(model):
    return [each for each in keras_private.layers_of(model) if hasattr(each, "recurrent_kernel")]


def bidirectional(bias):
    inputs = keras.Input((30, 4))
    return keras.Model(inputs, L.Bidirectional(L.LSTM(6, bias_initializer=bias))(inputs))


def stacked(bias):
    inputs = keras.Input((30, 4))
    two = [L.LSTMCell(6, bias_initializer=bias), L.LSTMCell(6, bias_initializer=bias)]
    return keras.Model(inputs, L.RNN(two)(inputs))


def convolutional(bias):
    inputs = keras.Input((30, 8, 8, 2))
    return keras.Model(inputs, L.ConvLSTM2D(6, 3, bias_initializer=bias)(inputs))


@pytest.mark.parametrize("make", [bidirectional, stacked, convolutional])
def test_every_lstm_inside_gets_times_of_its_own(make):
    model = make("chrono_bias")
    assert len(kv.inject(model).drawn) == len(cells(model))
    forgets = set()
    for cell in cells(model):
        first, forget, *others = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
        assert np.all(forget > 0)
        np.testing.assert_array_equal(first, -forget)
        assert not np.any(others)
        assert cell.unit_forget_bias is False
        forgets.add(tuple(forget))
    assert len(forgets) == len(cells(model))


def test_lstm_of_unknown_length_has_the_default_of_keras_and_stays_as_it_is():
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, L.LSTM(6, bias_initializer="chrono_bias")(inputs))
    (cell,) = cells(model)
    (row,) = kv.inject(model)
    assert (row.status, row.stddev) == ("drawn", 0.0)
    bias = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
    np.testing.assert_array_equal(bias, np.eye(4)[1][:, None] * np.ones(6))
    assert cell.unit_forget_bias is True


def test_gru_gets_times_in_its_first_row():
    model = recurrent(kv.ChronoBias(seed=2), L.GRU)
    kv.inject(model)
    bias = keras.ops.convert_to_numpy(model.get_layer("recurrent").cell.bias)
    assert np.all(bias[0, :6] > 0)
    assert not np.any(bias[0, 6:])
    assert not np.any(bias[1])


def test_biases_of_attention_are_drawn():
    inputs = keras.Input((5, 8))
    layer = L.MultiHeadAttention(2, 4, bias_initializer="fan_in_bias", name="attention")
    model = keras.Model(inputs, layer(inputs, inputs))
    report = kv.inject(model)
    assert len(report.drawn) == 4
    for inner in (layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense):
        bias = keras.ops.convert_to_numpy(inner.bias)
        assert np.all(bias)
        assert np.abs(bias).max() <= 1 / np.sqrt(8)


def test_initializers_of_kernels_on_vectors_are_listed_and_left_alone():
    model = network(bias=kv.ASVForward(seed=1), gamma=kv.FanInBias(seed=1), kernel="asv_forward")
    before = values(model)
    report = kv.inject(model)
    assert report["inner/bias"].status == "skipped: ASVForward draws kernels, and this is a bias"
    assert report["norm/gamma"].status == "skipped: FanInBias draws biases, and this is a scale"
    assert report["inner/bias"].stddev is None
    for path in (*BIASES, *SCALES):
        np.testing.assert_array_equal(values(model)[path], before[path])
    rules = {(f.rule, f.path) for f in kv.lint(network(bias=kv.ASVForward(seed=1)))}
    assert {("wrong-kind", path) for path in BIASES} <= rules


@pytest.mark.parametrize("wrong", ["fan_in_bias", "chrono_bias", "branch_end_zeros"])
def test_initializers_of_vectors_on_kernels_are_an_error(wrong):
    model = network(kernel=wrong)
    before = state(model)
    with pytest.raises(
        ValueError, match=r"draws .*, but 'first/kernel' is a kernel\. Give first\."
    ):
        kv.inject(model)
    with pytest.raises(ValueError, match=r"`scheme` must draw kernels, but .* draws"):
        kv.initialize(model, wrong)
    assert_same_state(state(model), before)


def test_model_with_nothing_but_wrong_initializers_has_nothing_to_inject():
    with pytest.raises(ValueError, match=r"nothing to inject: no known kernel belongs"):
        kv.inject(network(bias=kv.ASVForward(seed=1), gamma="ones"))


def test_initialize_draws_vectors_by_their_own_initializers_with_their_context():
    models = [network(), network()]
    for model in models:
        for layer in model.layers:
            for variable in layer.trainable_variables:
                variable.assign(keras.ops.full(variable.shape, 0.3))
        report = kv.initialize(model, "he_normal", seed=5)
        assert report["inner/bias"].stddev == pytest.approx(1 / np.sqrt(24))
        assert model.get_layer("inner").bias_initializer.context.role == "bias"
        assert not np.any(values(model)["norm_at_the_end/gamma"])
        assert np.all(values(model)["norm/gamma"] == 1)
    for one, two in zip(*(values(m).items() for m in models), strict=True):
        np.testing.assert_array_equal(one[1], two[1], err_msg=one[0])
    assert np.all(values(models[0])["inner/bias"])
    assert {row.status for row in kv.inject(models[0])} == {DONE}


def test_initialize_draws_the_gates_of_an_lstm():
    model = recurrent(kv.ChronoBias())
    kv.initialize(model, "glorot_uniform", seed=5)
    cell = model.get_layer("recurrent").cell
    first, forget, *_ = keras.ops.convert_to_numpy(cell.bias).reshape(4, 6)
    assert np.all(forget > 0)
    np.testing.assert_array_equal(first, -forget)
    assert cell.unit_forget_bias is False


def test_lint_names_vectors_that_were_not_injected():
    model = network()
    findings = {(f.rule, f.path) for f in kv.lint(model)}
    assert {("not-injected", path) for path in (*BIASES, *SCALES)} <= findings
    kv.inject(model)
    assert not any(f.rule == "not-injected" for f in kv.lint(model))


def test_callback_draws_vectors_before_training():
    model = network()
    model.compile("sgd", "mse")
    injector = kv.ContextInjector()
    x = np.ones((4, 16), "float32")
    model.fit(x, np.ones((4, 2)), callbacks=[injector], verbose=0)
    assert len(injector.report.drawn) == 6
    again = kv.ContextInjector()
    model.fit(x, np.ones((4, 2)), callbacks=[again], verbose=0)
    assert again.report is None


def test_saved_model_keeps_contexts_and_weights(tmp_path):
    model = network(bias="fan_in_bias")
    kv.inject(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one, two in zip(values(model).values(), values(loaded).values(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert loaded.get_layer("inner").bias_initializer.context.role == "bias"
    assert {row.status for row in kv.inject(loaded)} == {DONE}


@pytest.mark.parametrize("injected", [True, False])
def test_builtin_copy_needs_keras_alone(injected):
    model = network()
    if injected:
        kv.inject(model)
    copy = kv.to_builtin(model)
    assert "keras_varinit" not in json.dumps(keras.saving.serialize_keras_object(copy))
    for one, two in zip(values(model).values(), values(copy).values(), strict=True):
        np.testing.assert_array_equal(one, two)
    bias = copy.get_layer("inner").bias_initializer
    assert type(bias).__name__ == ("RandomUniform" if injected else "Zeros")
    if injected:
        assert bias.maxval == pytest.approx(1 / np.sqrt(8))
    end = copy.get_layer("norm_at_the_end").gamma_initializer
    assert type(end).__name__ == ("Zeros" if injected else "Ones")


class Inline(L.Layer):
    """Makes weights inline, among them zeros of a shape that ours has as well."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(16, 16), initializer="asv_forward", name="kernel")
        self.token = self.add_weight(shape=(16,), initializer="zeros", name="token")
        self.bias = self.add_weight(shape=(16,), initializer="fan_in_bias", name="bias")

    def call(self, x):
        return keras.ops.matmul(x + self.token, self.kernel) + self.bias


def test_zeros_of_others_are_not_taken_for_a_draw():
    inputs = keras.Input((16,))
    model = keras.Model(inputs, Inline(name="inline")(inputs))
    kv.inject(model)
    assert not np.any(values(model)["inline/token"])
