"""The studies of dense networks, as users start them, and the pictures that they draw."""

import csv
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not EXAMPLES.exists(), reason="the tests run outside the checkout, against the built wheel"
    ),
]

DEEP = ("--depth", "3", "--width", "8", "--epochs", "3", "--limit", "64", "--seeds", "1")
SHAPES = ("--layers", "2", "--width", "8", "--epochs", "3", "--seeds", "1", "--images", "40")


def start(app, *arguments):
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{app}.py"), *map(str, arguments)],
        cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def rows(out):
    with (out / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_png(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 600
    assert height >= 400
    assert len(data) > 10_000


def check_report(out, plots, trainings, epochs):
    found = json.loads(
        (out / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )
    assert len(found["trainings"]) == trainings
    assert found["machine"]["keras"] == keras.__version__
    assert len(rows(out)) == trainings * epochs
    for plot in plots:
        check_png(out / plot)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "plots", "epochs"),
    [
        ("deep_dense", ("curves.png", "layers.png"), 2),
        ("glorot_bengio", ("test_error.png", "saturation.png", "histograms_tanh.png"), 3),
    ],
)
def test_smoke_preset_leaves_results_and_does_nothing_twice(
    app, plots, epochs, examples, tmp_path, capsys
):
    first = start(app, "--preset", "smoke", "--out", tmp_path)
    assert first.returncode == 0, first.stderr
    assert "[4/4]" in first.stdout
    check_report(tmp_path, plots, 4, epochs)
    assert not (tmp_path / "unfinished").exists()
    table = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert "±" in table
    assert table.count("undecided") + table.count("better") + table.count("worse") == 1
    kept = {name: (tmp_path / name).read_bytes() for name in ("results.json", "history.csv")}
    for plot in plots:
        (tmp_path / plot).unlink()
    assert __import__(app).main(["--preset", "smoke", "--out", str(tmp_path)]) == 0
    second = capsys.readouterr().out
    assert "4 of 4 trainings are in" in second
    assert "[1/" not in second
    assert table in second
    for name, content in kept.items():
        assert (tmp_path / name).read_bytes() == content
    for plot in plots:
        check_png(tmp_path / plot)


class StopAfter(keras.callbacks.Callback):
    """What a user's Ctrl-C does."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.epoch, self.batch, self.now = epoch, batch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch >= self.batch:
            raise KeyboardInterrupt


def deep_dense_study(out, callbacks=()):
    import deep_dense
    from common import study_options
    from common.study import Study

    arguments = ["--preset", "smoke", *DEEP, "--out", str(out)]
    options = study_options.parse(deep_dense._parser(), deep_dense.PRESETS, arguments)
    images = deep_dense._load(options)
    study = Study("deep_dense", out, study_options.record(options, ("depth",)))
    case = {"initializer": "he_normal", "schedule": "increasing", "batch_norm": "on", "seed": 0}
    study.run([case], lambda c, folder: deep_dense.train(c, folder, images, options, callbacks))
    return study.find(case)


def glorot_bengio_study(out, callbacks=()):
    import glorot_bengio
    from common import study_options
    from common.study import Study

    arguments = ["--preset", "smoke", *SHAPES, "--out", str(out)]
    options = study_options.parse(glorot_bengio._parser(), glorot_bengio.PRESETS, arguments)
    pictures = glorot_bengio.Pictures(options)
    study = Study("glorot_bengio", out, study_options.record(options, ("layers",)))
    case = {"activation": "tanh", "initialization": "heuristic", "seed": 0}
    study.run(
        [case], lambda c, folder: glorot_bengio.train(c, folder, pictures, options, callbacks)
    )
    return study.find(case)


@pytest.mark.slow
@pytest.mark.parametrize("train", [deep_dense_study, glorot_bengio_study])
def test_a_stopped_training_goes_on_bit_for_bit(train, examples, tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", [StopAfter(epoch=1, batch=1)])
    assert rows(tmp_path / "stopped") == []
    keras.utils.set_random_seed(99)
    resumed = train(tmp_path / "stopped")
    files = [tmp_path / name / "history.csv" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    del whole["seconds"], resumed["seconds"]
    assert resumed == whole
    assert len(whole["history"]["loss"]) == 3


def test_schedules_change_the_weights_as_they_say(examples, tmp_path):
    import deep_dense
    from common import study_options

    import keras_varinit as kv

    options = study_options.parse(
        deep_dense._parser(), deep_dense.PRESETS, ["--depth", "9", "--out", str(tmp_path)]
    )
    model = deep_dense.build((8, 8, 1), 10, options, batch_norm=True)
    scheme = kv.DepthScaled("he_normal", network_variance=22.0, schedule="increasing")
    kv.initialize(model, scheme, seed=0)
    x = np.random.default_rng(0).random((256, 8, 8, 1), "float32")
    images = type("Images", (), {"x_train": x, "y_train": np.arange(256) % 10})
    measured = deep_dense.measure(model, images)
    assert {name: len(values) for name, values in measured.items()} == dict.fromkeys(
        ("weights", "activations", "gradients"), 10
    )
    # A kernel of 64×64 has a relative standard error of its deviation of 1/√8192; 4 of them.
    for number, deviation in enumerate(measured["weights"][:-1], start=1):
        expected = math.sqrt(scheme.scale(number, 10) * 2 / 64)
        assert deviation == pytest.approx(expected, rel=4 / math.sqrt(2 * 64 * 64))
    # Behind batch normalization and ReLU of a normal signal: √(1/2 - 1/(2π)).
    assert measured["activations"][4] == pytest.approx(0.584, abs=0.06)


def test_the_heuristic_is_the_uniform_law_of_the_inputs_number(examples):
    import glorot_bengio

    kernel = keras.ops.convert_to_numpy(glorot_bengio.initializer("heuristic")((400, 300)))
    assert abs(kernel).max() == pytest.approx(1 / 20, rel=1e-3)
    assert kernel.var() == pytest.approx(1 / (3 * 400), rel=0.02)
    kernel = keras.ops.convert_to_numpy(glorot_bengio.initializer("normalized")((400, 300)))
    assert kernel.var() == pytest.approx(2 / 700, rel=0.02)


@pytest.mark.slow
def test_a_diverged_training_is_counted_and_drawn(examples, tmp_path, capsys):
    import deep_dense

    options = ("--schedules", "unit", "--optimizer", "sgd", "--learning-rate", "1e30")
    for _ in range(2):
        assert deep_dense.main(["--preset", "smoke", *DEEP, *options, "--out", str(tmp_path)]) == 0
        assert "| 1/1" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert found["trainings"][0]["history"]["loss"][-1] is None
    check_png(tmp_path / "curves.png")
    check_png(tmp_path / "layers.png")


def refused(app, capsys, *arguments):
    module = __import__(app)
    try:
        code = module.main([*map(str, arguments)])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("app", "arguments", "text"),
    [
        ("deep_dense", ["--depth", "0"], "--depth 0: must be 1 or more."),
        ("deep_dense", ["--network-variance", "0"], "--network-variance 0: must be above 0."),
        ("deep_dense", ["--offset", "-1"], "--offset -1: must be above 0."),
        ("deep_dense", ["--learning-rate", "nan"], "--learning-rate nan: must be above 0."),
        ("deep_dense", ["--schedules", "growing"], "invalid choice: 'growing'"),
        ("deep_dense", ["--epochs", "0"], "'0' is not a positive whole number"),
        ("deep_dense", ["--data", "folder"], "--data folder needs --data-dir FOLDER"),
        ("glorot_bengio", ["--width", "-3"], "--width -3: must be 1 or more."),
        ("glorot_bengio", ["--measure-every", "0"], "--measure-every 0: must be 1 or more."),
        ("glorot_bengio", ["--limit", "5"], "--batch-size 10: an epoch has 5 pictures."),
        ("glorot_bengio", ["--activations", "relu"], "invalid choice: 'relu'"),
    ],
)
def test_bad_options_are_refused_with_a_reason(app, arguments, text, examples, tmp_path, capsys):
    assert text in refused(app, capsys, *arguments, "--seeds", "1", "--out", tmp_path / "out")


def test_a_folder_of_other_results_is_refused(examples, tmp_path, capsys):
    (tmp_path / "results.json").write_text("[]", encoding="utf-8")
    text = refused("glorot_bengio", capsys, "--out", tmp_path)
    assert "its results.json is not that of a study" in text
    (tmp_path / "results.json").unlink()
    from common.study import Study

    Study("glorot_bengio", tmp_path, {"width": 3})
    text = refused("glorot_bengio", capsys, "--out", tmp_path)
    assert "holds results with other settings" in text
    assert "--restart" in text


@pytest.mark.parametrize("app", ["deep_dense", "glorot_bengio"])
def test_help_has_examples(app, examples, capsys):
    with pytest.raises(SystemExit) as exit_:
        __import__(app).main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"python examples/{app}.py --preset paper" in text
    assert "our choice" in " ".join(text.split())


@pytest.mark.parametrize("app", ["deep_dense", "glorot_bengio"])
def test_paper_preset_takes_all_images(app, examples):
    from common import study_options

    module = __import__(app)
    arguments = ["--preset", "paper", "--out", "unused"]
    options = study_options.parse(module._parser(), module.PRESETS, arguments)
    chosen = module.PRESETS["paper"]
    assert {name: getattr(options, name) for name in chosen} == chosen
    assert options.limit is None


def test_pictures_are_the_same_for_a_seed_and_balanced(examples):
    from common import shapeset

    x, y = shapeset.draw(1800, 3)
    again, labels = shapeset.draw(1800, 3)
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(y, labels)
    assert not np.array_equal(x, shapeset.draw(1800, 4)[0])
    assert np.bincount(y).tolist() == [200] * 9
    assert x.dtype == np.float32
    assert x.min() >= 0
    assert x.max() <= 1
    assert len(shapeset.CLASSES) == len(set(shapeset.CLASSES)) == 9


def test_pictures_have_as_many_grey_levels_as_their_class_has_objects(examples):
    from common import shapeset

    x, y = shapeset.draw(900, 0)
    for image, label in zip(x, y, strict=True):
        values, counts = np.unique(image.round(4), return_counts=True)
        levels = values[counts >= 4]
        objects = len(shapeset.CONTENTS[label])
        # A small object may have fewer than four pixels that no edge crosses.
        assert 1 <= len(levels) <= objects + 1
        if len(levels) > 1:
            assert np.diff(levels).min() > shapeset.CONTRAST - 2e-4


def test_an_object_in_front_covers_at_most_half(examples):
    from common import shapeset

    labels = np.arange(1800) % 9
    behind, front = shapeset.draw_coverages(labels, np.random.default_rng(0))
    assert not front[labels < 3].any()
    two = labels >= 3
    share = (behind * front)[two].sum(axis=(1, 2)) / behind[two].sum(axis=(1, 2))
    assert share.max() <= 0.5
    # The rule is at work: objects do overlap, also by nearly as much as they may.
    assert (share > 0.3).mean() > 0.05


@pytest.mark.parametrize(("shape", "within"), [(0, 0.03), (1, 0.03), (2, 0.01)])
def test_objects_fill_their_area(shape, within, examples):
    from common import shapeset

    objects = shapeset.random_objects(shape, 400, np.random.default_rng(0), size=128)
    filled = objects.coverage(128).sum(axis=(1, 2))
    # Radii are 20 to 44 pixels: what edges and corners add is small.
    np.testing.assert_allclose(filled, objects.areas, rtol=within)
    if shape == 2:
        np.testing.assert_allclose(objects.areas, np.pi * objects.extents.prod(axis=1))


def test_objects_have_their_shape_and_lie_inside(examples):
    """By the ratio of area² to the determinant of the second moments, which no map changes.

    Uniform on an ellipse, √det = area/(4π); on a parallelogram area/12; on a triangle area/(6√3).
    """
    from common import shapeset

    places = np.arange(128) + 0.5
    for shape, ratio in enumerate((1 / (6 * 3**0.5), 1 / 12, 1 / (4 * np.pi))):
        objects = shapeset.random_objects(shape, 100, np.random.default_rng(1), size=128)
        filled = objects.coverage(128)
        frame = filled.copy()
        frame[:, 1:-1, 1:-1] = 0
        assert not (frame > 0.5).any()
        mass = filled.sum(axis=(1, 2))
        x = filled.sum(axis=1) @ places / mass
        y = filled.sum(axis=2) @ places / mass
        xx = filled.sum(axis=1) @ places**2 / mass - x**2
        yy = filled.sum(axis=2) @ places**2 / mass - y**2
        xy = np.einsum("nij,i,j->n", filled, places, places) / mass - x * y
        found = np.sqrt(xx * yy - xy**2) / mass
        np.testing.assert_allclose(found, ratio, rtol=0.03)


@pytest.mark.parametrize("batch_size", [10, 32])
def test_fresh_pictures_depend_on_seed_and_epoch_alone(batch_size, examples):
    from common import shapeset

    def epoch(batches, number):
        batches.start_epoch(number)
        return np.concatenate([batches[index][0] for index in range(len(batches))])

    batches = shapeset.FreshShapes(2600, batch_size, 5, (0.5, 0.3))
    first, second = epoch(batches, 0), epoch(batches, 1)
    assert len(first) == 2600 // batch_size * batch_size
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 2 * len(first)
    others = shapeset.FreshShapes(2600, batch_size, 5, (0.5, 0.3))
    np.testing.assert_array_equal(epoch(others, 1), second)
    np.testing.assert_array_equal(epoch(others, 0), first)
    # In any order.
    np.testing.assert_array_equal(others[len(others) - 1][0], first[-batch_size:])


@pytest.mark.slow
def test_several_steps_in_one_call_see_the_same_batches(examples):
    from common.batches import SeededBatches

    x = np.random.default_rng(0).random((70, 6), "float32")
    y = np.arange(70) % 3

    def weights(steps):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss, steps_per_execution=steps)
        batches = SeededBatches(x, y, 10, 0)
        model.fit(batches, epochs=2, shuffle=False, verbose=0)
        assert int(model.optimizer.iterations) == 14
        return model.get_weights()

    # 7 batches are no multiple of 3: the last call of an epoch has one.
    for one, three in zip(weights(1), weights(3), strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-6)
