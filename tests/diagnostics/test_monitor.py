"""`SignalMonitor` over short trainings: what it records, writes, costs and leaves alone."""

import csv
import sys
import time

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit.diagnostics import monitor as monitor_module
from tests.models import arrays, assert_equal, cnn, data, fit, weights

L = keras.layers


def compiled(initializer="he_normal"):
    model = cnn(initializer)
    model.compile("sgd", "mse")
    return model


def lines_of(folder):
    with (folder / "signal.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_records_what_measure_signal_measures_and_changes_no_training():
    x, y = data()
    plain, watched = compiled(), compiled()
    watched.set_weights(plain.get_weights())
    before = kv.measure_signal(watched, x[:8], y[:8])
    monitor = kv.SignalMonitor((x, y), every=1, batch_size=8)
    fit(plain, epochs=2)
    fit(watched, [monitor], epochs=2)
    assert_equal(weights(watched), weights(plain))
    assert_equal(arrays(watched.optimizer.variables), arrays(plain.optimizer.variables))
    assert monitor.history["time"] == monitor.history["epoch"] == [0, 1, 2]
    after = kv.measure_signal(watched, x[:8], y[:8])
    for report, n in ((before, 0), (after, 2)):
        for row in report:
            for name in monitor_module.STATISTICS:
                values = monitor.history[f"{row.name}/{name}"]
                assert len(values) == 3
                expected = getattr(row, name)
                # whole batches and parts of them are summed in another order on some backends
                assert values[n] == (None if expected is None else pytest.approx(expected, 1e-4))
    assert monitor.report.gradients == "loss"
    assert monitor.report.examples == 8
    assert 0 < monitor.setup_seconds < monitor.seconds


def test_files_grow_and_survive_a_resumed_training(tmp_path):
    x, _ = data()
    model = compiled()
    fit(model, [kv.SignalMonitor(x, every=1, log_dir=tmp_path, tensorboard=False)], epochs=3)
    first = lines_of(tmp_path)
    assert [line["epoch"] for line in first] == sorted("0123" * 4)
    assert list(first[0])[:5] == ["epoch", "batch", "name", "path", "operation"]
    row = kv.measure_signal(model, x[:32])["conv2d"]
    last = next(line for line in first if line["epoch"] == "3" and line["name"] == "conv2d")
    assert float(last["second_moment"]) == pytest.approx(row.second_moment, rel=1e-4)
    assert last["saturated_fraction"] == ""
    assert last["path"] == row.path

    resumed = kv.SignalMonitor(x, every=1, log_dir=tmp_path, tensorboard=False)
    fit(model, [resumed], initial_epoch=2, epochs=4)
    lines = lines_of(tmp_path)
    assert [line["epoch"] for line in lines] == sorted("01234" * 4)
    assert lines[:8] == first[:8]
    fit(model, [resumed], epochs=1)
    assert [line["epoch"] for line in lines_of(tmp_path)] == sorted("012345" * 4)
    assert resumed.history["epoch"] == [2, 3, 4, 5]
    anew = kv.SignalMonitor(x, every=1, log_dir=tmp_path, tensorboard=False)
    fit(model, [anew], epochs=1)
    assert [line["epoch"] for line in lines_of(tmp_path)] == sorted("01" * 4)


def test_backup_and_restore_in_any_order(tmp_path):
    x, _ = data()

    class Interrupted(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("interrupted")

    def callbacks():
        monitor = kv.SignalMonitor(x, every=1, log_dir=tmp_path / "logs", tensorboard=False)
        return [monitor, keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    model = compiled()
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(model, [*callbacks(), Interrupted()], epochs=4)
    fit(compiled(), callbacks(), epochs=4)
    epochs = [line["epoch"] for line in lines_of(tmp_path / "logs")]
    assert epochs == sorted("01234" * 4)


def test_batches_and_every_few_epochs():
    x, _ = data()
    model = compiled()
    monitor = kv.SignalMonitor(x, every=3, unit="batch")
    fit(model, [monitor], epochs=2)  # eight batches
    assert monitor.history["time"] == [0, 3, 6]
    assert monitor.history["epoch"] == [0, 0, 1]
    monitor = kv.SignalMonitor(x, every=2)
    fit(model, [monitor], epochs=5)
    assert monitor.history["time"] == [0, 2, 4]


def test_logs_reach_other_callbacks_if_asked_for():
    x, _ = data()
    history = fit(compiled(), [kv.SignalMonitor(x, every=2, log=True)], epochs=3).history
    moments = history["signal/conv2d/second_moment"]
    assert len(moments) == 3
    assert moments[0] != moments[1] == moments[2]
    assert not any(key.startswith("signal") for key in fit(compiled(), []).history)


@pytest.mark.parametrize(
    ("epochs", "cost", "expected"),
    [
        (20, 0.1, [0, 5, 8, 11, 14, 17, 20]),
        (6, 0.01, [0, 1, 2, 3, 4, 5, 6]),
        (4, 0.1, [0, 4]),
        (4, 1.0, [0]),
    ],
)
def test_the_default_interval_keeps_the_cost_below_five_percent(epochs, cost, expected):
    """With a clock of its own: an epoch takes a second, the first measurement 5."""
    now = [0.0]
    monitor = kv.SignalMonitor(data()[0])
    measured = []

    class Meter:
        def __init__(self, *args, **options):
            now[0] += 5.0

        def measure(self, batches, predict):
            now[0] += cost
            measured.append(monitor._epochs)
            return kv.SignalReport((), 0, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor_module.time, "perf_counter", lambda: now[0])
        patch.setattr(monitor_module, "Meter", Meter)
        monitor.set_model(compiled())
        monitor.set_params({"epochs": epochs})
        monitor.on_train_begin()
        for epoch in range(epochs):
            monitor.on_epoch_begin(epoch)
            now[0] += 1.0
            monitor.on_epoch_end(epoch)
        monitor.on_train_end()
    assert sorted(set(measured)) == monitor.history["time"]
    assert monitor.setup_seconds == pytest.approx(5.0 + 2 * cost)
    assert monitor.fraction == pytest.approx((len(measured) - 2) * cost / epochs)
    assert monitor.fraction < 0.05
    assert measured[1:] == expected  # every third epoch costs a third of a tenth


def test_cost_is_counted():
    x, _ = data()
    start = time.perf_counter()
    monitor = kv.SignalMonitor(x)
    fit(compiled(), [monitor], epochs=4)
    assert 0 < monitor.seconds < time.perf_counter() - start
    assert 0 <= monitor.fraction < 0.5  # on a busy machine, a training of milliseconds
    assert monitor.history["time"][0] == 0


@pytest.mark.parametrize("sized", [True, False])
def test_sequential_without_an_input(sized):
    model = cnn("asv_backward", sized=False)
    if sized:
        model.build((None, 8, 8, 3))
    model.compile("sgd", "mse")
    monitor = kv.SignalMonitor(data()[0], every=1)
    fit(model, [monitor, kv.ContextInjector()], epochs=1)
    builds_late = not sized and keras.backend.backend() == "tensorflow"
    assert monitor.history["time"] == ([1] if builds_late else [0, 1])


def test_custom_training_step_without_a_compiled_loss():
    model = compiled()
    model.compile("sgd", "mse")
    monitor = kv.SignalMonitor(iter([data()[0][:8]]), every=1)
    fit(model, [monitor], epochs=1)
    assert monitor.report.gradients == "noise"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="reads events by TensorFlow")
def test_tensorboard_events(tmp_path):
    import tensorflow as tf

    x, _ = data()
    monitor = kv.SignalMonitor(x, every=1, log_dir=tmp_path, tensorboard=True)
    fit(compiled(), [monitor], epochs=1)
    (path,) = tmp_path.glob("events*")
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            found[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    expected = monitor.history["conv2d/second_moment"]
    assert found[0, "signal/second_moment/conv2d"] == pytest.approx(expected[0])
    assert found[1, "signal/second_moment/conv2d"] == pytest.approx(expected[1])


def test_without_tensorflow_only_an_explicit_wish_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        ImportError, match=r"needs TensorFlow, which is not installed.*signal\.csv has"
    ):
        kv.SignalMonitor(data()[0], log_dir=tmp_path, tensorboard=True)
    assert kv.SignalMonitor(data()[0], log_dir=tmp_path)._tensorflow is None


X = np.ones((4, 8, 8, 3), "float32")
WRONG = {
    "every": ((X,), {"every": 0}, ValueError, "`every` must be a positive integer"),
    "every, bool": ((X,), {"every": True}, ValueError, "`every` must be a positive integer"),
    "unit": ((X,), {"unit": "step"}, ValueError, "`unit` must be"),
    "batches": ((X,), {"unit": "batch"}, ValueError, "must be a number of batches"),
    "folder": ((X,), {"tensorboard": True}, ValueError, "needs a `log_dir`"),
    "tensorboard": ((X,), {"tensorboard": 1.5, "log_dir": "x"}, TypeError, "must be a bool or"),
    "training": ((X,), {"training": 1}, TypeError, "`training` must be a bool"),
    "log": ((X,), {"log": None}, TypeError, "`log` must be a bool"),
    "data": (("text",), {}, TypeError, "SignalMonitor: `x` must be an array"),
    "lengths": (((X, X[:2]),), {}, ValueError, "the same number of examples"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    args, options, kind, text = WRONG[name]
    with pytest.raises(kind, match=text):
        kv.SignalMonitor(*args, **options)


def test_data_that_does_not_fit_stops_before_the_first_step():
    model = compiled()
    before = weights(model)
    with pytest.raises(ValueError, match="SignalMonitor: `x` does not fit input"):
        fit(model, [kv.SignalMonitor(X[..., :2])])
    assert_equal(weights(model), before)


def test_prints_nothing(capsys):
    fit(compiled(), [kv.SignalMonitor(data()[0], every=1)], epochs=1)
    assert capsys.readouterr().out == ""
