"""Every weight that an example's model makes is trained, or is a statistic that has a name.

A layer called on an array while a functional model is built puts out a constant: its weights exist,
but are not the model's, and nothing trains them. So what is compared is all that was made.
"""

import itertools
import re
import sys
from contextlib import contextmanager

import keras
import numpy as np
import pytest

from tests.example_files import EXAMPLES

# isort: split
sys.path.insert(0, str(EXAMPLES / "benchmarks"))
import accuracy_networks
import asv_networks
import cifar_resnets
import compare_initializers
import deep_dense
import families
import glorot_bengio
import train_resnet
import transformer
import which_layer
from panel_families.settings import SETTINGS

pytestmark = pytest.mark.once

STATISTICS = {"moving_mean", "moving_variance"}
#: `--data-on-device`: all images.
DATA = "device_images/pixels"
#: Of a key it adds the same to all scores of a query, and softmax takes that away.
WITHOUT_EFFECT = re.compile(r"multi_head_attention(_\d+)?/key/bias$")

SMOKE = ("--preset", "smoke", "--seeds", "1")
SIGNAL = ("--initializers", "signal_preserving")
ON_OFF = ([], ["--no-batch-norm"])
CASES = [
    *((train_resnet, ["--smoke", *norm]) for norm in ON_OFF),
    *(
        (cifar_resnets, [*SMOKE, *norm, "--shortcut", shortcut, "--initializers", "he_normal"])
        for norm, shortcut in zip(ON_OFF, "AB", strict=True)
    ),
    (cifar_resnets, [*SMOKE, "--data-on-device", "--initializers", "enhanced_he_normal:position"]),
    # Narrower, or with He's initialization, they are dead: no gradient gets through.
    *(
        (asv_networks, [*SMOKE, "--network", name, "--width", "8", *SIGNAL])
        for name in ("F34", "F50")
    ),
    *((deep_dense, [*SMOKE, "--batch-norm", norm]) for norm in ("on", "off")),
    (glorot_bengio, [*SMOKE, "--activations", "softsign"]),
    (transformer, [*SMOKE, "--blocks", "2"]),
    (compare_initializers, SMOKE),
]


@contextmanager
def variables_made(monkeypatch):
    """All variables that are made inside."""
    made = []
    initialize = keras.Variable.__init__

    def recorded(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(keras.Variable, "__init__", recorded)
        yield made


def assert_all_are_trained(made, model):
    weights = {w.path for w in model.trainable_weights}
    assert {v.path for v in made if v.trainable} == weights
    others = {w.path for w in model.non_trainable_weights} - {DATA}
    assert {path.split("/")[-1] for path in others} <= STATISTICS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "arguments"),
    [pytest.param(*case, id=f"{case[0].__name__} {' '.join(case[1])}") for case in CASES],
)
def test_every_weight_of_an_app_is_trained(app, arguments, tmp_path, monkeypatch):
    reached = []

    def one_step(model, batches, **kwargs):
        """In place of `fit`."""
        assert_all_are_trained(made, model)
        paths = [weight.path for weight in model.trainable_weights]
        before = list(map(keras.ops.convert_to_numpy, model.trainable_weights))
        model.train_on_batch(*batches[0])
        after = map(keras.ops.convert_to_numpy, model.trainable_weights)
        same = itertools.compress(paths, map(np.array_equal, before, after))
        assert [path for path in same if not WITHOUT_EFFECT.search(path)] == []
        reached.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", one_step)
    monkeypatch.setattr(sys, "argv", [app.__name__, *arguments, "--out", str(tmp_path)])
    with variables_made(monkeypatch) as made:
        assert app.main() == 130
    assert len(reached) == 1


def networks():
    for pool in which_layer.POOLS:
        yield f"which_layer {pool}", lambda pool=pool: which_layer.plain_network(pool)
    for name, make in accuracy_networks.NETWORKS.items():
        yield name, lambda make=make: make(16)
    for group in families.GROUPS.values():
        for name, network in group.items():
            yield name, network.make
    for setting in SETTINGS:
        if setting.suite != "choice":
            yield f"panel {setting.family}", setting.tiny().build


@pytest.mark.slow
@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in networks()])
def test_every_weight_of_a_measured_network_is_in_it(make, monkeypatch):
    keras.utils.clear_session(free_memory=False)
    with variables_made(monkeypatch) as made:
        model = make()
    assert_all_are_trained(made, model)


def test_a_constant_that_was_a_weight_is_noticed(monkeypatch):
    inputs = keras.Input((4, 3))
    with variables_made(monkeypatch) as made:
        x = inputs + keras.layers.Embedding(4, 3)(keras.ops.arange(4))
        model = keras.Model(inputs, keras.layers.Dense(2)(x))
    with pytest.raises(AssertionError, match="embeddings"):
        assert_all_are_trained(made, model)
