"""Keras's initializers drawn from the streams of this library: the same law, on every backend.

Keras draws with its backend's generator, so its weights differ from backend to backend, and a mesh
needs compiled code. Independent entries of a law that Keras states (normal, truncated at two
standard deviations, uniform) can as well come from blocks, as those of this library's initializers.
What is drawn otherwise, or by a class that is not Keras's, is left to it.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.initializers.draws import Draw, constant, independent
from keras_varinit.initializers.laws import describe, mean_of
from keras_varinit.initializers.streams import Float32Array, stream_key

_FAMILIES = ("normal", "truncated_normal", "uniform")

_CLASSES = (
    keras.initializers.VarianceScaling,
    keras.initializers.RandomNormal,
    keras.initializers.TruncatedNormal,
    keras.initializers.RandomUniform,
)

_CONSTANTS = {keras.initializers.Zeros: 0.0, keras.initializers.Ones: 1.0}


def has_blocks(initializer: keras.initializers.Initializer) -> bool:
    """Whether an initializer is one of Keras's whose law this library draws too."""
    return isinstance(initializer, _CLASSES) and keras_private.is_keras_class(type(initializer))


def constant_draw(
    initializer: keras.initializers.Initializer, shape: Sequence[int], dtype: str
) -> Draw | None:
    """The draw of Keras's zeros and ones; None for any other initializer."""
    value = _CONSTANTS.get(type(initializer))
    if value is None or not keras.backend.is_float_dtype(dtype):
        return None
    return constant(tuple(shape), value)


def drawn_by_law(
    initializer: keras.initializers.Initializer, shape: Sequence[int], dtype: str
) -> Draw | None:
    """The draw of the law of one of Keras's initializers, in a stream of the initializer's seed.

    None if that is not drawn here, or if every call draws something else.
    """
    seed: Any = getattr(initializer, "seed", None)
    if not shape or type(seed) is not int or not has_blocks(initializer):
        return None
    if not keras.backend.is_float_dtype(dtype):
        return None
    law, mean = describe(initializer, shape, None), np.float32(mean_of(initializer, shape))
    if law.family not in _FAMILIES or law.stddev is None:
        return None

    def shift(starts: tuple[int, ...], box: Float32Array) -> None:
        box += mean

    draw = independent(stream_key(seed, "law"), tuple(shape), law.family, law.stddev)
    return draw.edited(shift) if mean else draw
