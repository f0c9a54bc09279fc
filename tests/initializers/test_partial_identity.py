"""`PartialIdentity`: filters that copy channels, by what real layers make of their input."""

import json
import math

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests.initializers.roles import set_roles
from tests.models import weights

L = keras.layers


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor).astype(np.float64)


def model_of(*layers, shape=(9, 9, 3)):
    """The layers between a first and a last convolution, which are never the identity."""
    ends = L.Conv2D(6, 1, name="first"), L.Conv2D(2, 1, name="out")
    return keras.Sequential([keras.Input(shape), ends[0], *layers, ends[1]])


def drawn(*layers, scheme=None, **options):
    model = model_of(*layers, **options)
    report = kv.initialize(model, kv.PartialIdentity() if scheme is None else scheme, seed=0)
    return model, report


# Layers on maps of six channels, and how many of those they copy.
COPIES = {
    "square": (lambda: L.Conv2D(6, 3, padding="same"), 6),
    "wider": (lambda: L.Conv2D(16, (5, 3), padding="same"), 6),
    "1×1": (lambda: L.Conv2D(8, 1), 6),
    "dilated": (lambda: L.Conv2D(8, 3, dilation_rate=2, padding="same"), 6),
}


@pytest.mark.parametrize("name", COPIES)
def test_the_first_filters_copy_their_channels_and_the_others_are_the_base(name):
    make, copied = COPIES[name]
    layer = make()
    model, report = drawn(layer, scheme=kv.PartialIdentity("he_uniform"))
    x = np.random.default_rng(0).standard_normal((2, 7, 7, 6)).astype("float32")
    y = numpy(layer(x))
    np.testing.assert_allclose(y[..., :copied], x, rtol=1e-6, atol=1e-6)
    kernel, fan_in = numpy(layer.kernel), math.prod(layer.kernel.shape[:-1])
    others = kernel[..., copied:]
    bound = math.sqrt(6 / fan_in)  # of He's uniform law
    assert np.all(np.abs(others) <= bound)
    share = (kernel.shape[-1] - copied) / kernel.shape[-1]
    row = report[layer.kernel.path]
    assert row.stddev == pytest.approx(math.sqrt(share * 2 / fan_in), rel=1e-6)
    if others.size:
        error = math.sqrt((9 / 5 - 1) / others.size)
        assert abs(np.mean(others**2) / (2 / fan_in) - 1) < 4 * error
    assert not np.array_equal(numpy(model.get_layer("first").kernel)[0, 0], np.eye(3, 6))


def test_one_and_three_dimensions():
    for layer, shape in ((L.Conv1D(7, 3, padding="same"), (5, 4)), (L.Conv3D(4, 3), (5, 5, 5, 4))):
        first = type(layer)(4, 1)
        model = keras.Sequential([keras.Input(shape), first, layer, type(layer)(2, 1)])
        kv.initialize(model, "partial_identity", seed=0)
        x = np.random.default_rng(0).standard_normal((2, *shape)).astype("float32")
        inner = x if len(shape) == 2 else x[:, 1:-1, 1:-1, 1:-1]
        np.testing.assert_allclose(numpy(layer(x))[..., :4], inner, rtol=1e-6, atol=1e-6)


# Layers of which no filter is the identity.
BASE = {
    "fewer filters": lambda: L.Conv2D(5, 3),
    "even": lambda: L.Conv2D(6, (3, 2)),
    "grouped": lambda: L.Conv2D(6, 3, groups=3),
    "depthwise": lambda: L.DepthwiseConv2D(3),
    "transposed": lambda: L.Conv2DTranspose(6, 3),
    "transposed, strides": lambda: L.Conv2DTranspose(6, 3, strides=3),
    "dense": lambda: L.Dense(6),
    "einsum": lambda: L.EinsumDense("abcd,de->abce", (None, None, 6)),
}


@pytest.mark.parametrize("name", BASE)
def test_other_layers_get_the_base_bit_for_bit(name):
    model, report = drawn(BASE[name](), scheme=kv.PartialIdentity("asv_backward"))
    # The same context and stream, by the wrapper whose factor is 1 here.
    twin, _ = drawn(BASE[name](), scheme=kv.ResidualScaled("asv_backward"))
    for value, expected in zip(weights(model), weights(twin), strict=True):
        np.testing.assert_array_equal(value, expected)
    kernel = model.layers[1].weights[0]
    row = report[kernel.path]
    assert row.stddev == kv.ASVBackward(context=row.context).stddev(kernel.shape)


FIELDS = [{"branch_end": True}, {"role": "head"}, {"role": "value"}, {"depth": 1}]


@pytest.mark.parametrize("fields", FIELDS, ids=[next(iter(f)) for f in FIELDS])
def test_places_where_it_must_not_stand(fields, monkeypatch):
    set_roles(monkeypatch, lambda context: {} if context.layer == "first" else fields)
    layer = L.Conv2D(6, 3)
    drawn(layer)
    assert np.all(numpy(layer.kernel))


def test_without_context_it_is_the_base_bit_for_bit():
    base = numpy(keras.initializers.HeNormal(seed=4)((3, 3, 6, 6)))
    np.testing.assert_array_equal(numpy(kv.PartialIdentity(seed=4)((3, 3, 6, 6))), base)
    assert isinstance(kv.PartialIdentity().neutral(), keras.initializers.HeNormal)


def test_half_precision_keeps_the_identity():
    keras.config.set_dtype_policy("bfloat16")
    layer = L.Conv2D(8, 3)
    drawn(layer)
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == "bfloat16"
    kernel = keras.ops.convert_to_numpy(keras.ops.cast(layer.kernel, "float32"))
    np.testing.assert_array_equal(kernel[1, 1, :, :6], np.eye(6))


def test_the_engine_says_that_it_does_not_know_identities():
    model, _ = drawn(L.Conv2D(8, 3), L.ReLU())
    analysis = kv.analyze(model)
    first, second, third = analysis.predicted.values()
    assert first.forward is not None
    assert second.forward is third.forward is None
    assert any("a mean other than 0" in note for note in analysis.notes)
    # Where no filter is the identity, the prediction is the base's.
    model, _ = drawn(L.Conv2D(5, 3))
    assert list(kv.analyze(model).predicted.values())[-1].forward is not None


def test_kernels_that_follow_one_are_not_drawn_by_a_gain_that_counts_it_as_random():
    def scheme(context):
        return kv.PartialIdentity() if context.layer == "copies" else "signal_preserving"

    model = model_of(L.Conv2D(8, 3, name="copies"))
    report = kv.initialize(model, scheme, seed=0)
    gains = {row.context.layer: row.context.signal_gain for row in report if row.context}
    assert gains["first"] is not None
    assert gains["out"] is None
    assert any("out" in note and "not known" in note for note in report.notes)


def test_equal_identities_are_meant():
    layers = [L.Conv2D(6, 3, padding="same", name=f"copy{n}") for n in range(3)]
    model, report = drawn(*layers, scheme=kv.PartialIdentity(seed=2))
    values = [numpy(layer.kernel) for layer in layers]
    np.testing.assert_array_equal(values[0], values[1])
    assert [report[layer.kernel.path].stddev for layer in layers] == [0, 0, 0]
    assert kv.lint(model) == []
    one = kv.initialize(model, kv.PartialIdentity(seed=2), layers=["copy1"])
    (row,) = (row for row in one if row.context is not None)
    assert row.context.stream == report[row.path].context.stream
    assert kv.inject(model).drawn == ()


def test_inject_makes_the_identity_and_leaves_trained_kernels():
    layers = [L.Conv2D(6, 3, kernel_initializer="partial_identity") for _ in range(2)]
    model = model_of(*layers)
    layers[1].kernel.assign(np.ones((3, 3, 6, 6)))
    statuses = [row.status for row in kv.inject(model)]
    assert statuses == ["drawn", "skipped: trained, loaded or set since it was drawn"]
    np.testing.assert_array_equal(numpy(layers[0].kernel)[1, 1], np.eye(6))
    assert kv.inject(model).drawn == ()


def test_a_builtin_copy_draws_by_the_base():
    model, _ = drawn(L.Conv2D(6, 3), L.Conv2D(9, 3), scheme=kv.PartialIdentity("he_uniform"))
    copy = kv.to_builtin(model)
    assert "keras_varinit" not in json.dumps(keras.saving.serialize_keras_object(copy))
    for layer in copy.layers[1:-1]:
        bound = layer.kernel_initializer.maxval
        assert bound == pytest.approx(math.sqrt(6 / 54), rel=1e-6)
    for value, copied in zip(weights(model), weights(copy), strict=True):
        np.testing.assert_array_equal(value, copied)


@pytest.mark.parametrize("base", ["depth_scaled", "enhanced_he_normal", "residual_scaled"])
def test_wrappers_are_bases(base):
    layer = L.Conv2D(8, 3)
    drawn(layer, scheme=kv.PartialIdentity(base))
    kernel = numpy(layer.kernel)
    np.testing.assert_array_equal(kernel[1, 1, :, :6], np.eye(6))
    assert np.all(kernel[..., 6:])
