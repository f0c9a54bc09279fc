"""The role of each weight, on networks of every kind that the rules name."""

import functools

import keras
import pytest

import keras_varinit as kv
from tests.analysis import role_models as models

ATTENTION = ("query", "key", "value", "attention_output")


def contexts(model):
    analysis = kv.analyze(model)
    assert not analysis.unknown
    return {**analysis.contexts, **analysis.vectors}


def branches(model):
    """(L, m) and whether it ends the branch, of the kernels in a branch, by layer."""
    return {
        path.removesuffix("/kernel"): (c.branches, c.branch_size, *("end",) * c.branch_end)
        for path, c in kv.analyze(model).contexts.items()
        if c.branch_size
    }


BRANCHES = {
    "raw_sum": {f"{k}{n}": (3, 2, *e) for n in range(3) for k, e in (("a", ()), ("b", ("end",)))},
    "add_layer": {"a0": (2, 2), "b0": (2, 2, "end"), "a1": (2, 2), "b1": (2, 2, "end")},
    "projection": {"a": (1, 2), "b": (1, 2, "end")},
    "pre_activation": {"a0": (2, 2), "b0": (2, 2, "end"), "a1": (2, 2), "b1": (2, 2, "end")},
    "subclassed": {
        "block/p1": (2, 2),
        "block/p2": (2, 2, "end"),
        "block_1/q1": (2, 2),
        "block_1/q2": (2, 2, "end"),
    },
    "scaled_and_dropped": {"a": (1, 2), "b": (1, 2, "end")},
    "post_normalization": {"a0": (2, 2), "b0": (2, 2, "end"), "a1": (2, 2), "b1": (2, 2, "end")},
    "squeeze_excite": {"a": (1, 3, "end"), "down": (1, 3), "up": (1, 3)},
    "dense_block": {},
    "u_net": {},
    "two_towers": {},
    "inception": {},
    "highway": {},
    "routed": {},
    "tokens_and_positions": {},
    "swiglu": {"gate": (1, 3), "up": (1, 3), "down": (1, 3, "end")},
    "parallel_block": {
        **{f"att/{part}": (2, 4) for part in ATTENTION[:3]},
        "att/attention_output": (2, 4, "end"),
        "a": (2, 2),
        "b": (2, 2, "end"),
    },
    "additive_u": {"bottom": (1, 2), "up": (1, 2, "end")},
    "nested": {"a": (1, 3, "end"), "c": (1, 2), "d": (1, 2, "end")},
    "three_terms": {"a": (1, 2, "end"), "b": (1, 2, "end")},
    "difference": {"a": (1, 2), "b": (1, 2, "end")},
    "conditioned": {
        **{f"{k}{n}": (2, 3) for n in range(2) for k in ("a", "modulation")},
        **{f"b{n}": (2, 3, "end") for n in range(2)},
    },
    "modulated": {
        "modulation": (2, 3),
        **{"a0": (2, 3), "b0": (2, 3, "end"), "a1": (2, 3), "b1": (2, 3, "end")},
    },
    "residual_in_residual": {"a0": (2, 2), "b0": (2, 2, "end"), "a1": (2, 2), "b1": (2, 2, "end")},
    "encoder_and_decoder": {
        **{f"e{k}{n}": (3, 2, *e) for n in range(3) for k, e in (("a", ()), ("b", ("end",)))},
        **{f"cross{n}/{part}": (2, 4) for n in range(2) for part in ATTENTION[:3]},
        **{f"cross{n}/attention_output": (2, 4, "end") for n in range(2)},
    },
}


@pytest.mark.parametrize("name", BRANCHES)
def test_residual_branches(name):
    keras.utils.clear_session(free_memory=False)
    assert branches(getattr(models, name)()) == BRANCHES[name]


def test_kernels_outside_of_branches_know_how_many_additions_there_are():
    kernels = contexts(models.encoder_and_decoder())
    assert kernels["top/kernel"].branches == 3
    assert kernels["top/kernel"].branch_size == 0


ROLES = {
    "raw_sum": {"top": "head"},
    "add_layer": {"top": "head"},
    "u_net": {"out": "head"},
    "post_normalization": {},
    "backbone": {},
    "swiglu": {"top": "head"},
    "routed": {"top": "head"},
    "recurrent": {
        "lstm/lstm_cell/recurrent": "recurrent",
        "both/forward_gru/gru_cell/recurrent": "recurrent",
        "both/backward_gru/gru_cell/recurrent": "recurrent",
        "top": "head",
    },
}


@pytest.mark.parametrize("name", ROLES)
def test_heads_and_recurrent_kernels(name):
    keras.utils.clear_session(free_memory=False)
    roles = {
        path.removesuffix("_kernel").removesuffix("/kernel"): c.role
        for path, c in kv.analyze(getattr(models, name)()).contexts.items()
        if c.role != "kernel"
    }
    assert roles == ROLES[name]


def test_layer_scale_behind_the_end_of_a_branch():
    kernels = contexts(models.layer_scale())
    scaled = {path.removesuffix("/kernel") for path, c in kernels.items() if c.layer_scale}
    assert scaled == {"b", "b/bias", "f", "f/bias"}
    assert kernels["b/kernel"].branch_end
    assert kernels["d/kernel"].branch_end  # times a number that is not trained


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("u_net", True),
        ("backbone", False),  # without a head, a map is what another model reads
        ("recurrent", False),
        ("tokens_and_positions", True),
        ("one_by_one_and_pooling", False),
        ("two_outputs", True),
    ],
)
def test_models_that_predict_densely(name, expected):
    keras.utils.clear_session(free_memory=False)
    found = kv.analyze(getattr(models, name)())
    kernels = {context.dense_prediction for context in found.contexts.values()}
    assert kernels == {expected}
    assert {context.dense_prediction for context in found.vectors.values()} <= {expected}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: x, True),
        (lambda x: keras.layers.Dropout(0.1)(keras.ops.tanh(x)), True),
        (keras.layers.BatchNormalization(), False),
        (lambda x: x + keras.layers.Dense(8)(x), False),
        (lambda x: keras.layers.GRU(8)(x[:, None]), False),
        (lambda x: keras.layers.Conv1D(8, 1)(x[:, None])[:, 0], False),
    ],
)
def test_models_of_dense_layers_alone(make, expected):
    inputs = keras.Input((8,))
    x = make(keras.layers.Dense(8, "relu")(inputs))
    found = kv.analyze(keras.Model(inputs, keras.layers.Dense(2)(x)))
    assert {context.plain_dense for context in found.contexts.values()} == {expected}


def test_embeddings_positions_and_tied_tables():
    roles = {path: c.role for path, c in contexts(models.tokens_and_positions()).items()}
    assert roles["words/embeddings"] == "embedding"
    assert roles["places/table/embeddings"] == "position"
    assert roles["top/kernel"] == "head"
    assert contexts(models.tied())["words/embeddings"].role == "embedding"


def of_attention(model):
    """The contexts of the four kernels of a model's only attention, by role."""
    kernels = kv.analyze(model).contexts.values()
    by_role = {c.role: c for c in kernels if c.role in ATTENTION}
    assert len({c.group for c in by_role.values()}) == 1
    return by_role


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_keras(causal):
    parts = of_attention(models.keras_attention(causal))
    assert tuple(parts) == ATTENTION
    for role, context in parts.items():
        assert context.path == f"att/{role}/kernel"
        assert (context.heads, context.kv_heads) == (4, 4)
        assert context.head_size == (4 if role in ("query", "key") else 3)
        assert context.causal is causal
        assert context.self_attention is True


def test_grouped_queries():
    parts = of_attention(models.grouped())
    assert {(c.heads, c.kv_heads, c.head_size) for c in parts.values()} == {(4, 2, 4)}


def test_cross_attention_is_not_self_attention():
    kernels = contexts(models.encoder_and_decoder())
    assert {kernels[f"cross0/{part}/kernel"].self_attention for part in ATTENTION} == {False}
    groups = {kernels[f"cross{n}/query/kernel"].group for n in range(2)}
    assert len(groups) == 2


@pytest.mark.parametrize("form", ["matmul", "einsum"])
@pytest.mark.parametrize("mask", [None, "add", "where"])
def test_attention_by_hand(form, mask):
    """Query and key meet before the softmax, the value behind it, whatever their order."""
    parts = of_attention(models.by_hand(form, mask))
    names = {role: context.path for role, context in parts.items()}
    assert names == {role: f"{role[0] if role[0] != 'a' else 'o'}/kernel" for role in ATTENTION}
    fields = {(c.heads, c.kv_heads, c.head_size, c.self_attention) for c in parts.values()}
    assert fields == {(4, 4, 4, True)}
    assert {c.causal for c in parts.values()} == {mask is not None}


def test_a_padding_mask_from_data_leaves_a_causal_one_causal():
    parts = of_attention(models.masked_by_data(causal=True))
    assert {c.causal for c in parts.values()} == {True}


def test_a_mask_that_is_an_input_is_not_causal_for_all_we_know():
    parts = of_attention(models.masked_by_data(causal=False))
    assert {c.causal for c in parts.values()} <= {None, False}


def test_a_fused_projection_is_an_ordinary_kernel():
    model = models.by_hand(fused=True)
    assert of_attention_is_empty(model)
    assert branches(model) == {"qkv": (1, 2), "o": (1, 2, "end")}


def of_attention_is_empty(model):
    return not any(c.role in ATTENTION for c in kv.analyze(model).contexts.values())


def test_no_product_of_signals_no_attention():
    assert of_attention_is_empty(models.routed())


def test_recurrent_layers_know_gates_and_steps():
    kernels = contexts(models.recurrent())
    for name in ("kernel", "recurrent_kernel", "bias"):
        context = kernels[f"lstm/lstm_cell/{name}"]
        assert (context.gates, context.steps) == (4, 7)
    assert kernels["both/forward_gru/gru_cell/bias"].gates == 3


def test_the_normalization_that_directly_follows():
    kernels = contexts(models.projection())
    assert kernels["b/kernel"].normalized == "BatchNormalization"
    assert kernels["shortcut/kernel"].normalized is None
    kernels = contexts(models.parallel_block())
    assert kernels["stem/kernel"].normalized is None  # the stream also goes on without it


def test_a_normalization_by_hand_counts_by_its_class():
    kernels = contexts(models.own_normalization())
    assert kernels["b/kernel"].normalized == "RootMeanSquareNorm"
    scale = next(c for c in kernels.values() if c.role == "scale")
    assert scale.branch_end
    assert scale.path.endswith("/scale")


FIELDS = ("depth", "fan_in", "fan_out", "kernel_shape", "branches", "branch_size", "branch_end")


def test_a_bias_has_the_fields_of_its_kernel():
    for model in (models.projection(), models.keras_attention(), models.recurrent()):
        every = contexts(model)
        biases = {path: c for path, c in every.items() if c.role == "bias"}
        assert len(biases) >= 3
        for path, bias in biases.items():
            kernel = every[path.replace("bias", "kernel")]
            assert [getattr(bias, f) for f in FIELDS] == [getattr(kernel, f) for f in FIELDS]
            assert bias.stream != kernel.stream


def test_the_scale_at_the_end_of_a_branch():
    ends = functools.reduce(
        dict.__or__,
        [
            {path: c.branch_end for path, c in contexts(build()).items() if c.role == "scale"}
            for build in (
                models.projection,
                models.pre_activation,
                models.post_normalization,
                models.squeeze_excite,
            )
        ],
    )
    assert {path for path, end in ends.items() if end} == {"end/gamma"}
    assert set(ends) >= {"pre0/gamma", "mid0/gamma", "post0/gamma", "last/gamma"}


def test_roles_of_a_layer_that_cannot_be_opened_follow_from_its_class():
    class Closed(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.attention = keras.layers.MultiHeadAttention(2, 4)

        def build(self, shape):
            self.attention.build(shape, shape)

        def call(self, x):
            if len(x.shape) and not isinstance(x, keras.KerasTensor):
                return self.attention(x, x)
            raise ValueError("not on symbols")

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    i = keras.Input((5, 8))
    analysis = kv.analyze(keras.Model(i, keras.layers.Dense(2)(Closed()(i))))
    roles = {c.role: (c.heads, c.head_size, c.causal) for c in analysis.contexts.values()}
    assert {role: roles[role] for role in ATTENTION} == dict.fromkeys(ATTENTION, (2, 4, None))
