"""The choices of `distribution` for initializers that state a variance."""

from typing import Literal

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.draws import Draw, independent
from keras_varinit.initializers.orthogonal import draw_orthogonal, is_delta

Distribution = Literal["normal", "truncated_normal", "uniform", "orthogonal"]

DISTRIBUTIONS = ("normal", "truncated_normal", "uniform", "orthogonal")

# Keras's names; its `Orthogonal` has a gain, not a variance that follows from fans.
_OF_KERAS = {"normal": "untruncated_normal", "orthogonal": "untruncated_normal"}


def drawn(
    key: int,
    shape: tuple[int, ...],
    distribution: Distribution,
    stddev: float,
    context: LayerContext | None,
) -> Draw:
    """A zero-mean float32 kernel whose entries have mean square stddev²."""
    if distribution == "orthogonal":
        return draw_orthogonal(key, shape, stddev, context)
    return independent(key, shape, distribution, stddev)


def variance_scaling(
    scale: float, mode: str, distribution: Distribution, seed: int | None
) -> keras.initializers.VarianceScaling:
    """Keras's initializer with a distribution; normal for orthogonal draws."""
    return keras.initializers.VarianceScaling(
        scale=scale, mode=mode, distribution=_OF_KERAS.get(distribution, distribution), seed=seed
    )


def mean_fan_in(context: LayerContext, distribution: Distribution) -> float:
    """The mean number of inputs per output, as ε/M'.

    A delta-orthogonal kernel counts ∏n times its central tap, which no border cuts off.
    """
    if distribution == "orthogonal" and is_delta(context):
        return context.fan_in
    return context.mean_fan_in


def mean_fan_out(context: LayerContext, distribution: Distribution) -> float:
    """The mean number of outputs per input, as ε/M; as `mean_fan_in` for a delta kernel."""
    if distribution != "orthogonal" or not is_delta(context):
        return context.mean_fan_out
    if context.input_size is None or context.output_size is None:
        return context.fan_out / context.stride
    return context.fan_in * context.output_size / context.input_size
