"""`SignalPreserving`: E u² of every kernel's output u is the target, measured over draws.

Kernels are drawn by the initializers that the library gives them, again and again from other seeds.
The mean over draws must be the target within four standard errors, or within 6 % where the engine
approximates: maxima over windows, and widths as small as 24 count as large.
"""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate

import keras_varinit as kv
from keras_varinit import keras_private
from tests.models import kernels, weights

pytestmark = pytest.mark.once

L = keras.layers


def conv(filters=16, k=3, **options):
    options = {"padding": "same", "kernel_initializer": "signal_preserving", **options}
    return L.Conv2D(filters, k, **options)


def residual_network(initializer="signal_preserving", *, width=24, blocks=3, **options):
    """Convolutions with shortcuts, one strided, concatenated at the end; no normalization."""

    def layer(filters=width, k=3, **more):
        return conv(filters, k, **{"kernel_initializer": initializer, **options, **more})

    inputs = keras.Input((12, 12, 3))
    x = layer()(inputs)
    for number in range(blocks):
        strides = 2 if number == 1 else 1
        shortcut = x if strides == 1 else layer(k=1, strides=2)(x)
        x = layer(strides=strides)(L.ReLU()(x))
        x = L.Add()([shortcut, layer()(L.ReLU()(x))])
    pooled = L.AveragePooling2D(2)(L.ReLU()(x))
    x = L.Concatenate()([layer(16)(pooled), layer(8, 1)(L.MaxPooling2D(2)(x))])
    x = L.GlobalAveragePooling2D()(L.ReLU()(x))
    return keras.Model(inputs, L.Dense(5, kernel_initializer=initializer)(x))


def perceptron(initializer="signal_preserving"):
    """Activations that are no multiples of a ReLU, and shortcuts in front of an activation."""

    def dense(units=96):
        return L.Dense(units, kernel_initializer=initializer)

    inputs = keras.Input((96,))
    x = L.Activation("gelu")(dense()(L.Activation("tanh")(dense()(inputs))))
    for _ in range(2):
        x = L.ReLU()(L.Add()([x, dense()(L.ReLU()(dense()(x)))]))
    return keras.Model(inputs, dense(24)(x))


def gated_network(initializer="signal_preserving"):
    """Depthwise and separable kernels, batch normalization, a gate, maxima over windows."""
    both = {"depthwise_initializer": initializer, "pointwise_initializer": initializer}
    inputs = keras.Input((8, 8, 16))
    x = L.ReLU()(conv(48, kernel_initializer=initializer)(inputs))
    x = L.DepthwiseConv2D(3, padding="same", depthwise_initializer=initializer)(x)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.MaxPooling2D(2)(L.SeparableConv2D(64, 3, padding="same", **both)(x))
    gate = L.Activation("sigmoid")(conv(48, 1, kernel_initializer=initializer)(x))
    x = L.Flatten()(L.Multiply()([gate, conv(48, kernel_initializer=initializer)(x)]))
    return keras.Model(inputs, L.Dense(24, kernel_initializer=initializer)(x))


def held_initializers(model):
    """Each kernel with the initializer that its layer holds."""
    return [
        (variable, getattr(layer, attribute))
        for layer in model.layers
        for key, attribute in keras_private.initializers_of(layer)
        for variable in layer.weights
        if id(variable) == key and "kernel" in variable.path
    ]


def scheme_in_place(model, report, scheme):
    """Each kernel with the scheme as `initialize` gave it the kernel's context."""
    return [
        (variable, scheme.with_context(report[variable.path].context))
        for variable in model.weights
        if "kernel" in variable.path
    ]


def second_moments(model, initializers, draws=64, examples=4):
    """E u² by layer: the mean over draws of all kernels, and its standard error."""
    layers = [layer for layer in model.layers if "kernel" in str([w.path for w in layer.weights])]
    inside = keras.Model(model.inputs[0], [layer.output for layer in layers])
    shape = (examples, *model.inputs[0].shape[1:])
    rng = np.random.default_rng(0)
    rows = []
    for draw in range(draws):
        for number, (variable, initializer) in enumerate(initializers):
            config = {**initializer.get_config(), "seed": 1000 * number + draw}
            variable.assign(type(initializer).from_config(config)(tuple(variable.shape)))
        outputs = inside(rng.standard_normal(shape).astype("float32"), training=True)
        rows.append([np.mean(np.square(ops.convert_to_numpy(u))) for u in outputs])
    return np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(draws)


def assert_measured(model, initializers, target=1.0, *, certain=0.05, **options):
    """Few outputs after global pooling make the last kernel's mean three times as uncertain."""
    mean, error = second_moments(model, initializers, **options)
    assert np.all(error[:-1] < certain * mean[:-1]), error / mean
    assert error[-1] < 3 * certain * mean[-1], error / mean
    assert np.all(np.abs(mean - target) < np.maximum(4 * error, 0.06 * np.asarray(target))), mean


def shallow(initializer):
    return residual_network(initializer, width=32, blocks=2)


MEASURED = {
    "residual": (shallow, kv.SignalPreserving()),
    "residual, uniform": (shallow, kv.SignalPreserving("uniform", target=2.5)),
    "perceptron": (perceptron, kv.SignalPreserving(target=0.3)),
    "perceptron, truncated": (perceptron, kv.SignalPreserving("truncated_normal", target=2.0)),
    "gated": (gated_network, kv.SignalPreserving("truncated_normal")),
    "gated, uniform": (gated_network, kv.SignalPreserving("uniform", target=0.5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_initialize_gives_every_kernel_the_target(name):
    make, scheme = MEASURED[name]
    model = make("glorot_uniform")
    report = kv.initialize(model, scheme, seed=0)
    assert {row.status for row in report} == {"drawn"}
    assert report.notes == ()
    for variable in model.weights:
        if "kernel" in variable.path:
            kernel = ops.convert_to_numpy(variable)
            error = np.sqrt(2 / kernel.size)  # of a mean square
            want = report[variable.path].stddev ** 2
            assert np.mean(kernel**2) == pytest.approx(want, rel=5 * error)
    assert_measured(model, scheme_in_place(model, report, scheme), scheme.target, draws=160)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"target": 0.5}, {"distribution": "uniform"}])
def test_inject_gives_every_kernel_the_target(options):
    model = shallow(kv.SignalPreserving(**options, seed=1))
    report = kv.inject(model)
    assert len(report.drawn) == len(report)
    assert_measured(model, held_initializers(model), options.get("target", 1.0), draws=160)


def predictions(model):
    return [p.forward for p in kv.analyze(model).predicted.values()]


def test_a_second_inject_changes_nothing():
    model = residual_network(kv.SignalPreserving(seed=1))
    kv.inject(model)
    before = weights(model)
    report = kv.inject(model)
    assert len(report.drawn) == 0
    for old, new in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_other_initializers_count_with_their_variance():
    layers = [
        conv(32, kernel_initializer="he_normal", activation="relu"),
        conv(32, activation="relu"),
        conv(32, kernel_initializer=keras.initializers.RandomNormal(stddev=0.3)),
        L.ReLU(),
        conv(8),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    kv.inject(model)
    found = predictions(model)
    assert (found[1], found[3]) == pytest.approx((1.0, 1.0), rel=1e-6)
    assert abs(found[0] - 1) > 0.2
    assert found[2] > 2


def test_layers_that_are_not_selected_count_with_their_variance():
    model = residual_network("he_normal")
    chosen = [layer.name for layer in model.layers if isinstance(layer, L.Conv2D)][3:5]
    before = weights(model)
    report = kv.initialize(model, "signal_preserving", seed=0, layers=chosen)
    gains = kv.analyze(model).predicted
    assert len(report.drawn) == 4  # with their biases
    for row in report:
        if row.context is not None and row.path == f"{chosen[0]}/kernel":
            # What is in front is he_normal, so the gain is what `analyze` says of the whole.
            assert row.context.signal_gain == pytest.approx(gains[row.path].gain, rel=1e-9)
    changed = [
        not np.array_equal(a, b) for a, b in zip(before, weights(model), strict=True) if a.ndim > 1
    ]
    assert sum(changed) == 2


@pytest.mark.parametrize("how", ["initialize", "inject"])
def test_frozen_kernels_count_with_the_values_they_hold(how):
    first, second = L.Dense(32, "relu"), L.Dense(32, kernel_initializer="signal_preserving")
    if how == "inject":
        first = L.Dense(32, "relu", kernel_initializer="signal_preserving")
    model = keras.Sequential([keras.Input((64,)), first, second])
    first.kernel.assign(np.full((64, 32), 0.5))
    first.trainable = False
    if how == "inject":
        report = kv.inject(model)
        assert report[first.kernel.path].status == "skipped: frozen (trainable=False)"
    else:
        report = kv.initialize(model, "signal_preserving", seed=0)
    gain = report[second.kernel.path].context.signal_gain
    # Sums of 64 entries of weight 1/2, a half of them kept, from 32 units.
    assert gain == pytest.approx(64 * 0.25 / 2 * 32, rel=1e-6)
    np.testing.assert_array_equal(first.get_weights()[0], 0.5)
    if how == "inject":
        report = kv.inject(model, force=True)
        assert len(report.drawn) == 2
        # Frozen kernels still count with their values: 2048 squares of standard error 3 %.
        assert predictions(model) == pytest.approx([1.0, 1.0], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda: kv.Enhanced(kv.SignalPreserving(), seed=2),
        lambda: kv.Enhanced("signal_preserving", granularity="position"),
    ],
)
def test_enhanced_keeps_the_mean_variance(wrap):
    model = shallow(wrap())
    kv.inject(model)
    analysis = kv.analyze(model)
    assert all(c.signal_gain is not None for c in analysis_contexts(model))
    assert_measured(model, held_initializers(model), draws=160, certain=0.1)
    assert len(analysis.predicted) == len(list(analysis_contexts(model)))


def analysis_contexts(model):
    return [
        layer.kernel_initializer.context
        for layer in model.layers
        if hasattr(layer, "kernel_initializer")
    ]


def test_depth_scaling_multiplies_the_variance_of_each_layer():
    scaled = kv.DepthScaled(kv.SignalPreserving(), base=4.0)
    layers = [L.Dense(64, kernel_initializer=scaled) for _ in range(4)]
    between = [step for layer in layers for step in (layer, L.ReLU())]
    model = keras.Sequential([keras.Input((64,)), *between])
    kv.inject(model)
    factors = []
    for layer in layers:
        held = layer.kernel_initializer
        own = kv.SignalPreserving(context=held.context).stddev((64, 64))
        factors.append((held.stddev((64, 64)) / own) ** 2)
    # The base preserves the signal given the layers in front, so the factor is what is left.
    assert_measured(model, held_initializers(model), factors, draws=400, examples=16)
    assert factors[0] != pytest.approx(1.0, rel=0.1)


def test_a_saved_model_keeps_gains_and_kernels(tmp_path):
    model = residual_network(kv.SignalPreserving("uniform", target=0.7, seed=3))
    kv.inject(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for old, new in zip(analysis_contexts(model), analysis_contexts(loaded), strict=True):
        assert new == old
        assert new.signal_gain is not None
    assert len(kv.inject(loaded).drawn) == 0
    for old, new in zip(weights(model), weights(loaded), strict=True):
        np.testing.assert_array_equal(old, new)
    assert predictions(loaded) == predictions(model)


def test_without_a_context_it_is_he_times_the_target():
    for distribution, name in (
        ("normal", "untruncated_normal"),
        ("truncated_normal", "truncated_normal"),
        ("uniform", "uniform"),
    ):
        initializer = kv.SignalPreserving(distribution, target=3.0)
        assert initializer.stddev((3, 3, 4, 8)) == pytest.approx(np.sqrt(3 * 2 / 36))
        neutral = initializer.neutral()
        assert neutral.get_config()["scale"] == 6.0
        assert neutral.get_config()["distribution"] == name
    assert kv.SignalPreserving().get_config() == {
        "distribution": "normal",
        "target": 1.0,
        "branch_share": None,
        "seed": None,
        "context": None,
    }


@keras.saving.register_keras_serializable("tests")
class Sorting(L.Layer):
    """Of which the engine knows nothing."""

    def call(self, x):
        return ops.sort(x, axis=-1)


def test_behind_an_unknown_layer_it_falls_back_and_says_so():
    layers = [
        L.Dense(32, "relu", name="known"),
        Sorting(),
        L.Dense(32, "relu", name="behind"),
        L.Dense(32, name="farther"),
        L.LayerNormalization(),
        L.Dense(8, name="normal"),
    ]
    model = keras.Sequential([keras.Input((16,)), *layers], name="net")
    report = kv.initialize(model, "signal_preserving", seed=0)
    for name, gain in (("known", 16.0), ("behind", None), ("farther", None), ("normal", 32.0)):
        row = report[f"net/{name}/kernel"]
        found = row.context.signal_gain
        assert found is None if gain is None else found == pytest.approx(gain, rel=1e-3), name
    # τ·ε/M' of the independent formulas.
    for name in ("behind", "farther"):
        row = report[f"net/{name}/kernel"]
        asv = kv.ASVForward(context=row.context).stddev(row.context.kernel_shape)
        assert row.stddev == pytest.approx(asv)
        note = (
            f"net/{name}/kernel: its input signal is not known, so positions and "
            "branches count as independent there"
        )
        assert note in report.notes
    assert not any("normal/kernel" in note or "known/kernel" in note for note in report.notes)


def test_recurrent_kernels_are_drawn_too():
    model = keras.Sequential([keras.Input((6, 8)), L.LSTM(8), L.Dense(4)])
    report = kv.initialize(model, "signal_preserving", seed=0)
    assert all(np.isfinite(k).all() and np.std(k) > 0 for k in kernels(model))
    assert any("independent there" in note for note in report.notes)


@pytest.mark.slow
def test_the_measured_second_moment_is_one():
    """Within 15 % or 4 standard errors of 24 draws; the independent formulas are far off."""
    model = residual_network("he_normal", width=64, blocks=4)
    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    probe = keras.Model(model.inputs[0], [layer.output for layer in layers])
    rng = np.random.default_rng(0)

    def measured(scheme, draws):
        seconds = []
        for seed in range(draws):
            kv.initialize(model, scheme, seed=seed)
            x = rng.standard_normal((4, 12, 12, 3)).astype("float32")
            seconds.append([np.mean(np.square(ops.convert_to_numpy(u))) for u in probe(x)])
        return np.array(seconds)

    found = measured("signal_preserving", 24)
    standard_error = found.std(axis=0, ddof=1) / np.sqrt(24)
    assert np.all(standard_error[:-1] < 0.1)
    assert np.all(np.abs(found.mean(axis=0) - 1) < np.maximum(0.15, 4 * standard_error))
    assert measured("asv_forward", 6).mean(axis=0).max() > 1.5


@pytest.mark.parametrize(("name", "exponent"), [("silu", 1.17), ("gelu", 1.14), ("relu", 1.0)])
def test_what_the_docstring_says_of_unstable_activations(name, exponent):
    """The exponent of E f(√q·s)² in q about 1, by SciPy's quadrature."""
    function = keras.activations.get(name)

    def second(q):
        def integrand(s):
            value = float(function(ops.convert_to_tensor(np.array([np.sqrt(q) * s])))[0])
            return value**2 * np.exp(-(s**2) / 2) / np.sqrt(2 * np.pi)

        return integrate.quad(integrand, -8, 8, points=[0], epsabs=1e-7)[0]

    growth = np.log(second(1.05) / second(0.95)) / np.log(1.05 / 0.95)
    assert growth == pytest.approx(exponent, abs=0.005)
    assert exponent == 1 or f"q^{exponent}" in kv.SignalPreserving.__doc__
