"""Attention written by hand, of matmul, einsum, softmax and masks; softmax elsewhere."""

import math

import numpy as np
from keras import ops

from tests.families.rule_cases.attention import NARROW, TOKENS, normal
from tests.families.rule_cases.case import Allowance, Case, L, dense, tokens, vector

HEADS, SIZE = 4, 16
SLOPES = Allowance(0.03, 0.06, "E (Σ A²)² varies from draw to draw at finite width")


def heads(x, count=HEADS, **options):
    """(batch, positions, heads, size) by one kernel."""
    options = {"kernel_initializer": normal(), **options}
    return L.EinsumDense("abc,cde->abde", (x.shape[1], count, SIZE), **options)(x)


def split(x, count=HEADS):
    """(batch, heads, positions, size) by a dense layer, a reshape and a transposition."""
    length = x.shape[1]
    x = ops.reshape(dense(count * SIZE, kernel_initializer=normal())(x), (-1, length, count, SIZE))
    return ops.transpose(x, (0, 2, 1, 3))


def merge(x):
    """The heads side by side again."""
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (-1, x.shape[1], HEADS * SIZE))


def by_matmul(u, hide=None, softmax=ops.softmax, drop=None):
    """Dense layers, transpositions and matmul, as in many tutorials."""
    q, k, v = split(u), split(u), split(u)
    logits = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / math.sqrt(SIZE)
    logits = hide(logits) if hide else logits
    weights = softmax(logits)
    weights = drop(weights) if drop else weights
    return dense()(merge(ops.matmul(weights, v)))


def by_einsum(u, hide=None):
    """EinsumDense heads and einsum, as in KerasHub."""
    q, k, v = heads(u), heads(u), heads(u)
    logits = ops.einsum("bquh,bkuh->buqk", q * SIZE**-0.5, k)
    logits = hide(logits) if hide else logits
    mixed = ops.einsum("buqk,bkuh->bquh", L.Softmax()(logits), v)
    return after_heads(mixed)


def one_head(u):
    q, k = (dense(32, kernel_initializer=normal())(u) for _ in range(2))
    logits = ops.matmul(q, ops.swapaxes(k, 1, 2)) * 32**-0.5
    return dense()(ops.matmul(ops.softmax(logits, axis=-1), dense(96)(u)))


def rotated(x):
    """Rotary positions: pairs of entries turned by an angle that grows with the position."""
    length, size = x.shape[1], x.shape[-1]
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(size // 2) / (size // 2)))
    cos, sin = (np.tile(f(angles), 2)[:, None].astype("float32") for f in (np.cos, np.sin))
    first, second = ops.split(x, 2, axis=-1)
    return x * cos + ops.concatenate([-second, first], axis=-1) * sin


def like_llama(u, groups=2):
    """Grouped keys and values, repeated for the heads of queries; rotary positions; causal."""
    q, k, v = heads(u), heads(u, count=groups), heads(u, count=groups)
    q, k = rotated(q), rotated(k)
    k, v = (ops.repeat(x, HEADS // groups, axis=2) for x in (k, v))
    logits = ops.einsum("bquh,bkuh->buqk", q, k) * SIZE**-0.5
    weights = L.Softmax()(logits, mask=causal()[None, None])
    return after_heads(ops.einsum("buqk,bkuh->bquh", weights, v))


def grouped_by_einsum(u, groups=2):
    """Heads of queries in groups, each of which reads one head of keys and values."""
    q = ops.reshape(heads(u), (-1, 10, groups, HEADS // groups, SIZE))
    k, v = heads(u, count=groups), heads(u, count=groups)
    weights = ops.softmax(ops.einsum("bqvgh,bkvh->bvgqk", q, k) * SIZE**-0.5)
    mixed = ops.einsum("bvgqk,bkvh->bqvgh", weights, v)
    return after_heads(ops.reshape(mixed, (-1, 10, HEADS, SIZE)))


def causal(length=10):
    return np.tril(np.ones((length, length), bool))


def fused(u, **options):
    return ops.dot_product_attention(heads(u), heads(u), heads(u), **options)


def after_heads(mixed):
    return L.EinsumDense("abcd,cde->abe", (10, 96), kernel_initializer=normal(64))(mixed)


def keys_first(u, other):
    """As Keras's own layers write it; what reads the source is narrow."""
    q = ops.reshape(u, (-1, 10, HEADS, SIZE))
    source = dense(64)(other)
    k, v = (heads(source, kernel_initializer=normal(128)) for _ in range(2))
    logits = ops.einsum("aecd,abcd->acbe", k, q * SIZE**-0.5)
    return after_heads(ops.einsum("acbe,aecd->abcd", ops.softmax(logits), v))


def of_narrow_tokens(u, other):
    """The same by one operation."""
    q = ops.reshape(u, (-1, 10, HEADS, SIZE))
    source = dense(64)(other)
    k, v = (heads(source, kernel_initializer=normal(128)) for _ in range(2))
    return after_heads(ops.dot_product_attention(q, k, v))


def queries(x):
    return dense(HEADS * SIZE, kernel_initializer=normal(128))(x)


CASES = (
    Case(("Einsum", "Softmax"), queries, keys_first, [TOKENS, TOKENS], NARROW, "keys first"),
    Case("DotProductAttention", queries, of_narrow_tokens, [TOKENS, TOKENS], NARROW, "narrow"),
    Case(("Matmul", "Softmax"), tokens, by_matmul, TOKENS, NARROW, "by matmul"),
    Case(("Einsum", L.Softmax), tokens, by_einsum, TOKENS, NARROW, "by einsum"),
    Case(("Matmul", "Softmax"), tokens, one_head, TOKENS, NARROW, "one head"),
    Case(
        ("Matmul", "Softmax"),
        tokens,
        lambda u: by_matmul(u, lambda x: x + np.where(causal(), 0.0, -1e9).astype("float32")),
        TOKENS,
        NARROW,
        "causal, added",
    ),
    Case(
        ("Matmul", "Softmax"),
        tokens,
        lambda u: by_matmul(u, lambda x: ops.where(causal(), x, -1e9)),
        TOKENS,
        NARROW,
        "causal, by where",
    ),
    Case(
        ("Matmul", L.Softmax),
        tokens,
        lambda u: by_matmul(u, None, lambda x: L.Softmax()(x, mask=causal())),
        TOKENS,
        NARROW,
        "causal, by the layer",
    ),
    Case(
        ("Matmul", "Softmax"),
        tokens,
        lambda u: by_matmul(u, drop=L.Dropout(0.3)),
        TOKENS,
        NARROW,
        "dropout",
    ),
    Case("DotProductAttention", tokens, lambda u: after_heads(fused(u)), TOKENS, NARROW, "plain"),
    Case(
        "DotProductAttention",
        tokens,
        lambda u: after_heads(fused(u, is_causal=True)),
        TOKENS,
        NARROW,
        "causal",
    ),
    Case(
        "DotProductAttention",
        tokens,
        lambda u: after_heads(fused(u, mask=causal()[None, None], scale=0.4)),
        TOKENS,
        NARROW,
        "mask and scale",
    ),
    Case(("Einsum", L.Softmax), tokens, like_llama, TOKENS, NARROW, "like Llama"),
    Case(
        ("Einsum", L.Softmax),
        lambda x: dense(96)(L.ReLU()(tokens(x))),
        like_llama,
        TOKENS,
        NARROW,
        "like Llama, tokens alike",
    ),
    Case(("Einsum", "Softmax"), tokens, grouped_by_einsum, TOKENS, NARROW, "grouped"),
    Case(
        L.Dot,
        vector,
        lambda u, other: dense()(L.Dot(axes=-1)([dense(64)(u), dense(64)(other)])),
        [(256,), (256,)],
        Allowance(0.03, 0.05, "products have heavy tails"),
        "two vectors",
    ),
    Case("Softmax", vector, lambda u: dense()(ops.softmax(u)), (256,), SLOPES, "features"),
    Case(
        L.Softmax,
        tokens,
        lambda u: dense()(L.Softmax()(dense(24)(u))),
        TOKENS,
        SLOPES,
        "features at positions",
    ),
    Case(
        L.Dense,
        vector,
        lambda u: dense()(dense(64, activation="softmax")(u)),
        (256,),
        SLOPES,
        "softmax inside",
    ),
    Case(
        L.Activation,
        vector,
        lambda u: dense()(L.Activation("softmax")(dense(64)(u))),
        (256,),
        SLOPES,
        "softmax inside",
    ),
)
