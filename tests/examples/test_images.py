"""The studies of image networks in `examples/`, as users start them."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests import fresh_process
from tests.example_files import EXAMPLES, Stop, assert_picture, record, rows

# isort: split
import asv_networks
import cifar_resnets
import compare_initializers
import transformer
from common import plain_networks, resnet, schemes, study_options

pytestmark = pytest.mark.once

APPS = {
    "cifar_resnets": (cifar_resnets, 4, 2, ("curves.png", "ratios.png")),
    "asv_networks": (asv_networks, 2, 1, ("curves.png", "learning_rates.png")),
    "compare_initializers": (compare_initializers, 2, 1, ("curves.png",)),
    "transformer": (transformer, 4, 2, ("curves.png",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPS)
def test_smoke_preset_leaves_files_and_runs_once(name, tmp_path, monkeypatch, capsys):
    app, trainings, epochs, plots = APPS[name]
    arguments = ["--preset", "smoke", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    table = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert table in done.stdout
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(results["trainings"]) == trainings
    assert results["machine"]["keras"] == keras.__version__
    assert len(rows(tmp_path)) == trainings * epochs
    for plot in plots:
        assert_picture(tmp_path / plot)
        (tmp_path / plot).unlink()
    assert not (tmp_path / "unfinished").exists()

    history = (tmp_path / "history.csv").read_bytes()
    monkeypatch.setattr(app, "train", None)
    assert app.main(arguments) == 0
    assert f"{trainings} of {trainings} trainings are in" in capsys.readouterr().out
    assert (tmp_path / "history.csv").read_bytes() == history
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == table
    for plot in plots:
        assert_picture(tmp_path / plot)


@pytest.mark.slow
def test_stopped_app_says_so_and_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    def arguments(out):
        small = ["--limit", "64", "--width", "2", "--seeds", "1", "--initializers", "asv_backward"]
        return ["--preset", "smoke", *small, "--out", str(tmp_path / out)]

    assert cifar_resnets.main(arguments("whole")) == 0
    train = cifar_resnets.train
    monkeypatch.setattr(cifar_resnets, "train", functools.partial(train, callbacks=[Stop(1, 0)]))
    assert cifar_resnets.main(arguments("stopped")) == 130
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(cifar_resnets, "train", train)
    assert cifar_resnets.main(arguments("stopped")) == 0
    histories = [(tmp_path / out / "history.csv").read_bytes() for out in ("whole", "stopped")]
    assert histories[0] == histories[1]


DISTRIBUTED = """
import json, sys

if keras_backend == "tensorflow":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, "examples")
import cifar_resnets

for number, options in enumerate([[], ["--distribute"], ["--distribute", "--data-on-device"]]):
    # Without batch normalization, whose statistics are those of each device with TensorFlow.
    assert cifar_resnets.main([
        "--preset", "smoke", "--no-batch-norm", "--learning-rate", "0.01", "--seeds", "1",
        "--width", "2", "--initializers", "he_normal", "asv_backward", *options,
        "--limit", limit, "--out", f"{sys.argv[1]}/{number}",
    ]) == 0
print(json.dumps(None))
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [66])
def test_two_devices_train_as_one(limit, backend, tmp_path):
    if backend not in ("tensorflow", "jax"):
        pytest.skip("--distribute is for TensorFlow and JAX")
    source = f"keras_backend, limit = {backend!r}, '{limit}'\n{DISTRIBUTED}"
    two = "--xla_force_host_platform_device_count=2"
    fresh_process.run(source, tmp_path, XLA_FLAGS=two)
    one, *both = (rows(tmp_path / number) for number in "012")
    for two in both:
        assert len(one) == len(two) == 4
        for metric in ("loss", "val_loss", "accuracy", "val_accuracy"):
            values = [[float(row[metric]) for row in found] for found in (one, two)]
            np.testing.assert_allclose(*values, rtol=1e-4)


@pytest.mark.parametrize(
    ("app", "arguments", "message"),
    [
        (cifar_resnets, ["--depth", "21"], "--depth 21: a ResNet has 6n . 2 layers"),
        (cifar_resnets, ["--learning-rate", "0"], "--learning-rate 0.0: must be above 0"),
        (cifar_resnets, ["--weight-decay", "-1"], "--weight-decay -1.0: must be 0 or more"),
        (cifar_resnets, ["--initializers", "he_norml"], "Did you mean .*he_normal"),
        (
            cifar_resnets,
            ["--initializers", "enhanced_he_normal:row"],
            "enhanced_he_normal:row: write enhanced_he_normal:filter or",
        ),
        (
            cifar_resnets,
            ["--initializers", "enhanced_he_normal:filter:-2"],
            "enhanced_he_normal:filter:-2: -2 is no concentration: .*greater than 0",
        ),
        (cifar_resnets, ["--initializers", "he_normal:filter"], "takes nothing after a colon"),
        (
            transformer,
            ["--initializers", "residual_scaled:half"],
            "residual_scaled:half: write residual_scaled:RULE or .* with depth, fixup, zero for",
        ),
        (transformer, ["--initializers", "residual_scaled:zero:he_norml"], "mean .*he_normal"),
        (asv_networks, ["--width", "0"], "--width 0: must be 1 or more"),
        (asv_networks, ["--learning-rates", "nan"], "--learning-rates nan: must be above 0"),
        (asv_networks, ["--image-size", "16"], "needs images of 32×32 or more"),
        (
            asv_networks,
            ["--baseline", "he_normal"],
            "--baseline he_normal: not among .*asv_backward",
        ),
        (compare_initializers, ["--model", "MobilNet"], "--model MobilNet: not in .*MobileNet"),
        (compare_initializers, ["--image-size", "8"], "MobileNet does not take images of 8×8"),
        (compare_initializers, ["--data", "folder"], "--data folder needs --data-dir"),
    ],
)
def test_bad_options(app, arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert app.main(["--preset", "smoke", "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{app.__name__}.py: error: ")
    assert re.search(message, error), error
    assert not out.exists()


@pytest.mark.parametrize("option", [["--steps-per-execution", "2"], ["--xla"]])
def test_options_of_other_backends_are_refused(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    out = tmp_path / "out"
    assert cifar_resnets.main(["--preset", "smoke", *option, "--out", str(out)]) == 2
    assert f"{option[0]} is not for PyTorch" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("app", [app for app, *_ in APPS.values()])
def test_help_has_examples_and_every_preset_knows_its_options(app, capsys):
    with pytest.raises(SystemExit, match="0"):
        app.main(["--help"])
    assert f"python examples/{app.__name__}.py" in capsys.readouterr().out
    for preset in study_options.PRESETS:
        arguments = ["--preset", preset, "--out", "unused"]
        options = study_options.parse(app._parser(), app.PRESETS, arguments)
        unset = {name for name, value in vars(options).items() if value is None}
        assert unset <= {"limit", "data_dir", "image_size", "baseline"}
        chosen = app.PRESETS[preset]
        assert {name: getattr(options, name) for name in chosen} == chosen
        # No preset inherits from another: all images are all images.
        assert "limit" in chosen or options.limit is None


def test_names_of_initializers():
    assert schemes.make("he_normal") == "he_normal"
    position = schemes.make("enhanced_he_uniform:position:2").get_config()
    assert (position["granularity"], position["concentration"]) == ("position", 2.0)
    backward = schemes.make("kaiming_backward")((1, 1, 400, 50), "float32")
    # 2/50 within five standard errors of a variance, √(2/20000) of it each.
    assert np.var(keras.ops.convert_to_numpy(backward)) == pytest.approx(2 / 50, rel=0.05)
    bases = {
        "enhanced_he_uniform:filter:2": "he_uniform",
        "enhanced_glorot_normal": "glorot_normal",
        "signal_preserving": "he_normal",
        "kaiming_backward": "he_normal",
        "orthogonal": "orthogonal",
        "mimetic": "glorot_uniform",
        "keras_before_3.15": "glorot_uniform",
        "residual_scaled:zero": "glorot_uniform",
        "residual_scaled:depth:he_normal": "he_normal",
    }
    assert {name: schemes.base(name) for name in bases} == bases
    scaled = schemes.make("residual_scaled:zero:he_normal")
    assert scaled.rule == "zero"
    assert scaled.get_config()["initializer"]["class_name"] == "HeNormal"


def test_scale_of_attention_before_keras_3_15():
    x = inputs = keras.Input((4, 768))
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(12, 64, name="a")(x, x))
    kv.initialize(model, schemes.make("keras_before_3.15"), seed=0)
    found = {w.path: w for w in model.weights}
    # The greatest of 589,824 entries that Keras 3.10.0 draws by default.
    limits = dict.fromkeys(("query", "key", "value"), 0.0101388) | {"attention_output": 0.0245145}
    for name, limit in limits.items():
        kernel = keras.ops.convert_to_numpy(found[f"a/{name}/kernel"])
        assert np.abs(kernel).max() == pytest.approx(limit, rel=1e-4)


def test_best_learning_rate_is_that_of_the_highest_mean():
    records = [
        record(seed, [accuracy], learning_rate=rate)
        for rate, accuracies in {1e-4: (0.9, 0.1), 1e-3: (0.6, 0.5)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    rate, chosen = asv_networks.best(records)
    assert rate == 1e-3
    assert chosen == records[2:]


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)]
)
def test_resnets_of_option_a_have_the_published_sizes(depth, parameters):
    # He et al., table 6: 0.27, 0.46, 0.85 and 1.7 million.
    model = resnet.build_resnet((32, 32, 3), 10, "zeros", depth=depth, shortcut="A")
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == parameters


def test_option_a_is_the_strided_identity_between_zeros():
    inputs = keras.Input((4, 4, 2))
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 2)).astype("float32")
    model = keras.Model(inputs, resnet._identity(inputs, 5, 2))
    found = keras.ops.convert_to_numpy(model(x))
    expected = np.zeros((1, 2, 2, 5), "float32")
    expected[..., 1:3] = x[:, ::2, ::2]
    np.testing.assert_array_equal(found, expected)


def test_weight_decay_is_the_penalty_whose_gradient_is_lambda_w():
    model = resnet.build_resnet((8, 8, 1), 2, "he_normal", width=2, weight_decay=1e-2)
    kernels = [w for w in model.trainable_weights if w.path.endswith("kernel")]
    squares = sum(float(keras.ops.sum(w.value**2)) for w in kernels)
    assert float(sum(model.losses)) == pytest.approx(1e-2 / 2 * squares, rel=1e-5)


def test_schedule_of_the_source():
    parse = functools.partial(study_options.parse, cifar_resnets._parser(), cifar_resnets.PRESETS)
    common = ["--preset", "paper", "--epochs", "8", "--out", "unused", "--depth"]
    for depth, first in (("56", 0.1), ("110", 0.01)):
        schedule = cifar_resnets.schedule(parse([*common, depth]), steps=10)
        rates = [float(schedule(step)) for step in (0, 9, 10, 39, 40, 59, 60, 79)]
        expected = [first, first, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("F34", 34), ("F50", 50)])
def test_plain_networks_have_the_published_layers(name, layers):
    model = plain_networks.build(name, (64, 64, 3), 10, width=8)
    kernels = [w for w in model.weights if w.path.endswith("kernel")]
    assert len(kernels) == layers
    contexts = kv.analyze(model).contexts
    assert max(context.depth for context in contexts.values()) == layers


@pytest.mark.slow
def test_f34_has_the_standard_deviations_of_its_authors():
    model = plain_networks.build("F34", (224, 224, 3), 10)
    assert model.count_params() == pytest.approx(2.11e7, rel=0.003)
    reference = json.loads(
        (Path(__file__).parents[1] / "initializers" / "asv_f34_224.json").read_text()
    )
    expected = np.concatenate([[value] * n for n, value in reference["asv.backward"]])
    report = kv.initialize(model, "asv_backward", seed=0)
    found = [row.stddev for row in report if row.stddev is not None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_inspection_names_findings_and_worst_layers():
    inputs = keras.Input((8, 8, 16))
    x = inputs
    for number in range(7):
        x = keras.layers.DepthwiseConv2D(3, padding="same", name=f"depthwise_{number}")(x)
    text = compare_initializers.inspection(keras.Model(inputs, x))
    assert "lint: 8 findings" in text
    assert "depthwise_6/kernel: vanishing-scale" in text
    assert "depthwise_0/kernel: wrong-fans" in text
    assert "... and 2 more of wrong-fans" in text
    forward = text.split("furthest from 1:\n")[1].splitlines()
    assert forward[0].endswith("depthwise_6/kernel")


def test_models_get_standardized_images_and_end_in_logits():
    model = compare_initializers.build(keras.applications.EfficientNetB0, (32, 32, 3), 4, 0.8)
    assert model.output_shape == (None, 4)
    assert model.layers[-1].activation is keras.activations.linear
    rescaling = [layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling)]
    assert [(layer.scale, layer.offset) for layer in rescaling] == [(1.0, 0.0)]
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in norms} == {0.8}
