"""`calibrate`: data-dependent unit variance of every layer."""

from collections.abc import Iterator
from typing import Any

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.apply.selection import Selection, selected_layers
from keras_varinit.apply.transaction import commit
from keras_varinit.arguments import Arguments
from keras_varinit.calibration.places import Places
from keras_varinit.calibration.report import CalibrationReport
from keras_varinit.calibration.walks import Calibration
from keras_varinit.diagnostics.measure import Meter
from keras_varinit.running.batches import Batches
from keras_varinit.running.runner import LayerRunner, Runner

_OWNER = "calibrate"


def calibrate(
    model: Any,
    x: Any,
    *,
    target: float = 1.0,
    tolerance: float = 0.01,
    max_iterations: int = 10,
    batch_size: int = 32,
    max_batches: int | None = None,
    include_frozen: bool = False,
    training: bool = True,
    verbose: Any = "auto",
    layers: Selection = None,
) -> CalibrationReport:
    """Scales every kernel so that its pre-activation has second moment `target` on data.

    Layer-sequential unit variance: in the order in which the model computes, a kernel is multiplied
    by the number s for which u = s·Wz + b has E u² = `target`, over all examples, positions and
    channels; z is what reaches it from the calibrated layers before. u is what `measure_signal`
    calls `second_moment` of that layer. Nothing else changes: no bias, no batch-norm statistic, no
    seed, no optimizer state (its moving averages of the kernels are set along). All or nothing:
    an error, or an interruption, changes no weight.

    Data is read several times, batch by batch, three times as a rule; more often where batches are
    unlike each other, so shuffle what is sorted. One batch's activations and a copy of the kernels
    are held at a time. Where a dataset shuffles and `max_batches` takes a
    part of it, every pass sees other data, and second moments are right as far as the parts agree.

    What is left alone, and listed:

    * kernels of frozen layers, unless `include_frozen`;
    * kernels whose output goes through normalization and nowhere else, which takes their scale
      away, and embeddings, unless `layers` selects them;
    * recurrent layers; query, key and value of attention, whose output projection is scaled;
    * quantized layers and those with LoRA;
    * the later calls of a shared layer, which is calibrated where it is called first.

    Both kernels of a separable convolution are scaled, by the same number. Layers for which no
    scale gives the target keep their kernels and are listed as "not converged": those that put out
    zeros, whose bias alone is too large, or that normalize their kernel. Those that the iteration
    limit stops keep the scale they have got to.

    Args:
        model: A built `keras.Model` of any kind.
        x: Arrays as the model takes them, or a dataset of batches that can be read more than once:
            `tf.data.Dataset`, `keras.utils.PyDataset`, `torch`'s `DataLoader` or another iterable.
        target: The second moment that is wanted.
        tolerance: By how much second moments may be off, relative to `target`.
        max_iterations: How many walks may correct scales.
        batch_size: Examples per batch, of arrays.
        max_batches: How many batches to read at most. Defaults to all.
        include_frozen: Whether to scale frozen kernels too.
        training: True to run the model as in training: batch normalization uses the batch, dropout
            drops. False to run it as in inference.
        verbose: 0 for silence, 1 for a progress bar; "auto" shows one if there are many batches.
        layers: Which layers: a list of names, each of which stands for its layer and all layers
            inside it; or a predicate, which is asked about every layer; None means all.

    Returns:
        A `CalibrationReport` with a `CalibrationRow` for each kernel, in the order of the model.

    Units: `target` is a second moment E u², no standard deviation.

    Raises:
        TypeError: `model` is no Keras model, `x` no data or data that can be read only once, or an
            argument is of the wrong type.
        ValueError: the model is not built, the data does not fit it or is not finite, a layer puts
            out values that are not finite, or no kernel is selected.

    Example:
        >>> import keras, keras_varinit as kv, numpy as np
        >>> layers = [keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(2)]
        >>> model = keras.Sequential(layers)
        >>> report = kv.calibrate(model, 5 * np.ones((16, 8), "float32"))
        >>> [(round(row.after, 3), row.status) for row in report]
        [(1.0, 'calibrated'), (1.0, 'calibrated')]

    Reference:
        D. Mishkin, J. Matas (2015), All you need is a good init, arXiv 1511.06422, algorithm 1,
        with second moments for variances and all layers corrected in one walk.
    """
    _check_arguments(model, x, target, tolerance, max_iterations, include_frozen, training, verbose)
    chosen, asked = selected_layers(model, layers, _OWNER)
    batches = Batches(x, None, batch_size=batch_size, max_batches=max_batches, owner=_OWNER)
    meter = Meter(model, loss=None, training=training, owner=_OWNER)
    first = next(iter(batches))
    meter.check(first)
    runner: Runner = meter.find_runner(first)
    while True:
        places = Places(model, runner, chosen, asked, include_frozen)
        calibration = Calibration(meter, runner, places, batches, verbose, target, tolerance)
        calibration.solve(max_iterations)
        if calibration.agrees():
            break
        # Something that was read off the graph, such as a transposed kernel, was of before.
        meter.notes.append("layers are calibrated and raw operations are not: they use the kernels")
        runner = LayerRunner(model, training)
    notes = [*meter.notes, *_complete(model, places)]
    rows = tuple(row for place in places for row in place.rows(target, tolerance))
    if not rows:
        raise ValueError(
            f"{_OWNER}: no kernel of model {model.name!r} is selected. Received: layers={layers!r}."
        )
    commit(model, calibration.changes())
    return CalibrationReport(
        rows,
        float(target),
        float(tolerance),
        calibration.walks,
        calibration.examples,
        tuple(dict.fromkeys(notes)),
    )


def _check_arguments(
    model: Any,
    x: Any,
    target: Any,
    tolerance: Any,
    max_iterations: Any,
    include_frozen: Any,
    training: Any,
    verbose: Any,
) -> None:
    keras_private.check_built(model)
    arguments = Arguments(_OWNER)
    arguments.number("target", target, above=0)
    arguments.number("tolerance", tolerance, above=0)
    if tolerance >= 1:
        raise ValueError(
            f"{_OWNER}: `tolerance` is relative and must be less than 1. "
            f"Received: tolerance={tolerance!r}."
        )
    arguments.count("max_iterations", max_iterations)
    arguments.flag("include_frozen", include_frozen)
    arguments.flag("training", training)
    arguments.verbose(verbose)
    if isinstance(x, Iterator):
        raise TypeError(
            f"{_OWNER}: `x` is read more than once, and an iterator or generator can be read only "
            "once. Pass arrays, a tf.data.Dataset, a keras.utils.PyDataset, or list-like batches. "
            f"Received: x of type {type(x).__name__}."
        )


def _complete(model: Any, places: Places) -> list[str]:
    """Adds the kernels that were not seen; notes on what no rule explains."""
    try:
        reading = read(model)
    except ValueError:  # a `call` that cannot be followed, which the notes tell of
        return []
    places.add_unseen(reading)
    end = ", so it is left alone"
    return [f"{name}: {reason.removesuffix(end)}{end}" for name, reason in reading.unknown]
