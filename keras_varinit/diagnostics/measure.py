"""`measure_signal`: activations and gradients of every layer, on data."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_varinit.analysis.analyze import analyze
from keras_varinit.arguments import Arguments
from keras_varinit.diagnostics.report import SignalReport, SignalRow
from keras_varinit.keras_private import check_built, new_loss, sums_over_batch
from keras_varinit.running.batches import Batch, Batches
from keras_varinit.running.calls import build_loss, call_model, input_shapes, untouched
from keras_varinit.running.gradients import Loss, Summaries, Tap, summaries_of
from keras_varinit.running.points import Point, normalized_embeddings
from keras_varinit.running.runner import GraphRunner, LayerRunner, Runner
from keras_varinit.running.statistics import Flatness, Moments, flat_parts
from keras_varinit.tracing.names import variable_names

_SEED = 20100513

_RUNNERS: tuple[Callable[[Any, bool], Runner], ...] = (
    GraphRunner,
    functools.partial(GraphRunner, keep_recorded=True),
    LayerRunner,
)


def measure_signal(
    model: Any,
    x: Any,
    y: Any = None,
    loss: Any = None,
    *,
    training: bool = True,
    batch_size: int = 32,
    max_batches: int | None = None,
    verbose: Any = "auto",
) -> SignalReport:
    """Measures activations and gradients of every layer and raw operation on data.

    Nothing of the model changes: no weight, no batch-norm statistic, no seed, no training flag.
    Data is read batch by batch, and no more than one batch's activations are held at a time.

    Statistics of activations and gradients are over all examples, positions and channels. Of a
    layer with kernels they are those of the pre-activation, which predictions are about; see
    `SignalRow`.

    Args:
        model: A built `keras.Model` of any kind.
        x: Arrays as the model takes them, or a dataset of batches: `tf.data.Dataset`,
            `keras.utils.PyDataset`, a `torch` `DataLoader` or another iterable.
        y: Targets, if `x` is arrays. With targets, gradients are those of the loss.
        loss: A Keras loss by name or object, a function of targets and outputs, or these in the
            structure of the model's outputs. Defaults to the loss the model is compiled with.
            Without targets gradients are those of unit white noise at every output, in front of a
            final softmax or sigmoid: "how much of a unit gradient arrives here".
        training: True to run the model as in training: batch normalization uses the batch, dropout
            drops. False to run it as in inference.
        batch_size: Examples per batch, of arrays. Gradients are of one example's loss, so it
            changes nothing unless batch normalization runs in training.
        max_batches: How many batches to read at most. Defaults to all.
        verbose: 0 for silence, 1 for a progress bar; "auto" shows one if there are many batches.

    Returns:
        A `SignalReport`: one `SignalRow` per call of a layer or operation.

    Raises:
        TypeError: `model` is no Keras model, or `x` no data.
        ValueError: the model is not built, the data does not fit it, there is a loss without
            targets or targets without a loss, or the model cannot be run piece by piece.

    Example:
        >>> import keras, keras_varinit as kv, numpy as np
        >>> layers = [keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)]
        >>> model = keras.Sequential(layers)
        >>> signal = kv.measure_signal(model, np.ones((16, 8), "float32"))
        >>> [row.kind for row in signal]
        ['weights', 'weights']
        >>> signal[model.layers[1].name].gradient_second_moment is not None
        True

    Reference:
        X. Glorot, Y. Bengio (2010), Understanding the difficulty of training deep feedforward
        neural networks, AISTATS, section 4.
    """
    owner = "measure_signal"
    check_built(model)
    arguments = Arguments(owner)
    arguments.flag("training", training)
    arguments.verbose(verbose)
    batches = Batches(x, y, batch_size=batch_size, max_batches=max_batches, owner=owner)
    if y is not None and loss is None and new_loss(model) is None:
        raise ValueError(
            f"{owner}: `y` is given, and neither a `loss` nor a compiled model to use it with. "
            'Pass loss="mse", say, compile the model, or leave `y` out for white-noise gradients.'
        )
    if y is None and loss is not None and not batches.is_dataset:
        raise ValueError(
            f"{owner}: `loss` needs targets. Received: loss={loss!r} and y=None. Pass `y`."
        )
    meter = Meter(model, loss=loss, training=training, owner=owner)
    return meter.measure(with_progress(batches, verbose))


def with_progress(batches: Batches, verbose: Any) -> Iterable[Batch]:
    """The batches, with a progress bar where `verbose` asks for one."""
    show = len(batches) >= 8 or batches.is_dataset if verbose == "auto" else bool(verbose)
    if not show:
        yield from batches
        return
    bar = keras.utils.Progbar(len(batches) or None, unit_name="batch")
    for number, batch in enumerate(batches, start=1):
        yield batch
        bar.update(number)


class Meter:
    """Measures one model, as often as wanted; how to run it is found out at the first batch."""

    def __init__(self, model: Any, *, loss: Any, training: bool, owner: str) -> None:
        self.model, self.loss, self.training, self.owner = model, loss, training, owner
        self.runner: Runner | None = None
        self.names: list[str] = []
        self.notes: list[str] = []
        self.outputs: Any = None
        self.objective: Any = None

    def measure(self, batches: Iterable[Batch], *, predict: bool = True) -> SignalReport:
        """Reads all batches once."""
        sums = _Sums()
        gradients = "noise"
        streams: dict[int, np.random.Generator] = {}
        for batch in batches:
            self.check(batch)
            if self.runner is None:
                self.runner = self.find_runner(batch)
            function = self._loss_function(batch)
            gradients = "noise" if function is None else "loss"
            loss = self._noise(streams) if function is None else self._objective(function, batch)
            runner = self.runner

            def run(tap: Tap, x: Any = batch.x, runner: Runner = runner) -> list[Any]:
                return runner.run(x, tap)

            with untouched(self.model):
                found = summaries_of(run, loss, sums.scales(), self.names)
            sums.add(found, batch)
        predictions = self._predictions(sums) if predict else {}
        rows = sums.rows(self.model, predictions, gradients)
        return SignalReport(
            rows,
            sums.examples,
            gradients,
            sums.input_second_moment,
            tuple(dict.fromkeys(self.notes)),
        )

    def check(self, batch: Batch) -> None:
        """Raises a ValueError if a batch has not the shapes that the model takes."""
        expected = input_shapes(self.model)
        given = [np.shape(leaf) for leaf in keras.tree.flatten(batch.x)]
        if not expected or isinstance(batch.x, dict) or len(expected) != len(given):
            return
        for (name, shape), actual in zip(expected, given, strict=True):
            fits = len(shape) == len(actual) and all(
                n is None or n == m for n, m in zip(shape[1:], actual[1:], strict=True)
            )
            if not fits and len(actual) >= len(shape):
                raise ValueError(
                    f"{self.owner}: `x` does not fit input {name!r} of model {self.model.name!r}, "
                    f"of shape {shape}. Received: a batch of shape {actual}."
                )
            if not fits and len(actual) + 1 == len(shape) and actual == shape[1:]:
                raise ValueError(
                    f"{self.owner}: `x` yields examples of shape {actual}, where model "
                    f"{self.model.name!r} takes batches of shape {shape}. Batch the dataset first."
                )

    def find_runner(self, batch: Batch) -> Runner:
        """The runner that gives what the model itself gives on this batch."""
        with untouched(self.model):
            self.outputs = call_model(self.model, tensors(batch.x), self.training)
        expected = [_numpy(t) for t in keras.tree.flatten(self.outputs) if t is not None]
        reasons = []
        for kind in _RUNNERS:
            tap = Tap()
            try:
                runner = kind(self.model, self.training)
                with untouched(self.model):
                    outputs = [_numpy(t) for t in runner.run(batch.x, tap)]
            except Exception as error:  # whatever a user's layers raise
                reasons.append(f"{type(error).__name__}: {error}")
                continue
            if agree(outputs, expected):
                self.names = list(tap.signals)
                if isinstance(runner, LayerRunner):
                    self.notes.append(
                        "layers are measured and raw operations are not: the model's recorded "
                        f"graph cannot be run ({reasons[0]})"
                    )
                return runner
            reasons.append("its pieces, run one by one, give another output than the model")
        raise ValueError(
            f"{self.owner}: model {self.model.name!r} cannot be run piece by piece: {reasons[0]}; "
            f"and layer by layer: {reasons[-1]}. Pass a Functional model of the same layers."
        )

    def _loss_function(self, batch: Batch) -> Any:
        if batch.y is None:
            return None
        if self.objective is None:
            self.objective = new_loss(self.model, self.loss)
            if self.objective is not None:
                build_loss(self.objective, tensors(batch.y), self.outputs, None)
        return self.objective

    def _objective(self, function: Any, batch: Batch) -> Loss:
        """The sum of the examples' losses, so that the batch size drops out of gradients."""
        factor = 1.0 if sums_over_batch(function) else float(batch.size)
        weights = None if batch.sample_weight is None else tensors(batch.sample_weight)
        targets = tensors(batch.y)

        def loss(outputs: list[Any], tap: Tap) -> Any:
            packed = keras.tree.pack_sequence_as(self.outputs, outputs)
            return keras.ops.cast(function(targets, packed, weights), "float32") * factor

        return loss

    @staticmethod
    def _noise(streams: dict[int, np.random.Generator]) -> Loss:
        """Outputs weighed by unit white noise: per output one stream of numbers for all batches."""

        def loss(outputs: list[Any], tap: Tap) -> Any:
            total = keras.ops.zeros(())
            for number, output in enumerate(outputs):
                if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(output.dtype)):
                    continue
                front = keras.ops.cast(tap.in_front_of_loss(output), "float32")
                stream = streams.setdefault(number, np.random.default_rng([_SEED, number]))
                noise = stream.standard_normal(tuple(int(n) for n in front.shape), np.float32)
                total = total + keras.ops.sum(front * keras.ops.convert_to_tensor(noise))
            return total

        return loss

    def _predictions(self, sums: "_Sums") -> dict[int, Any]:
        """By the `id` of the kernel, what `analyze` predicts."""
        options = {}
        if sums.inputs.count:
            options = {"input_mean": sums.inputs.mean, "input_variance": sums.inputs.variance}
        try:
            predicted = analyze(self.model, **options).predicted
        except Exception as error:  # what was measured is worth having without a prediction
            self.notes.append(f"nothing is predicted: {type(error).__name__}: {error}")
            return {}
        keys = {path: key for key, (path, _, _) in variable_names(self.model).items()}
        return {keys[path]: each for path, each in predicted.items() if path in keys}


def tensors(value: Any) -> Any:
    """Arrays as the backend's tensors."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else keras.ops.convert_to_tensor(leaf), value
    )


def _numpy(tensor: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def agree(outputs: list[Any], expected: list[Any]) -> bool:
    """Equal up to rounding, which half precision does more of."""
    if [v.shape for v in outputs] != [v.shape for v in expected]:
        return False
    for value, wanted in zip(outputs, expected, strict=True):
        tolerance = 2e-2 if value.dtype.itemsize < 4 else 1e-4
        value, wanted = value.astype(np.float64), wanted.astype(np.float64)
        finite = np.isfinite(wanted)
        if not np.array_equal(finite, np.isfinite(value)):
            return False
        size = np.max(np.abs(wanted[finite]), initial=0.0)
        if np.max(np.abs(value - wanted)[finite], initial=0.0) > tolerance * size:
            return False
    return True


class _Sums:
    """The running statistics of all points."""

    def __init__(self) -> None:
        self.points: dict[str, Point] = {}
        self.moments: dict[tuple[str, str], Moments] = {}
        self.flatness: dict[str, Flatness] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.inputs = Moments()
        self.examples = 0

    def scales(self) -> dict[tuple[str, str], float]:
        return {key: moments.scale for key, moments in self.moments.items()}

    def add(self, found: Summaries, batch: Batch) -> None:
        self.points.update(found.points)
        self.shapes.update(found.shapes)
        self.examples += batch.size
        kinds = {"forward": found.forward, "backward": found.backward, "output": found.output}
        for kind, vectors in kinds.items():
            for name, vector in vectors.items():
                self.moments.setdefault((kind, name), Moments()).add(vector, found.sizes[name])
        for name, counts in found.flat.items():
            function = self.points[name].function
            if function is not None:
                flatness = self.flatness.setdefault(name, Flatness(flat_parts(function)))
                flatness.add(counts, found.sizes[name])
        for leaf in keras.tree.flatten(batch.x):
            values = _numpy(leaf)
            if values.dtype.kind == "f":
                self.inputs.add_values(values)

    @property
    def input_second_moment(self) -> float | None:
        return self.inputs.second_moment if self.inputs.count else None

    def rows(
        self, model: Any, predictions: dict[int, Any], gradients: str
    ) -> tuple[SignalRow, ...]:
        paths = {key: path for key, (path, _, _) in variable_names(model).items()}
        normalized = normalized_embeddings(self.points.values())
        rows = [
            self._row(point, paths, predictions, name in normalized)
            for name, point in self.points.items()
            if ("forward", name) in self.moments
        ]
        return _with_scaled_gradients(rows) if gradients == "loss" else tuple(rows)

    def _row(
        self, point: Point, paths: dict[int, str], predictions: dict[int, Any], normalized: bool
    ) -> SignalRow:
        forward = self.moments["forward", point.name]
        backward = self.moments.get(("backward", point.name))
        output = self.moments.get(("output", point.name), forward)
        flatness = self.flatness.get(point.name)
        predicted = predictions.get(id(point.kernel))
        return SignalRow(
            name=point.name,
            path=paths.get(id(point.kernel), point.name),
            operation=type(point.operation).__name__,
            kind=point.kind,
            activation=None if point.function is None else point.function.name,
            mean=forward.mean if forward.count else math.nan,
            variance=forward.variance,
            second_moment=forward.second_moment,
            shape=self.shapes[point.name],
            output_mean=output.mean if output.count else math.nan,
            output_variance=output.variance,
            gradient_second_moment=None if backward is None else backward.second_moment,
            dead_fraction=None if flatness is None else flatness.dead_fraction,
            saturated_fraction=None if flatness is None else flatness.saturated_fraction,
            nonfinite_count=forward.nonfinite,
            gradient_nonfinite_count=0 if backward is None else backward.nonfinite,
            predicted_second_moment=getattr(predicted, "forward", None),
            predicted_gradient_second_moment=getattr(predicted, "backward", None),
            histogram=output.histogram(),
            gradient_histogram=None if backward is None else backward.histogram(),
            normalized=normalized,
        )


def _with_scaled_gradients(rows: list[SignalRow]) -> tuple[SignalRow, ...]:
    """Predictions are for a unit gradient at the output; a loss's is what its last layer gets."""
    for row in reversed(rows):
        measured, predicted = row.gradient_second_moment, row.predicted_gradient_second_moment
        if measured and predicted:
            factor = measured / predicted
            break
    else:
        return tuple(rows)
    return tuple(
        dataclasses.replace(
            row,
            predicted_gradient_second_moment=(
                None
                if row.predicted_gradient_second_moment is None
                else row.predicted_gradient_second_moment * factor
            ),
        )
        for row in rows
    )
