"""What `inject` draws, what it leaves alone, and that it does all or nothing."""

import re

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests.models import (
    FAMILIES,
    L,
    OwnCall,
    assert_equal,
    assert_same_state,
    cnn,
    every_family,
    fit,
    kernels,
    perceptron,
    state,
    weights,
)

DONE = "skipped: already drawn for this context"

FROZEN = "skipped: frozen (trainable=False)"

SET = "skipped: trained, loaded or set since it was drawn"


def statuses(report):
    return [row.status for row in report]


def test_own_draws_are_redrawn_and_nothing_else():
    model = cnn("asv_backward", bias_initializer="ones")
    model.add(L.Dense(3))  # a kernel of Keras's own initializer
    before = weights(model)
    report = kv.inject(model)
    assert statuses(report) == ["drawn"] * 3
    redrawn = [not np.array_equal(a, b) for a, b in zip(weights(model), before, strict=True)]
    assert redrawn == [True, False, True, False, True, False, False, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_with_the_reported_deviation(family):
    last = L.Dense(128, kernel_initializer=FAMILIES[family](0))
    model = keras.Sequential([keras.Input((8,)), L.Dense(128, activation="relu"), last])
    (row,) = kv.inject(model)
    assert row.status == "drawn"
    # Entries are normal at most (Var x²/σ⁴ = 2) and Var g <= 2 over 128 filters: the mean square
    # has a relative standard error below √(2/128 + 6/128²) = 0.13. Five of them.
    assert np.mean(np.square(kernels(model)[-1])) == pytest.approx(row.stddev**2, rel=0.65)


def set_by_hand(model, tmp_path):
    kernel = model.layers[1].kernel
    kernel.assign(keras.ops.ones(kernel.shape))


def load_weights(model, tmp_path):
    path = tmp_path / "other.weights.h5"
    cnn(kv.ASVBackward(seed=5)).save_weights(path)
    model.load_weights(path)


def train(model, tmp_path):
    model.compile("sgd", "mse")
    fit(model)


def freeze_layer(model, tmp_path):
    model.layers[1].trainable = False


def freeze_model(model, tmp_path):
    model.trainable = False


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_by_hand, ["drawn", SET, "drawn"]),
        (load_weights, [SET] * 3),
        (train, [SET] * 3),
        (freeze_layer, ["drawn", FROZEN, "drawn"]),
        (freeze_model, [FROZEN] * 3),
    ],
)
def test_changed_or_frozen_kernels_are_left_alone_unless_forced(change, expected, tmp_path):
    model = cnn(kv.ASVBackward(seed=1))
    change(model, tmp_path)
    before = weights(model)
    report = kv.inject(model)
    assert statuses(report) == expected
    for row, kernel, was in zip(report, weights(model)[::2], before[::2], strict=True):
        assert np.array_equal(kernel, was) == (row.status != "drawn"), row.path
    forced = kv.inject(model, force=True)
    assert statuses(forced) == ["drawn"] * 3
    twin = cnn(kv.ASVBackward(seed=1))
    kv.inject(twin)
    assert_equal(kernels(model), kernels(twin))


def test_layer_frozen_when_it_was_made_is_left_alone():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            L.Dense(8, kernel_initializer="asv_forward", trainable=False),
            L.Dense(8, kernel_initializer="asv_forward"),
        ]
    )
    assert statuses(kv.inject(model)) == [FROZEN, "drawn"]


def test_frozen_model_is_left_alone_even_where_a_layer_is_not():
    model = cnn("asv_forward")
    model.trainable = False
    model.layers[0].trainable = True
    assert model.trainable_variables == []
    assert statuses(kv.inject(model)) == [FROZEN] * 3


def test_kernel_is_injected_once_it_is_no_longer_frozen():
    model = cnn(kv.ASVForward(seed=1))
    model.layers[0].trainable = False
    kv.inject(model)
    model.layers[0].trainable = True
    assert statuses(kv.inject(model)) == ["drawn", DONE, DONE]
    twin = cnn(kv.ASVForward(seed=1))
    kv.inject(twin)
    assert_equal(weights(model), weights(twin))


@pytest.mark.parametrize("seed", [None, 3])
def test_second_injection_changes_nothing(seed):
    model = every_family(seed)
    first = kv.inject(model)
    before = state(model)
    second = kv.inject(model)
    assert statuses(first) == ["drawn"] * len(second)
    assert statuses(second) == [DONE] * len(first)
    assert [(r.path, r.context, r.stddev) for r in second] == [
        (r.path, r.context, r.stddev) for r in first
    ]
    assert_same_state(state(model), before)


def test_layers_of_nested_models_are_injected_with_their_place_in_the_whole():
    inputs = keras.Input((8,))
    nested = perceptron(kv.ASVForward(seed=1), widths=(8, 8))
    deeper = keras.Model(inputs, L.Dense(8, kernel_initializer="asv_forward")(nested(inputs)))
    model = keras.Sequential(
        [keras.Input((8,)), L.Dense(8, kernel_initializer="asv_forward"), deeper]
    )
    report = kv.inject(model)
    assert statuses(report) == ["drawn"] * 4
    depths = {row.layer: row.context.depth for row in report}
    assert depths[model.layers[0].name] == 1
    assert [depths[layer.name] for layer in nested.layers] == [2, 3]
    assert depths[deeper.layers[-1].name] == 4


def test_model_with_a_call_of_its_own_is_injected_and_left_as_it_was_otherwise():
    model, twin = OwnCall(kv.ASVBackward(seed=1)), cnn(kv.ASVBackward(seed=1))
    for each in (model, twin):
        each(np.zeros((1, 8, 8, 3), "float32"))
    assert statuses(kv.inject(model)) == ["drawn"] * 3
    assert statuses(kv.inject(model)) == [DONE] * 3
    kv.inject(twin)
    assert_equal(weights(model), weights(twin))


def test_layer_called_twice_has_one_row():
    inputs = keras.Input((8,))
    layer = L.Dense(8, kernel_initializer="asv_forward")
    assert statuses(kv.inject(keras.Model(inputs, layer(layer(inputs))))) == ["drawn"]


def test_biases_of_our_initializers_are_listed_and_left_alone():
    model = cnn("asv_forward", bias_initializer=kv.ASVForward(seed=1))
    before = weights(model)
    report = kv.inject(model)
    bias = model.layers[-1].bias.path
    assert report[bias].status.startswith("skipped: ")
    assert len(report.drawn) == 3
    np.testing.assert_array_equal(weights(model)[-1], before[-1])


class Renaming(L.Dense):
    """Draws its kernel with an initializer that it keeps under a name of its own."""

    def __init__(self, units, start=None, **options):
        super().__init__(units, **options)
        self.start = keras.initializers.get(start)

    def build(self, input_shape):
        self.count = self.add_weight(shape=(), dtype="int32", trainable=False, name="count")
        self.kernel_initializer, given = self.start, self.kernel_initializer
        super().build(input_shape)
        self.kernel_initializer = given


def test_initializer_under_another_name_is_found_by_what_it_drew():
    model = keras.Sequential([keras.Input((8,)), Renaming(8, kv.ASVForward(seed=1)), L.ReLU()])
    layer = model.layers[0]
    report = kv.inject(model)
    assert [(row.path, row.status) for row in report] == [(layer.kernel.path, "drawn")]
    assert layer.start.context.path == layer.kernel.path
    assert statuses(kv.inject(model)) == [DONE]


def test_initializer_under_another_name_whose_kernel_was_trained_is_left_alone():
    ours = [Renaming(8, kv.ASVForward(seed=1)), L.Dense(8, kernel_initializer="asv_forward")]
    model = keras.Sequential([keras.Input((8,)), *ours])
    kv.inject(model)
    for layer in ours:
        layer.kernel.assign(layer.kernel + 1)
    before = state(model)
    assert kv.inject(model).drawn == ()
    assert_same_state(state(model), before)


def test_report_is_read_by_iteration_by_path_and_in_print():
    model = cnn(kv.EnhancedHeNormal(seed=1))
    model.layers[1].trainable = False
    report = kv.inject(model)
    paths = [row.path for row in report]
    assert paths == [model.layers[n].kernel.path for n in (0, 1, 3)]
    assert len(report) == 3
    assert [row.path for row in report.drawn] == [paths[0], paths[2]]
    assert [row.path for row in report.skipped] == [paths[1]]
    row = report[paths[1]]
    assert (row.layer, row.initializer, row.status) == (
        model.layers[1].name,
        "EnhancedHeNormal",
        FROZEN,
    )
    assert row.context.depth == 2
    assert row.stddev == pytest.approx((2 / 36) ** 0.5)
    assert str(report).splitlines() == [
        f"{'path':<{len(paths[1])}}  initializer       depth      std  status",
        f"{paths[0]:<{len(paths[1])}}  EnhancedHeNormal      1  0.27217  drawn",
        f"{paths[1]:<{len(paths[1])}}  EnhancedHeNormal      2  0.23570  {FROZEN}",
        f"{paths[2]:<{len(paths[1])}}  EnhancedHeNormal      3  0.70711  drawn",
        "",
        "depth  weight layers from the input to this one",
        "std    target standard deviation of an entry",
        "",
        "2 drawn, 1 skipped",
    ]


def test_report_names_its_paths_when_asked_for_another():
    report = kv.inject(perceptron(widths=(8,)))
    expected = f"no row for 'kernel'. Paths: [{report.rows[0].path!r}]"
    with pytest.raises(KeyError, match=re.escape(expected)):
        report["kernel"]
