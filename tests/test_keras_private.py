"""What `keras_private` takes for granted of the installed Keras."""

import keras
import numpy as np
import pytest

from keras_varinit.keras_private import LAYERS_THAT_END_WITH_ACTIVATION, ends_with_activation

ARGUMENTS = {
    "Dense": {"units": 3},
    "EinsumDense": {"equation": "abc,cd->abd", "output_shape": (None, 3)},
}


def arguments(cls):
    if cls.__name__ in ARGUMENTS:
        return ARGUMENTS[cls.__name__]
    is_depthwise = cls.__name__.startswith("Depthwise")
    return {"kernel_size": 2} if is_depthwise else {"kernel_size": 2, "filters": 3}


@pytest.mark.parametrize("cls", LAYERS_THAT_END_WITH_ACTIVATION, ids=lambda cls: cls.__name__)
def test_these_layers_end_with_their_activation(cls):
    """Their output is the activation of what they return without one."""
    window = next((int(c) for c in cls.__name__ if c.isdigit()), 1)
    x = np.random.default_rng(0).standard_normal((2, *(5,) * window, 4)).astype("float32")
    layer = cls(**arguments(cls), activation="tanh")
    after = keras.ops.convert_to_numpy(layer(x))
    assert ends_with_activation(layer)
    layer.activation = keras.activations.linear
    assert not ends_with_activation(layer)
    before = keras.ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(after, np.tanh(before), atol=1e-6)
    assert np.abs(before).max() > 0.1


def test_a_call_of_ones_own_may_end_otherwise():
    class Own(keras.layers.Dense):
        def call(self, x):
            return 2 * super().call(x)

    assert not ends_with_activation(Own(3, activation="relu"))
