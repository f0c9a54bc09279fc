"""`analyze`: contexts of kernels, and predictions for the model's current initializers."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.result import Analysis, Reading
from keras_varinit.arguments import Arguments
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.laws import as_drawn, describe, mean_of
from keras_varinit.tensors import view
from keras_varinit.typing import Model, Variable


def analyze(
    model: keras.Model, *, input_mean: float = 0.0, input_variance: float = 1.0
) -> Analysis:
    """Reads the context of every kernel from a built model and predicts its signal.

    The model is not changed. Predictions average over random weights and over inputs with
    independent entries of the given mean and variance. Means, second moments and covariances
    between positions are followed forward through the graph, and gradients back; dropout and batch
    normalization act as in training. Layers count as wide.

    Args:
        model: A built `keras.Model` of any kind. A model that defines its own `call` is called on
            symbolic tensors, which leaves no trace in it.
        input_mean: Mean of an entry of the model's inputs. Defaults to 0.0.
        input_variance: Variance of an entry of the model's inputs. Defaults to 1.0.

    Returns:
        An `Analysis`, whose dictionaries have one entry per kernel, in the order of the graph:

        * `.contexts[path]`: its `LayerContext`;
        * `.predicted[path]`: a `Prediction` with `forward`, E u² of the kernel's output u, and
          `backward`, E (dL/du)² for gradients at the model's outputs that are white noise of unit
          variance. Kernels count with their current initializers, or with their current values if
          they are frozen or their initializer is not known. Unknown quantities are None.

        `.notes` explains what is not known. If two kernels have the same path (layers of the same
        name in two nested models), the second one is `"path#2"`.

    Units: `forward` and `backward` are second moments.

    Raises:
        TypeError: if `model` is not a Keras model, or an argument is not a number.
        ValueError: if the model is not built or `input_variance` is negative.

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
    present = PresentKernels(model)
    predictions, notes = reading.predict(
        present.variance,
        input_mean=input_mean,
        input_variance=input_variance,
        is_delta=present.is_delta,
    )
    return reading.with_predictions(predictions, notes)


def with_signal_gains(
    model: Model,
    reading: Reading,
    schemes: Mapping[int, Any],
    kept: Collection[int] = (),
) -> Reading:
    """Sets `signal_gain` for the kernels whose scheme needs it.

    Args:
        model: The model.
        reading: Its reading.
        schemes: The initializer to draw each kernel with, by the `id` of its variable. Other
            kernels count with their current initializers.
        kept: The `id` of kernels in `schemes` that also count with their current initializers.
    """
    wanting = {
        key
        for key, scheme in schemes.items()
        if isinstance(scheme, ContextualInitializer) and scheme.needs_signal
    }
    if not wanting:
        return reading
    present = PresentKernels(model)

    def planned(variable: Variable) -> tuple[Any, LayerContext] | None:
        """The initializer to draw a kernel with, and its context; None if it is kept."""
        scheme, context = schemes.get(id(variable)), reading.context_of(variable)
        if scheme is None or context is None or id(variable) in kept:
            return None
        return scheme, context

    def variance(variable: Variable, gain: float) -> float:
        plan = planned(variable)
        if plan is None:
            return present.variance(variable, gain)
        scheme, context = plan
        known = math.isfinite(gain) and gain > 0
        context = dataclasses.replace(context, signal_gain=gain if known else None)
        own = scheme.with_context(context) if _is_ours(scheme) else scheme
        if mean_of(own, context.kernel_shape) or _depends_on_others(own):
            return math.nan  # the engine assumes independent kernels of mean 0
        stddev = describe(scheme, context.kernel_shape, context).stddev
        return present.variance(variable, gain) if stddev is None else stddev**2

    def is_delta(variable: Variable) -> bool:
        plan = planned(variable)
        if plan is None:
            return present.is_delta(variable)
        scheme, context = plan
        own = scheme.with_context(context) if _is_ours(scheme) else scheme
        return _is_delta(own, context.kernel_shape)

    predictions, notes = reading.predict(variance, backward=False, is_delta=is_delta)
    wanted = {key: each for key, each in predictions.items() if key in wanting}
    for key, context in reading.by_variable.items():
        if key in wanting and not (key in wanted and wanted[key].gain):
            notes.append(
                f"{context.path}: its input signal is not known, so positions and "
                "branches count as independent there"
            )
    return dataclasses.replace(reading.with_gains(wanted), notes=(*reading.notes, *notes))


class PresentKernels:
    """What the current initializers of a model say about its kernels."""

    def __init__(self, model: Model) -> None:
        self.trainable = model.trainable
        self.holders = {
            key: (layer, attribute)
            for layer in [model, *keras_private.layers_of(model)]
            for key, attribute in keras_private.initializers_of(layer)
        }

    def variance(self, variable: Variable, gain: float) -> float:
        """The variance of a kernel's entries.

        It follows from the current initializer, or from the values if the initializer does not
        determine it or the kernel is frozen, and so was trained or loaded. It is NaN for kernels
        that depend on others or have a mean, as the engine assumes neither.
        """
        holder = self.holders.get(id(variable))
        if holder is not None and _depends_on_others(getattr(*holder)):
            return math.nan
        initializer, shape = self._initializer(variable), _shape(variable)
        if initializer is not None:
            if mean_of(initializer, shape):
                return math.nan
            stddev = _stddev(initializer, shape)
            if stddev is not None:
                return stddev**2
        if not keras.backend.is_float_dtype(variable.dtype):
            return math.nan
        return float(np.mean(np.square(np.asarray(view(variable), np.float64))))

    def is_delta(self, variable: Variable) -> bool:
        """Whether the current initializer draws a kernel at its central tap alone."""
        return _is_delta(self._initializer(variable), _shape(variable))

    def _initializer(self, variable: Variable) -> Any:
        """The initializer that draws a kernel; None if it is not known or the kernel is frozen."""
        holder = self.holders.get(id(variable))
        if holder is None or not (self.trainable and variable.trainable):
            return None
        return as_drawn(holder[0], getattr(*holder))


def _shape(variable: Variable) -> tuple[int, ...]:
    return tuple(int(n) for n in variable.shape)


def _is_ours(initializer: Any) -> bool:
    return isinstance(initializer, ContextualInitializer)


def _is_delta(initializer: Any, shape: tuple[int, ...]) -> bool:
    return _is_ours(initializer) and bool(initializer.reads_centre_only(shape))


def _depends_on_others(initializer: Any) -> bool:
    return _is_ours(initializer) and not initializer.is_independent


def _stddev(initializer: Any, shape: tuple[int, ...]) -> float | None:
    if isinstance(initializer, ContextualInitializer):
        return initializer.stddev(shape)
    return describe(initializer, shape, None).stddev
