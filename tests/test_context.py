"""`LayerContext`: the fields of older files, and what is refused."""

import dataclasses
import json

import pytest

import keras_varinit as kv

PLACE = {"path": "dense/kernel", "layer": "dense", "stream": "dense/kernel", "kernel_shape": (4, 6)}
SIZES = {"depth": 1, "total_depth": 2, "fan_in": 4, "fan_out": 6, "filter_axes": (1,)}
OLD = {**PLACE, **SIZES}


def test_a_context_saved_before_roles_existed_loads_as_an_ordinary_kernel():
    context = kv.LayerContext.from_dict(json.loads(json.dumps(OLD)))
    assert (context.role, context.branches, context.branch_end) == ("kernel", 0, False)
    assert context.heads is context.group is context.normalized is None


def test_roles_survive_json():
    fields = {"role": "key", "heads": 4, "kv_heads": 2, "head_size": 8, "causal": True}
    fields |= {"self_attention": True, "group": "g", "branches": 12, "branch_size": 4}
    context = kv.LayerContext(**OLD, **fields, normalized="LayerNormalization", steps=9, gates=4)
    again = kv.LayerContext.from_dict(json.loads(json.dumps(context.to_dict())))
    assert again == context


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("role", "kernels", ValueError),
        ("heads", 0, ValueError),
        ("head_size", 2.5, TypeError),
        ("causal", 1, TypeError),
        ("branches", -1, ValueError),
        ("branch_size", None, TypeError),
        ("branch_end", 1, TypeError),
        ("normalized", 3, TypeError),
        ("group", 3, TypeError),
        ("steps", 0, ValueError),
    ],
)
def test_a_wrong_field_is_named(field, value, error):
    with pytest.raises(error, match=field):
        dataclasses.replace(kv.LayerContext(**OLD), **{field: value})
