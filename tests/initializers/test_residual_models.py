"""Standard deviations at the branch ends of whole models, a GPT-2 and ResNets, by layers' names."""

import math

import keras
import numpy as np
import pytest

import keras_varinit as kv

L = keras.layers


def resnet(blocks, *, norm, width=8):
    """A ResNet of 6·blocks + 2 layers with basic blocks; He et al. (2016), section 4.2."""

    def conv(x, filters, k, strides, name):
        x = L.Conv2D(filters, k, strides=strides, padding="same", name=name)(x)
        return L.BatchNormalization()(x) if norm else x

    x = L.ReLU()(conv(inputs := keras.Input((16, 16, 3)), width, 3, 1, "stem"))
    for stage in range(3):
        for block in range(blocks):
            name, filters = f"{stage}_{block}", width * 2**stage
            strides = 2 if stage and not block else 1
            skip = conv(x, filters, 1, strides, f"skip{name}") if strides > 1 else x
            y = L.ReLU()(conv(x, filters, 3, strides, f"inside{name}"))
            x = L.ReLU()(L.Add()([skip, conv(y, filters, 3, 1, f"end{name}")]))
    return keras.Model(inputs, L.Dense(10, name="head")(L.GlobalAveragePooling2D()(x)))


def ratios(model, rule, base="he_normal"):
    """Stated and measured standard deviation of each kernel, over the base's."""
    layers = {}
    stated = kv.initialize(model, kv.ResidualScaled(base, rule), seed=0)
    plain = {r.path: r.stddev for r in kv.initialize(model, base, seed=0) if r.context is not None}
    kv.initialize(model, kv.ResidualScaled(base, rule), seed=0)
    kernels = {variable.path: variable for variable in model.weights}
    for row in stated:
        if row.context is not None:
            kernel = keras.ops.convert_to_numpy(kernels[row.path]).astype(np.float64)
            error = 1 / math.sqrt(2 * kernel.size)  # at most, relative to the ratio
            measured = math.sqrt(np.mean(kernel**2)) / plain[row.path]
            layers[row.path] = row.stddev / plain[row.path], measured, error
    return layers


def assert_ratios(found, wanted):
    """`wanted` maps a path to its factor."""
    assert found
    for path, (stated, measured, error) in found.items():
        factor = wanted(path)
        assert stated == pytest.approx(factor, rel=1e-6), path
        assert abs(measured - factor) <= 5 * error * factor, path


@pytest.mark.slow
@pytest.mark.once
def test_a_resnet_56_without_normalization():
    model = resnet(9, norm=False)
    assert_ratios(ratios(model, "depth"), lambda p: 27**-0.5 if p.startswith("end") else 1)
    wanted = {"end": 0, "hea": 0, "ins": 27**-0.5}  # L^{-1/(2m-2)}, m = 2
    assert_ratios(ratios(model, "fixup"), lambda p: wanted.get(p[:3], 1))
    assert_ratios(ratios(model, "zero"), lambda p: 0 if p.startswith("end") else 1)
    assert kv.lint(model) == []


@pytest.mark.slow
@pytest.mark.once
def test_a_resnet_20_with_normalization_keeps_its_kernels_where_they_would_be_zeros():
    model = resnet(3, norm=True)
    for rule in ("fixup", "zero"):
        wanted = {"hea": 0, "ins": 9**-0.5} if rule == "fixup" else {}
        assert_ratios(ratios(model, rule), lambda p, wanted=wanted: wanted.get(p[:3], 1))
    assert_ratios(ratios(model, "depth"), lambda p: 9**-0.5 if p.startswith("end") else 1)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_gpt_2_of_12_blocks():
    hub = pytest.importorskip("keras_hub", reason="the GPT-2 is KerasHub's")
    model = hub.models.GPT2Backbone(
        vocabulary_size=50, num_layers=12, num_heads=4, hidden_dim=64, intermediate_dim=256,
        max_sequence_length=12,
    )  # fmt: skip
    found = ratios(model, "depth", "glorot_uniform")
    ends = [p for p in found if "attention_output" in p or "feedforward_output" in p]
    assert len(ends) == 24
    assert_ratios(found, lambda p: 24**-0.5 if p in ends else 1)


@pytest.mark.once
def test_branches_of_zeros_are_no_finding_of_a_measurement():
    model = resnet(1, norm=False)
    x = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype("float32")
    kv.initialize(model, kv.ResidualScaled("he_normal", "zero"), seed=0)
    measured = kv.measure_signal(model, x)
    assert {row.second_moment for row in measured.rows if row.name.startswith("end")} == {0.0}
    assert measured.findings() == ("No layer's signal vanishes, explodes or saturates.",)
    # A stem of zeros kills everything.
    model.get_layer("stem").kernel.assign(np.zeros((3, 3, 3, 8)))
    assert any("stem is the first layer" in each for each in kv.measure_signal(model, x).findings())
