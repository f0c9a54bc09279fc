"""The studies of image networks in `examples/`, and what they share."""

import csv
import functools
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from matplotlib import image

import keras_varinit as kv
from tests import fresh_process

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not EXAMPLES.exists():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

import asv_networks  # noqa: E402
import cifar_resnets  # noqa: E402
import compare_initializers  # noqa: E402
import transformer  # noqa: E402
from common import (  # noqa: E402
    batches,
    device_images,
    image_study,
    plain_networks,
    resnet,
    schemes,
    study,
    study_options,
    study_plots,
    summary,
)
from common.data import Images  # noqa: E402
from common.errors import UserError  # noqa: E402

APPS = {
    "cifar_resnets": (cifar_resnets, 4, 2, ("curves.png", "ratios.png")),
    "asv_networks": (asv_networks, 2, 1, ("curves.png", "learning_rates.png")),
    "compare_initializers": (compare_initializers, 2, 1, ("curves.png",)),
    "transformer": (transformer, 4, 2, ("curves.png",)),
}


def rows(out):
    with (out / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_picture(path):
    pixels = image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 300
    # A plot without lines is white with grey and black; the first line's marker may be black too.
    coloured = np.ptp(pixels, axis=-1) > 0.2
    assert coloured.sum() > 200, f"{path.name} has no coloured line"


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


# A study of a tiny network with everything that has a state: momenta, moving averages, dropout.
IMAGES = Images(
    "noise",
    np.random.default_rng(0).standard_normal((48, 4, 4, 1), dtype="float32"),
    np.arange(48, dtype="int32") % 3,
    np.random.default_rng(1).standard_normal((20, 4, 4, 1), dtype="float32"),
    np.arange(20, dtype="int32") % 3,
    3,
)
TINY = {"epochs": 4, "seeds": 1, "batch_size": 8, "augment": "shift", "rate": 0.01}
TINY["data_on_device"] = False


def tiny_options(out, *arguments, **changes):
    parser = study_options.parser(__file__, "A tiny study.")
    presets = {preset: {**TINY, **changes} for preset in study_options.PRESETS}
    return study_options.parse(parser, presets, ["--out", str(out), *arguments])


def train_tiny(case, folder, options, callbacks=()):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, "relu", kernel_initializer=case["initializer"]),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(options.rate, 24)
    return image_study.train(
        model,
        IMAGES,
        options,
        optimizer=keras.optimizers.SGD(schedule, momentum=0.9),
        seed=case["seed"],
        label="tiny",
        folder=folder,
        callbacks=callbacks,
    )


def run_tiny(options, callbacks=(), initializers=("asv_backward",)):
    records = study.Study("tiny", options.out, study_options.record(options, ["rate"]))
    cases = [{"initializer": n, "seed": s} for s in range(options.seeds) for n in initializers]
    train = functools.partial(train_tiny, options=options, callbacks=callbacks)
    return image_study.run(records, cases, train, options)


class Stop(keras.callbacks.Callback):
    """Interrupts once: in a batch of an epoch, or at an epoch's end."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at, self.now = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.stop((self.now, batch))

    def on_epoch_end(self, epoch, logs=None):
        self.stop((epoch, None))

    def stop(self, place):
        if place == self.at:
            self.at = None
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The history of a study that was never stopped."""
    out = tmp_path_factory.mktemp("whole")
    run_tiny(tiny_options(out))
    return (out / "history.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("place", [(0, 2), (1, None), (3, None)])
def test_stopped_study_goes_on_bit_for_bit(place, tmp_path, whole):
    options = tiny_options(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(options, [Stop(*place)])
    assert (tmp_path / "unfinished").exists()
    run_tiny(options)
    assert (tmp_path / "history.csv").read_bytes() == whole
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.slow
def test_data_on_device_trains_alike_and_goes_on_bit_for_bit(tmp_path, whole):
    outs = [tmp_path / name for name in ("once", "stopped")]
    options = [tiny_options(out, data_on_device=True) for out in outs]
    run_tiny(options[0])
    with pytest.raises(KeyboardInterrupt):
        run_tiny(options[1], [Stop(1, 1)])
    weights = max(outs[1].rglob("*.weights.h5"), key=lambda file: file.stat().st_size)
    with h5py.File(weights) as file:
        sizes = []
        file.visititems(lambda _, item: sizes.append(getattr(item, "size", 0)))
    assert 0 < max(sizes) < IMAGES.x_train.size  # the images are not in it
    run_tiny(options[1])
    once, stopped = ((out / "history.csv").read_bytes() for out in outs)
    assert once == stopped
    host = csv.DictReader(io.StringIO(whole.decode()))
    for expected, row in zip(host, rows(outs[0]), strict=True):
        for metric in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert float(row[metric]) == pytest.approx(float(expected[metric]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 4])
def test_stop_while_the_state_is_written_changes_nothing(call, tmp_path, whole, monkeypatch):
    save, calls = keras.Model.save_weights, []

    def stop(self, path, *args, **kwargs):
        save(self, path, *args, **kwargs)
        calls.append(path)
        if len(calls) == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tiny_options(tmp_path))
    run_tiny(tiny_options(tmp_path))
    assert (tmp_path / "history.csv").read_bytes() == whole


def test_a_resumed_training_starts_from_its_state(tmp_path):
    # Otherwise the tests above would pass for a training that begins anew.
    epochs = []
    seen = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tiny_options(tmp_path), [Stop(1)])
    run_tiny(tiny_options(tmp_path), [seen])
    assert epochs == [2, 3]


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


def test_more_seeds_leave_the_first_ones_as_they_are(tmp_path, whole):
    both = ["asv_backward", "he_normal"]
    assert len(run_tiny(tiny_options(tmp_path))) == 1
    records = run_tiny(tiny_options(tmp_path, "--seeds", "2"), (), both)
    assert [record["settings"]["seed"] for record in records] == [0, 0, 1, 1]
    assert (tmp_path / "history.csv").read_bytes().startswith(whole)
    assert " (to he_normal)" in summary.comparison(records, {"asv_backward": "he_normal"})


def test_initializers_get_equal_batches():
    options = tiny_options("unused")
    first, second = (image_study.batches(IMAGES, options, 3) for _ in range(2))
    other = image_study.batches(IMAGES, options, 4)
    for each in (first, second, other):
        each.start_epoch(2)
    np.testing.assert_array_equal(first[1][0], second[1][0])
    assert not np.array_equal(first[1][0], other[1][0])


@pytest.mark.parametrize("augment", ["none", "shift", "flip"])
def test_images_on_the_device_are_those_of_the_host(augment):
    # Not square, so that rows and columns cannot be confused.
    x = np.random.default_rng(0).standard_normal((30, 16, 9, 2), dtype="float32")
    y = np.arange(30, dtype="int32")
    layer = device_images.DeviceImages(x)
    host = batches.SeededBatches(x, y, 30, 1, augment)
    rows = device_images.RowBatches(x, y, 30, 1, augment)
    images, labels = host[0]
    found = layer(rows[0][0])
    assert found.shape == layer.compute_output_shape((30, 4))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), images)
    np.testing.assert_array_equal(rows[0][1], labels)
    if augment == "none":
        np.testing.assert_array_equal(images, x[labels])
        return
    # By hand: image 0 is moved by what is drawn for it.
    (down, right, mirrored), image = rows[0][0][0, 1:], x[labels[0]]
    moved = np.zeros_like(image)
    for i, j in itertools.product(range(16), range(9)):
        row, column = i + down, (8 - j if mirrored else j) + right
        if 0 <= row < 16 and 0 <= column < 9:
            moved[i, j] = image[row, column]
    np.testing.assert_array_equal(images[0], moved)
    assert rows[0][0][:, 3].any() == (augment == "flip")


def test_more_pixels_than_can_be_counted_are_refused():
    images = np.broadcast_to(np.float32(0), (2**20, 64, 64, 1))
    with pytest.raises(UserError, match=r"--data-on-device: 1,048,576 images of 64×64 .*--limit"):
        device_images.DeviceImages(images)


def test_diverged_trainings_end_and_are_counted(tmp_path):
    options = tiny_options(tmp_path, rate=1e30)
    both = ["he_normal", "asv_backward"]
    records = run_tiny(options, (), both)
    assert all(map(summary.diverged, records))
    assert all(len(record["history"]["loss"]) < options.epochs for record in records)
    assert "| 1/1 " in summary.comparison(records, {})
    groups = summary.by_setting(records, "initializer")
    study_plots.learning_curves(groups, options.epochs, "lost", tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")
    assert str(run_tiny(options, (), both)) == str(records)  # NaN is not equal to itself


def test_folder_of_another_study_is_refused_unless_restarted(tmp_path, monkeypatch):
    study.Study("tiny", tmp_path, {"rate": 1})
    with pytest.raises(UserError, match=r"holds results with other settings .*--restart"):
        study.Study("tiny", tmp_path, {"rate": 2})
    study.Study("tiny", tmp_path, {"rate": 2}, restart=True)
    monkeypatch.setattr(keras.config, "backend", lambda: "another")
    with pytest.raises(UserError, match=r"backend: .* and not another"):
        study.Study("tiny", tmp_path, {"rate": 2})


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
        (asv_networks, ["--width", "0"], "--width 0: must be 1 or more"),
        (asv_networks, ["--learning-rates", "nan"], "--learning-rates nan: must be above 0"),
        (asv_networks, ["--image-size", "16"], "needs images of 32×32 or more"),
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


@pytest.mark.parametrize("app", [app for app, *_ in APPS.values()])
def test_help_has_examples_and_every_preset_knows_its_options(app, capsys):
    with pytest.raises(SystemExit, match="0"):
        app.main(["--help"])
    assert f"python examples/{app.__name__}.py" in capsys.readouterr().out
    for preset in study_options.PRESETS:
        arguments = ["--preset", preset, "--out", "unused"]
        options = study_options.parse(app._parser(), app.PRESETS, arguments)
        unset = {name for name, value in vars(options).items() if value is None}
        assert unset <= {"limit", "data_dir", "image_size"}
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
    }
    assert {name: schemes.base(name) for name in bases} == bases


def record(seed, accuracy, loss=(1.0,), **settings):
    history = {"val_accuracy": list(accuracy), "loss": list(loss)}
    return {"settings": {**settings, "seed": seed}, "history": history, "seconds": 1.0}


def test_ratios_pair_seeds_and_leave_gaps():
    base = [record(0, [0.5, 0.5]), record(1, [0.0, 0.25])]
    found = study_plots.ratios([record(1, [0.5, 0.5]), record(0, [0.5, 1])], base, 2)
    np.testing.assert_array_equal(found, [[np.nan, 2], [1, 2]])


def test_a_training_that_ended_early_keeps_its_accuracy():
    lost = record(0, [0.3, 0.1], loss=[2.0, np.nan])
    np.testing.assert_array_equal(study_plots.curves([lost], "val_accuracy", 3), [[0.3, 0.1, 0.1]])
    np.testing.assert_array_equal(study_plots.curves([lost], "loss", 3), [[2, np.nan, np.nan]])


def test_best_learning_rate_is_that_of_the_highest_mean():
    records = [
        record(seed, [accuracy], learning_rate=rate)
        for rate, accuracies in {1e-4: (0.9, 0.1), 1e-3: (0.6, 0.5)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    rate, chosen = asv_networks.best(records)
    assert rate == 1e-3
    assert chosen == records[2:]


def test_table_has_deviation_difference_and_interval():
    records = [
        record(seed, [accuracy], initializer=name)
        for name, accuracies in {"a": (0.5, 0.6), "b": (0.6, 0.8)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    text = summary.comparison(records, {"b": "a"})
    assert "0.7000 ± 0.1414" in text
    # Differences 0.1 and 0.2: mean 0.15, standard error 0.05, t(0.975; 1) = 12.7062.
    assert "+0.1500 [-0.4853, +0.7853] undecided (to a)" in text


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
    reference = json.loads((Path(__file__).parent / "asv_f34_224.json").read_text())
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
