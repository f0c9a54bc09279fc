"""Initializers of biases and of normalization scales: what each promises, and its law."""

import json
import math
import random

import keras
import numpy as np
import pytest

import keras_varinit as kv

L = keras.layers

WRAPPERS = (kv.Enhanced, kv.DepthScaled, kv.ResidualScaled, kv.PartialIdentity, kv.Mimetic)

# Class, string id, arguments, role, and the value without a context.
CASES = {
    "fan_in_bias": (kv.FanInBias, "fan_in_bias", {}, "bias", 0.0),
    "chrono_bias": (kv.ChronoBias, "chrono_bias", {}, "bias", 0.0),
    "chrono_bias of T": (kv.ChronoBias, "chrono_bias", {"max_steps": 50}, "bias", 0.0),
    "branch_end_zeros": (kv.BranchEndZeros, "branch_end_zeros", {}, "scale", 1.0),
}

cases = pytest.mark.parametrize("case", CASES)


def context(role="bias", kernel_shape=(24, 400), **fields):
    return kv.LayerContext(
        **{
            "path": "net/layer/vector",
            "layer": "layer",
            "stream": "layer/vector",
            "kernel_shape": kernel_shape,
            "depth": 1,
            "total_depth": 2,
            "fan_in": 25.0,
            "fan_out": 400.0,
            "filter_axes": (1,),
            "role": role,
            **fields,
        }
    )


def gates_context(gates, steps=None, units=100):
    return context(kernel_shape=(24, gates * units), gates=gates, steps=steps)


def draw(initializer, shape, dtype="float32"):
    return as_float32(initializer(shape, dtype=dtype))


def as_float32(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


@cases
def test_without_context_every_shape_and_dtype_has_the_default_of_keras(case):
    cls, _, arguments, _, value = CASES[case]
    initializer = cls(**arguments)
    for shape in ((7,), (2, 12), (3, 4, 5)):
        for dtype in ("float32", "float16", "bfloat16"):
            drawn = initializer(shape, dtype=dtype)
            assert keras.backend.standardize_dtype(drawn.dtype) == dtype
            np.testing.assert_array_equal(draw(initializer, shape, dtype), np.full(shape, value))
        assert initializer.stddev(shape) == 0
        neutral = initializer.neutral()
        assert type(neutral).__module__.startswith("keras")
        np.testing.assert_array_equal(draw(neutral, shape), np.full(shape, value))


@pytest.mark.prerelease
@cases
def test_found_by_string_class_name_registered_name_object_and_dictionary(case):
    cls, string, arguments, _, _ = CASES[case]
    for identifier in (string, cls.__name__, f"keras_varinit>{cls.__name__}"):
        assert type(keras.initializers.get(identifier)) is cls
    initializer = cls(**arguments)
    config = initializer.get_config()
    assert keras.initializers.get(initializer) is initializer
    twin = keras.initializers.get({"class_name": string, "config": config})
    assert (type(twin), twin.get_config()) == (cls, config)


@pytest.mark.prerelease
@cases
def test_config_is_json_and_redraws_the_same_vector(case):
    cls, _, arguments, role, _ = CASES[case]
    fields = {"gates": 4, "steps": 20, "branch_end": True}
    for place in (None, context(role, **fields)):
        initializer = cls(**arguments, context=place)
        if role == "bias":
            initializer = cls(**arguments, seed=9, context=place)
        config = initializer.get_config()
        assert json.loads(json.dumps(config)) == config
        saved = json.loads(json.dumps(keras.saving.serialize_keras_object(initializer)))
        for twin in (cls.from_config(config), keras.saving.deserialize_keras_object(saved)):
            assert twin.get_config() == config
            assert twin.context == place
            np.testing.assert_array_equal(draw(twin, (400,)), draw(initializer, (400,)))


@cases
def test_drawing_leaves_the_global_random_state_alone(case):
    cls, _, arguments, role, _ = CASES[case]
    initializer = cls(**arguments, context=context(role))
    before = random.getstate()
    draw(initializer, (400,))
    assert random.getstate() == before


def test_branch_end_zeros_consumes_no_random_number():
    before = random.getstate()
    kv.BranchEndZeros()
    assert random.getstate() == before


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fan_in_bias", r"FanInBias\(.*it draws biases"),
        ("chrono_bias", r"ChronoBias\(.*it draws biases"),
        ("branch_end_zeros", r"BranchEndZeros\(.*it draws nothing at random"),
    ],
)
def test_wrappers_refuse_them_with_a_reason(wrapper, name, reason):
    with pytest.raises(ValueError, match=reason):
        wrapper(name)


@cases
def test_context_of_a_kernel_warns_and_gives_the_default(case):
    cls, _, arguments, _, value = CASES[case]
    initializer = cls(**arguments, context=context("kernel", gates=4, steps=50))
    with pytest.warns(UserWarning, match=rf"role 'kernel'.*{cls.__name__} draws"):
        drawn = initializer((400,))
    np.testing.assert_array_equal(as_float32(drawn), np.full(400, value))


def test_initializers_of_kernels_warn_at_the_context_of_a_bias():
    with pytest.warns(UserWarning, match=r"role 'bias'.*ASVForward draws kernels"):
        kv.ASVForward(context=context())((8, 4))


def test_biases_are_uniform_within_the_bound_of_the_kernel():
    biases = draw(kv.FanInBias(seed=1, context=context()), (20_000,))
    bound = 1 / math.sqrt(25)
    assert np.abs(biases).max() <= bound
    # Five standard errors: of the mean; of the mean square, Var x² = (1/5 - 1/9)·bound⁴.
    assert abs(biases.mean()) < 5 * bound / math.sqrt(3 * biases.size)
    error = bound**2 * math.sqrt((1 / 5 - 1 / 9) / biases.size)
    assert abs(np.mean(biases**2) - bound**2 / 3) < 5 * error
    # The greatest of n uniform entries falls short of the bound by bound/n on average.
    assert np.abs(biases).max() > bound * (1 - 15 / biases.size)
    assert kv.FanInBias(context=context()).stddev((3,)) == pytest.approx(bound / math.sqrt(3))


def test_biases_of_two_layers_and_seeds_differ():
    one = draw(kv.FanInBias(seed=1, context=context()), (50,))
    for other in (
        kv.FanInBias(seed=2, context=context()),
        kv.FanInBias(seed=1, context=context(stream="layer/other")),
    ):
        assert not np.any(draw(other, (50,)) == one)


def test_pieces_of_one_bias_differ():
    initializer = kv.FanInBias(seed=1, context=context())
    assert not np.any(draw(initializer, (100,)) == draw(initializer, (200,))[:100])


def law_of_times(biases, longest):
    """Checks e^b against U(1, T-1), at five standard errors of the mean and of the mean square."""
    times = np.exp(biases.astype(np.float64))
    assert times.min() >= 1 - 1e-6
    assert times.max() <= (longest - 1) * (1 + 1e-6)
    share = (times - 1) / (longest - 2)
    assert abs(share.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / share.size)
    assert abs(np.mean(share**2) - 1 / 3) < 5 * math.sqrt((1 / 5 - 1 / 9) / share.size)


@pytest.mark.parametrize(
    ("max_steps", "steps", "longest"), [(None, 784, 784), (50, 784, 50), (50, None, 50)]
)
def test_lstm_has_times_up_to_the_longest_dependence(max_steps, steps, longest):
    units = 2000
    initializer = kv.ChronoBias(max_steps, seed=1, context=gates_context(4, steps, units))
    assert initializer.sets_forget_gate
    assert initializer.stddev((4 * units,)) is None
    first, forget, cell, output = np.split(draw(initializer, (4 * units,)), 4)
    law_of_times(forget, longest)
    np.testing.assert_array_equal(first, -forget)
    assert not np.any(cell)
    assert not np.any(output)


@pytest.mark.parametrize("shape", [(6000,), (2, 6000)])
def test_gru_keeps_its_state_for_the_same_times(shape):
    initializer = kv.ChronoBias(seed=1, context=gates_context(3, 100, 2000))
    assert not initializer.sets_forget_gate
    rows = draw(initializer, shape).reshape(-1, 6000)
    update, *others = np.split(rows[0], 3)
    law_of_times(update, 100)
    assert not np.any(others)
    assert not np.any(rows[1:])


def test_update_gate_of_keras_is_the_one_that_forgets_slowly():
    """A GRU that reads nothing keeps its state by σ(b_z) at every step."""
    layer = L.GRU(3, recurrent_initializer="zeros", kernel_initializer="zeros")
    layer.build((None, 4, 2))
    bias = draw(kv.ChronoBias(100, seed=1, context=gates_context(3, units=3)), (2, 9))
    layer.cell.bias.assign(bias)
    state = np.ones((1, 3), "float32")
    after = keras.ops.convert_to_numpy(layer(np.zeros((1, 1, 2)), initial_state=[state]))
    np.testing.assert_allclose(after[0], 1 / (1 + np.exp(-bias[0, :3])), rtol=1e-5)


@pytest.mark.parametrize(
    ("gates", "steps"), [(4, None), (4, 2), (4, 1), (3, None), (1, 50), (None, 50)]
)
def test_default_where_there_are_no_gates_or_no_times(gates, steps):
    place = context(kernel_shape=(24, 12), gates=gates, steps=steps)
    initializer = kv.ChronoBias(seed=1, context=place)
    assert not initializer.sets_forget_gate
    assert initializer.stddev((12,)) == 0
    assert not np.any(draw(initializer, (12,)))


@pytest.mark.parametrize("value", [0, -1, 2.5, "50", True])
def test_longest_dependence_must_be_a_positive_integer(value):
    with pytest.raises(ValueError, match=r"ChronoBias: `max_steps` must be a positive integer or"):
        kv.ChronoBias(value)


@pytest.mark.parametrize("ends", [True, False])
def test_scales_are_zero_where_they_end_a_branch(ends):
    initializer = kv.BranchEndZeros(context=context("scale", branch_end=ends))
    np.testing.assert_array_equal(draw(initializer, (5,)), np.full(5, 0.0 if ends else 1.0))
    kept = initializer.in_keras()
    np.testing.assert_array_equal(draw(kept, (5,)), draw(initializer, (5,)))


# Layer, the shape of its input, where its bias or γ is, and the attribute of its initializer.
LAYERS = {
    "Dense": (lambda **a: L.Dense(6, **a), (8,), "bias"),
    "Conv2D": (lambda **a: L.Conv2D(6, 3, **a), (9, 9, 4), "bias"),
    "DepthwiseConv2D": (lambda **a: L.DepthwiseConv2D(3, **a), (9, 9, 4), "bias"),
    "SeparableConv2D": (lambda **a: L.SeparableConv2D(6, 3, **a), (9, 9, 4), "bias"),
    "Conv2DTranspose": (lambda **a: L.Conv2DTranspose(6, 3, **a), (9, 9, 4), "bias"),
    "EinsumDense": (
        lambda **a: L.EinsumDense("abc,cde->abde", (None, 2, 6), bias_axes="de", **a),
        (5, 4),
        "bias",
    ),
    "LSTM": (lambda **a: L.LSTM(6, unit_forget_bias=False, **a), (5, 4), "bias"),
    "GRU": (lambda **a: L.GRU(6, **a), (5, 4), "bias"),
    "SimpleRNN": (lambda **a: L.SimpleRNN(6, **a), (5, 4), "bias"),
    "Bidirectional": (
        lambda **a: L.Bidirectional(L.LSTM(6, unit_forget_bias=False, **a)), (5, 4), "bias",
    ),
    "MultiHeadAttention": (lambda **a: L.MultiHeadAttention(2, 3, **a), (5, 4), "bias"),
    "BatchNormalization": (lambda **a: L.BatchNormalization(**a), (4,), "gamma"),
    "LayerNormalization": (lambda **a: L.LayerNormalization(**a), (4,), "gamma"),
    "GroupNormalization": (lambda **a: L.GroupNormalization(2, **a), (4,), "gamma"),
}  # fmt: skip


@pytest.mark.prerelease
@pytest.mark.parametrize("name", LAYERS)
@cases
def test_every_layer_is_built_with_its_default(name, case):
    cls, string, _, _, value = CASES[case]
    make, shape, kind = LAYERS[name]
    layer = make(**{f"{kind}_initializer": string})
    batched = (None, *shape)
    layer.build(*((batched, batched) if name == "MultiHeadAttention" else (batched,)))
    vectors = [w for w in layer.weights if w.name == kind]
    assert vectors
    for vector in vectors:
        entries = keras.ops.convert_to_numpy(vector)
        np.testing.assert_array_equal(entries, np.full(entries.shape, value))
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
    assert cls.__name__ in json.dumps(layer.get_config())
