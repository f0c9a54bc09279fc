"""Injection at the start of `fit`: what training sees, and what resuming leaves alone."""

import functools
import re
import warnings

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests.models import L, OwnCall, assert_equal, cnn, data, fit, weights

SGD = keras.optimizers.SGD


class Recorder(keras.callbacks.Callback):
    """Keeps the weights with which training starts; stands last in the list."""

    def on_train_begin(self, logs=None):
        self.start = weights(self.model)


class Interrupted(Exception):  # noqa: N818 - it stands for a killed process
    pass


class Interruption(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.place = epoch, batch
        self.epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            self.weights = weights(self.model)
            raise Interrupted


def compiled(model, optimizer=None, **options):
    model.compile(SGD(0.05, momentum=0.9) if optimizer is None else optimizer, "mse", **options)
    return model


def trained_after_injection(optimizer, **options):
    """Final weights of a model that was injected before it was compiled: the reference."""
    model = cnn(kv.ASVBackward(seed=1))
    kv.inject(model)
    fit(compiled(model, optimizer), **options)
    return weights(model)


def assert_close(left, right):
    """Equal up to the order of sums, which threads may change."""
    for value, expected in zip(left, right, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (functools.partial(cnn, sized=False), {}),
        (functools.partial(cnn, sized=False), {"run_eagerly": True}),
        (functools.partial(cnn, sized=False), {"steps_per_execution": 2}),
        (functools.partial(cnn, sized=False), {"jit_compile": False}),
        (functools.partial(cnn, sized=False), {"jit_compile": True}),
        (OwnCall, {}),
    ],
    ids=["plain", "eager", "several steps", "not compiled", "compiled", "own call"],
)
def test_training_starts_with_the_kernels_of_inject(make, options, backend):
    if backend == "torch" and options.get("jit_compile"):
        pytest.skip("torch.compile takes minutes and a C++ compiler")
    if backend == "torch" and "steps_per_execution" in options:
        pytest.skip("Keras takes one step per execution on torch")
    expected = cnn(kv.ASVBackward(seed=1))
    kv.inject(expected)
    model = compiled(make(kv.ASVBackward(seed=1)), SGD(0.0), **options)
    injector = kv.ContextInjector()
    losses = fit(model, [injector]).history["loss"]
    assert [row.status for row in injector.report] == ["drawn"] * 3
    assert_equal(weights(model), weights(expected))  # nothing was learned
    assert losses == pytest.approx([compiled(expected).evaluate(*data(), verbose=0)], rel=1e-5)


@pytest.mark.parametrize("sized", [True, False])
def test_first_training_equals_training_after_inject(sized):
    model = compiled(cnn(kv.ASVBackward(seed=1), sized=sized), SGD(0.05))
    fit(model, [kv.ContextInjector()], epochs=2)
    assert_close(weights(model), trained_after_injection(SGD(0.05), epochs=2))


@pytest.mark.parametrize(
    ("optimizer", "built_before"),
    [
        (lambda: SGD(0.05, use_ema=True, ema_momentum=0.9), False),
        (lambda: SGD(0.05, use_ema=True, ema_momentum=0.9), True),
        (lambda: SGD(0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3), True),
        (lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9), True),
        (lambda: keras.optimizers.LossScaleOptimizer(SGD(0.05, use_ema=True)), True),
    ],
    ids=["unbuilt", "built", "overwriting", "adamw", "loss scale"],
)
def test_moving_averages_hold_nothing_of_the_draw_before(optimizer, built_before):
    model = compiled(cnn(kv.ASVBackward(seed=1)), optimizer())
    if built_before:
        model.optimizer.build(model.trainable_variables)
    fit(model, [kv.ContextInjector()])
    assert_close(weights(model), trained_after_injection(optimizer()))


def test_forced_injection_restarts_the_moving_averages():
    """Or the averages of a trained model would bring its old kernels back."""
    model = compiled(cnn(kv.ASVBackward(seed=1)), SGD(0.05, use_ema=True, ema_momentum=0.9))
    fit(model)
    kv.inject(model, force=True)
    drawn = [weights(model)[n] for n in (0, 2, 4)]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    assert_equal([weights(model)[n] for n in (0, 2, 4)], drawn)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float16"])
def test_half_precision_is_injected_and_trains(policy):
    keras.config.set_dtype_policy(policy)
    expected = cnn(kv.ASVBackward(seed=1))
    kv.inject(expected)
    model = compiled(cnn(kv.ASVBackward(seed=1)), SGD(0.01))
    injector, recorder = kv.ContextInjector(), Recorder()
    history = fit(model, [injector, recorder])
    assert [row.status for row in injector.report] == ["drawn"] * 3
    assert_equal(recorder.start, weights(expected))
    assert np.isfinite(history.history["loss"]).all()
    before = weights(model)
    assert not np.array_equal(before[0], recorder.start[0])
    again = kv.ContextInjector()
    fit(model, [again, recorder])
    assert again.report is None
    assert_equal(recorder.start, before)


@pytest.mark.parametrize("injector_first", [True, False])
@pytest.mark.parametrize("epoch", [0, 2])
def test_resumed_training_ends_as_if_it_was_never_interrupted(
    injector_first, epoch, backend, tmp_path
):
    def run(seed, *more):
        injector = kv.ContextInjector()
        both = [injector, keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        # On TensorFlow BackupAndRestore refuses a model that is only built inside `fit`.
        model = cnn(kv.ASVBackward(seed=seed), sized=backend == "tensorflow")
        model = compiled(model, SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.9))
        fit(model, [*(both if injector_first else both[::-1]), *more], epochs=3)
        return weights(model), injector.report

    uninterrupted, report = run(1)
    assert len(report.drawn) == 3
    with pytest.raises(Interrupted):
        run(1, Interruption(epoch, batch=1))
    # Before the end of the first epoch there is no backup: training starts over, from the seed.
    # Later everything comes from the backup, also where another seed was used.
    resumed, _ = run(1 if epoch == 0 else 2)
    assert_close(resumed, uninterrupted)


@pytest.mark.parametrize("injector_first", [True, False])
def test_backup_in_the_middle_of_the_first_epoch_is_restored(injector_first, tmp_path):
    def callbacks():
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1)
        both = [kv.ContextInjector(), backup]
        return both if injector_first else both[::-1]

    interruption, recorder = Interruption(epoch=0, batch=2), Recorder()
    with pytest.raises(Interrupted):
        fit(compiled(cnn(kv.ASVBackward(seed=1))), [*callbacks(), interruption])
    fit(compiled(cnn(kv.ASVBackward(seed=1))), [*callbacks(), recorder])
    assert_equal(recorder.start, interruption.weights)


def first_fit(model, path):
    return model, 0


def later_epoch(model, path):
    return model, 3


def recompiled(model, path):
    return compiled(model), 0


def loaded(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras"), 0


def loaded_without_optimizer(model, path):
    model.save(path / "model.keras")
    return compiled(keras.models.load_model(path / "model.keras", compile=False)), 0


def loaded_weights(model, path):
    model.save_weights(path / "model.weights.h5")
    other = compiled(cnn(kv.ASVBackward(seed=4)))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path / "model.weights.h5")
    return other, 0


def loaded_into_compiled_later(model, path):
    model.save_weights(path / "model.weights.h5")
    other = cnn(kv.ASVBackward(seed=1))
    other.load_weights(path / "model.weights.h5")
    return compiled(other), 0


def set_weights(model, path):
    other = cnn(kv.ASVBackward())
    other.set_weights(model.get_weights())
    return compiled(other), 0


@pytest.mark.parametrize(
    ("again", "injected"),
    [
        (first_fit, True),
        (later_epoch, True),
        (recompiled, True),
        (recompiled, False),
        (loaded, True),
        (loaded, False),
        (loaded_without_optimizer, True),
        (loaded_weights, False),
        (loaded_into_compiled_later, True),
        (loaded_into_compiled_later, False),
        (set_weights, False),
    ],
)
def test_trained_and_loaded_models_are_left_alone(again, injected, tmp_path):
    model = compiled(cnn(kv.ASVBackward(seed=1)))
    fit(model, [kv.ContextInjector()] if injected else [], epochs=1)
    model, epoch = again(model, tmp_path)
    before = weights(model)
    injector, recorder = kv.ContextInjector(), Recorder()
    fit(model, [injector, recorder], initial_epoch=epoch, epochs=epoch + 1)
    assert_equal(recorder.start, before)
    assert injector.report is None or injector.report.drawn == ()


@pytest.mark.parametrize("sized", [True, False])
def test_training_that_never_took_a_step_leaves_nothing_behind(sized):
    model = compiled(cnn(kv.ASVBackward(seed=1), sized=sized), SGD(0.05))
    fit(model, [kv.ContextInjector()], epochs=0)
    injector = kv.ContextInjector()
    fit(model, [injector])
    assert len(injector.report) == 3
    assert_close(weights(model), trained_after_injection(SGD(0.05)))


def test_callback_of_an_earlier_training_no_longer_acts():
    model = compiled(cnn(kv.ASVBackward(seed=1), sized=False), SGD(0.0))
    injector = kv.ContextInjector()
    fit(model, [injector], epochs=0)
    acted = injector.report is not None  # where Keras builds the model before training begins
    fit(model)
    assert (injector.report is not None) == acted


def test_report_is_printed_when_asked_for(capsys):
    model = compiled(cnn("asv_forward"))
    injector = kv.ContextInjector(verbose=1)
    fit(model, [injector])
    assert capsys.readouterr().out == f"{injector.report}\n"


@pytest.mark.parametrize("verbose", [2, "auto", True, None])
def test_verbose_must_be_zero_or_one(verbose):
    expected = f"ContextInjector: `verbose` must be 0 or 1. Received: verbose={verbose!r}."
    with pytest.raises(ValueError, match=re.escape(expected)):
        kv.ContextInjector(verbose)


def baseline():
    return compiled(keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(2)]))


def test_a_baseline_is_trained_with_one_warning():
    model, alone = baseline(), baseline()
    alone.set_weights(model.get_weights())
    injector = kv.ContextInjector()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, [injector])
        fit(model, [injector])
    (message,) = [str(each.message) for each in caught if "inject" in str(each.message)]
    assert "has nothing to inject" in message
    assert "is trained as it is; strict=True" in message
    assert injector.report is None
    fit(alone)
    fit(alone)
    assert_equal(weights(model), weights(alone))


def test_a_strict_injector_stops_a_baseline_before_it_is_trained():
    model = baseline()
    before = weights(model)
    with pytest.raises(ValueError, match="has nothing to inject"):
        fit(model, [kv.ContextInjector(strict=True)])
    assert_equal(weights(model), before)
    with pytest.raises(TypeError, match="ContextInjector: `strict` must be a bool"):
        kv.ContextInjector(strict=1)


def test_evaluation_and_prediction_accept_the_callback():
    model = compiled(cnn("asv_forward"))
    before = weights(model)
    x, y = data()
    model.evaluate(x, y, verbose=0, callbacks=[kv.ContextInjector()])
    model.predict(x, verbose=0, callbacks=[kv.ContextInjector()])
    assert_equal(weights(model), before)
