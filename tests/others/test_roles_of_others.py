"""Roles in models that others wrote, as their sources read.

`python -m tests.others.role_table` prints those of all.
"""

import collections

import keras
import pytest

import keras_varinit as kv

pytest.importorskip("keras_hub", reason='keras-hub is missing: pip install "keras-varinit[hub]"')

from tests.others import hub_models
from tests.others.role_table import APPLICATIONS, application

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.once,
    pytest.mark.slow,
]

PARTS = ("query", "key", "value", "attention_output")


def parts(count):
    return dict.fromkeys(PARTS, count)


# By model: number of kernels by role; (L, number of branch ends) in the order of the graph; whether
# each attention is causal and whether it is self-attention, with their numbers.
SOURCES = {
    "BertBackbone": (
        {"embedding": 2, **parts(2), "head": 1, "kernel": 4},
        {4: 4},
        {(False, True): 2},
    ),
    "GPT2Backbone": ({"embedding": 1, **parts(2), "kernel": 4}, {4: 4}, {(True, True): 2}),
    "LlamaBackbone": ({"embedding": 1, **parts(2), "kernel": 6}, {4: 4}, {(True, True): 2}),
    "Gemma3Backbone": ({"embedding": 1, **parts(2), "kernel": 6}, {4: 4}, {(True, True): 2}),
    "T5Backbone": (
        {"embedding": 1, **parts(6), "kernel": 12},
        {4: 4, 6: 6},
        {(False, True): 2, (True, True): 2, (False, False): 2},
    ),
    "WhisperBackbone": (
        {"embedding": 1, **parts(6), "kernel": 10},
        {4: 4, 6: 6},
        {(False, True): 2, (True, True): 2, (False, False): 2},
    ),
    "ViTBackbone": (
        {"position": 1, **parts(2), "kernel": 5},
        {4: 4},
        {(False, True): 2},
    ),
    "MiTBackbone": (
        {**parts(2), "kernel": 9},
        {4: 4},
        {(False, False): 1, (False, True): 1},
    ),
    "ResNetBackbone": ({"kernel": 15}, {4: 4}, {}),
    "ConvNeXtTiny": ({"kernel": 58, "head": 1}, {18: 18}, {}),
    "ResNet50": ({"kernel": 53, "head": 1}, {16: 16}, {}),
    "DenseNet121": ({"kernel": 120, "head": 1}, {}, {}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_roles(name):
    keras.utils.clear_session(free_memory=False)
    model = application(name) if name in APPLICATIONS else hub_models.TOYS[name]()
    contexts = kv.analyze(model).contexts.values()
    roles, ends, attentions = SOURCES[name]
    assert collections.Counter(c.role for c in contexts) == roles
    assert collections.Counter(c.branches for c in contexts if c.branch_end) == ends
    kinds = collections.Counter((c.causal, c.self_attention) for c in contexts if c.role == "query")
    assert kinds == attentions


@pytest.mark.parametrize("name", ["GPT2Backbone", "Gemma3Backbone", "ResNetBackbone"])
def test_initialize_draws_what_recommend_says(name):
    keras.utils.clear_session(free_memory=False)
    model = hub_models.TOYS[name]()
    said = {row.path: (row.choice or {}).get("class_name") for row in kv.recommend(model)}
    report = kv.initialize(model, seed=0)
    assert {row.path: row.initializer for row in report if row.status == "drawn"} == {
        path: choice for path, choice in said.items() if choice is not None
    }
