"""`ResidualScaled`: standard deviations at the ends of residual branches, and kernels of zeros."""

import json
import math

import keras
import numpy as np
import pytest
from scipy import stats

import keras_varinit as kv
from tests.initializers.roles import set_roles
from tests.initializers.test_depth import context
from tests.models import weights

K = keras.initializers
L = keras.layers
SHAPE = (64, 48)

END = {"branch_end": True}
INSIDE = {"branches": 16, "branch_size": 3}
# Rule, fields of the context, factor on the standard deviation.
FACTORS = [
    ("depth", {}, 1.0),
    ("depth", INSIDE, 1.0),
    ("depth", {**INSIDE, **END}, 0.25),
    ("depth", {"branches": 1, "branch_size": 1, **END}, 1.0),
    ("depth", {"branches": 54, "branch_size": 2, **END}, 0.13608276348795434),
    ("depth", {**INSIDE, **END, "normalized": "LayerNormalization"}, 0.25),
    ("depth", {"role": "attention_output", "branches": 24, "branch_size": 4, **END}, 1 / 24**0.5),
    ("depth", {"role": "head"}, 1.0),
    ("fixup", {}, 1.0),
    ("fixup", INSIDE, 0.5),
    ("fixup", {"branches": 16, "branch_size": 2}, 0.25),
    ("fixup", {"branches": 64, "branch_size": 4, "role": "query"}, 0.5),
    ("fixup", {"branches": 16, "branch_size": 1}, 1.0),
    ("fixup", {"branches": 16}, 1.0),
    ("fixup", {**INSIDE, **END}, 0.0),
    ("fixup", {"branches": 16, "branch_size": 1, **END}, 0.0),
    ("fixup", {**INSIDE, **END, "normalized": "BatchNormalization"}, 1.0),
    ("fixup", {"role": "head"}, 0.0),
    ("zero", {}, 1.0),
    ("zero", INSIDE, 1.0),
    ("zero", {**INSIDE, **END}, 0.0),
    ("zero", {**INSIDE, **END, "normalized": "BatchNormalization"}, 1.0),
    ("zero", {"role": "head"}, 1.0),
]  # fmt: skip
TRUNCATED_KURTOSIS = 3 + float(stats.truncnorm(-2, 2).stats("k"))
# Base, its variance for fans 64 and 48, and its kurtosis.
BASES = {
    "he_normal": (2 / 64, TRUNCATED_KURTOSIS),
    "glorot_uniform": (2 / 112, 9 / 5),
    "random_normal": (0.05**2, 3.0),
    "asv_forward": (1 / 64, 3.0),
}


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor).astype(np.float64)


@pytest.mark.parametrize(("rule", "fields", "factor"), FACTORS)
@pytest.mark.parametrize("base", BASES)
def test_the_factor_in_what_is_stated_and_in_what_is_drawn(rule, fields, factor, base):
    variance, kurtosis = BASES[base]
    scaled = kv.ResidualScaled(base, rule, seed=3, context=context(**fields))
    assert scaled.stddev(SHAPE) == pytest.approx(factor * math.sqrt(variance), rel=1e-6)
    kernel = numpy(scaled(SHAPE))
    if factor == 0:
        assert not kernel.any()
        return
    error = math.sqrt((kurtosis - 1) / kernel.size)  # relative, of a mean square
    assert abs(np.mean(kernel**2) / (factor**2 * variance) - 1) < 4 * error


@pytest.mark.parametrize("rule", ["depth", "fixup", "zero"])
@pytest.mark.parametrize("name", ["he_normal", "orthogonal", "asv_backward", "enhanced_he_normal"])
def test_without_context_it_is_the_base_bit_for_bit(rule, name):
    base = type(K.get(name))(seed=9)
    drawn = numpy(base(SHAPE))
    np.testing.assert_array_equal(numpy(kv.ResidualScaled(name, rule, seed=9)(SHAPE)), drawn)
    np.testing.assert_array_equal(numpy(kv.ResidualScaled(base, rule)(SHAPE)), drawn)
    neutral = kv.ResidualScaled(base, rule).neutral()
    assert type(neutral).__module__.startswith("keras.")


def test_a_base_of_unknown_law_is_scaled_and_zeroed_too():
    class Signs(K.RandomNormal):
        def __init__(self, seed=None):
            super().__init__(seed=seed)

        def __call__(self, shape, dtype=None):
            return keras.ops.sign(super().__call__(shape, dtype=dtype))

        def get_config(self):
            return {"seed": self.seed}

    end = context(branches=4, **END)
    np.testing.assert_array_equal(
        np.abs(numpy(kv.ResidualScaled(Signs(), seed=1, context=end)(SHAPE))), 0.5
    )
    assert kv.ResidualScaled(Signs(), "zero", context=end).stddev(SHAPE) == 0.0


def residual(width=64, blocks=4, initializer="he_normal"):
    """Dense branches of two kernels, each after an activation."""
    inputs = keras.Input((width,))
    x = L.Dense(width, kernel_initializer=initializer, name="stem")(inputs)
    for block in range(blocks):
        y = L.Dense(width, kernel_initializer=initializer, name=f"in{block}")(L.ReLU()(x))
        y = L.Dense(width, kernel_initializer=initializer, name=f"end{block}")(L.ReLU()(y))
        x = L.Add()([x, y])
    return keras.Model(inputs, L.Dense(8, kernel_initializer=initializer, name="out")(x))


def role_of(context):
    if context.layer in ("stem", "out"):
        return {"role": "head"} if context.layer == "out" else {}
    return {"branches": 4, "branch_size": 2, "branch_end": context.layer.startswith("end")}


@pytest.fixture
def roles(monkeypatch):
    set_roles(monkeypatch, role_of)


def kernel(model, name):
    return numpy(model.get_layer(name).kernel)


@pytest.mark.once
@pytest.mark.parametrize("rule", ["depth", "fixup", "zero"])
def test_the_engine_predicts_what_is_measured(rule, roles):
    model = residual()
    layers = [layer for layer in model.layers if layer.weights]
    inside = keras.Model(model.inputs[0], [layer.output for layer in layers])
    scheme, rng, rows = kv.ResidualScaled("he_normal", rule), np.random.default_rng(0), []
    for seed in range(150):
        kv.initialize(model, scheme, seed=seed)
        x = rng.standard_normal((64, 64)).astype("float32")
        rows.append([np.mean(numpy(u) ** 2) for u in inside(x)])
    analysis = kv.analyze(model)
    assert analysis.notes == ()
    predicted = [p.forward for p in analysis.predicted.values()]
    mean, error = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / math.sqrt(len(rows))
    # The stem passes on 2, each kernel in a branch He's factor times the stream, times the rule's.
    ends = {"depth": 1 / 4, "fixup": 0, "zero": 0}[rule]
    insides = {"depth": 1, "fixup": 1 / 4, "zero": 1}[rule]
    stream, expected = 2.0, [2.0]
    for _ in range(4):
        expected += [stream * insides, stream * insides * ends]
        stream += expected[-1]
    expected.append(0 if rule == "fixup" else 2 * stream)
    np.testing.assert_allclose(predicted, expected, rtol=0.02, atol=1e-12)
    assert np.all(np.abs(mean - expected) <= 4 * error + 0.01 * np.asarray(expected)), mean
    assert np.all(error <= 0.05 * np.asarray(expected))


@pytest.mark.parametrize("rule", ["fixup", "zero"])
def test_gradients_do_not_pass_ends_of_zeros_and_the_stream_stays_known(rule, roles):
    model = residual()
    kv.initialize(model, kv.ResidualScaled("he_normal", rule), seed=0)
    predicted = kv.analyze(model).predicted
    by_layer = {path.split("/")[-2]: p for path, p in predicted.items()}
    for block in range(4):
        assert by_layer[f"in{block}"].backward == 0
    # White noise at the output, through the last kernel, or none of it where that is zero.
    want = 0 if rule == "fixup" else 8 * 2 / 64
    assert by_layer["end3"].backward == pytest.approx(want, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("rule", ["fixup", "zero"])
def test_equal_kernels_of_zeros_are_neither_kept_apart_nor_reported(rule, roles):
    model = residual()
    scheme = kv.ResidualScaled("he_normal", rule, seed=5)
    report = kv.initialize(model, scheme)
    zeros = [row for row in report if row.stddev == 0]
    assert len(zeros) == (5 if rule == "fixup" else 4)
    assert not any(kernel(model, f"end{block}").any() for block in range(4))
    assert kv.lint(model) == []
    drawn = weights(model)
    again = kv.inject(model)
    assert {row.status for row in again} == {"skipped: already drawn for this context"}
    one = kv.initialize(model, scheme, layers=["end1"])
    (row,) = (row for row in one if row.context is not None)
    assert row.context.stream == report[row.path].context.stream  # of no other kernel's accord
    for value, before in zip(weights(model), drawn, strict=True):
        np.testing.assert_array_equal(value, before)


def test_inject_zeroes_the_ends_and_touches_no_trained_kernel(roles):
    model = residual(initializer="residual_scaled")
    for layer in model.layers:
        if layer.weights:
            layer.kernel_initializer.rule = "zero"
    neutral = kernel(model, "end0")
    assert neutral.any()
    trained = model.get_layer("end2").kernel
    trained.assign(np.ones(trained.shape))
    report = kv.inject(model)
    assert report[trained.path].status == "skipped: trained, loaded or set since it was drawn"
    np.testing.assert_array_equal(kernel(model, "end2"), 1)
    assert not any(kernel(model, f"end{n}").any() for n in (0, 1, 3))
    assert kv.inject(model).drawn == ()
    kv.inject(model, force=True)
    assert not kernel(model, "end2").any()


def test_zeros_by_mistake_are_still_found(roles):
    """Where a kernel of zeros ends no branch, what follows it is dead."""
    model = residual()
    model.get_layer("stem").kernel.assign(np.zeros((64, 64)))
    assert [f.rule for f in kv.lint(model)] == ["never-drawn", "vanishing-scale"]


@pytest.mark.parametrize("base", ["he_normal", "he_uniform", "asv_backward"])
def test_a_builtin_copy_has_zeros_too(base, roles):
    model = residual()
    kv.initialize(model, kv.ResidualScaled(base, "zero", seed=1))
    copy = kv.to_builtin(model)
    assert "keras_varinit" not in json.dumps(keras.saving.serialize_keras_object(copy))
    assert isinstance(copy.get_layer("end0").kernel_initializer, K.Zeros)
    assert not isinstance(copy.get_layer("in0").kernel_initializer, K.Zeros)
    for value, copied in zip(weights(model), weights(copy), strict=True):
        np.testing.assert_array_equal(value, copied)


@pytest.mark.parametrize("wrapped", [lambda b: kv.Enhanced(b), lambda b: kv.DepthScaled(b, 4.0)])
def test_it_is_a_base_itself(wrapped):
    base = kv.ResidualScaled("he_normal")
    end = context(branches=16, **END)
    ratio = wrapped(base).with_context(end).stddev(SHAPE) / wrapped(base).with_context(
        context()
    ).stddev(SHAPE)
    assert ratio == pytest.approx(0.25, rel=1e-9)
    zeroed = wrapped(kv.ResidualScaled("he_normal", "zero")).with_context(end)
    assert zeroed.stddev(SHAPE) == 0
    assert not numpy(zeroed(SHAPE)).any()


def test_signal_preserving_as_a_base_gets_its_gain(roles):
    model = residual()
    report = kv.initialize(model, kv.ResidualScaled("signal_preserving"), seed=0)
    predicted = [p.forward for p in kv.analyze(model).predicted.values()]
    want = [1, *([1, 1 / 4] * 4), 1]
    np.testing.assert_allclose(predicted, want, rtol=1e-6)
    assert report.notes == ()
