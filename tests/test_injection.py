"""What `inject` draws, what it leaves alone, and that it does all or nothing."""

import itertools
import re

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit import keras_private
from tests import fresh_process
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


class Failing(kv.ASVForward):
    """Raises at the draw on which the countdown ends."""

    countdown = 0
    error = None

    def _sample(self, shape):
        Failing.countdown -= 1
        if Failing.countdown == 0:
            raise Failing.error
        return super()._sample(shape)


def averaged(model):
    """Compiles with moving averages, which injection resets as well."""
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


ERRORS = [RuntimeError("broken"), MemoryError("no memory"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("policy", "draws"), [("float32", 3), ("float16", 6)])
def test_failing_draw_changes_nothing(error, policy, draws):
    """Each draw fails in turn: one per kernel, and in half precision a second one to compare."""
    keras.config.set_dtype_policy(policy)
    model = averaged(cnn(Failing(seed=1)))
    before = state(model)
    for draw in range(1, draws + 1):
        Failing.countdown, Failing.error = draw, error
        with pytest.raises(type(error)):
            kv.inject(model)
        assert Failing.countdown == 0
        assert_same_state(state(model), before)
    assert statuses(kv.inject(model)) == ["drawn"] * 3


def test_failing_draw_is_told_with_its_kernel():
    model = cnn(Failing(seed=1))
    Failing.countdown, Failing.error = 2, RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken") as raised:
        kv.inject(model)
    path = model.layers[1].kernel.path
    assert raised.value.__notes__ == [
        f"No weight was changed. Failing was drawing for {path!r}, shape (3, 3, 4, 4)."
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("step", "times"), [("assign", 6), ("replace_initializer", 3)])
def test_failing_change_is_undone(step, times, error, monkeypatch):
    """Every call fails in turn, before and after it did its work."""
    model = averaged(cnn(kv.ASVForward(seed=1)))
    before, original = state(model), getattr(keras_private, step)
    for failing, works in itertools.product(range(1, times + 1), (False, True)):
        calls = itertools.count(1)

        def fail(*arguments, failing=failing, works=works, calls=calls):
            fails = next(calls) == failing
            if works or not fails:
                original(*arguments)
            if fails:
                raise error

        monkeypatch.setattr(keras_private, step, fail)
        with pytest.raises(type(error)):
            kv.inject(model)
        assert_same_state(state(model), before)
    monkeypatch.setattr(keras_private, step, original)
    assert statuses(kv.inject(model)) == ["drawn"] * 3


@pytest.mark.parametrize("step", ["assign", "replace_initializer"])
def test_what_can_never_be_changed_leaves_the_rest_as_it_was(step, monkeypatch):
    """Putting back must not stop at the place whose failure began it."""
    model = cnn(kv.ASVForward(seed=1))
    before, original = state(model), getattr(keras_private, step)

    def fail(place, *arguments):
        if place is model.layers[1] or place is model.layers[1].kernel:
            raise MemoryError("no memory")
        original(place, *arguments)

    monkeypatch.setattr(keras_private, step, fail)
    with pytest.raises(MemoryError, match="no memory"):
        kv.inject(model)
    assert_same_state(state(model), before)


def test_draw_that_overflows_the_kernels_type_changes_nothing():
    keras.config.set_dtype_policy("float16")
    model = perceptron(kv.DepthScaled(network_variance=1e40, seed=1), widths=(8, 8))
    before = state(model)
    with pytest.raises(ValueError, match="not finite in dtype float16") as raised:
        kv.inject(model)
    assert "No weight was changed" in str(raised.value)
    assert_same_state(state(model), before)


def test_initializer_that_refuses_its_context_changes_nothing():
    refusing = kv.DepthScaled(offset=0.0, schedule="decreasing")  # log(1 + 0) at the last layer
    model = perceptron("asv_forward", widths=(8, 8))
    model.add(L.Dense(2, kernel_initializer=refusing, name="last"))
    before = state(model)
    with pytest.raises(ValueError, match="depth \\+ offset must be greater than 1"):
        kv.inject(model)
    assert_same_state(state(model), before)


def assert_all_differ(model):
    """No two kernels of one shape are equal, or one a multiple of the other."""
    values = [value.reshape(-1) for value in kernels(model)]
    for n, left in enumerate(values):
        for right in values[:n]:
            if left.size == right.size:
                assert abs(np.corrcoef(left, right)[0, 1]) < 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_share_an_initializer_get_copies_and_kernels_of_their_own(family):
    shared = FAMILIES[family](7)
    model = perceptron(shared)
    kv.inject(model)
    held = [layer.kernel_initializer for layer in model.layers]
    assert len({id(initializer) for initializer in [shared, *held]}) == 4
    assert shared.context is None
    paths = [initializer.context.path for initializer in held]
    assert paths == [layer.kernel.path for layer in model.layers]
    assert_all_differ(model)


def test_layers_of_one_name_in_nested_models_get_different_kernels():
    shared = kv.ASVForward(seed=7)

    def block(name):
        layer = L.Dense(8, kernel_initializer=shared, name="dense")
        return keras.Sequential([keras.Input((8,)), layer], name=name)

    inner = keras.Sequential([keras.Input((8,)), block("block"), block("block_1")], name="inner")
    outer = keras.Sequential([keras.Input((8,)), block("block"), inner, block("dense")])
    report = kv.inject(outer)
    assert statuses(report) == ["drawn"] * 4
    assert len({row.path for row in report}) == 4
    assert_all_differ(outer)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_frozen_models_that_were_injected_share_no_stream_with_layers_around_them(times):
    """As each layer around was made first, it has the place in the whole that those had alone."""
    shared = kv.ASVForward(seed=7)
    around = [L.Dense(8, kernel_initializer=shared) for _ in range(times)]
    model = perceptron(shared, widths=(8,))
    kv.inject(model)
    for layer in reversed(around):
        model.trainable = False
        model = keras.Sequential([keras.Input((8,)), layer, L.ReLU(), model])
        assert statuses(kv.inject(model))[0] == "drawn"
        assert kv.inject(model).drawn == ()
    assert_all_differ(model)


def test_same_seed_gives_the_same_weights_whatever_was_built_before():
    first = every_family(3)
    second = every_family(3)
    assert first.layers[1].name != second.layers[1].name
    kv.inject(first)
    kv.inject(second)
    assert_equal(weights(first), weights(second))


def test_different_seeds_give_different_weights():
    models = [cnn(kv.ASVForward(seed=seed)) for seed in (1, 2, None, None)]
    for model in models:
        kv.inject(model)
    firsts = [kernels(model)[0] for model in models]
    assert len({value.tobytes() for value in firsts}) == 4


def test_random_seed_of_keras_reproduces_unseeded_initializers():
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(11)
        model = cnn("asv_forward")
        kv.inject(model)
        found.append(weights(model))
    assert_equal(*found)


DRAW = """
import json
import keras_varinit as kv
from tests.models import cnn, every_family, kernels
cnn()
model = every_family(3)
kv.inject(model)
print(json.dumps([kernel.ravel().tolist() for kernel in kernels(model)]))
"""


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_in_another_process():
    other = fresh_process.start(DRAW)
    model = every_family(3)
    kv.inject(model)
    here = [kernel.ravel().tolist() for kernel in kernels(model)]
    assert fresh_process.result(other) == here


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
        "2 drawn, 1 skipped",
    ]


def test_report_names_its_paths_when_asked_for_another():
    report = kv.inject(perceptron(widths=(8,)))
    expected = f"no row for 'kernel'. Paths: [{report.rows[0].path!r}]"
    with pytest.raises(KeyError, match=re.escape(expected)):
        report["kernel"]


def without_weights():
    return keras.Sequential([keras.Input((8,)), L.ReLU()], name="bare")


def bias_only():
    layer = L.Dense(8, bias_initializer="asv_forward", name="last")
    return keras.Sequential([keras.Input((8,)), layer], name="biased")


def of_keras_only():
    return keras.Sequential([keras.Input((8,)), L.Dense(8)], name="plain")


NOT_BUILT = (
    "is not built, so its kernels do not exist yet. Call model.build(input_shape), start a "
    "Sequential with keras.Input(shape), or pass keras_varinit.ContextInjector() to fit, which "
    "runs once the model is built."
)
NONE_OF_OURS = "none of its layers has an initializer of this library. Build its layers with"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (of_keras_only, ValueError, f"inject: model 'plain' has nothing to inject: {NONE_OF_OURS}"),
        (without_weights, ValueError, f"model 'bare' has nothing to inject: {NONE_OF_OURS}"),
        (
            bias_only,
            ValueError,
            "no known kernel belongs to its initializers of this library (last.bias_initializer)",
        ),
        (lambda: cnn(sized=False), ValueError, NOT_BUILT),
        (OwnCall, ValueError, f"Model 'own' {NOT_BUILT}"),
        (
            lambda: "model",
            TypeError,
            "`model` must be a built keras.Model. Received: model='model'",
        ),
        (lambda: None, TypeError, "Received: model=None of type NoneType."),
        (lambda: L.Dense(2), TypeError, "of type Dense."),
    ],
)
def test_errors_name_the_model_and_the_fix(make, error, text):
    model = make()
    before = state(model) if isinstance(model, keras.Model) else None
    with pytest.raises(error, match=re.escape(text)):
        kv.inject(model)
    if before is not None:
        assert_same_state(state(model), before)
