"""Every model of `keras.applications` is read without an unknown weight layer, and measured."""

import inspect
import math
import sys

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests.example_files import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "benchmarks"))
from families.measuring import compare

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


# Of each family one is measured, and of some a deeper one; the others are opened alone.
MEASURED = [
    *("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2"),
    *("InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small"),
    *("NASNetMobile", "ResNet152", "ResNet50", "ResNet50V2", "VGG16", "Xception"),
]
# The least sides that these take; the others are measured at 64.
SIDES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
# What is beyond 1.5 forward or 2 backward: how far at most, and the cause.
# A block of two such kernels and hard swish alone loses 7 % backward, with swish 3 %, without an
# activation nothing; E w² f'(u)² f'(z)² over the product of its factors, u of nine taps on f(z), is
# 1.07 and 1.03. The gates of squeeze-excite lose more in deep models, which is unexplained.
DEPTHWISE = "of few taps, w² f'(u)² f'(z)² has a mean above the product of its factors' means"
POOLED = "max pooling of a residual stream behind ReLU, whose skewed sums count as Gaussian"
EXCEPTIONS: dict[str, tuple[float, float, str]] = {
    "EfficientNetB0": (1.5, 2.6, DEPTHWISE),
    "MobileNetV3Large": (1.5, 2.5, DEPTHWISE),
    "MobileNetV3Small": (1.5, 2.6, DEPTHWISE),
    "InceptionResNetV2": (1.8, 7.0, POOLED),
}


@pytest.mark.zoo
@pytest.mark.parametrize("name", MEASURED)
def test_numbers_are_right_or_none(name):
    """At real width and small size, so that a few draws are certain.

    The engine takes the statistics of batch normalization for those of the law: 8 examples of 75×75
    make InceptionV3's gradients 0.22 of what 48 do, on maps that end as single positions.
    """
    if name.startswith("NASNet") and keras.backend.backend() == "torch":
        pytest.skip("Keras offers no NASNet on torch")
    shape = (SIDES.get(name, 64), SIDES.get(name, 64), 3)
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=shape, classes=10, classifier_activation=None)
    options = {}
    if any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers):
        options = {"mean": 127.5, "deviation": 255 / 12**0.5}
    found = compare(model, draws=8, least=6, examples=48, **options)
    forward, backward, _ = EXCEPTIONS.get(name, (1.5, 2.0, ""))
    for direction, limit in (("forward", forward), ("backward", backward)):
        ratio, kernel = found.worst(direction)
        assert found.certain(direction)
        assert math.isnan(ratio) or 1 / limit <= ratio <= limit, (
            f"{kernel}: {direction} predicted ÷ measured is {ratio:.3g}"
        )
        assert found.notes or not found.unknown(direction)
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype("float32")
    assert any(row.kind == "weights" for row in kv.measure_signal(model, x, verbose=0))
    assert all(str(finding) for finding in kv.lint(model))
