"""`analyze`: contexts of kernels, and predictions for the model's current initializers."""

import keras

from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.planned import PresentKernels
from keras_varinit.analysis.result import Analysis
from keras_varinit.arguments import Arguments


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
        An `Analysis`. For each kernel, in the order of the graph, `.contexts[path]` is its
        `LayerContext` and `.predicted[path]` a `Prediction` with `forward`, E u² of the kernel's
        output u, and `backward`, E (dL/du)² for gradients at the model's outputs that are white
        noise of unit variance. Kernels count with their current initializers, or with their current
        values if they are frozen or their initializer is not known. Unknown quantities are None and
        explained in `.notes`. If two kernels have the same path (layers of the same name in two
        nested models), the second one is `"path#2"`.

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
