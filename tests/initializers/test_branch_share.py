"""`SignalPreserving(branch_share=…)`: how much branches add, measured on the model itself."""

import math

import keras
import numpy as np
import pytest

import keras_varinit as kv

layers = keras.layers


def residual_network(blocks, activation, normalization, width=8, *, after=False, size=8):
    """Streams and output of a residual network; `normalization` is None, "first" or "last"."""
    x = inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(width, 3, padding="same")(x)
    streams = [x]
    for _ in range(blocks):
        h = x
        for _number in range(2):
            if normalization == "first":
                h = layers.BatchNormalization()(h)
            h = layers.Activation(activation)(h)
            h = layers.Conv2D(width, 3, padding="same")(h)
        if normalization == "last":
            h = layers.BatchNormalization()(h)
        if after:
            h = layers.Activation(activation)(h)
        x = x + h
        streams.append(x)
    outputs = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, streams), keras.Model(inputs, outputs)


def second_moments(streams, model, scheme, draws, size=8):
    """E x² of each point of the stream, (draws, points), in training mode."""
    rng = np.random.default_rng(0)
    moments = []
    for seed in range(draws):
        kv.initialize(model, scheme, seed=seed)
        x = keras.ops.convert_to_tensor(rng.standard_normal((32, size, size, 3)), "float32")
        points = streams(x, training=True)
        moments.append([np.mean(keras.ops.convert_to_numpy(p) ** 2) for p in points])
    return np.asarray(moments)


def check_growth(moments, share):
    """Each addition multiplies E x² by 1 + share; tolerance: 4 standard errors and 2 %.

    The ratio of means over draws is compared, as E x² of later points fluctuates with earlier ones.
    """
    start = moments[:, :1].mean()
    wanted = start * (1 + share) ** np.arange(moments.shape[1])
    error = moments.std(axis=0, ddof=1) / math.sqrt(len(moments))
    assert np.all(np.abs(moments.mean(axis=0) - wanted) <= 4 * error + 0.02 * wanted)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("normalization", [None, "first", "last"])
def test_branches_add_their_share(activation, normalization):
    keras.utils.clear_session(free_memory=False)
    streams, model = residual_network(6, activation, normalization, width=16)
    scheme = kv.SignalPreserving(branch_share="1/L")
    check_growth(second_moments(streams, model, scheme, 12), 1 / 6)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_share_may_be_a_number(share):
    keras.utils.clear_session(free_memory=False)
    streams, model = residual_network(4, "relu", None, width=16)
    check_growth(second_moments(streams, model, kv.SignalPreserving(branch_share=share), 12), share)


@pytest.mark.once
def test_a_branch_with_a_mean_adds_its_share_too():
    """Behind a rectifier, branch and stream have means, whose product counts."""
    streams, model = residual_network(6, "relu", None, width=32, after=True)
    scheme = kv.SignalPreserving(branch_share="1/L")
    check_growth(second_moments(streams, model, scheme, 12), 1 / 6)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("normalization", [None, "first", "last"])
def test_110_layers_stay_within_e(activation, normalization):
    """54 branches of two kernels, the stem and the head: E x² within [1, e] all the way.

    Tolerance: 4 standard errors of the mean over draws, as finite width makes E x² fluctuate.
    """
    keras.utils.clear_session(free_memory=False)
    streams, model = residual_network(54, activation, normalization, width=16)
    assert sum(c.role in ("kernel", "head") for c in kv.analyze(model).contexts.values()) == 110
    moments = second_moments(streams, model, kv.SignalPreserving(branch_share="1/L"), 4)
    relative = moments / moments[:, :1].mean()
    error = 4 * relative.std(axis=0, ddof=1) / 2
    mean = relative.mean(axis=0)
    assert np.all(mean + error >= 1)
    assert np.all(mean - error <= math.e)
    assert mean[-1] > 1.5  # the branches do add something


@pytest.mark.once
def test_stages_projections_and_attention():
    """Wherever an addition is: behind projections, in transformers, with several ends."""
    inputs = keras.Input((6, 16))
    x = layers.Dense(32)(inputs)
    points = [x]
    h = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, 8)(h, h)
    points.append(x)
    h = layers.LayerNormalization()(x)
    x = x + layers.Dense(32)(layers.Dense(64, "gelu")(h)) + layers.Dense(32)(h)
    points.append(x)
    x = layers.Dense(48)(x) + layers.Dense(48)(layers.Dense(64, "relu")(x))
    points.append(x)
    streams, model = keras.Model(inputs, points), keras.Model(inputs, layers.Dense(2)(x))
    scheme = kv.SignalPreserving(branch_share=0.25)
    rng = np.random.default_rng(0)
    moments = []
    for seed in range(40):
        report = kv.initialize(model, scheme, seed=seed)
        x = keras.ops.convert_to_tensor(rng.standard_normal((64, 6, 16)), "float32")
        moments.append([np.mean(keras.ops.convert_to_numpy(p) ** 2) for p in streams(x)])
    assert not any("branch" in note for note in report.notes)
    mean = np.mean(moments, axis=0)
    error = 4 * np.std(moments, axis=0, ddof=1) / math.sqrt(40)
    # One addition; then two, the MLP and a Dense beside it; then a projection of moment 1.
    wanted = np.array([1, 1.25, 1.25**3, 1.25])
    assert np.all(np.abs(mean - wanted) <= error + 0.03 * wanted)


def test_the_context_keeps_what_was_solved(tmp_path):
    """A loaded model has the same standard deviations, and its config holds plain numbers."""
    kernel = {"kernel_initializer": kv.SignalPreserving(branch_share="1/L", seed=3)}
    x = inputs = keras.Input((8,))
    x = layers.Dense(16, **kernel)(x)
    for _ in range(3):
        x = x + layers.Dense(16, **kernel)(layers.Dense(16, "relu", **kernel)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    report = kv.inject(model)
    ends = [row for row in report if row.context.branch_end]
    assert len(ends) == 3
    assert all(row.context.branch_gain > 0 for row in ends)
    again = kv.inject(model)
    assert not again.drawn
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    stddevs = [row.stddev for row in kv.inject(loaded)]
    assert stddevs == [row.stddev for row in report]


def test_an_unknown_branch_is_said():
    """Where the engine cannot follow a branch, its end's output has the share; a note says so."""
    x = inputs = keras.Input((8,))
    x = layers.Dense(16)(x)
    h = layers.Dense(16)(x)
    x = x + keras.ops.sort(h, axis=-1)
    model = keras.Model(inputs, layers.Dense(2)(x))
    report = kv.initialize(model, kv.SignalPreserving(branch_share=0.25), seed=0)
    end = next(row for row in report if row.context is not None and row.context.branch_end)
    assert end.context.branch_gain is None
    assert end.stddev == pytest.approx(math.sqrt(0.25 / end.context.signal_gain))
    assert any("its branch adds" in note for note in report.notes)


def test_a_normalization_by_hand_is_not_solved_for():
    """The branch does not depend on its end's scale, so nothing is solved, and a note says so."""
    x = inputs = keras.Input((8,))
    x = layers.Dense(16)(x)
    h = layers.Dense(16)(x)
    h = h * keras.ops.rsqrt(keras.ops.mean(keras.ops.square(h), axis=-1, keepdims=True) + 1e-6)
    model = keras.Model(inputs, layers.Dense(2)(x + h))
    report = kv.initialize(model, kv.SignalPreserving(branch_share=0.25), seed=0)
    assert all(row.stddev is None or row.stddev < 1 for row in report)
    assert any("does not depend on it" in note for note in report.notes)


@pytest.mark.parametrize(
    ("share", "error"), [(0, ValueError), (-1.0, ValueError), ("L", ValueError), ([1], TypeError)]
)
def test_a_wrong_share_is_refused(share, error):
    with pytest.raises(error, match="branch_share"):
        kv.SignalPreserving(branch_share=share)
