"""The 34-layer network of the ASV poster against the numbers of its authors' code.

`asv_f34_224.json` holds, per variant, the standard deviations of the 34 layers in order, as
runs [count, value].
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_varinit as kv

pytestmark = pytest.mark.once

L = keras.layers
REFERENCE = json.loads((Path(__file__).parent / "asv_f34_224.json").read_text())
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


def f34(initializer, size=224):
    """Torch's geometry: explicit zeros in front of every window, windows 'valid'."""

    def conv(x, filters, window, stride, padding):
        x = L.ZeroPadding2D(padding)(x)
        return L.Conv2D(
            filters, window, strides=stride, activation="relu", kernel_initializer=initializer
        )(x)

    inputs = keras.Input((size, size, 3))
    x = conv(inputs, 64, 7, 2, 3)
    x = L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(x))
    for stage, (filters, blocks) in enumerate(STAGES):
        for block in range(blocks):
            x = conv(x, filters, 3, 2 if stage and not block else 1, 1)
            x = conv(x, filters, 3, 1, 1)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(10, kernel_initializer=initializer)(x))


def reference(variant):
    return np.concatenate([[value] * count for count, value in REFERENCE[variant]])


@pytest.mark.slow
@pytest.mark.parametrize("max_gain", [3.0, None])
@pytest.mark.parametrize("cls", [kv.ASVForward, kv.ASVBackward])
def test_every_row_equals_the_authors_code(cls, max_gain):
    variant = "asv.forward" if cls is kv.ASVForward else "asv.backward"
    want = reference(variant if max_gain else f"{variant}.uncapped")
    model = f34(cls(max_gain=max_gain, seed=0))
    report = kv.inject(model)
    assert [row.context.depth for row in report] == list(range(1, 35))
    assert {row.status for row in report} == {"drawn"}
    np.testing.assert_allclose([row.stddev for row in report], want, rtol=1e-6)
    kernels = [w for w in model.weights if w.path.endswith("kernel")]
    measured = [np.std(keras.ops.convert_to_numpy(k)) for k in kernels]
    # Four standard errors of a normal's standard deviation: 4/√(2n).
    errors = [4 / np.sqrt(2 * np.prod(k.shape)) for k in kernels]
    assert np.all(np.abs(np.array(measured) / want - 1) < errors)
