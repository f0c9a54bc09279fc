"""What a network of the benchmark is, and the pieces that several share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

L = keras.layers
Data = Callable[[np.random.Generator, int], Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to measure.

    `data` gives its inputs (white noise of that mean and deviation if None); `known` says that a
    prediction has to be there for every kernel, so that None is not enough.
    """

    make: Callable[[], keras.Model]
    data: Data | None = None
    examples: int = 16
    mean: float = 0.0
    deviation: float = 1.0
    known: bool = True


def tokens(vocabulary: int, *lengths: int) -> Data:
    """Random tokens, for one input or for several of these lengths."""

    def data(rng: np.random.Generator, count: int) -> Any:
        drawn = [rng.integers(0, vocabulary, (count, n)).astype("int32") for n in lengths]
        return drawn[0] if len(drawn) == 1 else drawn

    return data


def model(shape: tuple[int | None, ...], body: Callable[[Any], Any]) -> keras.Model:
    """A model of one input."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


def mlp(x: Any, *widths: int, activation: str = "relu") -> Any:
    """Dense layers with an activation after each but the last."""
    for width in widths[:-1]:
        x = L.Dense(width, activation=activation)(x)
    return L.Dense(widths[-1])(x)


def conv(x: Any, filters: int, size: int = 3, strides: int = 1, activation: Any = "relu") -> Any:
    """Convolution, batch normalization, activation."""
    x = L.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    return L.Activation(activation or "linear")(L.BatchNormalization()(x))
