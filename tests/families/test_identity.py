"""Operations on the engine's list of identities leave a signal and its gradient as they are."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_varinit.families.identity import unchanged
from keras_varinit.signals import registry
from tests.gradients import vector_jacobian

L = keras.layers

CALLS = {
    L.ActivityRegularization: lambda: L.ActivityRegularization(l2=0.1),
    L.Identity: lambda: L.Identity(),
    L.InputLayer: lambda: _input_alone(),
    # Hides steps that are 0 throughout, which random numbers are not.
    L.Masking: lambda: L.Masking(),
    "Cast": lambda: lambda x: ops.cast(x, "float32"),
    "ConvertToTensor": lambda: ops.convert_to_tensor,
    "Copy": lambda: ops.copy,
    "SaturateCast": lambda: lambda x: ops.saturate_cast(x, "float32"),
}


def _input_alone():
    """Beside another output: Keras 3.10 makes no model without an operation."""
    inputs = keras.Input((6, 5))
    model = keras.Model(inputs, [inputs, L.Identity()(inputs)])
    return lambda x: model(x)[0]


def listed():
    return [kind for kind, rule in registry.registered("signal").items() if rule is unchanged]


def shown(kind):
    return kind if isinstance(kind, str) else kind.__name__


def test_every_identity_is_called_here():
    assert sorted(map(shown, listed())) == sorted(map(shown, CALLS))


@pytest.mark.parametrize("kind", [pytest.param(k, id=shown(k)) for k in CALLS])
def test_what_an_identity_returns_is_what_it_got(kind):
    """Bit for bit, and so does the gradient: its second moments are no approximation."""
    function = CALLS[kind]()
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((4, 6, 5)).astype("float32") for _ in range(2))
    np.testing.assert_array_equal(ops.convert_to_numpy(function(x)), x)
    np.testing.assert_array_equal(vector_jacobian(function, x, g), g)
