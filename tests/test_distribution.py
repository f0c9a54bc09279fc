"""Injection with variables on several devices: two virtual CPUs stand in for them."""

import itertools

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit import keras_private
from tests import fresh_process
from tests.models import assert_equal, cnn, fit, weights

MIRRORED = """
import json
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras
import numpy as np
import keras_varinit as kv
from tests.models import cnn, fit, weights

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2

def replicas_agree(model):
    copies = [strategy.experimental_local_results(v.value) for v in model.weights]
    return all(len(pair) == 2 and np.array_equal(*pair) for pair in copies)

class Start(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.weights = weights(self.model)
        self.agree = replicas_agree(self.model)

def run(seed, sized=True, before=None, callbacks=()):
    with strategy.scope():
        model = cnn(kv.ASVBackward(seed=seed), sized=sized)
        model.compile(keras.optimizers.SGD(0.05, use_ema=True), "mse")
        report = kv.inject(model) if before == "in scope" else None
    if before == "outside":
        report = kv.inject(model)
    if before == "initialize":
        report = kv.initialize(model, kv.ASVBackward(seed=seed))
    start = Start()
    history = fit(model, [*callbacks, start], epochs=2).history
    report = callbacks[0].report if callbacks else report
    return {
        "statuses": [row.status for row in report if row.context is not None],
        "start": [value.tolist() for value in start.weights],
        "agree": [start.agree, replicas_agree(model)],
        "losses": history["loss"],
        "again": [row.status for row in kv.inject(model)],
    }

def mended():
    # The bias of the first replica is that of a new model; that of the second is not.
    with strategy.scope():
        model = cnn(kv.ASVBackward(seed=1))
    (bias, *_) = (v for v in model.trainable_variables if v.path.endswith("bias"))
    first, second = strategy.experimental_local_results(bias.value)
    second.assign(tf.ones(bias.shape))
    differed = not replicas_agree(model) and not first.numpy().any()
    kv.initialize(model, kv.ASVBackward(seed=1))
    return [differed, replicas_agree(model), float(np.abs(second.numpy()).max())]

print(json.dumps({
    "mended": mended(),
    "inject inside the scope": run(1, before="in scope"),
    "inject outside the scope": run(1, before="outside"),
    "initialize": run(1, before="initialize"),
    "callback": run(1, callbacks=[kv.ContextInjector()]),
    "callback, built in fit": run(1, sized=False, callbacks=[kv.ContextInjector()]),
    "without a seed": run(None, callbacks=[kv.ContextInjector()]),
}))
"""
ROUTES = (
    "inject inside the scope",
    "inject outside the scope",
    "initialize",
    "callback",
    "callback, built in fit",
    "without a seed",
)


def injected(seed=1):
    model = cnn(kv.ASVBackward(seed=seed))
    kv.inject(model)
    return model


@pytest.fixture(scope="module")
def mirrored(backend):
    if backend != "tensorflow":
        pytest.skip("MirroredStrategy is TensorFlow's")
    return fresh_process.run(MIRRORED)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_replicas_of_a_mirrored_model_agree_and_it_trains(route, mirrored):
    found = mirrored[route]
    assert found["statuses"] == ["drawn"] * 3
    assert found["agree"] == [True, True]
    assert np.isfinite(found["losses"]).all()
    assert found["again"] == ["skipped: already drawn for this context"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES[:-1])
def test_mirrored_model_starts_with_the_weights_of_its_seed(route, mirrored):
    expected = [value.tolist() for value in weights(injected())]
    assert mirrored[route]["start"] == expected


@pytest.mark.slow
def test_a_replica_that_differs_is_drawn_though_the_first_has_the_value(mirrored):
    """What has its value already is not assigned; here that is so of one replica alone."""
    assert mirrored["mended"] == [True, True, 0.0]


def data_parallel():
    return keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))


def model_parallel():
    mesh = keras.distribution.DeviceMesh(
        (1, 2), ["batch", "model"], keras.distribution.list_devices("cpu")
    )
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["(.*/)?conv2d[^/]*/kernel"] = (None, None, None, "model")
    layouts["(.*/)?dense[^/]*/kernel"] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


@pytest.fixture(params=[data_parallel, model_parallel], ids=lambda make: make.__name__)
def distribution(request, backend):
    if backend != "jax":
        pytest.skip("keras.distribution places variables on JAX devices")
    if len(keras.distribution.list_devices("cpu")) < 2:
        pytest.skip("XLA_FLAGS of the environment allow one CPU device only")
    keras.distribution.set_distribution(request.param())
    yield request.param
    keras.distribution.set_distribution(None)


def shardings(model):
    return [variable.value.sharding for variable in model.weights]


def test_distributed_variables_get_the_values_of_one_device_and_stay_where_they_are(distribution):
    model = cnn(kv.ASVBackward(seed=1))
    before = shardings(model)
    assert {len(sharding.device_set) for sharding in before} == {2}
    kernel = before[0]
    assert kernel.is_fully_replicated == (distribution is data_parallel)
    report = kv.inject(model)
    assert [row.status for row in report] == ["drawn"] * 3
    assert shardings(model) == before
    drawn = weights(model)
    assert kv.inject(model).drawn == ()
    keras.distribution.set_distribution(None)
    assert_equal(drawn, weights(injected()))


def test_initialize_draws_for_distributed_variables_what_it_draws_for_one_device(distribution):
    model = cnn("he_normal")
    before = shardings(model)
    report = kv.initialize(model, kv.ASVBackward(seed=1))
    assert [row.status for row in report if row.context is not None] == ["drawn"] * 3
    assert shardings(model) == before
    drawn = weights(model)
    keras.distribution.set_distribution(None)
    assert_equal(drawn, weights(injected()))


@pytest.mark.parametrize("sized", [True, False])
def test_distributed_model_is_injected_by_the_callback_and_trains(distribution, sized):
    model = cnn(kv.ASVBackward(seed=1), sized=sized)
    model.compile(keras.optimizers.SGD(0.0, use_ema=True), "mse")
    injector = kv.ContextInjector()
    history = fit(model, [injector])
    assert len(injector.report.drawn) == 3
    assert np.isfinite(history.history["loss"]).all()
    keras.distribution.set_distribution(None)
    assert_equal(weights(model), weights(injected()))


def test_failed_injection_puts_distributed_variables_back(distribution, monkeypatch):
    model = cnn(kv.ASVBackward(seed=1))
    before, places, original = weights(model), shardings(model), keras_private.assign
    calls = itertools.count(1)

    def assign(variable, value):
        original(variable, value)
        if next(calls) == 2:
            raise MemoryError

    monkeypatch.setattr(keras_private, "assign", assign)
    with pytest.raises(MemoryError):
        kv.inject(model)
    assert_equal(weights(model), before)
    assert shardings(model) == places


PROCESS = """
import json
import keras
from tests import test_distribution

keras.distribution.set_distribution(test_distribution.model_parallel())
print(json.dumps(test_distribution.drawn_with_two_kinds_of_seed()))
"""


def drawn_with_two_kinds_of_seed():
    found = []
    for seed in (1, None):
        keras.utils.set_random_seed(5)
        found.append([value.tolist() for value in weights(injected(seed))])
    return found


@pytest.mark.slow
def test_every_process_draws_the_same_values(backend):
    """As the processes of one training must, each of which fills its own devices."""
    if backend != "jax":
        pytest.skip("keras.distribution places variables on JAX devices")
    assert fresh_process.run(PROCESS) == drawn_with_two_kinds_of_seed()
