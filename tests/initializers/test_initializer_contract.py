"""What every initializer promises, whatever it draws: one table, one row per class."""

import json
import math
import random
from contextlib import nullcontext

import keras
import numpy as np
import pytest

import keras_varinit as kv

L = keras.layers
VARIANCES = {
    "2/in": lambda fan_in, fan_out: 2 / fan_in,
    "2/out": lambda fan_in, fan_out: 2 / fan_out,
    "2/(in+out)": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "1/in": lambda fan_in, fan_out: 1 / fan_in,
    # The longer side of one matrix of all taps; the kernels here have 8 filters, one has 6,000.
    "1/longer": lambda fan_in, fan_out: 1 / max(fan_in, 6000 if fan_out == 54000 else 8),
}
ORTHOGONAL = {"class_name": "ASVForward", "config": {"distribution": "orthogonal"}}
# Class, arguments, and the documented variance without a context.
CASES = {
    "forward": (kv.ASVForward, {}, "2/in"),
    "forward truncated": (kv.ASVForward, {"distribution": "truncated_normal"}, "2/in"),
    "forward uniform": (kv.ASVForward, {"distribution": "uniform"}, "2/in"),
    "backward": (kv.ASVBackward, {}, "2/out"),
    "forward orthogonal": (kv.ASVForward, {"distribution": "orthogonal"}, "2/in"),
    "backward orthogonal": (kv.ASVBackward, {"distribution": "orthogonal"}, "2/out"),
    "backward uniform": (kv.ASVBackward, {"distribution": "uniform", "max_gain": None}, "2/out"),
    "depth": (kv.DepthScaled, {}, "2/in"),
    "depth of ours": (kv.DepthScaled, {"initializer": "asv_backward", "base": 4.0}, "2/out"),
    "depth orthogonal": (kv.DepthScaled, {"initializer": ORTHOGONAL}, "2/in"),
    "depth glorot": (
        kv.DepthScaled,
        {"initializer": "glorot_uniform", "network_variance": 22.0, "schedule": "constant"},
        "2/(in+out)",
    ),
    "enhanced": (kv.Enhanced, {"initializer": "he_normal"}, "2/in"),
    "enhanced position": (
        kv.Enhanced,
        {"initializer": "glorot_uniform", "granularity": "position", "concentration": 2.0},
        "2/(in+out)",
    ),
    "enhanced delta": (kv.Enhanced, {"initializer": "lecun_normal", "delta": 0.5}, "1/in"),
    "enhanced orthogonal": (kv.Enhanced, {"initializer": ORTHOGONAL}, "2/in"),
    "enhanced of ours": (kv.Enhanced, {"initializer": "depth_scaled"}, "2/in"),
    "residual": (kv.ResidualScaled, {}, "2/(in+out)"),
    "residual fixup": (kv.ResidualScaled, {"initializer": "he_normal", "rule": "fixup"}, "2/in"),
    "residual of ours": (
        kv.ResidualScaled,
        {"initializer": "asv_backward", "rule": "zero"},
        "2/out",
    ),
    "residual orthogonal": (kv.ResidualScaled, {"initializer": ORTHOGONAL}, "2/in"),
    "partial identity": (kv.PartialIdentity, {}, "2/in"),
    "partial identity of ours": (kv.PartialIdentity, {"initializer": "asv_backward"}, "2/out"),
    "he_normal": (kv.EnhancedHeNormal, {}, "2/in"),
    "he_uniform": (kv.EnhancedHeUniform, {"delta": 1.0}, "2/in"),
    "glorot_normal": (kv.EnhancedGlorotNormal, {"granularity": "position"}, "2/(in+out)"),
    "glorot_uniform": (kv.EnhancedGlorotUniform, {}, "2/(in+out)"),
    "lecun_normal": (kv.EnhancedLecunNormal, {"concentration": 3.0}, "1/in"),
    "lecun_uniform": (kv.EnhancedLecunUniform, {}, "1/in"),
    "isometric": (kv.Isometric, {}, "1/longer"),
    "mimetic": (kv.Mimetic, {}, "2/(in+out)"),
    "mimetic of ours": (kv.Mimetic, {"initializer": "asv_forward"}, "2/in"),
    "signal": (kv.SignalPreserving, {}, "2/in"),
    "signal truncated": (kv.SignalPreserving, {"distribution": "truncated_normal"}, "2/in"),
    "signal share": (kv.SignalPreserving, {"branch_share": "1/L"}, "2/in"),
    "signal orthogonal": (kv.SignalPreserving, {"distribution": "orthogonal"}, "2/in"),
    "signal uniform": (kv.SignalPreserving, {"distribution": "uniform", "target": 0.5}, "1/in"),
}
STRING_IDS = {
    "asv_forward": kv.ASVForward,
    "asv_backward": kv.ASVBackward,
    "depth_scaled": kv.DepthScaled,
    "enhanced_he_normal": kv.EnhancedHeNormal,
    "enhanced_he_uniform": kv.EnhancedHeUniform,
    "enhanced_glorot_normal": kv.EnhancedGlorotNormal,
    "enhanced_glorot_uniform": kv.EnhancedGlorotUniform,
    "enhanced_lecun_normal": kv.EnhancedLecunNormal,
    "enhanced_lecun_uniform": kv.EnhancedLecunUniform,
    "isometric": kv.Isometric,
    "mimetic": kv.Mimetic,
    "partial_identity": kv.PartialIdentity,
    "recommended": kv.Recommended,
    "residual_scaled": kv.ResidualScaled,
    "signal_preserving": kv.SignalPreserving,
}
# Shape and its (fan_in, fan_out) in Keras's layouts.
SHAPES = {
    (8,): (8, 8),
    (16, 8): (16, 8),
    (5, 4, 8): (20, 40),
    (3, 3, 4, 8): (36, 72),
    (2, 2, 2, 4, 8): (32, 64),
}
DTYPES = ("float32", "float16", "bfloat16", "float64")

cases = pytest.mark.parametrize("case", CASES)


def make(case, **arguments):
    cls, fixed, _ = CASES[case]
    return cls(**fixed, **arguments)


def draw(initializer, shape):
    return as_float32(initializer(shape, dtype="float32"))


def as_float32(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def neutral_variance(case, fan_in, fan_out):
    return VARIANCES[CASES[case][2]](fan_in, fan_out)


def context_for(shape, **fields):
    values = {
        "path": "net/conv_3/kernel",
        "layer": "conv_3",
        "stream": "conv/kernel#4",
        "kernel_shape": shape,
        "depth": 3,
        "total_depth": 7,
        "fan_in": 50.0,
        "fan_out": 90,
        "filter_axes": (len(shape) - 1,),
        "spatial_axes": tuple(range(len(shape) - 2)),
        "forward_gain": 0.7,
        "backward_gain": 0.2,
    }
    return kv.LayerContext(**{**values, **fields})


@cases
def test_every_shape_and_dtype_is_drawn_in_float32_and_cast_last(case, backend):
    initializer = make(case, seed=5)
    for shape in SHAPES:
        drawn = initializer(shape, dtype="float32")
        for dtype in DTYPES:
            unavailable = backend == "jax" and dtype == "float64"  # Keras's own warn there too
            warned = pytest.warns(UserWarning, match="float64") if unavailable else nullcontext()
            with warned:
                kernel, expected = initializer(shape, dtype=dtype), keras.ops.cast(drawn, dtype)
            assert tuple(kernel.shape) == shape
            stored = "float32" if unavailable else dtype
            assert keras.backend.standardize_dtype(kernel.dtype) == stored
            values = as_float32(kernel)
            np.testing.assert_array_equal(values, as_float32(expected))
            assert np.all(np.isfinite(values))
            assert np.std(values) > 0


@cases
def test_default_dtype_is_floatx(case):
    before = keras.config.floatx()
    try:
        for floatx in ("float32", "float16", "bfloat16"):
            keras.config.set_floatx(floatx)
            kernel = make(case, seed=1)((16, 8))
            assert keras.backend.standardize_dtype(kernel.dtype) == floatx
    finally:
        keras.config.set_floatx(before)


@pytest.mark.prerelease
@cases
def test_config_is_json_and_redraws_the_same_kernel(case):
    for shape in SHAPES:
        for context in (None, context_for(shape)):
            initializer = make(case, seed=11, context=context)
            config = initializer.get_config()
            assert json.loads(json.dumps(config)) == config
            kernel = draw(initializer, shape)
            for twin in twins(initializer):
                assert type(twin) is type(initializer)
                assert twin.get_config() == config
                assert twin.context == context
                np.testing.assert_array_equal(draw(twin, shape), kernel)


def twins(initializer):
    yield initializer.clone()
    yield type(initializer).from_config(json.loads(json.dumps(initializer.get_config())))
    yield keras.initializers.deserialize(keras.initializers.serialize(initializer))
    saved = json.dumps(keras.saving.serialize_keras_object(initializer))
    yield keras.saving.deserialize_keras_object(json.loads(saved))


@pytest.mark.prerelease
@cases
def test_found_by_object_dictionary_and_registered_name(case):
    initializer = make(case, seed=2)
    name, config = type(initializer).__name__, initializer.get_config()
    assert keras.initializers.get(initializer) is initializer
    for class_name in (name, f"keras_varinit>{name}"):
        found = keras.initializers.get({"class_name": class_name, "config": config})
        assert type(found) is type(initializer)
        assert found.get_config() == config
    assert keras.saving.get_registered_name(type(initializer)) == f"keras_varinit>{name}"
    assert keras.saving.get_registered_object(f"keras_varinit>{name}") is type(initializer)


@pytest.mark.prerelease
@pytest.mark.parametrize("string", STRING_IDS)
def test_found_by_string_class_name_and_registered_name(string):
    cls = STRING_IDS[string]
    for identifier in (string, cls.__name__, f"keras_varinit>{cls.__name__}"):
        found = keras.initializers.get(identifier)
        assert type(found) is cls
        assert found.get_config() == cls().get_config()
    assert type(keras.initializers.get({"class_name": string, "config": {"seed": 3}})) is cls


@cases
def test_calls_are_pure_and_seeds_tell_draws_apart(case):
    shape = (3, 3, 4, 8)
    seeded = make(case, seed=3)
    np.testing.assert_array_equal(draw(seeded, shape), draw(seeded, shape))
    np.testing.assert_array_equal(draw(seeded, shape), draw(make(case, seed=3), shape))
    assert not np.any(draw(seeded, shape) == draw(make(case, seed=4), shape))
    first, second = make(case), make(case)
    assert first.get_config()["seed"] is None
    np.testing.assert_array_equal(draw(first, shape), draw(first, shape))
    assert not np.any(draw(first, shape) == draw(second, shape))


@cases
def test_set_random_seed_reproduces_an_unseeded_draw(case):
    kernels = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        kernels.append(draw(make(case), (16, 8)))
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.any(kernels[0] == kernels[2])


@cases
def test_drawing_leaves_the_global_random_states_alone(case):
    initializer = make(case)
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    initializer((16, 8))
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


@cases
def test_without_context_the_stated_stddev_is_the_documented_one(case):
    for shape in SHAPES:
        stddev = math.sqrt(neutral_variance(case, *SHAPES[shape]))
        assert make(case).stddev(shape) == pytest.approx(stddev, rel=1e-6)


@cases
def test_without_context_the_measured_variance_is_the_documented_one(case):
    shape, fans = (3, 3, 8, 6000), (72, 54000)
    kernel = draw(make(case, seed=0), shape).astype(np.float64)
    # A filter is the independent unit, so its mean square is one sample of the layer's variance.
    samples = np.mean(kernel**2, axis=(0, 1, 2))
    error = np.std(samples) / math.sqrt(samples.size)
    assert abs(samples.mean() - neutral_variance(case, *fans)) < 4 * error
    assert abs(kernel.mean()) < 4 * kernel.std() / math.sqrt(kernel.size)


@cases
def test_context_names_the_stream_and_with_context_leaves_the_original_alone(case):
    shape = (3, 3, 4, 8)
    initializer = make(case, seed=3)
    neutral, context = draw(initializer, shape), context_for(shape)
    twin = initializer.with_context(context)
    assert (initializer.context, twin.context) == (None, context)
    np.testing.assert_array_equal(draw(initializer, shape), neutral)
    kernel = draw(twin, shape)
    renamed = initializer.with_context(context_for(shape, path="other/kernel", layer="other"))
    np.testing.assert_array_equal(draw(renamed, shape), kernel)
    moved = initializer.with_context(context_for(shape, stream="conv/kernel#5"))
    assert not np.any(draw(moved, shape) == kernel)
    assert not np.any(neutral == kernel)


# PyTorch's own, when a wrapper reads what its base drew.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@cases
def test_context_of_another_shape_warns_and_falls_back_to_the_neutral_case(case):
    initializer = make(case, seed=3, context=context_for((3, 3, 4, 8)))
    with pytest.warns(UserWarning, match=r"net/conv_3/kernel.*\(3, 3, 4, 8\).*\(16, 8\).*inject"):
        stddev = initializer.stddev((16, 8))
    assert stddev == make(case).stddev((16, 8))
    with pytest.warns(UserWarning, match="the neutral case is used"):
        assert tuple(initializer((16, 8)).shape) == (16, 8)


@cases
def test_repr_shows_the_arguments(case):
    shown = repr(make(case, seed=41, context=context_for((4, 4))))
    assert shown.startswith(CASES[case][0].__name__ + "(")
    assert "seed=41" in shown
    assert "context=<net/conv_3/kernel>" in shown


# The first four entries of a (3, 3, 4, 8) kernel drawn with seed=1: another stream is noticed, and
# on every backend it is the same one. Base initializers that Keras draws differ by backend.
REFERENCE = {
    "forward": [-0.08448558, -0.2618524, -0.1932684, -0.1441107],
    "forward truncated": [-0.09604719, -0.2976861, -0.2197167, -0.1638318],
    "forward uniform": [-0.1888741, 0.3630892, 0.3584112, -0.0467701],
    "forward orthogonal": [-0.0946253, -0.2110539, -0.104374, -0.09942455],
    "backward": [-0.05974033, -0.1851576, -0.1366614, -0.1019016],
    "backward uniform": [-0.1335542, 0.2567428, 0.253435, -0.03307145],
    "enhanced": [-0.09132282, -0.1509607, -0.1201907, -0.01553166],
    "enhanced position": [-0.1223916, 0.2475208, 0.2025068, -0.02897981],
    "enhanced delta": [-0.06558672, -0.2162369, -0.1301986, -0.1063697],
    "he_normal": [-0.09132282, -0.1509607, -0.1201907, -0.01553166],
    "he_uniform": [-0.2243239, 0.4772601, 0.3236256, -0.05078877],
    "glorot_normal": [-0.05272526, -0.08715721, -0.06939214, -0.008967207],
    "glorot_uniform": [-0.1332136, 0.3136657, 0.146108, -0.02757638],
    "lecun_normal": [-0.03769017, -0.2050511, -0.1107074, -0.1019649],
    "lecun_uniform": [-0.1631527, 0.3841605, 0.178945, -0.03377402],
    "residual of ours": [-0.05974033, -0.1851576, -0.1366614, -0.1019016],
    "partial identity of ours": [-0.05974033, -0.1851576, -0.1366614, -0.1019016],
    "depth of ours": [-0.05974033, -0.1851576, -0.1366614, -0.1019016],
}
CONTEXT_REFERENCE = [0.2322167, 0.3349778, 0.1286613, 0.4478969]
BLOCK_REFERENCE = [-0.02926666, 0.02238394, -0.1514676, -0.1391405]


@pytest.mark.parametrize("case", REFERENCE)
def test_the_stream_is_the_reference_one_on_every_backend(case):
    kernel = draw(make(case, seed=1), (3, 3, 4, 8)).ravel()
    np.testing.assert_allclose(kernel[:4], REFERENCE[case], rtol=1e-5)


def test_streams_of_a_context_and_of_many_blocks_are_the_reference_ones():
    kernel = draw(kv.ASVForward(seed=1, context=context_for((3, 3, 4, 8))), (3, 3, 4, 8)).ravel()
    np.testing.assert_allclose(kernel[:4], CONTEXT_REFERENCE, rtol=1e-5)
    kernel = draw(kv.ASVForward(seed=1), (300, 1000)).ravel()
    np.testing.assert_allclose(kernel[[0, 65536, 150000, -1]], BLOCK_REFERENCE, rtol=1e-5)


def bidirectional(units, **arguments):
    return L.Bidirectional(L.LSTM(units, **arguments))


def time_distributed(units, **arguments):
    return L.TimeDistributed(L.Dense(units, **arguments))


SEPARABLE = [(3, 3, 4, 1), (1, 1, 4, 6)]
ATTENTION = 3 * [(4, 2, 3)] + [(2, 3, 4)]
# Layer, its arguments, which initializers it takes, the shape of its input and of its kernels.
LAYERS = {
    "Dense": (L.Dense, (6,), "kernel", (8,), [(8, 6)]),
    "Conv1D": (L.Conv1D, (6, 3), "kernel", (9, 4), [(3, 4, 6)]),
    "Conv2D": (L.Conv2D, (6, 3), "kernel", (9, 9, 4), [(3, 3, 4, 6)]),
    "Conv3D": (L.Conv3D, (6, 2), "kernel", (5, 5, 5, 4), [(2, 2, 2, 4, 6)]),
    "DepthwiseConv2D": (L.DepthwiseConv2D, (3,), "depthwise", (9, 9, 4), [(3, 3, 4, 1)]),
    "SeparableConv2D": (L.SeparableConv2D, (6, 3), "depthwise pointwise", (9, 9, 4), SEPARABLE),
    "Conv2DTranspose": (L.Conv2DTranspose, (6, 3), "kernel", (9, 9, 4), [(3, 3, 6, 4)]),
    "EinsumDense": (L.EinsumDense, ("abc,cd->abd", (None, 6)), "kernel", (5, 4), [(4, 6)]),
    "Embedding": (L.Embedding, (9, 6), "embeddings", (5,), [(9, 6)]),
    "LSTM": (L.LSTM, (6,), "kernel recurrent", (5, 4), [(4, 24), (6, 24)]),
    "GRU": (L.GRU, (6,), "kernel recurrent", (5, 4), [(4, 18), (6, 18)]),
    "MultiHeadAttention": (L.MultiHeadAttention, (2, 3), "kernel", (5, 4), ATTENTION),
    "Bidirectional": (bidirectional, (3,), "kernel recurrent", (5, 4), 2 * [(4, 12), (3, 12)]),
    "TimeDistributed": (time_distributed, (6,), "kernel", (5, 4), [(4, 6)]),
}


@pytest.mark.prerelease
@pytest.mark.parametrize("name", LAYERS)
def test_every_string_id_builds_the_layer(name):
    for string in STRING_IDS:
        check_built(string, name, "float32", "float32")


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_have_the_variable_dtype_of_the_policy(name):
    for policy, stored in (("bfloat16", "bfloat16"), ("mixed_float16", "float32")):
        check_built("asv_backward", name, policy, stored)


def check_built(string, name, policy, stored):
    make_layer, arguments, roles, shape, kernel_shapes = LAYERS[name]
    keras.config.set_dtype_policy(policy)
    layer = make_layer(*arguments, **{f"{role}_initializer": string for role in roles.split()})
    batched = (None, *shape)
    layer.build(*((batched, batched) if name == "MultiHeadAttention" else (batched,)))
    kernels = [w for w in layer.trainable_variables if "bias" not in w.path]
    assert [tuple(kernel.shape) for kernel in kernels] == kernel_shapes, string
    assert {keras.backend.standardize_dtype(kernel.dtype) for kernel in kernels} == {stored}
    values = [as_float32(kernel.value) for kernel in kernels]
    assert all(np.all(np.isfinite(value)) and np.std(value) > 0 for value in values), string
    # An unseeded string draws every kernel anew, also where a layer clones its initializer.
    assert len({tuple(value.ravel()[:4]) for value in values}) == len(values), string
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
