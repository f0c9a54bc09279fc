"""`calibrate`: layer-sequential unit variance on data."""

from collections.abc import Iterator

import keras

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
from keras_varinit.typing import Model, Nested

_OWNER = "calibrate"


def calibrate(
    model: keras.Model,
    x: Nested,
    *,
    target: float = 1.0,
    tolerance: float = 0.01,
    max_iterations: int = 10,
    batch_size: int = 32,
    max_batches: int | None = None,
    include_frozen: bool = False,
    training: bool = True,
    verbose: int | str = "auto",
    layers: Selection = None,
) -> CalibrationReport:
    """Scales every kernel so that its pre-activation has second moment `target` on data.

    Layer-sequential unit variance: in the order in which the model computes, each kernel is
    multiplied by the s for which u = s·Wz + b has E u² = `target` over all examples, positions and
    channels, where z comes from the layers calibrated before. E u² is the `second_moment` that
    `measure_signal` reports for that layer. Biases, batch-norm statistics, seeds and the state of
    the optimizer do not change, except for its moving averages of the kernels. If an error is
    raised, or the call is interrupted, no weight has changed.

    Data is read batch by batch, usually three times; more often if batches differ much, so shuffle
    sorted data. Memory holds one batch's activations and a copy of the kernels. If a dataset
    shuffles and `max_batches` takes only a part of it, every pass reads different data, and second
    moments are accurate only as far as the parts agree.

    Left alone and listed as skipped:

    * kernels of frozen layers, unless `include_frozen`;
    * kernels whose output only goes into normalization, which cancels their scale, and embeddings,
      unless `layers` selects them;
    * recurrent layers; query, key and value of attention, whose output projection is scaled;
    * quantized layers and those with LoRA;
    * the later calls of a shared layer, which is calibrated at its first call.

    Both kernels of a separable convolution are scaled by the same factor. Layers for which no scale
    gives the target keep their kernels and are listed as "not converged": their output is zero,
    their bias alone is too large, or they normalize their kernel. Layers stopped by
    `max_iterations` keep the last scale.

    Args:
        model: A built `keras.Model` of any kind.
        x: Arrays as the model takes them, or a dataset of batches that can be read more than once:
            `tf.data.Dataset`, `keras.utils.PyDataset`, `torch`'s `DataLoader` or another iterable.
        target: Second moment of every pre-activation.
        tolerance: Largest relative deviation from `target`.
        max_iterations: Largest number of passes that correct scales.
        batch_size: Examples per batch, if `x` is arrays.
        max_batches: Largest number of batches to read. Defaults to all.
        include_frozen: Whether to scale frozen kernels too.
        training: Whether to run the model as in training: batch normalization uses the batch's
            statistics, and dropout drops. False runs it as in inference.
        verbose: 0 for silence, 1 for a progress bar; "auto" shows one if there are many batches.
        layers: Which layers: a list of names, each of which selects that layer and all layers
            inside it; a predicate, called with every layer; or None for all.

    Returns:
        A `CalibrationReport` with a `CalibrationRow` for each kernel, in model order.

    Units: `target` is a second moment E u², not a standard deviation.

    Raises:
        TypeError: `model` is not a Keras model, `x` is not data or can be read only once, or an
            argument has the wrong type.
        ValueError: the model is not built, the data does not fit it or is not finite, a layer's
            output is not finite, or no kernel is selected.

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
    selected, explicit = selected_layers(model, layers, _OWNER)
    batches = Batches(x, None, batch_size=batch_size, max_batches=max_batches, owner=_OWNER)
    meter = Meter(model, loss=None, training=training, owner=_OWNER)
    first = next(iter(batches))
    meter.check(first)
    runner: Runner = meter.find_runner(first)
    while True:
        places = Places(model, runner, selected, explicit, include_frozen)
        calibration = Calibration(meter, runner, places, batches, verbose, target, tolerance)
        calibration.solve(max_iterations)
        if calibration.agrees():
            break
        # The traced graph contains values computed from the old kernels, such as a transpose.
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
    model: Model,
    x: Nested,
    target: object,
    tolerance: object,
    max_iterations: object,
    include_frozen: object,
    training: object,
    verbose: object,
) -> None:
    keras_private.check_built(model)
    arguments = Arguments(_OWNER)
    arguments.number("target", target, above=0)
    if arguments.number("tolerance", tolerance, above=0) >= 1:
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


def _complete(model: Model, places: Places) -> list[str]:
    """Adds rows of kernels that no call used; returns notes on layers without a rule."""
    try:
        reading = read(model)
    except ValueError:  # a `call` that cannot be traced; the meter's notes say so
        return []
    places.add_unseen(reading)
    end = ", so it is left alone"
    return [f"{name}: {reason.removesuffix(end)}{end}" for name, reason in reading.unknown]
