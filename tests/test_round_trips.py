"""Models saved here and read in a fresh process keep weights, contexts and distribution."""

import json
import pickle
import re

import keras
import numpy as np
import pytest

import keras_varinit as kv
from tests import fresh_process
from tests.models import (
    assert_equal,
    data,
    equal,
    every_family,
    fit,
    initializers,
    kernels,
    weights,
)

pytestmark = pytest.mark.prerelease

# How each model came about before it was saved: (seed, injected, trained).
HISTORIES = {
    "injected": (3, True, False),
    "trained": (None, True, True),
    "never injected": (None, False, False),
}
WITH_WEIGHTS = ("keras", "h5", "pickle", "weights")

READER = '''
"""Loads everything below a folder; first without keras_varinit, then with it."""
import json, pickle, sys, warnings
from pathlib import Path
import keras
import numpy as np

folder = Path(sys.argv[1])
errors = {}
for name in ("model.keras", "model.h5"):
    try:
        keras.saving.load_model(folder / "injected" / name)
    except Exception as error:
        errors[name] = [type(error).__name__, str(error)]
assert "keras_varinit" not in sys.modules

import keras_varinit as kv
from tests.models import initializers, weights

def load(path, kind):
    if kind == "pickle":
        return pickle.loads((path / "model.pickle").read_bytes())
    if kind in ("keras", "h5"):
        return keras.saving.load_model(path / f"model.{kind}")
    model = keras.models.model_from_json((path / "model.json").read_text())
    if kind == "weights":
        model.load_weights(path / "model.weights.h5")
    return model

found, arrays = {}, {}
for history in sys.argv[2].split(","):
    for kind in sys.argv[3].split(","):
        model = load(folder / history, kind)
        before = weights(model)
        arrays |= {f"{history}/{kind}/{n}": value for n, value in enumerate(before)}
        configs = [[*place, config] for *place, _, config in initializers(model)]
        report = kv.inject(model)
        found[f"{history}/{kind}"] = {
            "initializers": configs,
            "stddevs": [row.stddev for row in report],
            "statuses": sorted({row.status for row in report}),
            "kept": all(map(np.array_equal, weights(model), before)),
        }
np.savez(folder / "read.npz", **arrays)
print(json.dumps({"errors": errors, "found": found}))
'''


def made(history):
    seed, injected, trained = HISTORIES[history]
    model = every_family(seed)
    if injected:
        kv.inject(model)
    model.compile("sgd", keras.losses.MeanSquaredError())
    if trained:
        fit(model)
    return model


def written(model, folder):
    """Saves a model in every format."""
    folder.mkdir()
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save_weights(folder / "model.weights.h5")
    (folder / "model.json").write_text(model.to_json())
    (folder / "model.pickle").write_bytes(pickle.dumps(model))


class Exchange:
    """The models of this process, and what the other one read."""

    def __init__(self, folder):
        self.models = {history: made(history) for history in HISTORIES}
        for history, model in self.models.items():
            written(model, folder / history)
        kinds = ",".join([*WITH_WEIGHTS, "json"])
        answer = fresh_process.run(READER, folder, ",".join(HISTORIES), kinds)
        self.errors, self.found = answer["errors"], answer["found"]
        with np.load(folder / "read.npz") as arrays:
            self.arrays = dict(arrays)

    def read(self, history, kind):
        count = len(self.models[history].weights)
        return [self.arrays[f"{history}/{kind}/{n}"] for n in range(count)]


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    return Exchange(tmp_path_factory.mktemp("saved"))


def configs(model):
    """The configurations of all initializers, as JSON turns them."""
    return json.loads(json.dumps([[*place, config] for *place, _, config in initializers(model)]))


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_loaded_weights_are_those_saved_also_after_inject(history, kind, exchange):
    assert_equal(exchange.read(history, kind), weights(exchange.models[history]))
    found = exchange.found[f"{history}/{kind}"]
    assert found["kept"]
    if history == "never injected":
        assert found["statuses"] == ["skipped: trained, loaded or set since it was drawn"]
    else:
        assert found["statuses"] == ["skipped: already drawn for this context"]


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("kind", [*WITH_WEIGHTS, "json"])
def test_contexts_and_configurations_survive(history, kind, exchange):
    expected = configs(exchange.models[history])
    assert len(expected) == 21
    contexts = [config["context"] for *_, config in expected]
    assert (None in contexts) == (history == "never injected")
    assert exchange.found[f"{history}/{kind}"]["initializers"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("history", ["injected", "trained"])
def test_model_from_json_draws_from_the_same_distribution(history, exchange):
    """With an integer seed the very same kernels, else others of the same deviation."""
    model = exchange.models[history]
    found = exchange.found[f"{history}/json"]
    assert found["stddevs"] == [row.stddev for row in kv.inject(model)]
    assert found["kept"]
    drawn = [value for value in exchange.read(history, "json") if value.ndim > 1]
    for value, original in zip(drawn, kernels(model), strict=True):
        assert np.array_equal(value, original) == (history == "injected")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_loading_without_the_import_is_an_error_that_names_the_initializer(name, exchange):
    """The same process loaded the same file once it had imported keras_varinit."""
    kind, text = exchange.errors[name]
    assert kind == "TypeError"
    assert "could not be deserialized properly" in text or "Error when deserializing class" in text
    # Keras up to 3.15, and from 3.16 on.
    assert re.search("Could not (interpret initializer identifier|locate class 'ASV)", text)
    assert re.search("'registered_name': 'keras_varinit>ASV(Forward|Backward)'", text)


def cloned(model):
    return keras.models.clone_model(model)


def from_config(model):
    return type(model).from_config(json.loads(json.dumps(model.get_config())))


@pytest.mark.parametrize("copied", [cloned, from_config])
@pytest.mark.parametrize("seed", [3, None])
def test_copies_draw_from_the_same_distribution(copied, seed):
    model = every_family(seed)
    report = kv.inject(model)
    twin = copied(model)
    assert configs(twin) == configs(model)
    assert equal(kernels(twin), kernels(model)) == (seed is not None)
    drawn = weights(twin)
    again = kv.inject(twin)
    assert again.drawn == ()
    assert [row.stddev for row in again] == [row.stddev for row in report]
    assert_equal(weights(twin), drawn)


@pytest.mark.parametrize("copied", [cloned, from_config])
def test_injection_does_not_depend_on_whether_the_model_was_copied_before(copied):
    model = every_family(3)
    twin = copied(model)
    kv.inject(model)
    kv.inject(twin)
    assert_equal(weights(twin), weights(model))


def test_copy_of_a_trained_model_draws_anew_and_the_original_keeps_its_weights():
    model = every_family(3)
    kv.inject(model)
    drawn = kernels(model)
    model.compile("sgd", "mse")
    fit(model)
    trained = weights(model)
    assert_equal(kernels(cloned(model)), drawn)
    assert_equal(weights(model), trained)


@pytest.mark.parametrize("seed", [3, None])
def test_weights_load_into_a_model_of_any_history(seed, tmp_path):
    model = every_family(3)
    kv.inject(model)
    model.save_weights(tmp_path / "model.weights.h5")
    for inject_first in (True, False):
        other = every_family(seed)
        if inject_first:
            kv.inject(other)
        other.load_weights(tmp_path / "model.weights.h5")
        assert kv.inject(other).drawn == ()
        assert_equal(weights(other), weights(model))


SERVER = """
import json, sys
for name in ("keras_varinit", "keras"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np
import tensorflow as tf
try:
    import keras_varinit
except ImportError:
    served = tf.saved_model.load(sys.argv[1])
    x = np.load(sys.argv[2])
    print(json.dumps(served.serve(x).numpy().tolist()))
"""


@pytest.mark.slow
def test_exported_model_is_served_without_this_library(backend, tmp_path):
    if backend == "torch":
        pytest.skip("Keras's export of a Functional model on torch fails inside torch.export")
    pytest.importorskip("tensorflow", reason="a SavedModel is served by TensorFlow")
    model = every_family(3)
    kv.inject(model)
    x, _ = data()
    model.export(tmp_path / "served", format="tf_saved_model", verbose=False)
    np.save(tmp_path / "x.npy", x)
    served = fresh_process.run(SERVER, tmp_path / "served", tmp_path / "x.npy")
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
