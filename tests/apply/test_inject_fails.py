"""`inject` is all or nothing: whatever fails, the model is as it was."""

import itertools
import re

import keras
import pytest

import keras_varinit as kv
from keras_varinit import keras_private
from tests.apply.test_inject import statuses
from tests.models import L, OwnCall, assert_same_state, cnn, perceptron, state


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
@pytest.mark.parametrize("policy", ["float32", "float16"])
def test_failing_draw_changes_nothing(error, policy):
    """Each draw fails in turn; what was assigned before it is drawn again to be put back."""
    keras.config.set_dtype_policy(policy)
    model = averaged(cnn(Failing(seed=1)))
    before = state(model)
    for draw in range(1, 4):
        Failing.countdown, Failing.error = draw, error
        with pytest.raises(type(error)):
            kv.inject(model)
        assert Failing.countdown == 1 - draw
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
@pytest.mark.parametrize(("step", "times"), [("assign", 6), ("replace_attribute", 3)])
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


@pytest.mark.parametrize("step", ["assign", "replace_attribute"])
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
