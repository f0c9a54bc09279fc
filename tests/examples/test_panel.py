"""The panel: many trainings by one compiled step, learning rates, verdicts, resuming."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.example_files import EXAMPLES, assert_picture

# isort: split
import panel
from common.data import Images
from common.errors import UserError
from common.population import Population, Task
from panel_families import data, report, settings, work

on_jax = pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX compiles the step")


def noise_task(metric="accuracy", rows=48):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows + 24, 6), dtype="float32")
    y = x[:, :1] - x[:, 1:2] if metric == "error" else (x[:, 0] > 0).astype("int32")
    parts = [(x[rows_], y[rows_]) for rows_ in (slice(rows), slice(rows, -12), slice(-12, None))]
    return Task("noise", *parts, metric)


def small_model(outputs=2, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(outputs)(x))


def adam():
    return keras.optimizers.Adam(0.5, global_clipnorm=1.0)


def population(task, **changes):
    sizes = {"batch_size": 16, "steps": 120, "points": 3, "warmup": 0.25, **changes}
    model = small_model(task.outputs, seed=1)
    return Population(model, adam(), task, **sizes)


@on_jax
@pytest.mark.parametrize(
    ("metric", "block"), [("accuracy", 24), ("error", 24), ("nats", 24), ("nats", 10)]
)
def test_a_training_is_that_of_keras(metric, block, monkeypatch):
    """Against `train_on_batch` and `predict` of a model of its own."""
    monkeypatch.setattr("common.population._ROWS", block)  # of the 24 that are scored
    task = noise_task(metric)
    trained = population(task)
    model = small_model(task.outputs, seed=3)
    start = model.get_weights()
    trained.train(small_model(task.outputs, seed=4).get_weights(), 0.1, seed=1)  # leaves nothing
    history = trained.train(start, 0.02, seed=5)

    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = adam()
    model.compile(optimizer, "mse" if metric == "error" else crossentropy)
    scores = []
    for step in range(120):
        epoch, place = divmod(step, 3)
        order = np.random.default_rng([5, epoch]).permutation(48)[16 * place : 16 * (place + 1)]
        # 30 of the 120 steps are warm-up.
        rise, fall = (step + 1) / 31, 0.5 * (1 + math.cos(math.pi * (step - 30) / 90))
        optimizer.learning_rate = 0.02 * (rise if step < 30 else fall)
        model.train_on_batch(*(part[order] for part in task.train))
        if step % 40 == 39:
            outputs, y = model.predict(task.test[0], verbose=0), task.test[1]
            if metric == "error":
                scores.append(np.sqrt(np.mean((outputs - y) ** 2)) / task.train[1].std())
            elif metric == "accuracy":
                scores.append(np.mean(outputs.argmax(-1) == y))
            else:
                exponentials = np.exp(outputs)
                likely = exponentials[np.arange(len(y)), y] / exponentials.sum(axis=-1)
                scores.append(-np.log(likely).mean())
    # The same sums in another order, over 120 steps in float32.
    np.testing.assert_allclose(history.test, scores, rtol=1e-3)
    assert history.test[-1] != task.trivial  # which bounds the others
    assert not history.is_lost


@on_jax
def test_a_lost_training_has_the_metric_of_a_constant():
    task = noise_task("error")
    history = population(task).train(small_model(1).get_weights(), 1e30, seed=0)
    assert history.is_lost
    assert history.test == [1.0] * 3 == history.validation
    assert math.isnan(history.loss[-1])


def test_the_best_constant_answer():
    y = np.array([0, 0, 0, 1], "int32")
    parts = [(np.zeros((4, 1), "float32"), y)] * 3
    assert Task("t", *parts, "accuracy").trivial == 0.75
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert math.isclose(Task("t", *parts, "nats").trivial, entropy)
    assert noise_task("error").trivial == 1


def test_more_steps_than_the_data_has_rows_are_refused():
    if keras.config.backend() != "jax":
        with pytest.raises(ValueError, match="needs the backend jax"):
            population(noise_task())
    else:
        with pytest.raises(ValueError, match="batches of 64 out of 48 rows"):
            population(noise_task(), batch_size=64)


def records_of(scheme, by_rate):
    """Trainings: by learning rate, for each seed the metric on validation and on test data."""
    return [
        {
            **{"scheme": scheme, "rate": rate, "seed": seed, "is_lost": False},
            **{"loss": [1.0, 1.0], "validation": [0, validation], "test": [test / 2, test]},
        }
        for rate, pairs in by_rate.items()
        for seed, (validation, test) in enumerate(pairs)
    ]


@pytest.fixture
def setting():
    return settings.Setting(
        "f", "report", lambda: noise_task("accuracy"), None, 1, 1, "adam", (0.1, 0.2), 4
    )


def test_rates_are_chosen_on_validation_and_reported_on_test_data(setting):
    records = [
        *records_of("default", {0.1: [(0.5, 0.9)] * 2, 0.2: [(0.7, 0.6), (0.6, 0.5)]}),
        *records_of("new", {0.1: [(0.1, 1.0)] * 2, 0.2: [(0.2, 0.8), (0.8, 0.6)]}),
    ]
    found = report.compare(setting, records, "new", seeds=2)
    assert (found.base.rate, found.side.rate) == (0.2, 0.2)
    assert found.side.at_edge
    assert math.isclose(found.end.mean, 0.15)  # (0.8 − 0.6 + 0.6 − 0.5) / 2
    assert math.isclose(found.mean.mean, 0.75 * 0.15)
    assert "0.700 ± 0.141 (0.2*)" in report.table([found])


def test_first_seeds_decide_on_two_rates_and_all_seeds_on_one(setting):
    object.__setattr__(setting, "rates", (0.1, 0.2, 0.4))
    names = ("default", "new")
    assert work.total(setting, names, 5) == 2 * (3 * 3 + 2 * 2)
    first = work.missing(setting, names, 5, [])
    assert first == [(n, r, s) for s in range(3) for n in names for r in setting.rates]
    records = [
        *records_of("default", {0.1: [(0.5, 0)] * 3, 0.2: [(0.4, 0)] * 3, 0.4: [(0.3, 0)] * 3}),
        *records_of("new", {0.1: [(0.5, 0)] * 3, 0.2: [(0.7, 0)] * 3, 0.4: [(0.9, 0)] * 3}),
    ]
    rates = {"default": (0.1, 0.2), "new": (0.4, 0.2)}
    rest = [(n, r, s) for s in (3, 4) for n in names for r in rates[n]]
    assert work.missing(setting, names, 5, records) == rest
    assert work.finished(setting, names, 5, records) == 18
    assert work.best_rate(setting, "default", records, 5) is None
    late = [
        {**records[0], "rate": rate, "seed": seed, "validation": [0, value]}
        for rate, value in ((0.1, 0.1), (0.2, 0.5), (0.4, 9.0))
        for seed in (3, 4)
    ]
    # Means 0.34 and 0.44; 0.4 was out after three seeds.
    assert work.best_rate(setting, "default", [*records, *late], 5) == 0.2


@pytest.mark.parametrize(
    ("default", "new", "verdict"),
    [
        ([0.5, 0.5, 0.51], [0.6, 0.6, 0.62], "won"),
        ([0.6, 0.6, 0.62], [0.5, 0.5, 0.51], "lost"),
        ([0.5, 0.6, 0.7], [0.7, 0.6, 0.5], "even"),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "error"])
def test_verdicts(setting, default, new, verdict, metric):
    object.__setattr__(setting, "task", lambda: noise_task(metric))
    if metric == "error":
        default, new = new, default
    records = [
        *records_of("default", {rate: [(0, value) for value in default] for rate in (0.1, 0.2)}),
        *records_of("new", {rate: [(0, value) for value in new] for rate in (0.1, 0.2)}),
    ]
    found = report.compare(setting, records, "new", seeds=3)
    assert found.verdict == verdict
    assert f"1 {verdict}" in report.count([found])


def test_where_the_end_is_even_the_mean_decides(setting):
    old = records_of("default", {rate: [(0, 0.5), (0, 0.6), (0, 0.7)] for rate in (0.1, 0.2)})
    new = records_of("new", {rate: [(0, 0.7), (0, 0.6), (0, 0.5)] for rate in (0.1, 0.2)})
    for n, (slow, fast) in enumerate(zip(old, new, strict=True)):
        slow["test"][0], fast["test"][0] = (
            0.7 - slow["test"][1],
            1.0 + 0.01 * (n % 3) - fast["test"][1],
        )
    found = report.compare(setting, [*old, *new], "new", seeds=3)
    assert found.end.verdict == "undecided"
    assert found.verdict == "won"


def test_a_line_for_each_scheme(setting):
    records = [
        *records_of("he_normal", {rate: [(0.5, 0.5), (0.5, 0.6)] for rate in (0.1, 0.2)}),
        *records_of("first", {rate: [(0.5, 0.8), (0.5, 0.9)] for rate in (0.1, 0.2)}),
        *records_of("second", {rate: [(0.5, 0.2), (0.5, 0.3)] for rate in (0.1, 0.2)}),
    ]
    compared = [report.compare(setting, records, s, 2, "he_normal") for s in ("first", "second")]
    lines = report.family_table(compared).splitlines()
    assert "he_normal: 0.550 ± 0.071 (0.1*)" in lines[2]
    for line, parts in zip(
        lines[3:],
        [("won ", "first: 0.850", "+0.300 "), ("lost ", "second: 0.250", "-0.300 ")],
        strict=True,
    ):
        assert all(part in line for part in parts), line


def test_the_deep_suite_is_that_of_the_sources(monkeypatch):
    deep = {s.family: s for s in settings.SETTINGS if s.suite == "deep"}
    layers = {"resnet-56": 57, "resnet-110": 111, "f34": 32 + 2, "f50": 48 + 2, "dense-54": 54}
    for family, count in layers.items():  # the ResNets have a projection
        kernels = [v for v in deep[family].build().trainable_variables if v.name == "kernel"]
        assert len(kernels) == count, family
    images = Images("images", *(np.zeros((9, 32, 32, 3)), np.arange(9) % 3) * 2, 3)
    monkeypatch.setattr(data.image_data, "load", lambda *arguments: images)
    assert {s.on_images("somewhere").task().name for s in deep.values()} == {"images"}
    for cached in (data.folder, data.flat_folder):
        cached.cache_clear()


def test_halves_have_the_same_families_and_other_settings():
    halves = [
        {s.family: s for s in settings.SETTINGS if s.suite == suite}
        for suite in ("choice", "report")
    ]
    assert halves[0].keys() == halves[1].keys()
    assert sum(s.suite != "deep" for s in settings.SETTINGS) == 2 * len(halves[0])
    for family, choice in halves[0].items():
        reported = halves[1][family]
        assert (choice.depth, choice.width) != (reported.depth, reported.width), family
        assert choice.task().name != reported.task().name, family
        assert (choice.network, choice.rates) == (reported.network, reported.rates)


@pytest.mark.parametrize("name", sorted({s.task().name for s in settings.SETTINGS}))
def test_parts_of_the_data_do_not_overlap(name):
    task = next(s.task() for s in settings.SETTINGS if s.task().name == name)
    parts = task.train, task.validation, task.test
    rows = [{row.tobytes() for row in np.ascontiguousarray(x)} for x, _ in parts]
    # A text may say the same again.
    most = 0.02 * len(rows[2]) if task.metric == "nats" and task.train[0].dtype == "int32" else 0
    assert len(rows[0] & rows[1]) <= most
    assert len(rows[0] & rows[2]) <= most
    assert len(rows[1] & rows[2]) <= most
    for x, y in parts:
        assert len(x) == len(y) > 50
        assert np.isfinite(x).all()
    if task.train[0].dtype == "float32":
        assert abs(task.train[0].std() - 1) < 0.5 or "adding" in name or name in ("sine", "chirp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--families", "vitt"], "--families vitt: no such family. There are: plain-cnn, "),
        (["--schemes", "he_norml"], "no such initializer. Did you mean he_normal"),
        (["--schemes", "he_normal+asv_forward"], "with fan_in_bias, chrono_bias"),
        (["--seeds", "0"], "--seeds 0: must be 1 or more."),
        (["--suite", "deep", "--families", "vit"], "There are: resnet-56, "),
        (["--baseline", "he_norml"], "no such initializer. Did you mean he_normal"),
        (["--data-dir", "images"], "Add --preset gpu or --suite deep, or leave it out."),
        (["--preset", "gpu"], "images of your own, which --data-dir names."),
    ],
)
@on_jax
def test_mistakes(arguments, message, tmp_path, capsys):
    assert panel.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_large_settings_train_on_images_of_a_folder(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 32, 32, 3), dtype="float32"), np.arange(90) % 5
    images = Images("a folder", x[:70], y[:70], x[70:], y[70:], 5)
    monkeypatch.setattr(data.image_data, "load", lambda *arguments: images)
    names = set()
    for setting in settings.SETTINGS:
        if setting.suite == "report":
            large = setting.large("somewhere")
            names.add(large.task().name)
            assert large.width == 4 * setting.width
            if large.family in ("vit", "convnext", "unet"):
                model = dataclasses.replace(large, depth=1, width=8).build()
                assert model.input_shape == (None, 32, 32, 3)
    assert {"a folder", "a folder, noisy", "chirp"} < names
    assert not {"moved digits", "noisy photographs"} & names
    folder = data.folder("somewhere")
    assert [len(x) for x, _ in (folder.train, folder.validation, folder.test)] == [70, 10, 10]
    for cached in (data.folder, data.flat_folder, data.noisy_folder):
        cached.cache_clear()


@pytest.mark.slow
@pytest.mark.once
def test_smoke(tmp_path):
    """In a process of its own, for JAX; then again, with a training cut short."""
    command = [sys.executable, str(EXAMPLES / "panel.py"), "--preset", "smoke"]
    command += ["--families", "curve", "--schemes", "recommended", "he_normal+fan_in_bias"]
    command += ["--out", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}

    def run():
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    first = run()
    assert first.stderr == ""
    assert "recommended against default: " in first.stdout
    assert_picture(tmp_path / "curves.png")
    (file,) = (tmp_path / "trainings").glob("*.jsonl")
    whole = file.read_text(encoding="utf-8")
    assert len(whole.splitlines()) == 12  # schemes × rates × seeds
    file.write_text(whole[:-40], encoding="utf-8")
    table = (tmp_path / "table.txt").read_text(encoding="utf-8")
    again = run()
    assert "11 of 12 trainings are in" in again.stdout
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == table

    def without_times(text):
        return [{**json.loads(line), "seconds": 0} for line in text.splitlines()]

    redone = file.read_text(encoding="utf-8")
    assert without_times(redone) == without_times(whole)


def test_trainings_with_other_sizes_are_refused(tmp_path, setting):
    path = tmp_path / "f.jsonl"
    record = {"scheme": "new", "rate": 0.1, "seed": 0, "loss": [None], "test": [0.0]}
    line = json.dumps({**record, "sizes": {"depth": 9}})
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds trainings with other sizes .*--restart"):
        work.read(path, setting)


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"loss": []}'])
def test_a_file_of_something_else_is_refused(tmp_path, setting, line):
    path = tmp_path / "f.jsonl"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: is not the record of a training\..*--restart"):
        work.read(path, setting)
    assert path.read_text(encoding="utf-8") == f"{line}\n"


@pytest.mark.parametrize("name", work.VECTOR_IDS)
def test_schemes_of_vectors(name):
    work.apply_scheme(small_model(), name, 0)


def test_schemes_of_vectors_leave_kernels_alone():
    model = small_model()
    before = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    work.apply_scheme(model, "default+fan_in_bias", 0)
    changed = {w.path for w in model.weights if not np.array_equal(before[w.path], w)}
    biases = {w.path for w in model.weights if w.path.endswith("bias")}
    assert changed == biases
    limit = 1 / math.sqrt(6)
    (first,) = (w for w in model.weights if w.path == model.layers[1].bias.path)
    assert 0 < np.abs(keras.ops.convert_to_numpy(first)).max() <= limit
