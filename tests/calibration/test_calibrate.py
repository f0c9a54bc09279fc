"""`calibrate`, held against second moments that plain Keras and NumPy compute."""

import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests.calibration.networks import (
    assert_unit,
    biases,
    branches,
    draw,
    images,
    nested_with_dropout,
    plain,
    residual,
    run,
    second_moment,
    several_inputs,
)
from tests.models import assert_equal, cnn, weights

L = keras.layers

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
