"""What the studies in `examples/` share: batches, resuming, tables and plots."""

import csv
import functools
import io
import itertools

import h5py
import keras
import numpy as np
import pytest

from tests.example_files import Stop, assert_picture, record, rows

# isort: split
from common import (
    batches,
    device_images,
    image_study,
    study,
    study_options,
    study_plots,
    summary,
)
from common.data import Images
from common.errors import UserError

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
            # Equal images in another graph: 24 steps of float32 rounding apart, six digits kept.
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


def test_more_seeds_leave_the_first_ones_as_they_are(tmp_path, whole):
    both = ["asv_backward", "he_normal"]
    assert len(run_tiny(tiny_options(tmp_path))) == 1
    records = run_tiny(tiny_options(tmp_path, "--seeds", "2"), (), both)
    assert [record["settings"]["seed"] for record in records] == [0, 0, 1, 1]
    assert (tmp_path / "history.csv").read_bytes().startswith(whole)
    text = summary.comparison(records, {"asv_backward": "he_normal"})
    assert "| he_normal | " in text.splitlines()[2]


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


def test_ratios_pair_seeds_and_leave_gaps():
    base = [record(0, [0.5, 0.5]), record(1, [0.0, 0.25])]
    found, mean = study_plots.ratios([record(1, [0.5, 0.5]), record(0, [0.5, 1])], base, 2)
    np.testing.assert_array_equal(found, [[np.nan, 2], [1, 2]])
    np.testing.assert_array_equal(mean, [2, 2])


def test_a_training_that_ended_early_keeps_its_accuracy():
    lost = record(0, [0.3, 0.1], loss=[2.0, np.nan])
    np.testing.assert_array_equal(study_plots.curves([lost], "val_accuracy", 3), [[0.3, 0.1, 0.1]])
    np.testing.assert_array_equal(study_plots.curves([lost], "loss", 3), [[2, np.nan, np.nan]])


def test_table_has_deviation_difference_and_interval():
    records = [
        record(seed, [accuracy - 0.2 * (name == "b"), accuracy], initializer=name)
        for name, accuracies in {"a": (0.5, 0.6), "b": (0.6, 0.8)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    text = summary.comparison(records, {"b": "a"})
    assert "0.7000 ± 0.1414" in text
    # Differences 0.1 and 0.2: mean 0.15, standard error 0.05, t(0.975; 1) = 12.7062.
    # Over both epochs 0 and 0.1: the half of the intervals is the same.
    cells = [cell.strip() for cell in text.splitlines()[3].split("|")]
    assert cells[-3:] == [
        "a",
        "+0.1500 [-0.4853, +0.7853] undecided",
        "+0.0500 [-0.5853, +0.6853] undecided",
    ]
