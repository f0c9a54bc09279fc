"""`SignalMonitor`: the measurements of `measure_signal` over the course of training."""

import csv
import math
import os
import pathlib
import time
from typing import Any

import keras

from keras_varinit.arguments import Arguments
from keras_varinit.diagnostics.measure import Meter
from keras_varinit.diagnostics.plotting import Figure, plot_history
from keras_varinit.diagnostics.report import SignalReport
from keras_varinit.running.batches import Batches
from keras_varinit.typing import Nested

Logs = dict[str, Any] | None

STATISTICS = (
    "mean",
    "variance",
    "second_moment",
    "output_mean",
    "output_variance",
    "gradient_second_moment",
    "dead_fraction",
    "saturated_fraction",
    "nonfinite_count",
    "gradient_nonfinite_count",
)

_COLUMNS = ("epoch", "batch", "name", "path", "operation", *STATISTICS)

_BUDGET = 0.04  # fraction of the training time; leaves room for timing noise below 5 %


class SignalMonitor(keras.callbacks.Callback):
    """Records mean, spread and gradients of every layer over the course of training.

    Measures on the same few examples each time, before the first step and at the end of epochs,
    without affecting training (see `measure_signal`) and without output. A model that `fit` builds
    in its first step is measured from the end of the first epoch on.

    Args:
        data: Data to measure on: an array (or arrays, in a list or dictionary), a tuple `(x, y)`,
            or a dataset, whose first batches are kept. With targets, gradients are those of the
            loss the model is compiled with; otherwise those of unit white noise at the outputs.
        every: Number of epochs, or batches, between measurements. Defaults to as few as keep the
            cost below 5 % of the time that `fit` trains, evenly spaced back from the last epoch;
            the measurement before the first step does not count towards the cost.
        log_dir: A folder for `signal.csv`, one line per layer and time, and for TensorBoard. Lines
            of epochs that a resumed training repeats are replaced. Defaults to None: no files.
        unit: Unit of `every`: "epoch" or "batch".
        batch_size: Examples per batch, if `data` is arrays. Defaults to 32.
        max_batches: Number of batches of `data` to keep. Defaults to 1.
        training: Whether the model is run as in training; see `measure_signal`.
        log: Whether to add second moments to the `logs` that other callbacks see and `fit` returns,
            as "signal/<layer>/second_moment" and "signal/<layer>/gradient_second_moment".
        tensorboard: Whether to write scalars to `log_dir` for TensorBoard, which needs TensorFlow
            on any backend. Defaults to None: only if TensorFlow can be imported.

    Attributes:
        history: Lists over time: "time" (epochs or batches done), "epoch", and
            "<layer>/<statistic>" for each statistic of `SignalRow`.
        report: The last `SignalReport`.
        seconds: Time spent measuring. `setup_seconds` is the part of the first measurement, in
            which the model is traced and the backend compiles.
        fraction: Time spent measuring, without the setup, relative to the training time.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; when training begins, the
            data does not fit the model.
        ImportError: `tensorboard=True`, but TensorFlow is not installed.

    Example:
        >>> import keras, keras_varinit as kv, numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, name="head")])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((16, 8), "float32"), np.ones((16, 1), "float32")
        >>> monitor = kv.SignalMonitor((x, y), every=1)
        >>> _ = model.fit(x, y, epochs=2, callbacks=[monitor], verbose=0)
        >>> monitor.history["time"], len(monitor.history["head/second_moment"])
        ([0, 1, 2], 3)

    Reference:
        X. Glorot, Y. Bengio (2010), Understanding the difficulty of training deep feedforward
        neural networks, AISTATS, figures 2 to 4.
    """

    def __init__(
        self,
        data: Nested,
        every: int | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        unit: str = "epoch",
        batch_size: int = 32,
        max_batches: int = 1,
        training: bool = True,
        log: bool = False,
        tensorboard: bool | None = None,
    ) -> None:
        super().__init__()
        _check(every, unit, log_dir, tensorboard, training, log)
        x, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        self.batches = list(
            Batches(x, y, batch_size=batch_size, max_batches=max_batches, owner=type(self).__name__)
        )
        self.every, self.unit, self.training, self.log = every, unit, training, log
        self.log_dir = None if log_dir is None else pathlib.Path(log_dir)
        self._tensorflow = _tensorflow(tensorboard) if log_dir is not None else None
        self.history: dict[str, list[float | None]] = {"time": [], "epoch": []}
        self.names: list[str] = []
        self.report: SignalReport | None = None
        self.seconds = self.setup_seconds = 0.0
        self._trained_seconds = 0.0
        self._meter: Meter | None = None
        self._writer: Any = None
        # Epochs and batches done, over all calls of `fit`; then the clock of the present call.
        self._epochs = self._steps = 0
        self._first_epoch: int | None = None
        self._cost = 0.0
        self._started: float | None = None
        self._measuring_since_start = self._trained_before = 0.0
        self._epoch_seconds = math.inf

    @property
    def fraction(self) -> float:
        """Time spent measuring, without the setup, relative to the training time."""
        trained = self._trained_seconds + self._training_so_far()
        return (self.seconds - self.setup_seconds) / trained if trained > 0 else 0.0

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plots mean ± standard deviation of activations, and gradients, by layer over training.

        The title says on what was measured and when; a single measurement is drawn layer by layer.

        Args:
            path: File to save the figure to, or None.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed; it is in the extra `plot`.
            ValueError: nothing has been measured yet.
        """
        if self.report is None:
            raise ValueError("SignalMonitor.plot: nothing was measured yet. Call fit first.")
        unit = "epochs" if self.unit == "epoch" else "batches"
        rows = [row for row in self.report.rows if row.has_units]
        names = [row.name for row in rows or self.report.weight_rows]
        return plot_history(self.history, names, unit, self._caption(self.report), path)

    def _caption(self, report: SignalReport) -> str:
        """On what was measured, and when."""
        of = "one example's loss" if report.gradients == "loss" else "white noise at the outputs"
        times = [int(time or 0) for time in self.history["time"]]
        first = "before training" if times[0] == 0 else f"after {self.unit} {times[0]}"
        unit = {"epoch": "epochs", "batch": "batches"}[self.unit] if len(times) > 2 else self.unit
        if len(times) == 1:
            when = f"once, {first} (every=1 measures after each {self.unit})"
        elif len(times) <= 8:
            when = f"{first} and after {unit} {', '.join(map(str, times[1:]))}"
        else:
            when = f"{len(times)} times, from {self.unit} {times[0]} to {times[-1]}"
        return f"{report.examples} examples, gradients of {of}; measured {when}"

    def on_train_begin(self, logs: Logs = None) -> None:
        """Starts the clock."""
        self._meter = self._first_epoch = None
        self._cost = self._measuring_since_start = self._trained_before = 0.0
        self._epoch_seconds = math.inf
        self._started = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Measures before the first step; only here is the first epoch of a resumed fit known."""
        if self._first_epoch is not None:
            return
        self._first_epoch = self._epochs = max(epoch, self._epochs)
        measured = self.history["epoch"]
        if not measured:
            self._start_file(self._epochs)
        if self.model.built and (not measured or measured[-1] != self._epochs):
            self._measure()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Measures, if `unit` is "batch" and a measurement is due."""
        if self.unit != "batch":
            return
        self._steps += 1
        if self._steps % (self.every or 1) == 0:
            self._measure()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Measures, if `unit` is "epoch" and a measurement is due."""
        self._epochs += 1
        if self.unit == "epoch" and self._is_due():
            self._measure()
        if self.log and logs is not None and self.report is not None:
            logs.update(self._logs(self.report))

    def on_train_end(self, logs: Logs = None) -> None:
        """Stops the clock."""
        self._trained_seconds += self._training_so_far()
        self._started = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _is_due(self) -> bool:
        """Whether to measure after this epoch; by default the last and every n-th before it."""
        if self.every is not None:
            return self._epochs % self.every == 0
        trained = self._training_so_far()
        # The first epochs may have compiled the training step.
        self._epoch_seconds = min(self._epoch_seconds, trained - self._trained_before)
        self._trained_before = trained
        done = self._epochs - (self._first_epoch or 0)
        remaining = ((self.params or {}).get("epochs") or 0) - self._epochs
        affordable = _BUDGET * self._epoch_seconds
        interval = max(1, math.ceil(self._cost / affordable)) if affordable > 0 else 1
        return done >= interval and remaining % interval == 0

    def _training_so_far(self) -> float:
        if self._started is None:
            return 0.0
        return time.perf_counter() - self._started - self._measuring_since_start

    def _measure(self) -> None:
        start = time.perf_counter()
        # On JAX, reading `self.model` copies the training state back to the variables.
        model = self.model
        is_setup = self._meter is None
        if self._meter is None:
            owner = type(self).__name__
            self._meter = Meter(model, loss=None, training=self.training, owner=owner)
            # Tracing and compiling happen once, so they do not predict the next cost.
            self._meter.measure(self.batches, predict=False)
        setup = time.perf_counter() - start
        self.report = self._meter.measure(self.batches, predict=False)
        self._record(self.report)
        cost = time.perf_counter() - start
        self._cost = cost - setup
        self.seconds += cost
        self._measuring_since_start += cost
        if is_setup:
            self.setup_seconds += cost

    def _record(self, report: SignalReport) -> None:
        earlier = len(self.history["time"])
        self.history["time"].append(self._steps if self.unit == "batch" else self._epochs)
        self.history["epoch"].append(self._epochs)
        for row in report:
            for statistic in STATISTICS:
                key = f"{row.name}/{statistic}"
                values = self.history.setdefault(key, [None] * earlier)
                values.append(getattr(row, statistic))
        for values in self.history.values():
            values.extend([None] * (earlier + 1 - len(values)))
        if self.log_dir is not None:
            self._write_lines(report)
            self._write_summaries(report)

    @staticmethod
    def _logs(report: SignalReport) -> dict[str, float]:
        names = ("second_moment", "gradient_second_moment")
        return {
            f"signal/{row.name}/{name}": getattr(row, name)
            for row in report.weight_rows
            for name in names
            if getattr(row, name) is not None
        }

    @property
    def _csv(self) -> pathlib.Path | None:
        return None if self.log_dir is None else self.log_dir / "signal.csv"

    def _start_file(self, epoch: int) -> None:
        """Starts `signal.csv`, keeping the lines of an earlier file from before this epoch."""
        path = self._csv
        if path is None:
            return
        kept = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [line for line in csv.DictReader(file) if _is_before(line, epoch)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)

    def _write_lines(self, report: SignalReport) -> None:
        path = self._csv
        if path is None:
            return
        batch = self._steps if self.unit == "batch" else ""
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            for row in report:
                values = [getattr(row, name) for name in STATISTICS]
                line = [self._epochs, batch, row.name, row.path, row.operation, *values]
                writer.writerow(["" if value is None else value for value in line])

    def _write_summaries(self, report: SignalReport) -> None:
        """Uses `tf.summary.write`, which unlike `tf.summary.scalar` does not need tensorboard."""
        tf = self._tensorflow
        if tf is None:
            return
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        step = self._steps if self.unit == "batch" else self._epochs
        scalars = tf.compat.v1.SummaryMetadata(data_class=1)
        scalars.plugin_data.plugin_name = "scalars"
        with self._writer.as_default():
            for row in report:
                for name in STATISTICS:
                    value = getattr(row, name)
                    if value is not None:
                        tag = f"signal/{name}/{row.name}"
                        tf.summary.write(tag, tf.constant(value, tf.float32), step, scalars)
        self._writer.flush()


def _check(
    every: object, unit: object, log_dir: object, tensorboard: object, training: object, log: object
) -> None:
    owner = "SignalMonitor"
    arguments = Arguments(owner)
    arguments.require(unit in ("epoch", "batch"), "unit", unit, '"epoch" or "batch"')
    arguments.count_or_none("every", every)
    if every is None and unit == "batch":
        raise ValueError(
            f'{owner}: `every` must be a number of batches if unit="batch". Received: every=None.'
        )
    if tensorboard and log_dir is None:
        raise ValueError(
            f"{owner}: `tensorboard=True` needs a `log_dir` to write to. "
            "Received: tensorboard=True and log_dir=None."
        )
    arguments.flag("training", training)
    arguments.flag("log", log)
    arguments.flag("tensorboard", tensorboard, or_none=True)


def _tensorflow(tensorboard: bool | None) -> Any:
    """The module `tensorflow`; None if it is not to be used or, by default, not installed."""
    if tensorboard is False:
        return None
    try:
        import tensorflow as tf
    except ImportError as error:
        if tensorboard:
            raise ImportError(
                "SignalMonitor: `tensorboard=True` needs TensorFlow, which is not installed. "
                "Install it with python -m pip install 'keras-varinit[tensorflow]', or leave "
                "out `tensorboard`: signal.csv has the same numbers."
            ) from error
        return None
    return tf


def _is_before(line: dict[str, str], epoch: int) -> bool:
    try:
        return int(line["epoch"]) < epoch
    except (KeyError, TypeError, ValueError):
        return False
