"""`analyze`: contexts, and what the signal engine predicts for the model's present initializers."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.result import Analysis, Reading
from keras_varinit.arguments import Arguments
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.laws import as_drawn, describe, mean_of
from keras_varinit.tensors import view


def analyze(model: Any, *, input_mean: float = 0.0, input_variance: float = 1.0) -> Analysis:
    """Reads the context of every kernel off a built model and predicts its signal.

    Nothing is changed. The prediction averages over random weights and over inputs whose entries
    are independent with the given mean and variance. It follows means and second moments, with the
    covariance between positions, through the graph and the gradients back; dropout and batch
    normalization act as in training. Widths count as large.

    Args:
        model: A built `keras.Model` of any kind. One that defines its own `call` is called on
            symbolic tensors, of which nothing stays behind.
        input_mean: Mean of an entry of the model's inputs.
        input_variance: Variance of an entry of the model's inputs.

    Returns:
        An `Analysis`, whose dictionaries have one entry per kernel, in the order of the graph:

        * `.contexts[path]`: its `LayerContext`;
        * `.predicted[path]`: a `Prediction` with `forward`, E u² of the kernel's output u for the
          model's present initializers (for frozen kernels, and those without an initializer that
          is known, for the values that they hold), and `backward`, E (dL/du)² where the gradient
          at the model's outputs is white noise of unit variance; None is what is not known.

        `.notes` says what could not be known. Two kernels of one path (layers of one name in two
        nested models) are told apart by `"path#2"`.

    Units: `forward` and `backward` are second moments.

    Raises:
        TypeError: `model` is no Keras model, or a number is none.
        ValueError: it is not built, its own `call` cannot be followed symbolically, or
            `input_variance` is negative.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((8,)), keras.layers.Dense(4, kernel_initializer="he_normal")]
        >>> model = keras.Sequential(layers)
        >>> analysis, path = kv.analyze(model), model.layers[0].kernel.path
        >>> analysis.contexts[path].fan_in, round(analysis.predicted[path].forward, 6)
        (8, 2.0)
    """
    arguments = Arguments("analyze")
    input_mean = arguments.number("input_mean", input_mean)
    input_variance = arguments.number("input_variance", input_variance, at_least=0)
    reading = read(model)
    predictions, notes = reading.predict(
        present_variances(model), input_mean=input_mean, input_variance=input_variance
    )
    return reading.with_predictions(predictions, notes)


def with_signal_gains(
    model: Any,
    reading: Reading,
    schemes: Mapping[int, Any],
    kept: Collection[int] = (),
) -> Reading:
    """The reading with the engine's gain for those of `schemes` that need it.

    `schemes` holds, by the `id` of a variable, the initializer that it is to be drawn with; other
    kernels, and those in `kept`, count with what they have now.
    """
    wanting = {
        key
        for key, scheme in schemes.items()
        if isinstance(scheme, ContextualInitializer) and scheme.needs_signal
    }
    if not wanting:
        return reading
    present = present_variances(model)

    def variance(variable: Any, gain: float) -> float:
        scheme, context = schemes.get(id(variable)), reading.context_of(variable)
        if scheme is None or context is None or id(variable) in kept:
            return present(variable, gain)
        known = math.isfinite(gain) and gain > 0
        placed = dataclasses.replace(context, signal_gain=gain if known else None)
        stddev = describe(scheme, context.kernel_shape, placed).stddev
        return present(variable, gain) if stddev is None else stddev**2

    predictions, notes = reading.predict(variance, backward=False)
    wanted = {key: each for key, each in predictions.items() if key in wanting}
    for key, context in reading.by_variable.items():
        if key in wanting and not (key in wanted and wanted[key].gain):
            notes.append(
                f"{context.path}: the engine does not know what reaches it, so positions and "
                "branches count as independent there"
            )
    return dataclasses.replace(reading.with_gains(wanted), notes=(*reading.notes, *notes))


def present_variances(model: Any) -> Callable[[Any, float], float]:
    """The variance of a kernel's entries by its initializer, or by its values.

    Values count where no initializer tells, and in frozen kernels, which were trained or loaded.
    """
    holders = {
        key: (layer, attribute)
        for layer in [model, *keras_private.layers_of(model)]
        for key, attribute in keras_private.initializers_of(layer)
    }

    def variance(variable: Any, gain: float) -> float:
        holder = holders.get(id(variable))
        if holder is not None and model.trainable and variable.trainable:
            initializer = as_drawn(holder[0], getattr(*holder))
            if mean_of(initializer):
                return math.nan  # the engine's kernels have mean 0
            stddev = _stddev(initializer, tuple(int(n) for n in variable.shape))
            if stddev is not None:
                return stddev**2
        if not keras.backend.is_float_dtype(variable.dtype):
            return math.nan
        return float(np.mean(np.square(np.asarray(view(variable), np.float64))))

    return variance


def _stddev(initializer: Any, shape: tuple[int, ...]) -> float | None:
    if isinstance(initializer, ContextualInitializer):
        return initializer.stddev(shape)
    return describe(initializer, shape, None).stddev
