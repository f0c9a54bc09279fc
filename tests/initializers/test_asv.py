"""ASV on hand-made contexts: every expected number is worked out in the test, not by the code."""

import math

import keras
import numpy as np
import pytest
from scipy import integrate, stats

import keras_varinit as kv

pytestmark = pytest.mark.once

# A 3×3 'same' convolution, 16 -> 32 channels, on a 2×2 map. Along one dimension the two outputs
# see 2 + 2 of the inputs, so ε = 4·4·16·32 = 8192; M = 4·16 = 64 and M' = 4·32 = 128. One output
# sums 64 inputs on average (not 144), one input feeds 128 outputs (not 288).
CONV = {
    "kernel_shape": (3, 3, 16, 32),
    "fan_in": 144,
    "fan_out": 288,
    "connections": 8192,
    "input_size": 64,
    "output_size": 128,
    "filter_axes": (3,),
    "spatial_axes": (0, 1),
}
UNKNOWN = {**CONV, "connections": None, "input_size": None, "output_size": None, "stride": 4}


def context(fields, **more):
    names = {"path": "c/kernel", "layer": "c", "stream": "c/kernel#1", "depth": 2, "total_depth": 9}
    return kv.LayerContext(**{**names, **fields, **more})


def draw(initializer, shape):
    return keras.ops.convert_to_numpy(initializer(shape, dtype="float32")).astype(np.float64)


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize(
    ("shape", "fan_in", "fan_out"),
    [((30, 50), 30, 50), ((3, 4, 6), 12, 18), ((3, 3, 16, 32), 144, 288), ((7,), 7, 7)],
)
def test_without_context_it_is_hes_initialization(shape, fan_in, fan_out, distribution):
    for max_gain in (3.0, 1.0, None):
        forward = kv.ASVForward(distribution, max_gain).stddev(shape)
        assert forward == pytest.approx(math.sqrt(2 / fan_in))
        backward = kv.ASVBackward(distribution, max_gain).stddev(shape)
        assert backward == pytest.approx(math.sqrt(2 / fan_out))


@pytest.mark.parametrize(
    ("fields", "tau", "max_gain", "expected"),
    [
        (CONV, 0.5, 3.0, 0.17677669529663687),  # √(128/(½·8192)) = √(1/32)
        (CONV, 1.0, 3.0, 0.125),  # √(128/8192)
        (CONV, 2.0, 3.0, 0.08838834764831845),  # √(1/128)
        (CONV, 0.02, None, 0.8838834764831844),  # √(128/163.84)
        (CONV, 0.02, 3.0, 0.5303300858899106),  # that is 5 times √(1/32): cut to 3 times
        (CONV, 0.02, 1.5, 0.2651650429449553),
        (CONV, 0.02, 5.1, 0.8838834764831844),
        (CONV, 1.0, 0.5, 0.08838834764831843),  # a limit below the neutral case cuts it too
        (CONV, 0.0, 3.0, 0.5303300858899106),  # nothing passes: what is left is the limit
        (UNKNOWN, 0.5, 3.0, 0.11785113019775793),  # √(1/(½·144))
        (UNKNOWN, 0.25, 3.0, 0.16666666666666666),  # √(1/36); the stride does not matter forwards
        ({**CONV, "output_size": None}, 0.25, 3.0, 0.16666666666666666),
    ],
)
def test_forward_stddev_is_outputs_over_tau_times_connections(fields, tau, max_gain, expected):
    # γ must play no part.
    for gamma in (0.5, 0.01):
        known = context(fields, forward_gain=tau, backward_gain=gamma)
        initializer = kv.ASVForward(max_gain=max_gain, context=known)
        assert initializer.stddev((3, 3, 16, 32)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("fields", "gamma", "max_gain", "expected"),
    [
        (CONV, 0.5, 3.0, 0.125),  # √(64/(½·8192)) = √(1/64)
        (CONV, 0.234375, 3.0, 0.18257418583505536),  # ReLU, max over 4: (1 - 1/16)/4; √(1/30)
        (CONV, 0.5 / 16, None, 0.5),  # average over 4: 1/(2·16); √(64/256)
        (CONV, 0.5 / 16, 3.0, 0.375),
        (CONV, 0.5 / 49**2, None, 6.125),  # global average over 49: √(49²/64)
        (CONV, 0.5 / 49**2, 3.0, 0.375),
        (CONV, 0.5 / 49**2, 10, 1.25),
        (CONV, 0.0, 3.0, 0.375),
        (UNKNOWN, 0.5, 3.0, 0.16666666666666666),  # √(1/(½·288/4)): ε/M is the fan-out over stride
        (UNKNOWN, 0.125, 3.0, 0.3333333333333333),
        ({**UNKNOWN, "stride": 1}, 0.5, 3.0, 0.08333333333333333),
        ({**CONV, "input_size": None}, 0.5, 3.0, 0.08333333333333333),
    ],
)
def test_backward_stddev_is_inputs_over_gamma_times_connections(fields, gamma, max_gain, expected):
    for tau in (0.5, 0.01):
        known = context(fields, forward_gain=tau, backward_gain=gamma)
        initializer = kv.ASVBackward(max_gain=max_gain, context=known)
        assert initializer.stddev((3, 3, 16, 32)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize("cls", [kv.ASVForward, kv.ASVBackward])
def test_measured_variance_support_and_law(cls, distribution):
    # 512·400 connections at 3 positions; the sizes are chosen for round mean fans.
    shape = (512, 400)
    known = context(
        {"kernel_shape": shape, "fan_in": 512, "fan_out": 400, "filter_axes": (1,)},
        connections=614400,
        input_size=2400,  # ε/M = 256
        output_size=6144,  # ε/M' = 100
        forward_gain=0.64,  # √(1/(0.64·100)) = 1/8
        backward_gain=0.25,  # √(1/(0.25·256)) = 1/8
    )
    kernel = draw(cls(distribution, seed=0, context=known), shape).ravel()
    law = {
        "normal": stats.norm(scale=1 / 8),
        "truncated_normal": stats.truncnorm(-2, 2, scale=1 / 8 / stats.truncnorm.std(-2, 2)),
        "uniform": stats.uniform(-math.sqrt(3) / 8, math.sqrt(3) / 4),
    }[distribution]
    # Standard error of a mean square of n entries: σ²·√((kurtosis - 1)/n), here 0.2 to 0.3 %.
    kurtosis = 3 + float(law.stats("k"))
    error = math.sqrt((kurtosis - 1) / kernel.size) / 64
    assert abs(np.mean(kernel**2) - 1 / 64) < 4 * error
    assert abs(np.mean(kernel)) < 4 / 8 / math.sqrt(kernel.size)
    assert stats.kstest(kernel, law.cdf).pvalue > 1e-3
    low, high = law.support()
    # float32 rounds the bounds; uniform and truncated draws also come close to them.
    assert low * (1 + 1e-6) <= kernel.min()
    assert kernel.max() <= high * (1 + 1e-6)
    if distribution != "normal":
        assert kernel.max() > 0.999 * high
        assert kernel.min() < 0.999 * low


def test_distributions_differ():
    shape = (512, 400)
    laws = {
        "normal": stats.norm.cdf,
        "truncated_normal": stats.truncnorm(-2, 2, scale=1 / stats.truncnorm.std(-2, 2)).cdf,
        "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)).cdf,
    }
    for distribution in laws:
        initializer = kv.ASVForward(distribution, seed=1)
        entries = draw(initializer, shape).ravel() * 16  # √(512/2)
        accepted = [name for name, law in laws.items() if stats.kstest(entries, law).pvalue > 1e-3]
        assert accepted == [distribution]


def test_truncated_and_uniform_bounds_of_the_neutral_case():
    # Var = 2/200 = 0.01; N(0, 1) cut at 2 has the standard deviation 0.87962566…
    assert np.abs(draw(kv.ASVForward("uniform", seed=0), (200, 300))).max() <= 0.1 * math.sqrt(3)
    truncated = np.abs(draw(kv.ASVForward("truncated_normal", seed=0), (200, 300))).max()
    assert truncated <= 0.2 / 0.87962566 * (1 + 1e-6)
    assert stats.truncnorm.std(-2, 2) == pytest.approx(0.87962566103423978, rel=1e-12)


# τ of ReLU and a maximum over 4: 4·∫₀^∞ s² φ Φ³ ds, by scipy's quadrature.
MAX_4 = integrate.quad(lambda s: 4 * s**2 * stats.norm.pdf(s) * stats.norm.cdf(s) ** 3, 0, 12)[0]


@pytest.mark.parametrize(
    ("cls", "conv", "dense"),
    [
        # 'same' on 4: 2 + 3 + 3 + 2 = 10 taps a dimension, so ε = 100·3·8, M = 48, M' = 128.
        (kv.ASVForward, math.sqrt(128 / 2400), math.sqrt(1 / (MAX_4 * 32))),
        # γ = (1 - 2⁻⁴)/4 = 15/64 for the convolution, 1 for the linear output.
        (kv.ASVBackward, math.sqrt(48 / (15 / 64 * 2400)), math.sqrt(1 / 5)),
    ],
)
def test_an_injected_model_has_the_hand_computed_standard_deviations(cls, conv, dense):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", kernel_initializer=cls()),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(5, kernel_initializer=cls()),
        ]
    )
    assert [row.stddev for row in kv.inject(model)] == pytest.approx([conv, dense], rel=1e-6)
