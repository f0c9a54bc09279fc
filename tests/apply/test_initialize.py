"""`initialize`: any built model, any scheme, all or nothing."""

import re

import keras
import numpy as np
import pytest
from scipy import stats

import keras_varinit as kv
from keras_varinit import keras_private

L = keras.layers

# Entries of a (300, 1000) kernel of He's initialization with seed 1, in four blocks.
HE_NORMAL = [-0.15389526, -0.03152224, -0.04985351, -0.07072121]


def network(name="network"):
    inputs = keras.Input((16, 16, 4))
    x = L.Conv2D(64, 3, padding="same", activation="relu", name="conv")(inputs)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Conv2DTranspose(32, 3, strides=2, padding="same", name="transpose")(x)
    x = L.Conv2D(32, 3, groups=4, padding="same", name="grouped")(x)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(10, name="head")(x), name=name)


def values(model):
    return [np.array(keras.ops.convert_to_numpy(w)) for w in model.weights]


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def kernel_std(model, name):
    layer = model.get_layer(name)
    return float(np.std(keras.ops.convert_to_numpy(layer.kernel)))


def within(measured, expected, count, deviations=4):
    """Within standard errors of the standard deviation of `count` normal entries."""
    return abs(measured / expected - 1) < deviations / np.sqrt(2 * count)


@pytest.mark.parametrize("scheme", ["asv_backward", "enhanced_he_normal", "depth_scaled"])
def test_every_kernel_is_drawn_with_the_reported_deviation(scheme):
    model = network()
    report = kv.initialize(model, scheme, seed=1)
    rows = [row for row in report if row.context is not None]
    assert [row.layer for row in rows] == ["conv", "depthwise", "transpose", "grouped", "head"]
    assert {row.status for row in report} == {"drawn"}
    if scheme == "asv_backward":
        for row in rows:
            count = np.prod(row.context.kernel_shape)
            assert within(kernel_std(model, row.layer), row.stddev, count)
    assert kv.inject(model).drawn == ()  # it has its context already


def test_keras_schemes_get_the_true_fans_and_the_notes_say_so():
    """The known miscount: depthwise 3x3 on 64 channels, 0.059 where √(2/9) = 0.471 is right."""
    model = network()
    report = kv.initialize(model, "he_normal", seed=1)
    expected = {
        "conv": np.sqrt(2 / 36),
        "depthwise": np.sqrt(2 / 9),
        "transpose": np.sqrt(2 / (9 * 64 / 4)),
        "grouped": np.sqrt(2 / (9 * 8)),
        "head": np.sqrt(2 / 32),
    }
    for row in report:
        if row.context is not None:
            assert row.stddev == pytest.approx(expected[row.layer])
            count = np.prod(row.context.kernel_shape)
            assert within(kernel_std(model, row.layer), expected[row.layer], count)
    corrected = [note.split("/")[0] for note in report.notes if "miscounts" in note]
    assert corrected == ["depthwise", "transpose"]
    stored = model.get_layer("depthwise").depthwise_initializer
    assert type(stored) is keras.initializers.TruncatedNormal  # saved with Keras alone
    drawn = keras.ops.convert_to_numpy(stored((3, 3, 64, 1)))
    assert within(float(np.std(drawn)), expected["depthwise"], drawn.size)


K = keras.initializers
LAWS = {
    "he_normal": K.HeNormal(seed=3),
    "glorot_uniform": K.GlorotUniform(seed=3),
    "normal, not truncated": K.VarianceScaling(2.0, "fan_avg", "untruncated_normal", seed=3),
    "normal": K.RandomNormal(mean=0.1, stddev=0.2, seed=3),
    "truncated normal": K.TruncatedNormal(mean=-0.1, stddev=0.2, seed=3),
    "uniform": K.RandomUniform(-0.1, 0.5, seed=3),
}


@pytest.mark.parametrize("law", LAWS)
def test_initializers_of_keras_are_drawn_by_their_law(law):
    """Against Keras's draws: two-sample Kolmogorov-Smirnov, 40,000 each, at a level of 1e-4."""
    model = keras.Sequential([keras.Input((200,)), L.Dense(200, name="dense")])
    kv.initialize(model, LAWS[law], seed=1)
    layer = model.get_layer("dense")
    assert type(layer.kernel_initializer) is type(LAWS[law])
    drawn = keras.ops.convert_to_numpy(layer.kernel).ravel()
    of_keras = keras.ops.convert_to_numpy(layer.kernel_initializer((200, 200))).ravel()
    assert not np.array_equal(drawn, of_keras)
    assert stats.ks_2samp(drawn, of_keras).pvalue > 1e-4
    if law not in ("normal", "normal, not truncated"):
        assert abs(drawn).max() == pytest.approx(abs(of_keras).max(), rel=1e-3)


def test_initializers_of_keras_draw_the_reference_on_every_backend():
    model = keras.Sequential([keras.Input((300,)), L.Dense(1000, name="dense")])
    kv.initialize(model, "he_normal", seed=1)
    kernel = keras.ops.convert_to_numpy(model.get_layer("dense").kernel).ravel()
    np.testing.assert_allclose(kernel[[0, 65536, 150000, -1]], HE_NORMAL, rtol=1e-5)


def test_scheme_may_be_a_function_of_the_context():
    model = network()
    before = values(model)

    def scheme(context):
        if context.depth == context.total_depth:
            return None
        return "asv_forward" if context.spatial_axes else kv.EnhancedHeNormal()

    report = kv.initialize(model, scheme, seed=1)
    drawn = {row.layer: row.initializer for row in report if row.context is not None}
    assert drawn == dict.fromkeys(["conv", "depthwise", "transpose", "grouped"], "ASVForward")
    assert_equal(values(model)[-2:], before[-2:])


@pytest.mark.parametrize(
    "layers", [["grouped", "head"], lambda layer: layer.name in ("grouped", "head")]
)
def test_layers_select(layers):
    model = network()
    before = {w.path: v for w, v in zip(model.weights, values(model), strict=True)}
    kv.initialize(model, "asv_forward", seed=1, layers=layers)
    changed = {
        w.path
        for w, v in zip(model.weights, values(model), strict=True)
        if not np.array_equal(v, before[w.path])
    }
    assert changed == {"grouped/kernel", "head/kernel"}


def test_other_weights_of_the_layers_are_redrawn_by_their_own_initializers():
    model = network()
    for weight in model.weights:
        weight.assign(weight + 1)
    kv.initialize(model, "asv_forward", seed=1)
    norm, conv = model.get_layer("norm"), model.get_layer("conv")
    for weight, want in ((norm.gamma, 1), (norm.beta, 0), (norm.moving_mean, 0), (conv.bias, 0)):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), want)


def test_embeddings_keep_their_own_initializer_unless_asked():
    inputs = keras.Input((5,))
    x = L.Embedding(200, 50, name="table")(inputs)
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    report = kv.initialize(model, "he_normal", seed=1)
    assert {row.layer: row.initializer for row in report}["table"] == "RandomUniform"
    table = keras.ops.convert_to_numpy(model.get_layer("table").embeddings)
    assert np.abs(table).max() <= 0.05
    kv.initialize(model, "he_normal", seed=1, layers=["table"])
    table = keras.ops.convert_to_numpy(model.get_layer("table").embeddings)
    assert within(np.std(table), np.sqrt(2), table.size)


def test_a_name_stands_for_the_layers_inside():
    inputs = keras.Input((5,))
    x = L.Embedding(20, 8, name="table")(inputs)
    x = L.Bidirectional(L.LSTM(4, name="lstm"), name="both")(x)
    part = keras.Model(inputs, L.Dense(6, name="inner")(x), name="part")
    outer = keras.Input((5,))
    model = keras.Model(outer, L.Dense(3, name="head")(part(outer)))
    before = values(model)
    rows = kv.initialize(model, "he_normal", seed=1, layers=["both"]).drawn
    assert len(rows) == 6
    assert {row.layer for row in rows} == {"lstm_cell"}
    changed = [not np.array_equal(a, b) for a, b in zip(before, values(model), strict=True)]
    assert [v.path for v, c in zip(model.weights, changed, strict=True) if c] == [
        row.path for row in rows if "bias" not in row.path
    ]
    rows = kv.initialize(model, "he_normal", seed=2, layers=["part"])
    assert {row.layer for row in rows} == {"table", "lstm_cell", "inner"}
    assert {row.layer: row.initializer for row in rows}["table"] == "RandomUniform"
    rows = kv.initialize(model, "he_normal", layers=lambda layer: layer.name == "head")
    assert {row.layer for row in rows} == {"head"}


@pytest.mark.parametrize("kind", ["LSTM", "ConvLSTM1D"])
@pytest.mark.parametrize("forget", [True, False])
def test_the_forget_gate_stays_open(kind, forget):
    arguments = (4, 3) if kind == "ConvLSTM1D" else (4,)
    layer = getattr(L, kind)(*arguments, unit_forget_bias=forget)
    model = keras.Sequential([keras.Input((5, 6, 2) if kind == "ConvLSTM1D" else (5, 2)), layer])
    bias = keras.ops.convert_to_numpy(layer.cell.bias)
    assert bias.tolist() == [0] * 4 + [int(forget)] * 4 + [0] * 8
    layer.cell.bias.assign(np.full(16, 7))
    kv.initialize(model, "he_normal", seed=1)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.cell.bias), bias)


def test_frozen_layers_are_left_alone_unless_included():
    model = network()
    model.get_layer("conv").trainable = False
    before = values(model)
    report = kv.initialize(model, "asv_forward", seed=1)
    assert report["conv/kernel"].status == "skipped: frozen (trainable=False)"
    assert_equal(values(model)[:2], before[:2])
    report = kv.initialize(model, "asv_forward", seed=1, include_frozen=True)
    assert report["conv/kernel"].status == "drawn"


def test_seeds():
    """The same seed gives the same weights whatever was built before, None gives fresh ones."""
    results = {}
    for run, seed in enumerate([7, 7, 8, None, None]):
        model = network(f"network_{run}")
        kv.initialize(model, "he_normal", seed=seed)
        results[run] = values(model)
    assert_equal(results[0], results[1])
    firsts = [results[run][0] for run in (0, 2, 3, 4)]
    for i, one in enumerate(firsts):
        assert not any(np.array_equal(one, other) for other in firsts[:i])
    twice = network()
    drawn = []
    scheme = kv.ASVForward()
    for _ in range(2):
        kv.initialize(twice, scheme)
        drawn.append(values(twice)[0])
    assert not np.array_equal(*drawn)


def with_table():
    inputs = keras.Input((4,), dtype="int32")
    x = L.Embedding(9, 4)(inputs)
    return keras.Model(inputs, L.Dense(4, bias_initializer="random_normal")(x))


def test_other_weights_depend_on_no_automatic_names():
    found = []
    for _ in range(2):
        model = with_table()
        kv.initialize(model, "he_normal", seed=3)
        found.append(values(model))
    assert_equal(*found)


@pytest.mark.parametrize("scheme", ["asv_forward", "he_normal"])
def test_frozen_part_shares_no_kernel_with_layers_around_it(scheme):
    """The layers around were made first, so each has the place in the whole that it had alone."""
    around = [L.Dense(8) for _ in range(2)]
    model = keras.Sequential([keras.Input((8,)), L.Dense(8)])
    kv.initialize(model, scheme, seed=7)
    for layer in reversed(around):
        model.trainable = False
        model = keras.Sequential([keras.Input((8,)), layer, model])
        layer.trainable = True
        report = kv.initialize(model, scheme, seed=7)
        assert [row.layer for row in report.drawn] == [layer.name] * 2
    kernels = {value.tobytes() for value in values(model) if value.ndim == 2}
    assert len(kernels) == 3


def test_constants_beside_frozen_constants_are_drawn():
    model = keras.Sequential([keras.Input((8,)), L.Dense(8), L.Dense(8, trainable=False)])
    model.layers[1].kernel.assign(np.zeros((8, 8)))
    assert len(kv.initialize(model, "zeros").drawn) == 2


def test_frozen_model_is_left_alone_even_where_a_layer_is_not():
    model = network()
    model.trainable = False
    for layer in model.layers:
        layer.trainable = True
    assert model.trainable_variables == []
    before = values(model)
    assert kv.initialize(model, "he_normal").drawn == ()
    assert_equal(values(model), before)


def test_no_two_kernels_are_equal():
    layers = [L.Dense(8, name=f"dense_{n}") for n in range(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    for scheme in ("he_normal", "asv_forward", keras.initializers.HeNormal(seed=3)):
        kv.initialize(model, scheme, seed=None)
        one, two, three = (keras.ops.convert_to_numpy(layer.kernel) for layer in layers)
        assert not np.array_equal(one, two)
        assert not np.array_equal(two, three)


def test_reset_optimizer():
    model = network()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = np.ones((4, 16, 16, 4), "float32"), np.ones((4, 10), "float32")
    model.fit(x, y, verbose=0)
    kv.initialize(model, "asv_forward", seed=1)
    assert int(model.optimizer.iterations) == 1
    kv.initialize(model, "asv_forward", seed=1, reset_optimizer=True)
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    moments = [v for v in model.optimizer.variables if "momentum" in v.path]
    assert moments
    assert all(not np.any(keras.ops.convert_to_numpy(v)) for v in moments)
    model.fit(x, y, verbose=0)


class Broken(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        if len(shape) == 2:
            raise MemoryError("no memory")
        return keras.ops.ones(shape, dtype)


class NotFinite(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, float("nan"), dtype)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scheme": "he_norml"}, ValueError, "Received: scheme='he_norml'."),
        ({"scheme": Broken()}, MemoryError, "no memory"),
        ({"scheme": NotFinite()}, ValueError, "drew values for 'conv/kernel' that are not finite"),
        ({"scheme": lambda context: 3}, ValueError, "the function `scheme` must return a string"),
        ({"scheme": lambda context: 3}, ValueError, "kernel' it returned: 3."),
        ({"scheme": lambda context: "he_norml"}, ValueError, "Did you mean 'he_normal'"),
        ({"scheme": "asv_backwards"}, ValueError, "Did you mean 'asv_backward'"),
        ({"scheme": lambda context: None}, ValueError, "no kernel of model 'network' is selected"),
        ({"layers": ["haed"]}, ValueError, "names 'haed', which model 'network' lacks. Did you"),
        ({"layers": "head"}, TypeError, "`layers` must be a predicate or a list of names."),
        ({"layers": lambda layer: False}, ValueError, "no kernel of model 'network' is selected"),
        ({"scheme": "asv_backwards"}, ValueError, "Did you mean 'asv_backward' or 'asv_forward'?"),
        ({"seed": 1.5}, TypeError, "initialize: `seed` must be an integer or None ("),
        ({"seed": True}, TypeError, "Received: seed=True."),
    ],
)
def test_bad_input_changes_nothing(options, error, text):
    model = network()
    before = values(model)
    initializers = [getattr(layer, "kernel_initializer", None) for layer in model.layers]
    with pytest.raises(error, match=re.escape(text)):
        kv.initialize(model, **{"scheme": "asv_forward", **options})
    assert_equal(values(model), before)
    for layer, initializer in zip(model.layers, initializers, strict=True):
        assert getattr(layer, "kernel_initializer", None) is initializer


def test_failure_while_assigning_puts_everything_back(monkeypatch):
    model = network()
    before, assign = values(model), keras_private.assign
    calls = []

    def failing(variable, value):
        calls.append(variable)
        if len(calls) == 5:
            raise RuntimeError("device lost")
        assign(variable, value)

    monkeypatch.setattr(keras_private, "assign", failing)
    with pytest.raises(RuntimeError, match="device lost"):
        kv.initialize(model, "asv_forward", seed=1)
    assert_equal(values(model), before)


def test_a_report_says_which_paths_it_has():
    model = network()
    kernel = model.get_layer("head").kernel
    report = kv.initialize(model, "asv_forward", seed=0)
    assert kernel.path in report
    assert report[kernel.path] in report
    assert "nowhere/kernel" not in report
    assert None not in report
    other = kv.initialize(model, "asv_backward", seed=0)
    assert other[kernel.path] not in report
    assert kernel.path in kv.analyze(model)
    assert "nowhere/kernel" not in kv.analyze(model)
