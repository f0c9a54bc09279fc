"""What the signal engine predicts against real models with kernels drawn again and again.

A case is a model in two halves: `front` ends in the probe, a kernel's output u, and `back` goes on
from there to the last kernel. Measured are E u² at the probe and at the end, and E (dL/du)² at the
probe for white noise at the end, by the backend's own gradients. The mean over draws must be within
four standard errors of the prediction or, where the engine approximates, within its allowance: 10 %
of a second moment, 20 % of a gradient's.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit.signals import registry
from tests.analysis.chains import (
    ALWAYS,
    APPROXIMATE,
    IMAGE,
    chain,
    check,
    check_all,
    check_maps,
    conv,
    dense,
    maps,
)
from tests.families.rule_cases.linear import Placed

pytestmark = pytest.mark.once

L = keras.layers


@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu"])
def test_dense_chains_are_exact(activation):
    """Sums of independent products: within 4 standard errors of about 1 %, nothing beyond."""
    front = chain(dense(192, activation=activation), dense(192))
    back = chain(L.Activation(activation), dense(192, activation=activation), dense(192))
    check(front, back, (64,), ALWAYS, draws=200, examples=16, error=0.012)


NORMALIZATIONS = {
    "batch": lambda: L.BatchNormalization(),
    "batch, scaled": lambda: L.BatchNormalization(
        gamma_initializer=keras.initializers.Constant(0.5), beta_initializer="ones"
    ),
    "layer": lambda: L.LayerNormalization(),
    "group": lambda: L.GroupNormalization(8),
}


@pytest.mark.slow
def test_normalizations():
    check_all(NORMALIZATIONS, lambda layer: check_maps(layer, L.ReLU()))
    # Behind a ReLU channels of low mean have small variances, and so large gradients: 20 % more.
    check_all(NORMALIZATIONS, lambda layer: check_maps(L.ReLU(), layer, allowance=(0.1, 0.25)))


def test_normalizations_of_vectors():
    names = ("LayerNormalization", "RMSNormalization", "UnitNormalization")
    check_all(
        {name: getattr(L, name) for name in names if hasattr(L, name)},
        lambda layer: check(dense(), chain(L.ReLU(), layer, dense()), (64,), APPROXIMATE, draws=60),
    )


@pytest.mark.slow
def test_noise_layers():
    """In training, as the prediction counts them."""
    layers = {
        "dropout": lambda: L.Dropout(0.3),
        "gaussian dropout": lambda: L.GaussianDropout(0.4),
        "gaussian noise": lambda: L.GaussianNoise(0.7),
        "spatial dropout": lambda: L.SpatialDropout2D(0.25),
        "pooled dropout": lambda: chain(L.Dropout(0.5), L.AveragePooling2D(2)),
    }
    check_all(layers, lambda layer: check_maps(L.ReLU(), layer))


def residual(x):
    return L.Add()([x, conv(96)(L.ReLU()(x))])


MERGES = {
    "residual": lambda: residual,
    "two residuals": lambda: chain(residual, residual),
    "positive branches": lambda: lambda x: L.Add()([L.ReLU()(conv(96)(x)), L.ReLU()(conv(96)(x))]),
    "twice": lambda: lambda x: L.Add()([x, x]),
    "relu + x": lambda: lambda x: L.Add()([L.ReLU()(x), x]),
    "swish by hand": lambda: lambda x: L.Multiply()([x, L.Activation("sigmoid")(x)]),
    "square": lambda: lambda x: L.Multiply()([x, x]),
    "gate": lambda: (
        lambda x: L.Multiply()([conv(96, k=1)(x), conv(96, k=1, activation="sigmoid")(x)])
    ),
    "average": lambda: lambda x: L.Average()([L.ReLU()(conv(96)(x)), L.ReLU()(conv(96)(x))]),
    "subtract": lambda: lambda x: L.Subtract()([L.ReLU()(conv(96)(x)), L.ReLU()(conv(96)(x))]),
    "concatenate": lambda: lambda x: L.Concatenate()([L.ReLU()(x), conv(32)(x), conv(64, k=1)(x)]),
    "squeeze and excite": lambda: (
        lambda x: L.Multiply()(
            [
                x,
                L.Reshape((1, 1, 96))(
                    dense(96, activation="sigmoid")(
                        dense(48, activation="relu")(L.GlobalAveragePooling2D()(x))
                    )
                ),
            ]
        )
    ),
}


@pytest.mark.slow
def test_merged_branches():
    check_all(
        MERGES,
        lambda merge: check(maps, chain(merge, conv(64)), (6, 6, 24), APPROXIMATE, draws=32),
    )


def test_branches_on_operators():
    """`x + y` and `ops` make no layers."""

    def back(x):
        x = x + ops.relu(dense()(ops.relu(x))) * 0.5
        return dense()(ops.silu(x) - 0.1)

    check(dense(), back, (64,), APPROXIMATE, draws=80)


ACTIVATIONS = {
    "gelu": lambda: L.Activation("gelu"),
    "tanh": lambda: L.Activation("tanh"),
    "sigmoid": lambda: L.Activation("sigmoid"),
    "prelu": lambda: L.PReLU(
        alpha_initializer=keras.initializers.Constant(0.3), shared_axes=(1, 2)
    ),
    "leaky": lambda: L.LeakyReLU(negative_slope=0.4),
    "capped": lambda: L.ReLU(max_value=1.0),
}


@pytest.mark.slow
def test_activations_between_convolutions():
    check_all(ACTIVATIONS, check_maps)


def test_biases():
    """A constant bias moves the mean, a random one adds variance that all positions share."""
    rng = np.random.default_rng(1)
    biases = {"constant": lambda: np.ones(128), "random": lambda: 0.8 * rng.standard_normal(128)}

    def settled(values):
        def settle(model):
            for layer in model.layers:
                if getattr(layer, "bias", None) is not None:
                    layer.bias.assign(values[: layer.bias.shape[0]])

        return settle

    kind = {"bias_initializer": "random_normal"}

    def vectors(values):
        front = chain(dense(**kind), L.ReLU(), dense(**kind))
        back = chain(L.ReLU(), dense(**kind))
        check(front, back, (64,), APPROXIMATE, draws=80, settle=settled(values))

    def images(values):
        back = chain(L.ReLU(), L.AveragePooling2D(2), conv(64, **kind))
        front = conv(128, **kind)
        check(front, back, IMAGE, APPROXIMATE, settle=settled(values))

    check_all(biases, vectors)
    check_all(biases, images)


def test_inputs_with_a_mean():
    back = chain(L.ReLU(), L.AveragePooling2D(2), conv(64))
    check(conv(96), back, IMAGE, APPROXIMATE, mean=2.0, draws=60, error=0.04)
    check(
        L.Conv2DTranspose(96, 3, strides=2),
        back,
        (4, 4, 24),
        APPROXIMATE,
        mean=2.0,
        draws=60,
        error=0.04,
    )


def tokens(rng, count):
    return rng.integers(0, 50, (count, 12))


def test_embeddings():
    front = L.Embedding(50, 64, embeddings_initializer="he_normal")

    def back(x):
        return dense(64)(L.GlobalAveragePooling1D()(dense(activation="relu")(x)))

    check(front, back, (12,), APPROXIMATE, inputs=tokens, draws=40)


def test_places_of_a_table_are_not_known_behind_a_function():
    """Without a batch: the first dimension of its rows is that of places."""
    inputs = keras.Input((10, 64))
    for function, known in ((lambda rows: 2 * rows, True), (ops.relu, False)):
        placed = Placed(range(10), lambda x, rows, function=function: x + function(rows))
        analysis = kv.analyze(keras.Model(inputs, L.Dense(64, name="end")(placed(inputs))))
        assert (analysis.predicted["end/kernel"].forward is not None) == known
        assert any("joins signals of different layouts" in n for n in analysis.notes) != known


def test_a_summand_of_all_channels_is_remembered_through_layouts():
    """It cancels in a softmax over the channels, which a permutation has moved."""
    inputs = keras.Input((8, 16))
    x = dense(32)(inputs) + L.Dense(1, kernel_initializer="he_normal", name="one")(inputs)
    x = ops.softmax(L.Permute((2, 1))(x), axis=1)
    analysis = kv.analyze(keras.Model(inputs, L.Dense(4, name="end")(x)))
    assert analysis.predicted["end/kernel"].forward is None
    assert any("is the same in all channels" in note for note in analysis.notes)


def attended(x):
    normal = L.LayerNormalization()(x)
    return L.Add()([x, L.MultiHeadAttention(4, 16)(normal, normal)])


@pytest.mark.parametrize(("scheme", "back"), [("glorot_normal", 0.2), ("he_normal", 0.3)])
def test_attention(scheme, back):
    """Tokens that differ. Large logits make few tokens win, and gradients less certain."""
    check(
        dense(64),
        chain(attended, dense(64)),
        (10, 32),
        (0.1, back),
        scheme=scheme,
        draws=40,
    )


def test_a_gated_unit():
    def back(x):
        gate = dense(256, activation="silu")(x)
        return dense(64)(L.Multiply()([gate, dense(256)(x)]))

    check(chain(dense(), L.LayerNormalization(), dense()), back, (64,), APPROXIMATE, draws=80)


def test_channels_first(backend):
    if backend == "tensorflow":
        pytest.skip("TensorFlow has no channels_first convolutions on CPUs")
    keras.config.set_image_data_format("channels_first")

    def back(x):
        x = L.Concatenate(axis=1)([L.ReLU()(L.BatchNormalization(axis=1)(x)), x])
        return conv(64)(L.MaxPooling2D(2)(x))

    check(chain(conv(96), L.ReLU(), conv(96)), back, (24, 8, 8), APPROXIMATE)


@keras.saving.register_keras_serializable("tests")
class Sorted(L.Layer):
    """A layer of which the library knows nothing."""

    def call(self, x):
        return 3 * ops.sort(x, axis=-1)


def test_an_unknown_layer_is_noted_and_nothing_behind_it_is_known():
    layers = [dense(name="a"), Sorted(name="odd"), dense(name="b"), L.ReLU(), dense(name="c")]
    layers += [L.LayerNormalization(), dense(16, name="d"), dense(name="e")]
    model = keras.Sequential([keras.Input((64,)), *layers])
    analysis = kv.analyze(model)
    assert set(analysis.notes) == {
        "sort (Sort): its output depends on the order or the ranks of entries; the scale of its "
        "output is not known",
    }
    found = {path.split("/")[-2]: p for path, p in analysis.predicted.items()}
    assert found["a"].forward == pytest.approx(2.0)
    assert found["a"].backward is None
    for name in "bc":
        assert found[name].forward is None, name
        assert found[name].gain is None, name
    # Normalization makes the scale known again.
    assert found["d"].forward == pytest.approx(2.0, rel=1e-3)
    assert found["e"].forward == pytest.approx(4.0, rel=1e-3)
    assert found["e"].backward == pytest.approx(1.0)
    assert found["d"].backward == pytest.approx(2 * 128 / 16)


def test_a_rule_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @kv.signal_rule(Sorted)
    def sort(visit):
        return visit.inputs[0].scaled(9.0)

    check(dense(), chain(L.ReLU(), Sorted(), dense(), L.ReLU(), dense()), (64,), draws=120)

    class Twice(Sorted):
        pass

    last = dense(8)
    model = keras.Sequential([keras.Input((64,)), dense(8), Twice(), last])
    predicted = kv.analyze(model).predicted[last.kernel.path]
    assert predicted.forward == pytest.approx(2 * 9 * 2)


def test_a_rule_is_for_classes_and_names():
    with pytest.raises(TypeError, match=r"^signal_rule: takes layer classes.* Received: 3\.$"):
        kv.signal_rule(3)


@pytest.mark.parametrize("start", [8, 0])
def test_slices_without_entries_are_noted(start):
    """They are nowhere averaged, which NumPy would warn of."""
    inputs = keras.Input((8, 16))
    u = dense(32, name="a")(inputs)
    x = keras.ops.relu(keras.ops.concatenate([u, u[:, start:start]], axis=1))
    model = keras.Model(inputs, dense(8, name="b")(L.GlobalAveragePooling1D()(x)))
    analysis = kv.analyze(model)
    assert [p.backward is None for p in analysis.predicted.values()] == [True, False]
    assert "get_item (GetItem): " in analysis.notes[0]


def test_parts_without_channels_change_nothing():
    """The first of `split(u, [0, 64])` has none."""
    inputs = keras.Input((8,))
    u = dense(128, name="a")(inputs)
    halves = {"whole": ops.split(u, 2, axis=-1), "none": ops.split(u, [0, 64], axis=-1)[1:]}
    predicted = []
    for one, other in halves.values():
        out = dense(4, name="b")(ops.relu(one) * other)
        analysis = kv.analyze(keras.Model(inputs, out))
        predicted.append([(p.forward, p.backward) for p in analysis.predicted.values()])
    np.testing.assert_allclose(*predicted, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "take"),
    [("last", lambda x: x[:, -2:]), ("every other", lambda x: x[:, ::2])],
)
def test_slices_of_an_unknown_length(name, take):
    """Which entries these are depends on the length."""
    inputs = keras.Input((None, 8))
    x = L.GlobalAveragePooling1D()(ops.relu(take(dense(32, name="a")(inputs))))
    analysis = kv.analyze(keras.Model(inputs, dense(4, name="b")(x)))
    assert analysis.predicted["a/kernel"].forward is not None
    assert analysis.predicted["b/kernel"].forward is None
    assert any("(GetItem): which entries it takes depends on" in note for note in analysis.notes)


def test_merging_an_unknown_number_of_channels():
    """As of masks over an unknown number of tokens, where one has gained an entry."""
    inputs = keras.Input((None,))
    x = ops.minimum(ops.expand_dims(inputs, 1), ops.concatenate([inputs, inputs], 1)[:, None])
    model = keras.Model(inputs, dense(4)(ops.mean(x, axis=2)))
    assert all(p.forward is None for p in kv.analyze(model).predicted.values())
