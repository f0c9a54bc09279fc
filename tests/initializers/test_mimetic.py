"""`Mimetic`: products of two kernels, against singular value decompositions of their own."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit.initializers.draws import as_array, independent
from keras_varinit.initializers.streams import stream_key

WRAPPERS = (kv.Enhanced, kv.DepthScaled, kv.ResidualScaled, kv.PartialIdentity, kv.Mimetic)

KERNELS = ("query", "key", "value", "attention_output")


def contexts(d, heads, size, *, kv_heads=None, value_size=None, flat=False, **fields):
    """The contexts of the four kernels of an attention in Keras's layout, or `flat` in Dense's."""
    kv_heads, value_size = kv_heads or heads, value_size or size
    by_role = {}
    for role in KERNELS:
        count = heads if role in ("query", "attention_output") else kv_heads
        of_head = size if role in ("query", "key") else value_size
        block = (count * of_head,) if flat else (count, of_head)
        last = role == "attention_output"
        shape = (*block, d) if last else (d, *block)
        by_role[role] = kv.LayerContext(
            **{
                "path": f"mha/{role}/kernel",
                "layer": role,
                "stream": f"mha/{role}/kernel",
                "kernel_shape": shape,
                "depth": 1,
                "total_depth": 2,
                "fan_in": math.prod(block) if last else d,
                "fan_out": d if last else math.prod(block),
                "filter_axes": (len(shape) - 1,) if last else tuple(range(1, len(shape))),
                "role": role,
                "heads": heads,
                "kv_heads": kv_heads,
                "head_size": of_head,
                "causal": False,
                "self_attention": True,
                "group": "mha#0",
                **fields,
            }
        )
    return by_role


def kernel(context, seed=3, **arguments):
    initializer = kv.Mimetic(seed=seed, context=context, **arguments)
    return keras.ops.convert_to_numpy(initializer(context.kernel_shape, dtype="float32"))


def drawn(*sizes, **fields):
    return {role: kernel(c).astype(np.float64) for role, c in contexts(*sizes, **fields).items()}


def noise(d, name, seed=3, group="mha#0"):
    """Z as documented: from the stream of seed, group and name."""
    key = stream_key(0, f"{seed}|{group}|{name}")
    return as_array(independent(key, (d, d), "normal")).astype(np.float64) / math.sqrt(d)


def best_of_rank(matrix, rank):
    left, values, right = np.linalg.svd(matrix)
    return left[:, :rank] * values[:rank] @ right[:rank]


@pytest.mark.parametrize(("d", "heads", "size"), [(32, 4, 8), (24, 3, 5), (16, 5, 4), (9, 2, 9)])
def test_query_and_key_of_each_head_are_the_best_approximation_of_their_rank(d, heads, size):
    kernels = drawn(d, heads, size)
    for head in range(heads):
        target = 0.7 * noise(d, f"qk|{head}") + 0.7 * np.eye(d)
        product = kernels["query"][:, head] @ kernels["key"][:, head].T
        # Entries are rounded to float32 once each.
        np.testing.assert_allclose(product, best_of_rank(target, size), atol=1e-5)


@pytest.mark.parametrize(("d", "heads", "size"), [(32, 4, 8), (24, 3, 5), (16, 5, 4)])
def test_value_and_output_together_are_the_best_approximation_of_their_rank(d, heads, size):
    kernels = drawn(d, heads, size)
    target = 0.4 * noise(d, "vo") - 0.4 * np.eye(d)
    product = np.einsum("dhv,hve->de", kernels["value"], kernels["attention_output"])
    np.testing.assert_allclose(product, best_of_rank(target, heads * size), atol=1e-5)


@pytest.mark.parametrize(("d", "heads", "size"), [(6, 2, 10), (5, 3, 4), (1, 1, 3)])
def test_more_columns_than_channels_have_the_whole_target_and_none_of_them_is_dead(d, heads, size):
    kernels = drawn(d, heads, size)
    for head in range(heads):
        product = kernels["query"][:, head] @ kernels["key"][:, head].T
        target = 0.7 * noise(d, f"qk|{head}") + 0.7 * np.eye(d)
        np.testing.assert_allclose(product, best_of_rank(target, size), atol=1e-5)
    product = np.einsum("dhv,hve->de", kernels["value"], kernels["attention_output"])
    np.testing.assert_allclose(product, 0.4 * noise(d, "vo") - 0.4 * np.eye(d), atol=1e-5)
    for role, values in kernels.items():
        matrix = values.reshape(-1, d).T if role == "attention_output" else values.reshape(d, -1)
        assert np.all(np.linalg.norm(matrix, axis=0) > 1e-3), role


def test_factors_of_a_pair_have_columns_of_equal_length():
    kernels = drawn(24, 3, 8)
    for one, two in (("query", "key"), ("value", "attention_output")):
        left = np.linalg.norm(kernels[one].reshape(24, -1), axis=0)
        other = kernels[two]
        matrix = other.reshape(-1, 24).T if two == "attention_output" else other.reshape(24, -1)
        np.testing.assert_allclose(left, np.linalg.norm(matrix, axis=0), rtol=1e-5)


def test_queries_that_share_a_key_have_the_least_squares_solution():
    d, heads, groups, size = 20, 6, 2, 5
    kernels = drawn(d, heads, size, kv_heads=groups)
    assert kernels["key"].shape == kernels["value"].shape == (d, groups, size)
    for head in range(heads):
        target = 0.7 * noise(d, f"qk|{head}") + 0.7 * np.eye(d)
        key = kernels["key"][:, head // 3]
        expected = np.linalg.lstsq(key, target.T, rcond=None)[0].T
        np.testing.assert_allclose(kernels["query"][:, head], expected, atol=2e-5)
    first = kernels["query"][:, 3] @ kernels["key"][:, 1].T
    target = 0.7 * noise(d, "qk|3") + 0.7 * np.eye(d)
    np.testing.assert_allclose(first, best_of_rank(target, size), atol=1e-5)


def test_heads_that_share_values_sum_to_the_target():
    d, heads, groups, size = 20, 6, 2, 5
    kernels = drawn(d, heads, size, kv_heads=groups)
    values = np.repeat(kernels["value"], 3, axis=1)  # as Keras repeats them for its query heads
    product = np.einsum("dhv,hve->de", values, kernels["attention_output"])
    target = 0.4 * noise(d, "vo") - 0.4 * np.eye(d)
    np.testing.assert_allclose(product, best_of_rank(target, groups * size), atol=1e-5)


def test_products_have_the_moments_of_the_law_whatever_the_stream():
    d, heads = 48, 8
    kernels = drawn(d, heads, d)
    products = np.einsum("dhk,ehk->hde", kernels["query"], kernels["key"])
    diagonal = np.eye(d, dtype=bool)
    for scale, shift, entries in [
        (0.7, 0.7, products),
        (0.4, -0.4, np.einsum("dhv,hve->de", kernels["value"], kernels["attention_output"])[None]),
    ]:
        on, off = entries[:, diagonal].ravel(), entries[:, ~diagonal].ravel()
        sigma = scale / math.sqrt(d)
        # Five standard errors of a mean, and of a variance of normal entries.
        assert abs(on.mean() - shift) < 5 * sigma / math.sqrt(on.size)
        assert abs(off.mean()) < 5 * sigma / math.sqrt(off.size)
        assert abs(off.var() / sigma**2 - 1) < 5 * math.sqrt(2 / off.size)


def test_layouts_are_the_same_matrices():
    keras_layout, dense = drawn(12, 3, 4), drawn(12, 3, 4, flat=True)
    for role in KERNELS:
        np.testing.assert_array_equal(keras_layout[role].ravel(), dense[role].ravel())
    query = contexts(12, 3, 4)["query"]
    moved = {"kernel_shape": (3, 12, 4), "filter_axes": (0, 2)}
    turned = kernel(dataclasses.replace(query, **moved))
    np.testing.assert_array_equal(turned.transpose(1, 0, 2), keras_layout["query"])


def test_any_kernel_alone_is_the_one_drawn_with_the_others():
    forward = drawn(12, 3, 4)
    places = contexts(12, 3, 4)
    for role in reversed(KERNELS):
        np.testing.assert_array_equal(kernel(places[role]), forward[role])
        np.testing.assert_array_equal(kernel(places[role]), forward[role])
    for role in ("value", "query", "attention_output", "key"):
        np.testing.assert_array_equal(kernel(places[role]), forward[role])


def test_draws_are_not_shared_with_what_was_returned():
    places = contexts(12, 3, 4)
    first = kv.Mimetic(seed=3, context=places["query"])(places["query"].kernel_shape)
    expected = np.array(keras.ops.convert_to_numpy(first))
    if keras.backend.backend() == "torch":
        first.zero_()
    np.testing.assert_array_equal(kernel(places["query"]), expected)


def test_seeds_groups_and_heads_tell_draws_apart():
    query = contexts(12, 3, 4)["query"]
    base = kernel(query)
    assert not np.any(kernel(query, seed=4) == base)
    other = kernel(contexts(12, 3, 4, group="mha#1")["query"])
    assert not np.any(other == base)
    assert not np.any(base[:, 0] == base[:, 1])


BASE_DRAWS = {
    "causal": {"causal": True},
    "unknown mask": {"causal": None},
    "cross-attention": {"self_attention": False},
    "not known to be self-attention": {"self_attention": None},
    "no group": {"group": None},
    "heads unknown": {"heads": None},
    "another role": {"role": "kernel"},
    "heads that do not divide": {"kv_heads": 2},
    "sizes that do not fit": {"head_size": 5},
}


@pytest.mark.parametrize("case", BASE_DRAWS)
def test_everything_else_is_drawn_by_the_base(case):
    context = dataclasses.replace(contexts(24, 3, 8)["query"], **BASE_DRAWS[case])
    initializer = kv.Mimetic("he_normal", seed=3, context=context)
    assert initializer.is_independent
    assert not initializer.shares_group
    assert initializer.stddev(context.kernel_shape) == pytest.approx(math.sqrt(2 / 24))
    values = kernel(context, initializer="he_normal")
    # Five standard errors of the standard deviation of a truncated normal (less than a normal's).
    assert abs(values.std() / math.sqrt(2 / 24) - 1) < 5 / math.sqrt(2 * values.size)
    ours = kernel(context, initializer=kv.ASVForward())
    assert abs(ours.std() / math.sqrt(1 / 24) - 1) < 5 / math.sqrt(2 * values.size)


def test_without_context_it_is_the_base_bit_for_bit():
    ours, base = kv.Mimetic(seed=7), keras.initializers.GlorotUniform(seed=7)
    values = [keras.ops.convert_to_numpy(each((6, 4))) for each in (ours, base)]
    np.testing.assert_array_equal(*values)
    assert ours.is_independent


SIZES = {
    "as usual": ((192, 6, 32), {}),
    "few channels": ((192, 2, 200), {}),
    "grouped": ((192, 6, 16), {"kv_heads": 2}),
    "values of another size": ((192, 3, 32), {"value_size": 80}),
}


@pytest.mark.parametrize("role", KERNELS)
@pytest.mark.parametrize("case", SIZES)
def test_stated_deviation_is_the_mean_square_of_the_draws(case, role):
    sizes, fields = SIZES[case]
    context = contexts(*sizes, **fields)[role]
    stated = kv.Mimetic(context=context).stddev(context.kernel_shape)
    squares = [np.mean(np.square(kernel(context, seed=seed))) for seed in range(4)]
    error = np.std(squares, ddof=1) / 2
    # Six standard errors (of four seeds), and the error of the limit of many channels: 2/d.
    assert abs(np.mean(squares) - stated**2) < 6 * error + 2 / 192 * stated**2


def test_configurations_redraw_the_same_kernels():
    for role, context in contexts(12, 3, 4).items():
        initializer = kv.Mimetic("he_normal", seed=5, context=context)
        config = json.loads(json.dumps(initializer.get_config()))
        twin = kv.Mimetic.from_config(config)
        assert twin.get_config() == initializer.get_config()
        values = [keras.ops.convert_to_numpy(i(context.kernel_shape)) for i in (initializer, twin)]
        np.testing.assert_array_equal(*values, err_msg=role)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_refuse_it_with_a_reason(wrapper):
    with pytest.raises(ValueError, match=r"Mimetic\(.*it draws two kernels together"):
        wrapper("mimetic")


@pytest.mark.parametrize("role", KERNELS)
def test_half_precision_is_cast_last(role):
    context = contexts(12, 3, 4)[role]
    full = kernel(context)
    half = kv.Mimetic(seed=3, context=context)(context.kernel_shape, dtype="float16")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(half), full.astype("float16"))
