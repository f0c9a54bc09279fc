"""Mistakes of the user: the text names class, argument, received value and the fix."""

import re

import keras
import numpy as np
import pytest

import keras_varinit as kv

pytestmark = pytest.mark.once

K = keras.initializers
NAN, INF = float("nan"), float("inf")
PRESETS = [
    kv.EnhancedHeNormal,
    kv.EnhancedHeUniform,
    kv.EnhancedGlorotNormal,
    kv.EnhancedGlorotUniform,
    kv.EnhancedLecunNormal,
    kv.EnhancedLecunUniform,
]


def enhanced(**arguments):
    return kv.Enhanced("he_normal", **arguments)


enhanced.__name__ = "Enhanced"
ASV = [kv.ASVForward, kv.ASVBackward]
ENHANCED = [enhanced, *PRESETS]
DEPTH = [kv.DepthScaled]
SIGNAL = [kv.SignalPreserving]
RESIDUAL = [kv.ResidualScaled]
PARTIAL = [kv.PartialIdentity]
MIMETIC = [kv.Mimetic]
ISOMETRIC = [kv.Isometric]
ALL = [*ASV, *ENHANCED, *DEPTH, *SIGNAL, *RESIDUAL, *PARTIAL, *MIMETIC, *ISOMETRIC]

DISTRIBUTIONS = "one of 'normal', 'truncated_normal', 'uniform', 'orthogonal'"
RULES = "one of 'depth', 'fixup', 'zero'"
SCHEDULES = "one of 'increasing', 'decreasing', 'constant'"
SEED = "an integer or None (calls are pure, so a SeedGenerator cannot be used)"
# Classes, argument, bad values, error and what the text says the argument must be.
ARGUMENTS = [
    (ALL, "seed", [1.0, "3", True, [1]], TypeError, SEED),
    (ALL, "context", [3, "x", [1]], TypeError, "a LayerContext, its dictionary or None"),
    ([*ASV, *SIGNAL], "distribution", ["gauss", "Normal"], ValueError, DISTRIBUTIONS),
    ([*ASV, *SIGNAL], "distribution", [None, 3, ["normal"]], TypeError, DISTRIBUTIONS),
    (SIGNAL, "target", [0, 0.0, -1, NAN, INF], ValueError, "finite and greater than 0"),
    (SIGNAL, "target", ["1", None, True, [1]], TypeError, "a number"),
    (ASV, "max_gain", [0, 0.0, -1, NAN, INF], ValueError, "finite and greater than 0"),
    (ASV, "max_gain", ["3", True, [3]], TypeError, "a number"),
    (ENHANCED, "granularity", ["row", "Filter"], ValueError, "one of 'filter', 'position'"),
    (ENHANCED, "granularity", [None, 3], TypeError, "one of 'filter', 'position'"),
    (ENHANCED, "concentration", [0, -1, NAN, INF], ValueError, "finite and greater than 0"),
    (ENHANCED, "concentration", ["x", None, True], TypeError, "a number"),
    (ENHANCED, "delta", [0, -0.1, 1.5, NAN], ValueError, "finite and greater than 0 and at most 1"),
    (ENHANCED, "delta", ["x", True, [0.5]], TypeError, "a number"),
    (DEPTH, "base", [1, 1.0, 0.5, -2, NAN, INF], ValueError, "finite and greater than 1"),
    (DEPTH, "base", ["3", True, [3]], TypeError, "a number"),
    (DEPTH, "offset", [-1, -0.01, NAN, INF], ValueError, "finite and at least 0"),
    (DEPTH, "offset", ["1", None, True], TypeError, "a number"),
    (DEPTH, "schedule", ["up", "Increasing"], ValueError, SCHEDULES),
    (DEPTH, "schedule", [None, 3], TypeError, SCHEDULES),
    (DEPTH, "network_variance", [0, -22, NAN, INF], ValueError, "finite and greater than 0"),
    (DEPTH, "network_variance", ["x", True], TypeError, "a number"),
    (ISOMETRIC, "gain", [0, -1, NAN, INF], ValueError, "finite and greater than 0"),
    (ISOMETRIC, "gain", ["1", None, True, [1]], TypeError, "a number"),
    (RESIDUAL, "rule", ["gpt", "Depth"], ValueError, RULES),
    (RESIDUAL, "rule", [None, 3], TypeError, RULES),
]


def assert_raises(error, text, call, *arguments, **named):
    """The whole text, so that nothing is left out of it; what is similar to a choice is a hint."""
    hint = r"( Did you mean '\w+'( or '\w+')*\?)?" if "must be one of" in text else ""
    with pytest.raises(error, match=f"^{re.escape(text)}{hint}$"):
        call(*arguments, **named)


def test_a_misspelled_choice_gets_a_hint():
    with pytest.raises(
        ValueError, match=r"Received: schedule='increase'\. Did you mean 'increasing'"
    ):
        kv.DepthScaled(schedule="increase")


@pytest.mark.parametrize("row", ARGUMENTS, ids=[f"{row[1]}-{row[3].__name__}" for row in ARGUMENTS])
def test_a_bad_argument_is_named_with_what_was_received(row):
    classes, argument, values, error, wanted = row
    for cls in classes:
        for value in values:
            text = f"{cls.__name__}: `{argument}` must be {wanted}. Received: {argument}={value!r}."
            assert_raises(error, text, cls, **{argument: value})


def test_a_seed_generator_is_no_seed():
    for cls in ALL:
        text = f"{cls.__name__}: `seed` must be {SEED}. Received: seed=<"
        with pytest.raises(TypeError, match=re.escape(text)):
            cls(seed=keras.random.SeedGenerator(1))


def test_delta_excludes_a_concentration():
    for cls in ENHANCED:
        text = (
            f"{cls.__name__}: `delta` picks the naive uniform law of the variance, which has no "
            "`concentration`. Received: delta=0.5, concentration=2."
        )
        assert_raises(ValueError, text, cls, delta=0.5, concentration=2)


def test_base_excludes_a_network_variance():
    text = (
        "DepthScaled: `network_variance` determines the base, so give only one of the two. "
        "Received: base=3, network_variance=22."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        kv.DepthScaled(base=3, network_variance=22)


class Unseeded(K.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.zeros(shape, dtype)

    def get_config(self):
        return {}


MEAN = "`initializer` must be zero-mean (have mean 0). Received: "
RANGE = "`initializer` must be zero-mean (satisfy minval = -maxval). Received: "
NAME = "`initializer` must name a Keras or keras_varinit initializer. Received: initializer="
KIND = "`initializer` must be an initializer, its name or its config. Received: initializer="
DRAWS = (
    "`initializer` must draw random values from a `seed` in its config, so that each kernel gets "
    "its own stream. Received: initializer=<"
)
LENT = (
    "the seed of `initializer` must be an integer or None, since calls are pure. Received: seed=<"
)


WRAPPERS = [kv.Enhanced, kv.DepthScaled, kv.ResidualScaled, kv.PartialIdentity, kv.Mimetic]


@pytest.mark.parametrize("cls", WRAPPERS)
@pytest.mark.parametrize(
    ("make_base", "error", "text"),
    [
        (lambda: K.RandomNormal(mean=1), ValueError, MEAN + "RandomNormal with mean 1."),
        (lambda: K.TruncatedNormal(mean=-0.5), ValueError, MEAN + "TruncatedNormal with mean -0.5"),
        (lambda: K.RandomUniform(0, 1), ValueError, RANGE + "RandomUniform with mean 0.5."),
        (lambda: "ones", ValueError, MEAN + "Ones with mean 1."),
        (lambda: K.Constant(0.1), ValueError, MEAN + "Constant with mean 0.1."),
        (lambda: "zeros", ValueError, DRAWS),
        (lambda: K.Zeros(), ValueError, DRAWS),
        (lambda: "identity", ValueError, DRAWS),
        (lambda: Unseeded(), ValueError, DRAWS),
        (lambda: "he_norml", ValueError, NAME + "'he_norml'."),
        (lambda: {"class_name": "HeNorml", "config": {}}, ValueError, NAME + "{'class_name'"),
        (lambda: 3, ValueError, NAME + "3."),
        (lambda: None, TypeError, KIND + "None."),
        (lambda: lambda shape, dtype=None: 0, TypeError, KIND + "<function"),
        (lambda: K.HeNormal(seed=keras.random.SeedGenerator(1)), ValueError, LENT),
    ],
)
def test_a_base_that_cannot_be_scaled_is_refused(cls, make_base, error, text):
    with pytest.raises(error, match=re.escape(f"{cls.__name__}: {text}")):
        cls(make_base())


@pytest.mark.parametrize("cls", WRAPPERS)
@pytest.mark.parametrize("base", ["partial_identity", kv.PartialIdentity("he_uniform", seed=1)])
def test_identity_filters_cannot_be_scaled(cls, base):
    text = (
        f"{cls.__name__}: `initializer` must be an initializer whose draws can be scaled. "
        "Received: initializer=PartialIdentity("
    )
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        cls(base)
    reason = ": a factor would turn its identity filters into a gain."
    assert str(caught.value).endswith(reason)


@pytest.mark.parametrize("cls", ALL)
def test_shapes_and_integer_dtypes_are_refused_when_called(cls):
    initializer, name = cls(seed=0), type(cls(seed=0)).__name__
    for dtype in ("int32", "bool"):
        text = f"{name}: `dtype` must be a floating-point type. Received: dtype='{dtype}'."
        with pytest.raises(ValueError, match=re.escape(text)):
            initializer((3, 4), dtype=dtype)
    for shape in ((), (3, -1)):
        text = (
            f"{name}: `shape` must be a non-empty sequence of sizes >= 0. Received: shape={shape}"
        )
        with pytest.raises(ValueError, match=re.escape(text)):
            initializer(shape)
    for shape in (3, (3, None)):
        text = f"{name}: `shape` must be a sequence of integers. Received: shape={shape}"
        with pytest.raises(TypeError, match=re.escape(text)):
            initializer(shape)


CONTEXT = {
    "path": "net/dense/kernel",
    "layer": "dense",
    "stream": "dense/kernel#1",
    "kernel_shape": (8, 4),
    "depth": 1,
    "total_depth": 3,
    "fan_in": 8,
    "fan_out": 4,
    "filter_axes": (1,),
}
FIELDS = [
    (["path", "layer", "stream"], [3, None], TypeError, "a string"),
    (
        ["kernel_shape", "filter_axes", "spatial_axes"],
        [3, "ab"],
        TypeError,
        "a sequence of integers",
    ),
    (["filter_axes", "spatial_axes"], [(2,), (-1,)], ValueError, "axes of a rank-2 kernel"),
    (["depth", "total_depth", "stride"], [1.0, True, "1"], TypeError, "an integer"),
    (["depth", "total_depth", "stride"], [0, -1], ValueError, "at least 1"),
    (["depth"], [4], ValueError, "at most `total_depth`"),
    (["connections", "input_size", "output_size"], [1.5], TypeError, "an integer or None"),
    (["connections", "input_size", "pool_size"], [0, -1], ValueError, "at least 1 or None"),
    (["fan_in", "fan_out", "forward_gain"], ["x", None, True], TypeError, "a number"),
    (["fan_in", "fan_out"], [0, -1, NAN, INF], ValueError, "finite and positive"),
    (["signal_gain"], ["1", True], TypeError, "a number or None"),
    (["signal_gain"], [0, -1, NAN, INF], ValueError, "finite and positive, or None"),
    (["activation"], [3], TypeError, "a string or None"),
    (["pooling"], ["min", 3], ValueError, "one of None, 'max', 'average'"),
]


@pytest.mark.parametrize("row", FIELDS, ids=[f"{row[0][0]}-{row[3]}" for row in FIELDS])
def test_a_bad_field_of_a_context_is_named(row):
    fields, values, error, wanted = row
    for field in fields:
        for value in values:
            text = f"LayerContext: `{field}` must be {wanted}. Received: {field}={value!r}."
            bad = {**CONTEXT, field: value}
            assert_raises(error, text, kv.LayerContext, **bad)
            assert_raises(error, text, kv.LayerContext.from_dict, bad)


def test_a_context_of_unknown_or_missing_fields_is_refused():
    with pytest.raises(
        ValueError, match=r"LayerContext: unknown fields \['bogus'\]\. Known.*depth"
    ):
        kv.ASVForward(context={**CONTEXT, "bogus": 1})
    with pytest.raises(TypeError, match=r"LayerContext.* missing .*'fan_in'"):
        kv.ASVForward(context={k: v for k, v in CONTEXT.items() if k != "fan_in"})


@pytest.mark.parametrize("schedule", ["increasing", "constant"])
def test_a_first_layer_without_variance_names_the_kernel_and_the_fix(schedule):
    text = (
        "DepthScaled: depth + offset must be greater than 1, or log(depth + offset) leaves no "
        "variance for 'net/dense/kernel'. Received: depth=1, offset=0. "
        "Use an offset greater than 0."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        kv.DepthScaled(offset=0, base=5, schedule=schedule, context=CONTEXT)


def test_a_default_base_that_is_too_small_names_the_kernel_and_the_fix():
    text = (
        "DepthScaled: base = L/3 + offset must be greater than 1 for 'net/dense/kernel'. Received: "
        "L=3, offset=0, so base=1. Give `base` or a larger `offset`."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        kv.DepthScaled(offset=0, context={**CONTEXT, "depth": 2})


@pytest.mark.parametrize("cls", ASV)
def test_a_gain_of_zero_without_a_limit_is_refused(cls):
    context = {**CONTEXT, "forward_gain": 0.0, "backward_gain": 0.0}
    text = (
        f"{cls.__name__}: the gain for 'net/dense/kernel' is 0 (an activation that passes "
        "no signal), so the variance is unbounded. Set `max_gain`. Received: max_gain=None."
    )
    initializer = cls(max_gain=None, context=context)
    for call in (initializer.stddev, initializer):
        with pytest.raises(ValueError, match=re.escape(text)):
            call((8, 4))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"base": 5.0, "offset": 0}, "depth + offset must be greater than 1"),
        ({"offset": 0.5}, "base = L/3 + offset must be greater than 1"),
    ],
)
def test_an_error_while_injecting_names_the_kernel_and_changes_nothing(options, reason):
    bad = kv.DepthScaled(**options)
    good = keras.layers.Dense(4, kernel_initializer="asv_forward", name="good")
    wrong = keras.layers.Dense(2, kernel_initializer=bad, name="wrong")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, [good(inputs), wrong(inputs)], name="net")
    weights = model.get_weights()
    initializers = [good.kernel_initializer, wrong.kernel_initializer]
    with pytest.raises(ValueError, match=re.escape(f"DepthScaled: {reason}")) as caught:
        kv.inject(model)
    assert " for 'wrong/kernel'. Received: " in str(caught.value)
    assert [good.kernel_initializer, wrong.kernel_initializer] == initializers
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
