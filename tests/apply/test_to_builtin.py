"""`to_builtin`: a copy that another process loads without this library."""

import json

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests import fresh_process

L = keras.layers

FAMILIES = {
    "asv": (lambda: kv.ASVBackward(seed=1), "RandomNormal"),
    "asv uniform": (lambda: kv.ASVForward("uniform", seed=1), "RandomUniform"),
    "asv truncated": (lambda: kv.ASVForward("truncated_normal"), "TruncatedNormal"),
    "enhanced": (lambda: kv.EnhancedHeUniform(seed=1), "RandomUniform"),
    "wrapped": (lambda: kv.Enhanced(kv.ASVForward(), seed=1), "RandomNormal"),
    "depth": (lambda: kv.DepthScaled("he_uniform", seed=1), "RandomUniform"),
}


def network(make):
    layers = [
        keras.Input((8, 8, 3)),
        L.Conv2D(64, 3, padding="same", activation="relu", kernel_initializer=make()),
        keras.Sequential([L.Conv2D(64, 3, kernel_initializer=make()), L.ReLU()]),
        L.GlobalAveragePooling2D(),
        L.Dense(64, kernel_initializer=make()),
    ]
    return keras.Sequential(layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_weights_same_deviation_and_no_name_of_ours(family):
    make, cls = FAMILIES[family]
    model = network(make)
    report = kv.inject(model)
    copy = kv.to_builtin(model)
    assert "keras_varinit" not in json.dumps(keras.saving.serialize_keras_object(copy))
    for mine, other in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    layers = [copy.layers[0], copy.layers[1].layers[0], copy.layers[3]]
    for layer, row in zip(layers, report, strict=True):
        assert type(layer.kernel_initializer).__name__ == cls
        shape = (1, *layer.kernel.shape[:-1], 4096)  # enough entries to measure
        drawn = keras.ops.convert_to_numpy(layer.kernel_initializer(shape))
        # Six standard errors of a normal's standard deviation; the other families have less.
        assert abs(np.std(drawn) / row.stddev - 1) < 6 / np.sqrt(2 * drawn.size)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_context_the_copy_has_the_neutral_case(family):
    model = network(FAMILIES[family][0])
    copy = kv.to_builtin(model)
    assert "keras_varinit" not in json.dumps(keras.saving.serialize_keras_object(copy))
    initializer, layer = copy.layers[0].kernel_initializer, model.layers[0]
    expected = layer.kernel_initializer.stddev(layer.kernel.shape)
    drawn = keras.ops.convert_to_numpy(initializer((3, 3, 3, 64)))
    assert isinstance(initializer, keras.initializers.VarianceScaling)
    assert abs(np.std(drawn) / expected - 1) < 6 / np.sqrt(2 * drawn.size)


@pytest.mark.slow
def test_a_file_of_the_copy_loads_without_the_library(tmp_path):
    model = network(FAMILIES["asv"][0])
    kv.inject(model)
    kv.to_builtin(model).save(tmp_path / "copy.keras")
    x = np.ones((2, 8, 8, 3), "float32")
    np.save(tmp_path / "x.npy", x)
    answer = fresh_process.run(
        """
import json, sys
sys.modules["keras_varinit"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1] + "/copy.keras")
x = np.load(sys.argv[1] + "/x.npy")
print(json.dumps(np.asarray(keras.ops.convert_to_numpy(model(x)), float).tolist()))
""",
        tmp_path,
    )
    np.testing.assert_allclose(answer, keras.ops.convert_to_numpy(model(x)), rtol=1e-4, atol=1e-5)


def test_a_model_with_its_own_call_whose_config_keeps_the_initializer():
    @keras.saving.register_keras_serializable("tests")
    class Own(keras.Model):
        def __init__(self, initializer="asv_forward", **options):
            super().__init__(**options)
            self.initializer = initializer
            self.dense = L.Dense(4, kernel_initializer=initializer)

        def call(self, x):
            return self.dense(x)

        def get_config(self):
            return {**super().get_config(), "initializer": self.initializer}

    model = Own()
    model(np.ones((1, 8), "float32"))
    copy = kv.to_builtin(model)
    assert type(copy.dense.kernel_initializer) is keras.initializers.VarianceScaling
    assert "asv_forward" not in json.dumps(copy.get_config())
    np.testing.assert_array_equal(copy.get_weights()[0], model.get_weights()[0])


def test_errors():
    with pytest.raises(TypeError, match=r"must be a built keras\.Model"):
        kv.to_builtin("model")
    with pytest.raises(ValueError, match="is not built"):
        kv.to_builtin(keras.Sequential([L.Dense(2, kernel_initializer="asv_forward")]))
