"""`Recommended`: the rules choose, and what they choose is what is drawn."""

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit.initializers.recommended import RULES, rule_for
from tests.analysis import role_models as models

layers = keras.layers


def choices(model):
    return {row.path: (row.choice or {}).get("class_name") for row in kv.recommend(model)}


def convolutions():
    x = inputs = keras.Input((8, 8, 3))
    for n in range(3):
        x = layers.Conv2D(4, 3, activation="relu", name=f"c{n}")(x)
    return keras.Model(inputs, layers.Dense(2, name="top")(layers.Flatten()(x)))


def perceptron(depth, activation="relu"):
    x = inputs = keras.Input((8,))
    for n in range(depth):
        x = layers.Dense(16, activation, name=f"d{n}")(x)
    return keras.Model(inputs, layers.Dense(2, name="top")(x))


def test_every_rule_has_a_reason_and_a_choice_that_keras_finds():
    for rule in RULES:
        assert rule.reason
        initializer = rule.initializer(seed=3)
        assert isinstance(initializer, kv.initializers.ContextualInitializer)
        assert rule.kind in initializer.kinds


def test_every_rule_applies_somewhere():
    """A rule that no model here meets would not be tested."""
    met = set()
    long = keras.Sequential([keras.Input((200, 3)), layers.LSTM(4), layers.Dense(1)])
    wide = keras.Sequential([keras.Input((2000,)), *[layers.Dense(8, "relu") for _ in range(5)]])
    dense = (perceptron(6), perceptron(16, "tanh"), wide)
    for model in (convolutions(), *dense, models.by_hand(), models.swiglu(), long):
        analysis = kv.analyze(model)
        for context in (*analysis.contexts.values(), *analysis.vectors.values()):
            rule = rule_for(context)
            if rule is not None:
                met.add(rule)
    assert met == set(RULES)


def test_choices_by_role():
    assert choices(convolutions())["c0/kernel"] == "SignalPreserving"
    assert choices(convolutions())["top/kernel"] == "GlorotUniform"
    assert choices(perceptron(6))["d0/kernel"] == "SignalPreserving"
    assert choices(perceptron(2))["d0/kernel"] == "GlorotUniform"
    assert choices(perceptron(16, "tanh"))["d0/kernel"] == "Isometric"
    assert choices(perceptron(10, "tanh"))["d0/kernel"] == "GlorotUniform"
    attention = choices(models.by_hand())
    assert attention["o/kernel"] == "ResidualScaled"
    assert {attention[f"{name}/kernel"] for name in "qkv"} == {"GlorotUniform"}
    swiglu = choices(models.swiglu())
    assert swiglu["down/kernel"] == "ResidualScaled"
    assert swiglu["up/kernel"] == "GlorotUniform"
    normalized = choices(models.projection())
    assert {normalized[f"{name}/kernel"] for name in ("b", "top")} == {"GlorotUniform"}


def distribution(model, path):
    (row,) = [row for row in kv.recommend(model) if row.path == path]
    return row.choice["config"].get("distribution")


def test_orthogonal_draws_are_for_dense_networks_of_a_size_that_can_be_decomposed():
    assert distribution(perceptron(6), "d1/kernel") == "orthogonal"
    x = inputs = keras.Input((8, 8, 3))
    for _ in range(5):
        x = layers.Conv2D(4, 3, activation="relu", padding="same")(x)
    x = layers.Dense(16, "relu", name="d1")(layers.Flatten()(x))
    assert distribution(keras.Model(inputs, layers.Dense(2)(x)), "d1/kernel") == "normal"
    wide = keras.Sequential(
        [keras.Input((8,)), *[layers.Dense(1025, "relu", name=f"w{n}") for n in range(5)]]
    )
    assert distribution(wide, "sequential/w1/kernel") == "normal"


def test_one_dense_layer_with_tanh_behind_another_network_is_not_a_tanh_network():
    """As the pooler of BERT is."""
    x = inputs = keras.Input((8, 8, 3))
    for _ in range(16):
        x = layers.Conv2D(4, 3, activation="relu", padding="same")(x)
    x = layers.Dense(16, "tanh", name="pooler")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert choices(model)["pooler/kernel"] == "GlorotUniform"


@pytest.mark.parametrize(("depth", "choice"), [(4, "GlorotUniform"), (20, "SignalPreserving")])
def test_images_to_images(depth, choice):
    x = inputs = keras.Input((8, 8, 1))
    for n in range(depth - 1):
        x = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"c{n}")(x)
    model = keras.Model(inputs, layers.Conv2D(1, 3, padding="same", name="top")(x))
    assert choices(model)["c0/kernel"] == choice


def test_an_end_with_a_scale_that_trains_with_it_is_left_alone():
    """Zero times zero gets no gradient."""
    inputs = keras.Input((6, 16))

    def block(x, *scale):
        y = layers.LayerNormalization()(x)
        y = layers.Dense(16)(layers.Dense(32, "gelu")(y))
        for layer in scale:
            y = layer(y)
        return layers.Add()([x, y])

    model = keras.Model(inputs, layers.Dense(2)(block(block(inputs, models.Scale()))))
    chosen = [choice for path, choice in choices(model).items() if path.endswith("kernel")]
    assert chosen == [*["GlorotUniform"] * 3, "ResidualScaled", "GlorotUniform"]


def test_what_a_layer_draws_by_itself_is_kept():
    """Where no rule applies, the author's own initializer draws, with a fresh seed."""
    inputs = keras.Input((8,))
    own = keras.initializers.RandomNormal(stddev=0.001, seed=1)
    model = keras.Model(inputs, layers.Dense(64, kernel_initializer=own)(inputs))
    before = model.layers[-1].kernel.numpy() if hasattr(model.layers[-1].kernel, "numpy") else None
    (row,) = [row for row in kv.recommend(model) if row.role == "head"]
    assert row.choice["class_name"] == "RandomNormal"
    kv.initialize(model, seed=0)
    kernel = keras.ops.convert_to_numpy(model.layers[-1].kernel)
    assert np.std(kernel) == pytest.approx(0.001, rel=0.2)
    assert before is None or not np.array_equal(before, kernel)


@pytest.mark.once
def test_the_end_of_a_branch_is_zero_and_other_kernels_are_what_their_layer_would_draw():
    """GPT-2: its N(0, 0.02²), but for the ends of branches."""
    gpt = keras.initializers.RandomNormal(stddev=0.02)
    x = inputs = keras.Input((5, 64))
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16, kernel_initializer=gpt)(h, h, use_causal_mask=True)
    model = keras.Model(inputs, layers.Dense(2)(x))
    stddevs = {row.context.role: row.stddev for row in kv.initialize(model, seed=0) if row.context}
    assert stddevs["attention_output"] == 0
    assert stddevs["query"] == pytest.approx(0.02)


def test_initialize_draws_what_recommend_says():
    for build in (convolutions, models.by_hand, models.recurrent, models.projection):
        keras.utils.clear_session(free_memory=False)
        model = build()
        said = choices(model)
        rows = kv.recommend(model)
        report = kv.initialize(model, seed=0)
        drawn = {row.path: row.initializer for row in report if row.status == "drawn"}
        assert drawn == {path: name for path, name in said.items() if path in drawn}
        assert set(drawn) == {row.path for row in rows if row.choice is not None}


def test_nothing_is_changed_by_recommend():
    model = convolutions()
    before = model.get_weights()
    kv.recommend(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_same_seed_the_same_weights():
    first, second = models.by_hand(), models.by_hand()
    for model in (first, second):
        kv.initialize(model, seed=5)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_context_it_draws_what_keras_does():
    inputs = keras.Input((6, 8))
    name = "recommended"
    x = layers.Dense(16, kernel_initializer=name, bias_initializer=name)(inputs)
    norm = layers.LayerNormalization(gamma_initializer=name, beta_initializer=name)
    lstm = layers.LSTM(4, recurrent_initializer=name, kernel_initializer=name)
    model = keras.Model(inputs, lstm(norm(x)))
    dense = model.layers[1]
    assert np.all(keras.ops.convert_to_numpy(dense.bias) == 0)
    assert np.all(keras.ops.convert_to_numpy(norm.gamma) == 1)
    assert np.all(keras.ops.convert_to_numpy(norm.beta) == 0)
    recurrent = keras.ops.convert_to_numpy(lstm.cell.recurrent_kernel)
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(4), atol=1e-5)
    bound = np.sqrt(6 / (8 + 16))
    kernel = keras.ops.convert_to_numpy(dense.kernel)
    assert 0.8 * bound < np.abs(kernel).max() <= bound
    table = layers.Embedding(50, 8, embeddings_initializer=name)
    table.build()
    assert 0.04 < np.abs(keras.ops.convert_to_numpy(table.embeddings)).max() <= 0.05


def test_as_a_string_id_it_is_injected_and_saved(tmp_path):
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, kernel_initializer="recommended", activation="relu")(x)
    x = layers.Conv2D(4, 3, kernel_initializer="recommended", activation="relu")(x)
    x = layers.BatchNormalization(gamma_initializer="recommended")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    report = kv.inject(model)
    assert [row.status for row in report] == ["drawn"] * 3
    first = report.rows[0]
    wanted = kv.SignalPreserving(context=first.context).stddev(first.context.kernel_shape)
    assert first.stddev == wanted
    assert not kv.inject(model).drawn
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert not kv.inject(loaded).drawn
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_is_no_base_of_wrappers():
    for wrapper in (kv.DepthScaled, kv.ResidualScaled, kv.Mimetic):
        with pytest.raises(ValueError, match="Recommended"):
            wrapper("recommended")


def test_recommendations_are_read_by_path():
    rows = kv.recommend(convolutions())
    assert "c0/kernel" in rows
    assert rows["c0/kernel"].role == "kernel"
    assert "unit signal" in str(rows)
    with pytest.raises(KeyError, match="no row"):
        rows["nothing"]
    again = keras.initializers.get(rows["c0/kernel"].choice)
    assert isinstance(again, kv.SignalPreserving)
