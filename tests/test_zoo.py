"""Every model of `keras.applications` is read without an unknown weight layer."""

import inspect

import keras
import pytest

import keras_varinit as kv

# One of each family and what differs in kind within it; the whole list runs with `-m zoo`.
SMALL = ["ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionV3"]
SMALL += ["MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50"]
SMALL += ["ResNet50V2", "VGG16", "Xception"]
if keras.backend.backend() == "jax":  # which compiles for every shape of a kernel
    SMALL = ["ConvNeXtTiny", "MobileNet", "ResNet50", "VGG16"]

ALL = [
    name
    for name, function in vars(keras.applications).items()
    if inspect.isfunction(function) and name[0].isupper()
]


def check(name):
    if name.startswith("NASNet") and keras.backend.backend() == "torch":
        pytest.skip("Keras offers no NASNet on torch")
    model = getattr(keras.applications, name)(weights=None)
    analysis = kv.analyze(model)
    kernels = [v for v in model.trainable_variables if len(v.shape) >= 2 and "bias" not in v.path]
    assert analysis.unknown == ()
    assert len(analysis.contexts) == len(kernels)
    assert all(analysis.context_of(v) is not None for v in kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_one_of_each_family(name):
    check(name)


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(set(ALL) - set(SMALL)))
def test_the_others(name):
    check(name)
