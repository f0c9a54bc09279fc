import keras
import pytest

import keras_varinit as kv


@pytest.mark.parametrize("name", ["asv_backward", "depth_scaled", "enhanced_he_normal"])
def test_strings_work_and_inject_draws(name):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=name),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, kernel_initializer=name),
        ]
    )
    report = kv.inject(model)
    assert [row.status for row in report] == ["drawn", "drawn"]
