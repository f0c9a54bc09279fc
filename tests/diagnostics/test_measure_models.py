"""`measure_signal` on models and data of every kind, and what it says of wrong arguments."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests.analysis import test_any_model, test_layer_kinds, test_model_kinds
from tests.models import cnn, weights

L = keras.layers


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def tokens(*shape):
    return np.random.default_rng(0).integers(1, 20, shape).astype("int32")


def masked_bidirectional():
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(20, 8, mask_zero=True)(inputs)
    x = L.Bidirectional(L.GRU(4, return_sequences=True), name="both")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling1D()(x)))


def bidirectional_with_states():
    inputs = keras.Input((4, 3))
    layer = L.SimpleRNN(2, return_sequences=True, return_state=True)
    sequence, forward, backward = L.Bidirectional(layer, merge_mode="ave")(inputs)
    x = L.Concatenate()([L.GlobalMaxPooling1D()(sequence), forward, backward])
    return keras.Model(inputs, L.Dense(2)(x))


def layers_as_activations():
    inputs = keras.Input((8,))
    x = L.Dense(4, activation=L.LeakyReLU(0.2))(inputs)
    x = L.Dense(4, activation=lambda t: ops.maximum(t, 0))(x)
    return keras.Model(inputs, L.Dense(2)(L.PReLU()(x)))


def nested():
    block = keras.Sequential([keras.Input((8,)), L.Dense(8, activation="relu"), L.Dropout(0.1)])
    inputs = keras.Input((8,))
    inner = keras.Model(inputs, block(inputs) + inputs)
    return keras.Sequential([keras.Input((8,)), inner, L.Dense(2)])


def padded_tokens():
    values = tokens(5, 6)
    values[:, 4:] = 0
    values[0, 2:] = 0
    return values


def time_distributed():
    inputs = keras.Input((5, 8, 8, 3))
    x = L.TimeDistributed(L.Conv2D(4, 3, padding="same", activation="relu", name="conv"))(inputs)
    x = L.TimeDistributed(keras.Sequential([L.Flatten(), L.Dense(6), L.ReLU()]))(x)
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def shared_twice():
    shared, inputs = L.Dense(8, activation="relu", name="shared"), keras.Input((8,))
    return keras.Model(inputs, L.Dense(2, name="head")(shared(shared(inputs))))


def several_inputs():
    one, two = keras.Input((4,), name="one"), keras.Input((3,), name="two")
    x = L.Add()([L.Dense(5)(one), L.Dense(5)(two)])
    return keras.Model([one, two], [L.Dense(2, name="a")(x), L.Dense(1, name="b")(ops.tanh(x))])


def transformer():
    model = test_layer_kinds.Transformer(
        test_layer_kinds.ATTENTION["multi-head"], blocks=1, width=8
    )
    model(np.ones((2, 10), "int32"))
    return model


def own():
    return test_any_model.built(test_any_model.Own())


class AlwaysDropping(keras.Model):
    """Passes a `training` of its own to a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = L.Dense(8), L.Dropout(0.5), L.Dense(2)

    def call(self, x, training=False):
        return self.last(self.drop(self.first(x), training=True))


def always_dropping():
    model = AlwaysDropping()
    model(np.ones((2, 8), "float32"))
    return model


def separable_and_transposed():
    inputs = keras.Input((8, 8, 3))
    x = L.SeparableConv2D(6, 3, activation="relu")(inputs)
    x = L.DepthwiseConv2D(3, activation="tanh")(x)
    x = L.Conv2DTranspose(4, 3, strides=2, activation="sigmoid")(x)
    x = L.EinsumDense("bhwc,cd->bhwd", (8, 8, 5), activation="elu")(x[:, :8, :8])
    return keras.Model(inputs, L.GlobalAveragePooling2D()(x))


MODELS = {
    "transformer": (transformer, lambda: tokens(3, 10)),
    "functional transformer": (lambda: test_any_model.transformer(1, 8), lambda: tokens(3, 10)),
    "own call": (own, lambda: draw(3, 8, 8, 3)),
    "dropout in inference": (always_dropping, lambda: draw(3, 8)),
    "nested": (nested, lambda: draw(3, 8)),
    "masked bidirectional": (masked_bidirectional, padded_tokens),
    "bidirectional with states": (bidirectional_with_states, lambda: draw(3, 4, 3)),
    "layers as activations": (layers_as_activations, lambda: draw(3, 8)),
    "time distributed": (time_distributed, lambda: draw(3, 5, 8, 8, 3)),
    "shared": (shared_twice, lambda: draw(4, 8)),
    "several inputs": (several_inputs, lambda: [draw(4, 4), draw(4, 3)]),
    "inputs by name": (several_inputs, lambda: {"two": draw(4, 3), "one": draw(4, 4)}),
    "siamese": (
        test_model_kinds.siamese_functional,
        lambda: {"one": draw(3, 5), "two": draw(3, 5, seed=1)},
    ),
    "siamese, subclassed": (
        test_model_kinds.siamese_subclassed,
        lambda: {"one": draw(3, 5), "two": draw(3, 5, seed=1)},
    ),
    "separable, transposed": (separable_and_transposed, lambda: draw(3, 8, 8, 3)),
}


@pytest.mark.filterwarnings("ignore:.*passed an input with a mask")  # Keras 3.16
@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, True) for name in MODELS), ("own call", False), ("dropout in inference", False)],
)
def test_models_of_every_kind_are_run_piece_by_piece(name, training):
    """That the pieces give the model's own output is checked by `measure_signal` itself."""
    make, data = MODELS[name]
    model = make()
    before = weights(model)
    report = kv.measure_signal(model, data(), training=training)
    assert report.notes == ()
    assert len({row.name for row in report}) == len(report)
    kernels = {row.path for row in report if row.kind == "weights"}
    assert len(kernels) >= min(2, len(report))
    for row in report:
        assert np.isfinite(row.second_moment)
        assert row.gradient_second_moment is not None
        assert row.nonfinite_count == 0
    for value, was in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(value, was)


def test_shared_layers_have_a_row_per_call():
    report = kv.measure_signal(shared_twice(), draw(4, 8))
    assert [row.name for row in report] == ["shared", "shared#2", "head"]
    assert report["shared"].path == report["shared#2"].path


def test_masks_reach_the_layers_as_in_the_model():
    inputs = keras.Input((6,), dtype="int32")
    x = L.Dense(4)(L.Embedding(20, 8, mask_zero=True)(inputs))
    model = keras.Model(inputs, L.GlobalAveragePooling1D(name="mean")(x))
    row = kv.measure_signal(model, padded_tokens())["mean"]
    expected = ops.convert_to_numpy(model(padded_tokens(), training=True))
    assert row.second_moment == pytest.approx(np.mean(expected**2), rel=1e-4)
    unmasked = kv.measure_signal(model, tokens(5, 6))["mean"]
    assert unmasked.second_moment != pytest.approx(row.second_moment, rel=1e-2)


class Noisy(keras.Model):
    """Adds noise whose number follows from the batch, which the recorded graph has fixed."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(4, name="dense")
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        x = self.dense(x)
        return x + keras.random.normal(ops.shape(x), seed=self.generator)


def test_a_graph_that_gives_other_numbers_than_the_model_is_not_used():
    model = Noisy()
    model(draw(2, 5))
    report = kv.measure_signal(model, draw(6, 5), batch_size=4)
    assert [row.name for row in report] == ["dense"]
    assert report.notes[0].startswith("layers are measured and raw operations are not")
    inputs = keras.Input((3, 4))
    steps = L.TimeDistributed(L.BatchNormalization(), name="steps")(inputs)
    report = kv.measure_signal(keras.Model(inputs, L.Dense(2, name="head")(steps)), draw(5, 3, 4))
    assert [row.name for row in report] == ["steps", "head"]
    assert "the output differs from" in report.notes[0]


class Branching(keras.Model):
    """Decides by the data, which no symbolic call can follow."""

    def __init__(self):
        super().__init__(name="branching")
        self.dense = L.Dense(4, activation="tanh", name="dense")
        self.inner = keras.Sequential([L.Dense(3, name="inner"), L.ReLU(name="relu")])
        self.head = L.Dense(2, name="head")

    def build(self, shape):
        self.dense.build(shape)
        self.inner.build((*shape[:-1], 4))
        self.head.build((*shape[:-1], 3))

    def call(self, x):
        positive = float(ops.convert_to_numpy(ops.max(x))) > 0
        x = self.inner(self.dense(x))
        return self.head(x) if positive else self.head(-x)


def test_a_model_that_cannot_be_followed_is_measured_layer_by_layer():
    model = Branching()
    model.build((None, 4))
    x = draw(8, 4)
    report = kv.measure_signal(model, x)
    assert [row.name for row in report] == ["dense", "inner", "relu", "head"]
    kernel, bias = model.dense.get_weights()
    signal = x @ kernel + bias
    assert report["dense"].second_moment == pytest.approx(np.mean(signal**2), rel=1e-4)
    assert report["dense"].activation == "tanh"
    assert report["relu"].dead_fraction is not None
    (note,) = report.notes
    assert report["dense"].predicted_second_moment is None
    assert note.startswith("layers are measured and raw operations are not")
    assert "call" not in vars(model.dense)


class Dataset(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return self.x[rows], self.y[rows]


def test_data_of_every_form_gives_the_same_numbers():
    model, x, y = cnn("he_normal"), draw(24, 8, 8, 3), draw(24, 2)
    expected = kv.measure_signal(model, x, y, "mse", batch_size=8).to_dict()
    forms = [Dataset(x, y), [(x[:8], y[:8]), (x[8:16], y[8:16]), (x[16:], y[16:])]]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        forms.append(tf.data.Dataset.from_tensor_slices((x, y)).batch(8))
    if keras.backend.backend() == "torch":
        import torch

        pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
        forms.append(torch.utils.data.DataLoader(pairs, batch_size=8))
    for data in forms:
        data = iter(data) if isinstance(data, list) else data
        assert kv.measure_signal(model, data, loss="mse").to_dict() == expected
    part = kv.measure_signal(model, Dataset(x, y), loss="mse", max_batches=2)
    assert part.examples == 16


def test_sample_weights_of_a_dataset_weigh_the_loss():
    model, x, y = cnn("he_normal"), draw(8, 8, 8, 3), draw(8, 2)
    plain = kv.measure_signal(model, iter([(x, y)]), loss="mse")
    weighted = kv.measure_signal(model, iter([(x, y, 3.0 * np.ones(8, "float32"))]), loss="mse")
    for row, other in zip(plain, weighted, strict=True):
        assert other.gradient_second_moment == pytest.approx(9 * row.gradient_second_moment)


def test_several_outputs_and_losses():
    model, x = several_inputs(), [draw(8, 4), draw(8, 3)]
    y = [draw(8, 2), draw(8, 1)]
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.5})
    both = kv.measure_signal(model, x, y)
    # the derivative of half a mean absolute error by its single output is ±1/2
    assert both["b"].gradient_second_moment == pytest.approx(0.25)
    assert kv.measure_signal(model, x, y, ["mse", "mae"])["b"].gradient_second_moment == (
        pytest.approx(1.0)
    )


def test_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = cnn("he_normal")
    keras.config.set_dtype_policy("float32")
    report = kv.measure_signal(model, draw(8, 8, 8, 3))
    assert all(np.isfinite(row.second_moment) for row in report)


def test_frozen_models_are_measured():
    model, x = cnn("he_normal"), draw(8, 8, 8, 3)
    expected = [row.gradient_second_moment for row in kv.measure_signal(model, x)]
    model.trainable = False
    frozen = [row.gradient_second_moment for row in kv.measure_signal(model, x)]
    assert frozen == pytest.approx(expected, rel=1e-4)


def unbuilt():
    return keras.Sequential([L.Dense(2)])


X = np.ones((8, 8, 8, 3), "float32")
WRONG = {
    "not a model": (lambda: "model", (X,), {}, TypeError, "must be a built keras.Model"),
    "unbuilt": (unbuilt, (X,), {}, ValueError, "is not built"),
    "a number": (cnn, (3.0,), {}, TypeError, "`x` must be an array"),
    "no data": (cnn, (X[:0],), {}, ValueError, "the same number of examples"),
    "lengths": (cnn, (X, np.ones((4, 2))), {}, ValueError, r"lengths \[8, 4\]"),
    "shape": (cnn, (X[:, :, :, :2],), {}, ValueError, "`x` does not fit input"),
    "one example": (cnn, (iter([X[0]]),), {}, ValueError, "Batch the dataset first"),
    "no batch": (cnn, (iter([]),), {}, ValueError, "yields no batch"),
    "y beside a dataset": (cnn, (iter([X]), X), {}, ValueError, "`y` must be None if"),
    "y without loss": (cnn, (X, np.ones((8, 2))), {}, ValueError, "there is no `loss`"),
    "loss without y": (cnn, (X,), {"loss": "mse"}, ValueError, "`loss` needs targets"),
    "batch size": (cnn, (X,), {"batch_size": 0}, ValueError, "`batch_size` must be a positive"),
    "max batches": (cnn, (X,), {"max_batches": 1.5}, ValueError, "`max_batches` must be a pos"),
    "training": (cnn, (X,), {"training": None}, TypeError, "`training` must be a bool"),
    "verbose": (cnn, (X,), {"verbose": 3}, ValueError, "`verbose` must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    make, args, options, kind, text = WRONG[name]
    with pytest.raises(kind, match=text):
        kv.measure_signal(make(), *args, **options)


def test_progress_is_shown_for_long_work_alone(capsys):
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    kv.measure_signal(model, draw(40, 4), batch_size=10)
    assert capsys.readouterr().out == ""
    kv.measure_signal(model, draw(40, 4), batch_size=4)
    assert "10/10" in capsys.readouterr().out
    kv.measure_signal(model, draw(40, 4), batch_size=4, verbose=0)
    assert capsys.readouterr().out == ""
