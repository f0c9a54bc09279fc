"""`Mimetic` in models: the kernels of one attention are drawn together."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests import fresh_process
from tests.models import assert_same_state, state

L = keras.layers

ROLES = ("query", "key", "value", "output")


def attention(initializer="mimetic", d=16, heads=4, size=4, blocks=1, **call):
    """Residual self-attention without normalization."""
    inputs = x = keras.Input((5, d))
    for number in range(blocks):
        layer = L.MultiHeadAttention(
            heads, size, kernel_initializer=initializer, name=f"attention_{number}"
        )
        x = x + layer(x, x, **call)
    return keras.Model(inputs, L.Dense(3, name="head")(x))


def grouped():
    inputs = keras.Input((5, 16))
    layer = L.GroupQueryAttention(8, 4, 2, kernel_initializer="mimetic", name="attention_0")
    return keras.Model(inputs, layer(inputs, inputs))


def by_hand(initializer="mimetic", d=48, heads=2, **options):
    size = d // heads
    inputs = keras.Input((5, d))

    def part(name):
        x = L.Dense(d, name=name, kernel_initializer=initializer, **options)(inputs)
        return ops.transpose(ops.reshape(x, (-1, 5, heads, size)), (0, 2, 1, 3))

    scores = ops.matmul(part("query"), ops.transpose(part("key"), (0, 1, 3, 2))) / size**0.5
    mixed = ops.transpose(ops.matmul(ops.softmax(scores), part("value")), (0, 2, 1, 3))
    output = L.Dense(d, name="output", kernel_initializer=initializer, **options)
    return keras.Model(inputs, inputs + output(ops.reshape(mixed, (-1, 5, d))))


def numbers(tensor):
    return np.array(ops.convert_to_numpy(tensor)).astype(np.float64)


def dense_of(layer, role):
    return getattr(layer, f"{role}_dense", None) or getattr(layer, f"_{role}_dense")


def products(layer):
    """W_Q·W_Kᵀ of each head, and W_V·W_O of all together."""
    query, key, value, output = (numbers(dense_of(layer, role).kernel) for role in ROLES)
    times = query.shape[1] // key.shape[1]
    key, value = (np.repeat(kernel, times, axis=1) for kernel in (key, value))
    return np.einsum("dhk,ehk->hde", query, key), np.einsum("dhv,hve->de", value, output)


def is_mimetic(layer):
    """Whether the traces of the products are those of the targets, at full rank.

    tr(0.7·Z + 0.7·I) = 0.7·(d + a standard normal number), and the best approximation of rank k has
    at least its share k/d; kernels drawn apart have a trace of mean 0 and deviation 1 or less.
    """
    heads, together = products(layer)
    d, size = len(together), dense_of(layer, "query").kernel.shape[-1]
    share = min(1, size / d)
    return all(np.trace(h) > 0.7 * (d * share - 5) for h in heads) and np.trace(together) < (
        -0.4 * (d - 5)
    )


def kernels(model):
    return [np.array(ops.convert_to_numpy(v)) for v in model.weights if "kernel" in v.path]


@pytest.mark.parametrize("initializer", ["mimetic", kv.Mimetic(), kv.Mimetic(seed=5)])
def test_injected_kernels_have_the_products_also_where_keras_clones_their_initializer(initializer):
    model = attention(initializer, d=48, heads=2, size=24, blocks=2)
    assert not any(is_mimetic(layer) for layer in model.layers[1:2])
    report = kv.inject(model)
    assert len(report.drawn) == 8
    for name in ("attention_0", "attention_1"):
        layer = model.get_layer(name)
        assert is_mimetic(layer)
        seeds = {dense_of(layer, role).kernel_initializer.seed for role in ROLES}
        assert len(seeds) == 1
        assert None not in seeds
    first, second = (products(model.get_layer(f"attention_{n}"))[1] for n in (0, 1))
    assert not np.any(first == second)
    assert report["attention_0/query/kernel"].context.group is not None
    before = state(model)
    assert {row.status for row in kv.inject(model)} == {"skipped: already drawn for this context"}
    assert_same_state(state(model), before)


def test_heads_of_a_vision_transformer_are_near_the_target():
    """d = 192 and 3 heads, as in the paper's ViT-Tiny."""
    model = attention(kv.Mimetic(seed=1), d=192, heads=3, size=64)
    kv.inject(model)
    heads, together = products(model.layers[1])
    off = ~np.eye(192, dtype=bool)
    sigma = 0.4 / np.sqrt(192)
    # All ranks: five standard errors of a mean, and of a variance of normal entries.
    assert abs(np.diag(together).mean() + 0.4) < 5 * sigma / np.sqrt(192)
    assert abs(together[off].var() / sigma**2 - 1) < 5 * np.sqrt(2 / off.sum())
    for head in heads:
        values = np.linalg.svd(head, compute_uv=False)
        # Rank 64: the largest singular values of 0.7·(Z + I), the edge of whose law is 0.7·3√3/2.
        assert values[64] < 1e-5 * values[0]
        assert values[0] == pytest.approx(0.7 * 1.5 * np.sqrt(3), rel=0.05)


@pytest.mark.parametrize("seed", [None, 3])
def test_saved_models_and_clones_have_the_same_kernels(seed, tmp_path):
    model = by_hand(kv.Mimetic(seed=seed))
    kv.inject(model)
    model.save(tmp_path / "model.keras")
    for twin in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
        keras.models.model_from_json(model.to_json()),
    ):
        for one, two in zip(kernels(model), kernels(twin), strict=True):
            np.testing.assert_array_equal(one, two)
        assert kv.inject(twin).drawn == ()


READER = """
import json, sys
import keras
import numpy as np
import keras_varinit as kv
model = keras.models.model_from_json(open(sys.argv[1]).read())
drawn = {v.path: np.array(keras.ops.convert_to_numpy(v)).tolist() for v in model.weights}
print(json.dumps([drawn, [row.status for row in kv.inject(model)]]))
"""


@pytest.mark.slow
def test_another_process_draws_the_same_kernels(tmp_path):
    model = by_hand(bias_initializer="fan_in_bias")
    kv.inject(model)
    (tmp_path / "model.json").write_text(model.to_json())
    drawn, statuses = fresh_process.run(READER, tmp_path / "model.json")
    assert set(statuses) == {"skipped: already drawn for this context"}
    for variable in model.weights:
        if "kernel" in variable.path:
            # The same up to the rounding of another number of threads.
            np.testing.assert_allclose(drawn[variable.path], numbers(variable), atol=1e-6)


def test_saved_attention_of_keras_keeps_its_kernels(tmp_path):
    """Its configuration has the initializer that it was made with, not those of its parts."""
    model = attention()
    kv.inject(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert kv.inject(loaded).drawn == ()
    for one, two in zip(kernels(model), kernels(loaded), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("seed", [None, 3])
def test_initialize_draws_the_kernels_of_an_attention_together(seed):
    model = attention("he_normal", d=48, heads=2, size=24, blocks=2)
    kv.initialize(model, "mimetic", seed=seed)
    assert all(is_mimetic(model.get_layer(f"attention_{n}")) for n in (0, 1))
    once = kernels(model)
    kv.initialize(model, "mimetic", seed=seed)
    again = all(map(np.array_equal, once, kernels(model)))
    assert again == (seed is not None)
    assert {row.initializer for row in kv.initialize(model, kv.Mimetic()) if row.context} == {
        "Mimetic"
    }
    assert all(is_mimetic(model.get_layer(f"attention_{n}")) for n in (0, 1))


def causal():
    return attention(use_causal_mask=True, d=48, size=24)


def cross():
    inputs = [keras.Input((5, 16)), keras.Input((6, 16))]
    layer = L.MultiHeadAttention(4, 4, kernel_initializer="mimetic", name="attention_0")
    return keras.Model(inputs, layer(*inputs))


def other_width():
    inputs = keras.Input((5, 16))
    layer = L.MultiHeadAttention(
        4, 4, output_shape=12, kernel_initializer="mimetic", name="attention_0"
    )
    return keras.Model(inputs, layer(inputs, inputs))


@pytest.mark.parametrize("make", [causal, cross, other_width])
def test_other_attentions_are_drawn_by_the_base(make):
    model = make()
    report = kv.inject(model)
    for row in report:
        assert row.status == "drawn"
        fans = row.context.fan_in + row.context.fan_out
        assert row.stddev == pytest.approx(np.sqrt(2 / fans))


def test_query_heads_that_share_keys_and_values():
    model = grouped()
    kv.inject(model)
    _, together = products(model.layers[-1])
    values = np.linalg.svd(together, compute_uv=False)
    # Two value heads of size 8 span all 16 channels, which four heads of the output would not.
    assert values[-1] > 1e-6
    assert abs(np.diag(together).mean() + 0.4) < 5 * 0.1 / 4


def test_attention_written_by_hand():
    model = by_hand()
    kv.inject(model)
    query, key, value, output = (numbers(model.get_layer(role).kernel) for role in ROLES)
    # All 24 of 48 ranks of each head, and all ranks together; see `is_mimetic`.
    for columns in (slice(0, 24), slice(24, 48)):
        assert np.trace(query[:, columns] @ key[:, columns].T) > 0.7 * (24 - 5)
    assert abs(np.trace(value @ output) + 0.4 * 48) < 0.4 * 5


def test_kernel_that_was_frozen_fits_its_partner_once_it_is_drawn():
    model, twin = attention(kv.Mimetic(seed=2)), attention(kv.Mimetic(seed=2))
    query = model.layers[1].query_dense
    query.trainable = False
    assert len(kv.inject(model).drawn) == 3
    query.trainable = True
    (row,) = kv.inject(model).drawn
    assert row.path == query.kernel.path
    kv.inject(twin)
    for one, two in zip(kernels(model)[:4], kernels(twin)[:4], strict=True):
        np.testing.assert_array_equal(one, two)


def test_unseeded_kernel_that_was_frozen_fits_its_partner_too():
    model = attention(d=48, heads=2, size=24)
    key = model.layers[1].key_dense
    key.trainable = False
    kv.inject(model)
    key.trainable = True
    kv.inject(model)
    assert is_mimetic(model.layers[1])


def test_trained_kernels_are_left_alone():
    model = attention()
    kernel = model.layers[1].value_dense.kernel
    kernel.assign(kernel + 1)
    report = kv.inject(model)
    assert len(report.drawn) == 3
    assert report["attention_0/value/kernel"].status.startswith("skipped: trained")


def test_attention_of_another_model_is_not_drawn_again():
    """A frozen attention, injected before, has the stream of a new one that now precedes it."""
    old = attention(kv.Mimetic(seed=2), d=48, heads=2, size=24)
    kv.inject(old)
    old.trainable = False
    inputs = keras.Input((5, 48))
    new = L.MultiHeadAttention(2, 24, kernel_initializer=kv.Mimetic(seed=2), name="new")
    inner = keras.Model(old.input, old.get_layer("head").input)
    model = keras.Model(inputs, inner(new(inputs, inputs)))
    for draw in (kv.inject, lambda m: kv.initialize(m, kv.Mimetic(seed=2))):
        report = draw(model)
        groups = {report[f"new/{role}/kernel"].context.group for role in ("query", "value")}
        assert groups == {"query/kernel#1'"}
        assert is_mimetic(new)
        assert not np.any(products(new)[1] == products(old.layers[1])[1])


def test_predictions_behind_it_are_unknown_until_a_normalization():
    inputs = keras.Input((5, 16))
    x = L.Dense(16, name="first")(inputs)
    attended = L.MultiHeadAttention(4, 4, kernel_initializer="mimetic", name="mha")(x, x)
    behind = L.Dense(16, name="behind")(attended)
    x = L.Dense(16, name="after")(L.LayerNormalization()(x + behind))
    model = keras.Model(inputs, x)
    assert kv.analyze(model).predicted["behind/kernel"].forward is not None
    kv.inject(model)
    for analysis in (kv.analyze(model),):
        predicted = {path: p.forward for path, p in analysis.predicted.items()}
        assert predicted["first/kernel"] is not None
        assert predicted["after/kernel"] is not None
        assert predicted["behind/kernel"] is None
        assert all(predicted[f"mha/{role}/kernel"] is None for role in ("query", "value"))
        assert analysis.notes


def test_signal_preserving_beside_it_says_what_is_not_known():
    model = attention()
    model.get_layer("head").kernel_initializer = kv.SignalPreserving(seed=1)
    kernel = model.get_layer("head").kernel
    kernel.assign(model.get_layer("head").kernel_initializer(kernel.shape))
    report = kv.inject(model)
    assert any("head/kernel: its input signal is not known" in note for note in report.notes)


def test_builtin_copy_needs_keras_alone():
    model = by_hand()
    report = kv.inject(model)
    copy = kv.to_builtin(model)
    assert "keras_varinit" not in json.dumps(keras.saving.serialize_keras_object(copy))
    initializer = copy.get_layer("query").kernel_initializer
    assert initializer.maxval == pytest.approx(report["query/kernel"].stddev * np.sqrt(3))
