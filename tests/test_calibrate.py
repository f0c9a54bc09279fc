"""`calibrate`, held against second moments that plain Keras and NumPy compute."""

import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests import test_any_model
from tests.models import assert_equal, cnn, weights

L = keras.layers


def draw(*shape, seed=0, scale=1.0, mean=0.0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return (scale * values + mean).astype("float32")


def images(count=8, size=8):
    return draw(count, size, size, 3, scale=3.0, mean=0.5)


def biases():
    return keras.initializers.RandomNormal(stddev=0.3, seed=3)


def conv(filters=8, size=3, **options):
    options = {"padding": "same", "activation": "relu", "bias_initializer": biases(), **options}
    return L.Conv2D(filters, size, **options)


def plain(pooling=L.MaxPooling2D, **options):
    """Two stages of two convolutions, and a softmax."""
    layers = [keras.Input((8, 8, 3)), conv(**options), conv(**options), pooling(2)]
    layers += [L.Conv2D(8, 3, activation="tanh"), L.Flatten(), L.Dense(16), L.LeakyReLU()]
    return keras.Sequential([*layers, L.Dense(4, activation="softmax", bias_initializer=biases())])


def residual():
    inputs = keras.Input((8, 8, 3))
    x = conv()(inputs)
    for _ in range(2):
        y = conv(activation=None)(ops.relu(conv(activation=None)(x)))
        x = ops.relu(x + y)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(3)(x))


def branches():
    inputs = keras.Input((8, 8, 3))
    x = conv(activation="elu")(inputs)
    x = L.Concatenate()([L.DepthwiseConv2D(3, padding="same")(x), conv(4, 1)(x)])
    x = L.SeparableConv2D(8, 3, activation="swish", bias_initializer=biases())(x)
    x = L.Conv2DTranspose(6, 3, strides=2, bias_initializer=biases())(x)
    x = L.EinsumDense("bhwc,cd->bhwd", (None, None, 5), bias_axes="d", bias_initializer=biases())(x)
    return keras.Model(inputs, L.Dense(2)(L.GlobalMaxPooling2D()(x)))


def several_inputs():
    one, two = keras.Input((6,), name="one"), keras.Input((4,), name="two")
    x = L.Add()([L.Dense(8)(one), L.Dense(8, bias_initializer=biases())(two)])
    return keras.Model([one, two], [L.Dense(3)(ops.tanh(x)), L.Dense(2)(x)])


def nested_with_dropout():
    inner = keras.Sequential([keras.Input((16,)), L.Dense(16, "relu"), L.Dropout(0.4)])
    inputs = keras.Input((6,))
    x = inner(L.Dropout(0.2)(L.Dense(16, "gelu", bias_initializer=biases())(inputs)))
    return keras.Model(inputs, L.Dense(3)(x))


def pre_activations(model, x):
    """Second moment of every weight layer's output at its first call, activation left out.

    What reaches a layer is computed by a plain Keras model; the layer's copy without activation is
    then called on it.
    """
    found = {}
    for inner in [model, *(layer for layer in model.layers if isinstance(layer, keras.Model))]:
        outer = inner._inbound_nodes[-1].input_tensors[0] if inner is not model else None
        given = x if outer is None else run(model, outer, x)
        for layer in inner.layers:
            is_weights = hasattr(layer, "kernel") or "Conv" in type(layer).__name__
            if not is_weights:
                continue
            config = layer.get_config()
            if "activation" in config:
                config["activation"] = "linear"
            reads = layer._inbound_nodes[0].input_tensors[0]
            reached = ops.convert_to_tensor(run(inner, reads, given))
            copy = type(layer).from_config(config)
            copy.build(tuple(reached.shape))
            copy.set_weights(layer.get_weights())
            found[layer.name] = second_moment(copy(reached))
    return found


def run(model, tensor, x, training=False):
    """The value of a symbolic tensor of a model."""
    for number, each in enumerate(model.inputs):
        if tensor is each:
            return x[number] if isinstance(x, list) else x
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, tensor)(x, training=training)


def second_moment(tensor):
    return float(np.mean(ops.convert_to_numpy(tensor).astype(np.float64) ** 2))


def assert_unit(model, x, target=1.0):
    """Every layer within 1 %, and 1e-4 more for rounding; returns the worst deviation."""
    moments = pre_activations(model, x)
    assert moments
    worst = max(abs(moment / target - 1) for moment in moments.values())
    assert worst <= 0.0101, moments
    return worst


MODELS = {
    "plain, max pooling": (plain, images),
    "plain, average pooling": (lambda: plain(L.AveragePooling2D), images),
    "residual": (residual, images),
    "branches": (branches, images),
    "several inputs": (several_inputs, lambda: [draw(64, 6), draw(64, 4, scale=9.0)]),
    "nested": (nested_with_dropout, lambda: draw(64, 6)),
}


SLOW = ("plain, average pooling", "branches")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MODELS]
)
def test_second_moments_are_one_at_every_layer(name):
    make, data = MODELS[name]
    model, x = make(), data()
    report = kv.calibrate(model, x, training=False, batch_size=64)
    assert report.walks <= 4
    assert {row.status for row in report} == {"calibrated"}
    assert_unit(model, x)
    again = weights(model)
    second = kv.calibrate(model, x, training=False, batch_size=64)
    assert_equal(weights(model), again)
    assert (second.walks, {row.scale for row in second}) == (1, {1.0})


def vgg16(size):
    return keras.applications.VGG16(weights=None, include_top=False, input_shape=(size, size, 3))


def deep(pooling):
    """Twenty layers of 32 channels, pooled behind layers 5, 10 and 15."""
    layers = [keras.Input((32, 32, 3))]
    for number in range(1, 21):
        layers.append(L.Conv2D(32, 3, padding="same", activation="relu"))
        if number in (5, 10, 15):
            layers.append(pooling(2))
    return keras.Sequential(layers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vgg16", "max", "average"])
def test_deep_networks(kind):
    model = {
        "vgg16": lambda: vgg16(32),
        "max": lambda: deep(L.MaxPooling2D),
        "average": lambda: deep(L.AveragePooling2D),
    }[kind]()
    x = draw(24, 32, 32, 3, scale=2.0)
    report = kv.calibrate(model, x, batch_size=12)
    assert report.walks == 3
    assert {row.iterations for row in report} == {1}
    assert assert_unit(model, x) < 1e-3


def test_signals_that_overflow_are_calibrated():
    make = keras.initializers.RandomNormal(stddev=1e6)
    layers = [L.Dense(16, "relu", kernel_initializer=make) for _ in range(8)]
    model, x = keras.Sequential([keras.Input((8,)), *layers]), draw(64, 8)
    report = kv.calibrate(model, x)
    assert report.rows[-1].before is None or not np.isfinite(report.rows[-1].before)
    assert report.to_dict()["rows"][-1]["before"] is None
    assert_unit(model, x)


def test_batches_give_what_one_batch_gives():
    x, kernels = images(24), []
    for batch_size in (24, 10):
        keras.utils.set_random_seed(1)
        keras.utils.clear_session()
        model = plain()
        report = kv.calibrate(model, x, batch_size=batch_size, tolerance=1e-4)
        assert report.examples == 24
        assert_unit(model, x)
        kernels.append([row.scale for row in report])
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=2e-4)


class Rows(keras.utils.PyDataset):
    """Batches of different sizes and scales, shuffled anew at every pass if wanted."""

    def __init__(self, x, shuffle=False):
        super().__init__()
        self.parts, self.shuffle, self.passes = np.array_split(x, 3), shuffle, 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 0:
            self.passes += 1
        place = (index + self.passes) % 3 if self.shuffle else index
        return self.parts[place], np.zeros(len(self.parts[place]))


@pytest.mark.parametrize("shuffle", [False, True])
def test_datasets_are_streamed(shuffle):
    model = plain()
    x = images(20) * np.linspace(0.1, 2, 20).reshape(-1, 1, 1, 1).astype("float32")
    data = Rows(x, shuffle)
    report = kv.calibrate(model, data, verbose=0)
    assert data.passes == report.walks + 1  # the first batch, to find out how to run the model
    assert report.examples == 20
    assert_unit(model, x)
    first = kv.calibrate(plain(), Rows(x), verbose=0, max_batches=1)
    assert first.examples == 7


def test_measure_signal_agrees_in_training():
    """Batch statistics and dropout are those that `measure_signal` sees on the same batches."""
    layers = [L.Dense(8, "relu", bias_initializer=biases()), L.Dropout(0.5), L.Dense(8)]
    layers += [L.BatchNormalization(), L.ReLU(), L.Dropout(0.2), L.Dense(8)]
    model, x = keras.Sequential([keras.Input((6,)), *layers]), draw(20, 6)
    report = kv.calibrate(model, x, batch_size=8)
    signal = kv.measure_signal(model, x, batch_size=8)
    assert [row.status[:10] for row in report] == ["calibrated", "skipped: t", "calibrated"]
    for row in report:
        assert signal[row.path].second_moment == pytest.approx(row.after, rel=1e-4)


@pytest.mark.slow
def test_dropout_in_training():
    layers = [L.Dense(64, "relu"), L.Dropout(0.5), L.Dense(64, "relu", bias_initializer=biases())]
    layers += [L.BatchNormalization(), L.Dropout(0.2), L.Dense(64)]
    model, x = keras.Sequential([keras.Input((16,)), *layers]), draw(1000, 16)
    kv.calibrate(model, x, batch_size=500, tolerance=0.001)
    # Other masks; 64,000 entries, of which those of one example go together.
    assert second_moment(model(x, training=True)) == pytest.approx(1, abs=0.03)
    u = run(model, layers[1].output, x, training=True)
    assert second_moment(u @ layers[2].kernel + layers[2].bias) == pytest.approx(1, abs=0.03)


def test_target_and_limit():
    model, x = plain(), images()
    report = kv.calibrate(model, x, target=4, tolerance=0.001, training=False)
    assert report.target == 4
    assert_unit(model, x, 4.0)
    model = plain()
    report = kv.calibrate(model, x, tolerance=1e-7, max_iterations=1, batch_size=3)
    assert report.walks == 3
    assert report.not_converged
    assert {r.status for r in report.not_converged} == {
        "not converged: the iteration limit was reached"
    }
    assert max(row.iterations for row in report) == 1


def test_what_is_within_the_tolerance_stays():
    model, x = cnn(), images()
    kv.calibrate(model, x, layers=["conv2d", "conv2d_1"])
    before = weights(model)
    report = kv.calibrate(model, x, tolerance=0.02)
    assert [row.scale != 1 for row in report] == [False, False, True]
    assert_equal(weights(model)[:4], before[:4])


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


class Standardized(L.Dense):
    """Divides its kernel by its norm, so that its scale has no effect."""

    def call(self, x):
        return x @ (self.kernel / ops.norm(self.kernel)) + self.bias


class Biased(L.Dense):
    """Its own `call` adds a bias that is not known to be one."""

    def call(self, x):
        return ops.matmul(x, self.kernel) + self.bias


def test_layers_that_cannot_converge():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            Standardized(8, name="standardized"),
            L.Dense(8, name="loud", bias_initializer="ones"),
            L.Dense(
                8, name="dead", activation="relu", bias_initializer=lambda *a, **k: -ops.ones(8)
            ),
            L.Dense(8, name="fed zeros", kernel_initializer="zeros"),
            L.Dense(2, name="head"),
        ]
    )
    model.get_layer("loud").bias.assign(3 * np.ones(8))
    before = weights(model)
    report = kv.calibrate(model, draw(64, 8))
    statuses = {row.layer: row.status.removeprefix("not converged: ") for row in report}
    assert statuses["standardized"] == "its output does not follow its kernel's scale"
    assert statuses["loud"] == "its bias alone has the second moment 9"
    assert statuses["fed zeros"] == "its kernel's output is zero on this data"
    assert statuses["head"] == "its kernel's output is zero on this data"
    assert len(report.not_converged) == 4
    assert {row.scale for row in report.not_converged} == {1.0}
    changed = [(a != b).any() for a, b in zip(weights(model), before, strict=True)]
    assert sum(changed) == len(report.calibrated) == 1
    assert "4 not converged" in str(report)


def test_a_bias_inside_an_own_call_is_iterated():
    layers = [Biased(16, bias_initializer=biases(), name=f"own{n}") for n in range(3)]
    model, x = keras.Sequential([keras.Input((8,)), *layers]), draw(64, 8, scale=4.0)
    report = kv.calibrate(model, x)
    assert {row.status for row in report} == {"calibrated"}
    z = x
    for layer in layers:
        z = ops.convert_to_numpy(layer(z))
        assert np.mean(z**2) == pytest.approx(1, abs=0.0101)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    model, x = cnn(), images()
    report = kv.calibrate(model, x, tolerance=0.02)
    assert {row.status for row in report} == {"calibrated"}
    for row in report:
        assert row.after == pytest.approx(1, abs=0.02)


def test_the_report_reads_well():
    model, x = cnn(), images()
    report = kv.calibrate(model, x)
    lines = str(report).splitlines()
    assert re.sub(" +", " ", lines[0]) == "path layer scale before after iterations status"
    assert len({line.index("calibrated") for line in lines[1:4]}) == 1
    assert lines[-1] == "3 calibrated to 1 ± 1.00%, 0 not converged, 0 skipped; 8 examples, 3 walks"
    path = model.layers[0].kernel.path
    assert report[path] is report["conv2d"] is next(iter(report))
    with pytest.raises(KeyError, match=r"no row for 'nothing'\. Paths"):
        report["nothing"]
    plain_values = report.to_dict()
    assert plain_values["rows"][0]["path"] == path
    assert plain_values["walks"] == report.walks == 3
