"""No trained, loaded, hand-set or frozen weight is ever lost: random models, random histories.

CI runs a short, fixed selection. The long run is another one every time; pytest's header names its
seed, and `NEVER_LOST_SEED=<seed>` in front repeats it:

    python -m tests tensorflow -- tests/apply/test_never_lost.py --hypothesis-profile=long
"""

import contextlib
import hashlib
import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, example, given, note, seed, settings
from hypothesis import strategies as st

import keras_varinit as kv
from tests import fresh_process
from tests.histories import ERRORS, PLACES, SCHEMES, History
from tests.ledger import values
from tests.random_models import architectures, build

pytestmark = [
    pytest.mark.slow,
    # Of a kernel behind a dead end, such as the keys of an attention over one step.
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
]

CASES = settings.default.max_examples
SEED = os.environ.get("NEVER_LOST_SEED")


def randomized(test):
    """Fixes the seed of a run that is not derandomized."""
    return test if settings.default.derandomize else seed(SEED)(test)


FAULTS = st.fixed_dictionaries(
    {
        "place": st.sampled_from(list(PLACES)),
        "turn": st.integers(1, 8),
        "late": st.booleans(),
        "error": st.sampled_from(list(ERRORS)),
    }
)


def _event(name, **arguments):
    return st.fixed_dictionaries({"do": st.just(name), **arguments})


_INJECTION = _event("inject", force=st.just(False), fault=st.none())
_INITIALIZATION = {
    "scheme": st.sampled_from(list(SCHEMES)),
    "seed": st.sampled_from([None, 0, 7]),
    "part": st.sampled_from([None, None, 0, 1]),
    "include_frozen": st.booleans(),
    "reset_optimizer": st.booleans(),
}
_FAILURES = st.one_of(
    _event("inject", force=st.just(True), fault=FAULTS),
    _event("initialize", **_INITIALIZATION, fault=FAULTS),
)
_TRAINING = _event(
    "train",
    how=st.sampled_from(["step", "step", "eager", "eager", "eager", "graph"]),
    injector=st.booleans(),
)
EVENTS = st.one_of(
    _INJECTION,
    _INJECTION,
    _event("inject", force=st.booleans(), fault=FAULTS),
    _event("inject", force=st.just(True), fault=st.none()),
    _event("initialize", **_INITIALIZATION, fault=st.one_of(st.none(), FAULTS)),
    _TRAINING,
    _TRAINING,
    _event("set_by_hand", index=st.integers(0, 30)),
    _event("load_weights", changed=st.booleans()),
    _event("reload"),
    _event("clone"),
    _event("freeze", index=st.integers(0, 15), trainable=st.booleans()),
    _event("look"),
    _event("extend", in_front=st.booleans(), restart=st.booleans()),
)


def live(history, events):
    for event in events:
        arguments = dict(event)
        name = arguments.pop("do")
        if name != "inject":
            history.ledger.settled = False
        getattr(history, name)(**arguments)


ONE_LAYER = {
    "input": "vector",
    "top": "functional",
    "initializers": [{"name": "asv_backward", "seed": 0, "shared": True}],
    "body": [{"twice": True, "initializer": 0}],
}
# The model inside keeps the optimizer that it was trained with.
TRAINED_BEFORE = [
    {"do": "train", "how": "step", "injector": False},
    {"do": "extend", "in_front": False, "restart": False},
    {"do": "load_weights", "changed": True},
]


@randomized
@example(ONE_LAYER, TRAINED_BEFORE)
@given(architectures(), st.lists(EVENTS, min_size=2, max_size=7))
def test_no_history_loses_a_weight(description, events):
    note(json.dumps([description, events]))
    with tempfile.TemporaryDirectory() as folder:
        live(History(description, Path(folder)), events)


@randomized
@given(architectures(), st.lists(_FAILURES, min_size=3, max_size=8))
def test_no_failure_leaves_a_trace(description, failures):
    note(json.dumps([description, failures]))
    history = History(description, folder=None)
    history.compile(history.model)
    history.model.optimizer.build(history.model.trainable_variables)
    live(history, failures)


def described(count):
    """That many descriptions with an integer seed everywhere."""
    found = []

    @randomized
    @settings(max_examples=count, phases=[Phase.generate], database=None)
    @given(architectures(seeds=st.integers(0, 2**31 - 1)))
    def collect(description):
        found.append(description)

    collect()
    return found


def digests(descriptions):
    """Hashes of all weights: as built, after `inject`, after `initialize`."""
    found = []
    for number, description in enumerate(descriptions):
        model = build(description)
        found.append(_digest(model))
        with contextlib.suppress(ValueError):  # the layers drew other initializers from the pool
            kv.inject(model)
        found.append(_digest(model))
        scheme = sorted(SCHEMES)[number % len(SCHEMES)]
        kv.initialize(model, SCHEMES[scheme](None), seed=number, include_frozen=True)
        found.append(_digest(model))
    return found


def _digest(model):
    return hashlib.sha256(b"".join(values(model).values())).hexdigest()


ELSEWHERE = """
import json, pathlib, sys
import keras
from tests.models import every_family
from tests.apply.test_never_lost import digests
for _ in range(9):
    keras.layers.Dense(1), keras.layers.LSTM(1), keras.layers.Embedding(1, 1)
every_family()
print(json.dumps(digests(json.loads(pathlib.Path(sys.argv[1]).read_text()))))
"""


def test_equal_seeds_give_equal_weights_in_another_process(tmp_path):
    descriptions = described(CASES // 4)
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps(descriptions))
    other = fresh_process.start(ELSEWHERE, path, PYTHONHASHSEED=str(random.randint(1, 1000)))
    here = digests(descriptions)
    there = fresh_process.result(other)
    differing = [n // 3 for n, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]
    assert not differing, json.dumps(descriptions[differing[0]])
