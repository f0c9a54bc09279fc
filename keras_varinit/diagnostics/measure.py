"""`measure_signal`: activations and gradients of every layer, on data."""

import functools
from collections.abc import Callable, Iterable

import keras
import numpy as np

from keras_varinit.analysis import Prediction, analyze
from keras_varinit.arguments import Arguments
from keras_varinit.diagnostics.report import SignalReport
from keras_varinit.diagnostics.rows import Statistics
from keras_varinit.keras_private import check_built, has_value, new_loss, sums_over_batch
from keras_varinit.running.batches import Batch, Batches
from keras_varinit.running.calls import build_loss, call_model, input_shapes, untouched
from keras_varinit.running.gradients import Loss, Tap, summaries_of
from keras_varinit.running.runner import GraphRunner, LayerRunner, Runner
from keras_varinit.tracing.names import variable_names
from keras_varinit.typing import AnyArray, ArrayLike, Function, Model, Nested, Tensor

_SEED = 20100513

_RUNNERS: tuple[Callable[[Model, bool], Runner], ...] = (
    GraphRunner,
    functools.partial(GraphRunner, keep_recorded=True),
    LayerRunner,
)


def measure_signal(
    model: keras.Model,
    x: Nested,
    y: Nested = None,
    loss: Nested = None,
    *,
    training: bool = True,
    batch_size: int = 32,
    max_batches: int | None = None,
    verbose: int | str = "auto",
) -> SignalReport:
    """Measures activations and gradients of every layer and raw operation on data.

    The model does not change: neither weights, batch-norm statistics and seeds nor training flags.
    Data is read batch by batch, and memory holds only one batch's activations.

    Statistics of activations and gradients are over all examples, positions and channels. For a
    layer with kernels they describe the pre-activation, which is what `analyze` predicts; see
    `SignalRow`.

    Args:
        model: A built `keras.Model` of any kind.
        x: Arrays as the model takes them, or a dataset of batches: `tf.data.Dataset`,
            `keras.utils.PyDataset`, a `torch` `DataLoader` or another iterable.
        y: Targets, if `x` is arrays. With targets, gradients are those of the loss.
        loss: A Keras loss by name or object, a function of targets and outputs, or these in the
            structure of the model's outputs. Defaults to the loss the model is compiled with.
            Without targets, unit white noise is back-propagated from every output (before a final
            softmax or sigmoid): how much of a unit gradient reaches a layer.
        training: Whether to run the model as in training: batch normalization uses the batch's
            statistics, and dropout drops. False runs it as in inference.
        batch_size: Examples per batch, if `x` is arrays. Gradients are those of one example's loss,
            so it only matters if batch normalization runs in training.
        max_batches: Largest number of batches to read. Defaults to all.
        verbose: 0 for silence, 1 for a progress bar; "auto" shows one if there are many batches.

    Returns:
        A `SignalReport`: one `SignalRow` per call of a layer or operation.

    Raises:
        TypeError: `model` is not a Keras model, or `x` is not data.
        ValueError: the model is not built, the data does not fit it, there is a loss without
            targets or targets without a loss, or the model cannot be run layer by layer.

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
            f"{owner}: `y` is given, but there is no `loss` and the model was not compiled with "
            'one. Pass, for example, loss="mse", compile the model, or omit `y` for white-noise '
            "gradients."
        )
    if y is None and loss is not None and not batches.is_dataset:
        raise ValueError(
            f"{owner}: `loss` needs targets. Received: loss={loss!r} and y=None. Pass `y`."
        )
    meter = Meter(model, loss=loss, training=training, owner=owner)
    return meter.measure(with_progress(batches, verbose))


def with_progress(batches: Batches, verbose: int | str) -> Iterable[Batch]:
    """The batches, with a progress bar if `verbose` asks for one."""
    show = len(batches) >= 8 or batches.is_dataset if verbose == "auto" else bool(verbose)
    if not show:
        yield from batches
        return
    bar = keras.utils.Progbar(len(batches) or None, unit_name="batch")
    for number, batch in enumerate(batches, start=1):
        yield batch
        bar.update(number)


class Meter:
    """Measures a model any number of times; the first batch decides how it is run."""

    def __init__(self, model: Model, *, loss: Nested, training: bool, owner: str) -> None:
        if not all(map(has_value, model.weights)):
            raise ValueError(
                f"{owner}: model {model.name!r} was built without weights. Call "
                "keras_varinit.create_weights(model) first."
            )
        self.model, self.loss, self.training, self.owner = model, loss, training, owner
        self.runner: Runner | None = None
        self.names: list[str] = []
        self.notes: list[str] = []
        self.outputs: Nested = None
        self.objective: Function | None = None

    def measure(self, batches: Iterable[Batch], *, predict: bool = True) -> SignalReport:
        """Measures over all batches, in one pass."""
        statistics = Statistics()
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

            def run(tap: Tap, x: Nested = batch.x, runner: Runner = runner) -> list[Tensor]:
                return runner.run(x, tap)

            with untouched(self.model):
                summaries = summaries_of(run, loss, statistics.scales(), self.names)
            statistics.add(summaries, batch)
        predictions = self._predictions(statistics) if predict else {}
        rows = statistics.rows(self.model, predictions, gradients)
        return SignalReport(
            rows,
            statistics.examples,
            gradients,
            statistics.input_second_moment,
            tuple(dict.fromkeys(self.notes)),
        )

    def check(self, batch: Batch) -> None:
        """Raises a ValueError if a batch does not have the shapes of the model's inputs."""
        expected = input_shapes(self.model)
        shapes = [np.shape(leaf) for leaf in keras.tree.flatten(batch.x)]
        if not expected or isinstance(batch.x, dict) or len(expected) != len(shapes):
            return
        for (name, shape), actual in zip(expected, shapes, strict=True):
            fits = len(shape) == len(actual) and all(
                n is None or n == m for n, m in zip(shape[1:], actual[1:], strict=True)
            )
            if not fits and len(actual) >= len(shape):
                raise ValueError(
                    f"{self.owner}: `x` does not fit input {name!r} of model {self.model.name!r}, "
                    f"which has shape {shape}. Received: a batch of shape {actual}."
                )
            if not fits and len(actual) + 1 == len(shape) and actual == shape[1:]:
                raise ValueError(
                    f"{self.owner}: `x` yields examples of shape {actual}, but model "
                    f"{self.model.name!r} takes batches of shape {shape}. Batch the dataset first."
                )

    def find_runner(self, batch: Batch) -> Runner:
        """The first runner whose outputs on this batch equal the model's own."""
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
            reasons.append("the output differs from the model's own")
        raise ValueError(
            f"{self.owner}: model {self.model.name!r} cannot be run operation by operation "
            f"({reasons[0]}), nor layer by layer ({reasons[-1]}). Pass a Functional model of the "
            "same layers."
        )

    def _loss_function(self, batch: Batch) -> Function | None:
        if batch.y is None:
            return None
        if self.objective is None:
            self.objective = new_loss(self.model, self.loss)
            if self.objective is not None:
                build_loss(self.objective, tensors(batch.y), self.outputs, None)
        return self.objective

    def _objective(self, function: Function, batch: Batch) -> Loss:
        """The sum of the examples' losses, whose gradients do not depend on the batch size."""
        factor = 1.0 if sums_over_batch(function) else float(batch.size)
        weights = None if batch.sample_weight is None else tensors(batch.sample_weight)
        targets = tensors(batch.y)

        def loss(outputs: list[Tensor], tap: Tap) -> ArrayLike:
            packed = keras.tree.pack_sequence_as(self.outputs, outputs)
            return keras.ops.cast(function(targets, packed, weights), "float32") * factor

        return loss

    @staticmethod
    def _noise(streams: dict[int, np.random.Generator]) -> Loss:
        """The outputs' inner product with unit white noise; one random stream for each output."""

        def loss(outputs: list[Tensor], tap: Tap) -> ArrayLike:
            total = keras.ops.zeros(())
            for number, output in enumerate(outputs):
                if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(output.dtype)):
                    continue
                logits = keras.ops.cast(tap.logits_of(output), "float32")
                stream = streams.setdefault(number, np.random.default_rng([_SEED, number]))
                noise = stream.standard_normal(tuple(int(n) for n in logits.shape), np.float32)
                total = total + keras.ops.sum(logits * keras.ops.convert_to_tensor(noise))
            return total

        return loss

    def _predictions(self, statistics: Statistics) -> dict[int, Prediction]:
        """What `analyze` predicts, by the `id` of the kernel."""
        options = {}
        inputs = statistics.inputs
        if inputs.count:
            options = {"input_mean": inputs.mean, "input_variance": inputs.variance}
        try:
            predicted = analyze(self.model, **options).predicted
        except Exception as error:  # measurements are useful without predictions
            self.notes.append(f"nothing is predicted: {type(error).__name__}: {error}")
            return {}
        keys = {path: key for key, (path, _, _) in variable_names(self.model).items()}
        return {keys[path]: each for path, each in predicted.items() if path in keys}


def tensors(value: Nested) -> Nested:
    """Converts arrays to tensors of the backend."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else keras.ops.convert_to_tensor(leaf), value
    )


def _numpy(tensor: Tensor) -> AnyArray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def agree(outputs: list[AnyArray], expected: list[AnyArray]) -> bool:
    """Whether arrays are equal up to rounding, with a larger tolerance in half precision."""
    if [v.shape for v in outputs] != [v.shape for v in expected]:
        return False
    for value, reference in zip(outputs, expected, strict=True):
        tolerance = 2e-2 if value.dtype.itemsize < 4 else 1e-4
        value, reference = value.astype(np.float64), reference.astype(np.float64)
        finite = np.isfinite(reference)
        if not np.array_equal(finite, np.isfinite(value)):
            return False
        size = np.max(np.abs(reference[finite]), initial=0.0)
        if np.max(np.abs(value - reference)[finite], initial=0.0) > tolerance * size:
            return False
    return True
